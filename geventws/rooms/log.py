"""The messages of one room in one process: those that members are still to get, and those that are history.

Pure. Knows positions and bounds; knows no socket, greenlet or clock.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from ..fast import BatchFields
from ..message import Joined, Prepared, Sendable

# Bytes that leave in one write. Measured: 0.5 µs for each of many messages of 200 bytes, 9 for one that leaves alone.
BATCH = 16_384
ENTRY_WEIGHT = 512  # bytes of memory that an entry takes beside its message

LARGEST = (1 << 64) - 1  # number in a position

_position = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")


class Position(NamedTuple):
    """Where a message stands in its room: milliseconds since the epoch, and a number that tells equal ones apart."""

    milliseconds: int
    number: int

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.number}"


NOWHERE = Position(0, 0)  # of a message that is not kept
UNKNOWN = Position(-1, -1)  # one that no client can name


def parse_position(text: object) -> Position | None:
    """Return the position that a client's text names, None for anything else."""
    match = _position.fullmatch(text) if isinstance(text, str) else None
    position = Position(int(match[1]), int(match[2])) if match else UNKNOWN
    return position if 0 <= max(position) <= LARGEST else None


class Limits(NamedTuple):
    """What a room keeps."""

    messages: int
    seconds: float
    size: int  # bytes


class Entry:
    """A message on its way to members, and to history if it has a position."""

    __slots__ = ("excluded", "is_silent", "number", "position", "prepared", "weight")

    def __init__(
        self,
        message: Sendable,
        position: Position = NOWHERE,
        excluded: Collection[str] = frozenset(),
        *,
        is_silent: bool = False,
    ) -> None:
        self.prepared = Prepared(message)
        self.position = position
        self.excluded = excluded  # ids of the members that do not get it
        self.is_silent = is_silent  # who is here has it already: it is for history alone
        self.weight = self.prepared.size + ENTRY_WEIGHT  # bytes
        self.number = -1  # entries before it, once it is in a log


class Batch(BatchFields):
    """What a member that has all before one number gets next, in one write, and the number of the entry behind it."""

    __slots__ = ("entries",)

    def __init__(
        self,
        entries: Sequence[Entry],
        start: int,
        stop: int,
        size: int,
        excluded: Collection[str],
        prepared: Prepared,
    ) -> None:
        self.entries = entries
        self.start = start
        self.stop = stop
        self.count = len(entries)  # messages
        self.size = size  # bytes
        self.excluded = excluded  # ids of the members that do not get all of it
        self.prepared = prepared

    def without(self, member: str) -> Batch:
        """Return what this member gets of it."""
        if member not in self.excluded:
            return self
        return _joined([entry for entry in self.entries if member not in entry.excluded], self.start, self.stop)


