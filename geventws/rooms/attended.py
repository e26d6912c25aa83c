"""Attended: a topic of the bus that this process hears, and how it gets what it has missed of it.

Knows a Bus and the hub; knows of a room its log and whether anybody is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from ..deadlines import Deadline
from .bus import Away, Bus, Page, Refused
from .envelope import Message
from .follower import Follower, Heard
from .log import UNKNOWN, parse_position
from .publisher import Health, Outgoing

MENDS = 8  # topics that are read at the same time
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds between attempts


class Attended:
    """A room that has members in this process, or the control topic, which has none."""

    def __init__(
        self, topic: str, room: Any, kept: int, leave: Callable[[Attended], None], has_members: Callable[[], bool]
    ) -> None:
        self.topic = topic
        self.has_members = has_members  # whether anybody here would miss what is missing
        self.room = room
        self.follower = Follower(kept)
        self.ready = Event()  # it has what the bus has
        self.moved = Event()  # set, and replaced, by each message
        self.unheard: dict[int, Outgoing] = {}  # what this process said, and has not come back, by its number
        self.arriving: dict[str, list[Message]] = {}  # members that join, and what presence tells of them meanwhile
        self.is_mending = False
        self.is_heard = True  # until the process leaves the topic
        self.deadline = Deadline(lambda: leave(self))

    @property
    def is_needed(self) -> bool:
        """Whether anybody is there."""
        room = self.room
        return room is None or bool(self.arriving or room.lane.places or room.attendance.members())

    def note(self, outgoing: Outgoing) -> None:
        """Remember a message of this process until it comes back."""
        first = next(iter(self.unheard), None)
        if first is not None and isinstance(self.unheard[first].outcome, Refused):
            del self.unheard[first]  # it will not
        self.unheard[outgoing.number] = outgoing

    def begin_history(self, page: Page) -> None:
        """Have the room's history begin where that of the bus does."""
        if self.room is not None:
            first = page.messages[0].before if page.messages else page.newest
            self.room.lane.log.forget(parse_position(first) or UNKNOWN)


class Mender:
    """Reads what the topics of a process have missed, and tells where nobody can know what that is."""

    def __init__(
        self,
        bus: Bus,
        health: Health,
        deliver: Callable[[Attended, Iterable[Heard]], None],
        report_gap: Callable[[Attended], None],
    ) -> None:
        self._bus = bus
        self._health = health
        self._deliver = deliver
        self._report_gap = report_gap
        self._turns = BoundedSemaphore(MENDS)

    def soon(self, attended: Attended, heard: Event | None = None) -> None:
        """Begin to read, once the topic is heard; until it is whole, or nobody is there."""
        if not attended.is_mending:
            attended.is_mending = True
            gevent.spawn(self._run, attended, heard)

    def _run(self, attended: Attended, heard: Event | None) -> None:
        pause = FIRST_PAUSE
        try:
            if heard is not None:
                heard.wait()
            while attended.is_heard and not attended.follower.is_whole:
                try:
                    with self._turns:
                        self._mend(attended)
                except (Away, Refused) as exc:
                    if isinstance(exc, Refused):
                        self._health.refuse(exc)
                    gevent.sleep(pause)
                    pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            attended.is_mending = False

    def _mend(self, attended: Attended) -> None:
        follower = attended.follower
        lost = follower.lost
        if follower.position:
            page = self._bus.history(attended.topic, follower.position)
            has_gap = not page.is_proven
            if has_gap:
                page = self._bus.whole(attended.topic)
                attended.begin_history(page)
            self._take(attended, page)
            self._health.caught_up += len(page.messages)
        else:
            page = self._bus.whole(attended.topic)
            has_gap = attended.has_members()  # who came while the bus was away
            attended.begin_history(page)
            self._take(attended, page, is_first=True)
        if has_gap or follower.lost > lost:
            self._report_gap(attended)
        attended.ready.set()

    def _take(self, attended: Attended, page: Page, *, is_first: bool = False) -> None:
        heard, _ = attended.follower.mend(page.messages, page.newest)
        read = len(page.messages)
        if is_first:  # what was said before anybody was here is for history alone
            heard[:read] = [each._replace(is_new=False) for each in heard[:read]]
        self._deliver(attended, heard)
