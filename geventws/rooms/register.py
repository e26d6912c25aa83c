"""Register: the members of a process as a bus lists them, so that all others see who is in a room.

Knows a Bus and the hub; knows no room. What is to be there is kept here: a bus that was away or emptied gets it again.
"""

from __future__ import annotations

import logging
from typing import Any

import gevent
from gevent.event import Event

from .bus import Away, Bus, Change, Refused
from .publisher import Attempts, Health

log = logging.getLogger("geventws")

MOST = 100  # changes of one script


class Row:
    """A member, and what its place on the bus is to be."""

    __slots__ = ("change", "control", "done", "is_entered", "newest")

    def __init__(self, change: Change) -> None:
        self.change = change
        self.is_entered = False
        self.control = self.newest = ""  # positions of the control topic and of the room when it was entered
        self.done = Event()


class Register:
    """Has a bus list the members of a process."""

    def __init__(self, bus: Bus, process: str, health: Health) -> None:
        self.rows: dict[str, Row] = {}  # by the members' ids
        self._bus = bus
        self._process = process
        self._health = health
        self._dirty: dict[str, Row] = {}
        self._doubt: object | None = None  # whether the bus has what it was told
        self._greenlet: Any = None

    def enter(self, topic: str, id: str, user: str | None, value: bytes) -> Row:
        """Have a member listed, and return what tells when it is."""
        row = self.rows[id] = Row(Change(topic, "enter", id, user, value))
        self._mark(row)
        return row

    def linger(self, id: str, value: bytes) -> None:
        """Have a member listed as one that has left, but may come back."""
        self._change(id, "linger", value)

    def leave(self, id: str) -> None:
        """Have a member listed no more."""
        self._change(id, "leave", None)

    def forget(self, topic: str) -> None:
        """Have the process listed no more as one that has members in a room."""
        row = Row(Change(topic, "forget", topic, None, b""))
        self._dirty[topic] = row
        self._wake()

    def doubt(self) -> None:
        """Compare what the bus lists with what is to be there, as it may have lost some of it."""
        self._doubt = object()
        self._wake()

    def _change(self, id: str, action: str, value: bytes | None) -> None:
        row = self.rows.get(id)
        if row is None:
            return
        row.change = row.change._replace(action=action, value=row.change.value if value is None else value)
        if action == "leave":
            del self.rows[id]
            if not row.is_entered and self._dirty.get(id) is row and not self._is_busy:
                del self._dirty[id]
                return
        self._mark(row)

    @property
    def _is_busy(self) -> bool:
        return self._greenlet is not None and not self._greenlet.dead

    def _mark(self, row: Row) -> None:
        self._dirty[row.change.id] = row
        self._wake()

    def _wake(self) -> None:
        if not self._is_busy:
            self._greenlet = gevent.spawn_raw(self._run)

    def close(self) -> None:
        """Change nothing more."""
        self._dirty.clear()
        self._doubt = None

    def _run(self) -> None:
        attempts = Attempts(self._health, self)
        while self._dirty or self._doubt:
            attempts.begin()
            try:
                if self._doubt:
                    self._compare()
                else:
                    self._tell()
            except Away as exc:
                attempts.fail(exc)
            else:
                attempts.succeed()

    def _compare(self) -> None:
        """Mark what the bus does not list and should, and what it lists and should not."""
        doubt = self._doubt
        try:
            listed = self._bus.listed(self._process)
        except Refused as exc:
            self._health.refuse(exc)
            listed = {}
        if self._doubt is not doubt:
            return  # it came up again meanwhile
        self._doubt = None
        there = {id: topic for topic, ids in listed.items() for id in ids}
        for id, row in self.rows.items():
            if id not in there:
                self._mark(row)
        for id, topic in there.items():
            if id not in self.rows:
                self._mark(Row(Change(topic, "leave", id, None, b"")))

    def _tell(self) -> None:
        rows = list(self._dirty.values())[:MOST]
        changes = [row.change for row in rows]
        try:
            control, newest = self._bus.change(self._process, changes)
        except Away:
            raise
        except Refused as exc:
            control, newest = "", [exc] * len(rows)
        except Exception as exc:
            log.exception("who is in rooms was not told")
            control, newest = "", [Refused(str(exc))] * len(rows)
        for row, change, position in zip(rows, changes, newest, strict=True):
            if isinstance(position, Refused):
                self._health.refuse(position)
                position = ""
            if row.change is change and self._dirty.get(change.id) is row:
                del self._dirty[change.id]
            if not row.is_entered:
                row.is_entered = True
                row.control, row.newest = control, position
                row.done.set()
