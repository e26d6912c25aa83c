"""Attended: a topic of the bus that this process hears, and how it gets what it has missed of it.

Knows a Bus and the hub; knows of a room its log and whether anybody is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from ..deadlines import Deadline
from .bus import Away, Bus, Page, Refused
from .envelope import Message
from .follower import Follower, Heard
from .log import UNKNOWN, Position, parse_position
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
        self.ahead: dict[int, Outgoing] = {}  # what members here heard before the bus had it, by its number
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

    @property
    def is_ahead(self) -> bool:
        """Whether members here have heard what who comes now cannot get, as it has no place in history yet."""
        while self.ahead:
            number = next(iter(self.ahead))
            if not isinstance(self.ahead[number].outcome, Refused):
                return True
            del self.ahead[number]  # it will have none
        return False

    def begin_history(self, first: Position) -> None:
        """Have the room's history begin behind a position."""
        # What the bus has taken by now is in its history, or was lost with it.
        self.ahead = {number: outgoing for number, outgoing in self.ahead.items() if outgoing.outcome is None}
        if self.room is not None:
            self.room.lane.log.forget(first)


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
            attended.deadline.set(monotonic())  # by now everybody may have left

    def _mend(self, attended: Attended) -> None:
        follower = attended.follower
        known, lost = follower.position, follower.lost
        if known:
            page = self._bus.history(attended.topic, known)
            is_whole = not page.is_proven
            has_gap = is_whole
            if is_whole:
                page = self._bus.whole(attended.topic)
            self._health.caught_up += len(page.messages)
        else:
            page = self._bus.whole(attended.topic)
            is_whole = True
            has_gap = attended.has_members()  # who came while the bus was away
        heard, _ = follower.mend(page.messages, page.newest)
        if not known:  # what was said before anybody was here is for history alone
            read = len(page.messages)
            heard[:read] = [each._replace(is_new=False) for each in heard[:read]]
        has_lost = follower.lost > lost
        if has_gap or has_lost:
            follower.doubt()  # what is said meanwhile comes behind what was read
            self._report_gap(attended)
        first = _first_of(page)
        if is_whole:
            attended.begin_history(first)
        self._deliver(attended, heard)
        if has_lost or (known and first < (parse_position(known) or UNKNOWN)):
            # The bus has lost what it had: of nothing before this can anybody say that it is complete.
            attended.begin_history(parse_position(page.newest) or UNKNOWN)
        attended.ready.set()


def _first_of(page: Page) -> Position:
    """Return the position behind which the page has everything."""
    return parse_position(page.messages[0].before if page.messages else page.newest) or UNKNOWN