class Log:
    """Entries in the order of their numbers, in two bounded queues.

    The lane has what members are still to be offered, and the newest `limits.size` bytes for those who are slow.
    History has what was kept, within all three limits.
    """

    __slots__ = (
        "_batch",
        "_history",
        "_history_size",
        "_lane",
        "_lane_size",
        "_limits",
        "end",
        "forgotten",
        "offered",
        "start",
        "waiting",
    )

    def __init__(self, limits: Limits, start: Position) -> None:
        self._limits = limits
        self._lane: deque[Entry] = deque()
        self._lane_size = 0  # bytes
        self._history: deque[Entry] = deque()
        self._history_size = 0  # bytes
        self._batch: tuple[int, int, Batch] | None = None
        self.start = start  # position behind which history is complete
        self.forgotten = 0  # number behind the newest entry that history has lost
        self.end = 0  # number behind the newest entry
        self.offered = 0  # number behind the entries for which each member had its turn
        self.waiting = 0  # bytes of the entries from there on

    @property
    def position(self) -> Position:
        """Position of the newest message that was kept."""
        return self._history[-1].position if self._history else self.start

    def append(self, entry: Entry) -> None:
        """Take an entry behind all others."""
        entry.number = self.end
        self.end += 1
        self._lane.append(entry)
        self._lane_size += entry.weight
        self.waiting += entry.weight
        if entry.position is not NOWHERE:
            self._history.append(entry)
            self._history_size += entry.weight
            self.expire(entry.position.milliseconds)

    # The lane

    @property
    def first(self) -> int:
        """Number of the oldest entry in the lane."""
        return self.end - len(self._lane)

    def offer(self, stop: int) -> None:
        """Note that each member had its turn for all entries before this number."""
        if stop > self.offered:
            for entry in islice(self._lane, self.offered - self.first, stop - self.first):
                self.waiting -= entry.weight
            self.offered = stop

    def drop(self, *, keep: bool) -> None:
        """Drop what was offered from the lane, but for what slow members may be behind by if keep is true."""
        lane = self._lane
        while lane and lane[0].number < self.offered:
            if keep and (self._lane_size <= self._limits.size or len(lane) == 1):
                break
            entry = lane.popleft()
            self._lane_size -= entry.weight
            entry.prepared.forget_frames()  # history has the payload
        if not lane:
            self._batch = None

    def reaches(self, cursor: int, live: int) -> bool:
        """Whether all that a member needs is here: from `cursor` what was kept, and from `live` on everything."""
        return (cursor >= live or cursor >= self.forgotten) and max(cursor, live) >= self.first

    def batch(self, cursor: int, live: int) -> Batch | None:
        """Return what is next for a member that needs what reaches() says, None where some of that is not here."""
        if not self.reaches(cursor, live):
            return None
        if cursor < live:
            if missed := self.history(cursor, live):
                return _batch(missed, cursor, cursor)
            cursor = live
        if self._batch is None or self._batch[:2] != (cursor, self.end):  # most members want the same
            lane = islice(self._lane, cursor - self.first, None)
            self._batch = cursor, self.end, _batch((entry for entry in lane if not entry.is_silent), cursor, self.end)
        return self._batch[2]

    # History

    def expire(self, now: int) -> None:
        """Drop from history what is past its limits. now is milliseconds since the epoch."""
        history, limits = self._history, self._limits
        oldest = now - limits.seconds * 1000
        while history and (
            len(history) > limits.messages
            or self._history_size > limits.size
            or history[0].position.milliseconds <= oldest
        ):
            entry = history.popleft()
            self._history_size -= entry.weight
            self.start = entry.position
            self.forgotten = entry.number + 1

    def forget(self, start: Position) -> None:
        """Drop all of history: what comes now is complete behind the position start."""
        self._history.clear()
        self._history_size = 0
        self.start = start
        self.forgotten = self.end

    def after(self, since: Position) -> int | None:
        """Return the number from which a client goes on that has all up to since; None where that cannot be proven."""
        history = self._history
        if since == self.position:
            return self.end
        if since == self.start:
            return history[0].number
        index = bisect_left(history, since, key=_position_of)
        if index < len(history) and history[index].position == since:
            return history[index].number + 1
        return None

    def history(self, start: int = 0, stop: int | None = None) -> list[Entry]:
        """Return what was kept, from number start to the one before stop."""
        stop = self.end if stop is None else stop
        return [entry for entry in self._history if start <= entry.number < stop]


def _position_of(entry: Entry) -> Position:
    return entry.position


def _batch(entries: Iterable[Entry], cursor: int, end: int) -> Batch:
    """Return as many of the entries as leave in one write, one at least; where there is none, end is behind them."""
    taken: list[Entry] = []
    size = 0
    for entry in entries:
        size += entry.weight
        if taken and size > BATCH:
            break
        taken.append(entry)
    return _joined(taken, cursor, taken[-1].number + 1 if taken else end)


def _joined(entries: Sequence[Entry], start: int, stop: int) -> Batch:
    if len(entries) == 1:
        (entry,) = entries
        return Batch(entries, start, stop, entry.weight, entry.excluded, entry.prepared)
    excluded: set[str] = set().union(*(entry.excluded for entry in entries))
    prepared = Joined([entry.prepared for entry in entries])
    return Batch(entries, start, stop, sum(entry.weight for entry in entries), excluded, prepared)
