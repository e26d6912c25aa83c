"""Home: what the rooms of one Rooms have in common in this process, and who cleans up behind them.

Knows the hub, other threads and forks, and the clock; knows rooms by what it does with them.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import gevent
from gevent import getcurrent, monkey

from .. import loglines
from ..deadlines import Deadline
from ..errors import CloseCode
from ..message import Prepared, Sendable
from ..threads import call, here
from ..websocket import WebSocket
from .address import VARIABLE, choose
from .envelope import Message
from .lane import TOO_SLOW, Counts, Lane
from .link import Link
from .log import Limits, Position
from .presence import Attendance, Present

log = logging.getLogger("geventws")

T = TypeVar("T")
Listener = Callable[[Any, str, Any], object]  # of a room, a user and their info

SEVERAL_WORKERS = (
    "several workers serve this app, and its rooms reach only the members on the same worker: "
    f"{VARIABLE}=redis://localhost joins them"
)

MOST_LOSSES = (
    10_000  # rooms whose losses are known one by one; past it a room that is new may have lost as much as they
)

_allocate_lock = monkey.get_original("_thread", "allocate_lock")


class Kept(Protocol):
    """What a home knows of a room."""

    name: str
    lane: Lane
    attendance: Attendance

    def begin(self) -> None:
        """Be empty."""

    def gone(self, present: Present) -> None:
        """Take note that a user has not come back."""


class Home:
    """What the rooms of one Rooms have in common in this process: hub, names, counts, listeners and cleaning."""

    def __init__(self, limits: Limits, slow: Literal["close", "skip"], linger: float) -> None:
        self.limits = limits
        self.linger = linger
        self.links: list[tuple[str, Link]] = []  # by the addresses of their buses
        self.on_join: list[Listener] = []
        self.on_leave: list[Listener] = []
        self.on_gap: list[Callable[[Any], object]] = []
        self.rooms: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self.slow: Literal["close", "skip"] = slow
        self.begin()
        _homes.add(self)

    def begin(self) -> None:
        """Forget all but settings and listeners, and which rooms there are."""
        # While there are no members, and so no hub that is theirs, one thread at a time. Who holds it never switches.
        self._lock = _allocate_lock()
        self._hub: Any = None  # of the members
        self.counts = Counts()
        self.people: dict[str, list[Any]] = {}  # the members that each user is, one for each socket and room
        self.views: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # greenlets to the members that joined there last
        self._kept: OrderedDict[str, Kept] = OrderedDict()  # rooms with history, the one that is quiet longest first
        self._lingering: deque[tuple[float, Kept, Present]] = deque()  # until when, by time.monotonic()
        self._cleaner: Deadline | None = None
        self._cleaner_hub: Any = None
        self._events: deque[Callable[[], object]] = deque()
        self._teller: Any = None
        self._has_warned = False
        self.process = secrets.token_hex(6)
        first = secrets.randbelow(1 << 32)  # so that no other process has the same positions
        self._numbers = itertools.count(first + 1)
        # A room that is new here can say that nothing is missing behind this, or behind what it has lost.
        self.start = Position(milliseconds(), first)
        self._lost: OrderedDict[str, Position] = OrderedDict()  # by names of rooms, the oldest first
        for _, link in self.links:
            link.begin()
        for room in list(self.rooms.values()):
            room.begin()

    def close(self) -> None:
        """Let go of all members, and begin anew."""
        for room in list(self.rooms.values()):
            room.lane.clear()
        if self._cleaner is not None:
            self._cleaner.cancel()
        for _, link in self.links:
            link.close()
        self.begin()

    # Other processes

    def link(self, topic: str) -> Link | None:
        """Return what joins a topic with other processes."""
        if len(self.links) < 2:
            return self.links[0][1] if self.links else None
        return choose(topic, self.links)

    def reach(self, function: Callable[..., T], *args: Any) -> T:
        """Run function, which may wait, on the hub of the members; where there are none, here."""
        self._outlive_hub()
        if self._hub is None or here.hub is self._hub:
            return function(*args)
        return call(self._hub, function, *args)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Have a view's own member hear nothing while the view asks the bus.

        So what it asks for just after joining, and sends in its welcome, leaves before what the member has missed.
        """
        member = self.views.get(getcurrent())
        if member is not None:
            member.hold()
        try:
            yield
        finally:
            if member is not None:
                member.wake()

    # Threads

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run function where no other thread runs one: on the members' hub, under the lock where there are none."""
        self._outlive_hub()
        if self._hub is None:
            with self._lock:
                if self._hub is None:
                    return function(*args)
        return function(*args) if here.hub is self._hub else call(self._hub, function, *args)

    def _outlive_hub(self) -> None:
        """Begin anew where the members' hub has ended, and they with it, as when the thread of a server has."""
        if self._hub is not None and self._hub.dead:
            self.begin()

    def settle(self, ws: WebSocket) -> None:
        """Live on the hub of a member. Raises RuntimeError where others live on another one."""
        self._outlive_hub()
        if self._hub is None:
            with self._lock:
                self._hub = ws.hub
            if self._cleaner_hub is not ws.hub:
                self._cleaner, self._cleaner_hub = Deadline(self.clean), ws.hub
                self._come_again()
        elif self._hub is not ws.hub:
            raise RuntimeError("the members of rooms live on one hub, and this WebSocket on another")

    def move_in(self, ws: WebSocket) -> None:
        """Count a member. Raises RuntimeError where others live on another hub."""
        self.settle(ws)
        self.counts.members += 1
        if ws.environ.get("wsgi.multiprocess") and not self._has_warned and not self.links:
            self._has_warned = True
            loglines.write(log, logging.WARNING, SEVERAL_WORKERS)

    def move_out(self) -> None:
        """Count a member less."""
        self.counts.members -= 1
        self._leave_hub()

    def _leave_hub(self) -> None:
        if not self.counts.members and not self._lingering and not any(link.span for _, link in self.links):
            self._hub = None

    # Names

    def name(self) -> str:
        """Return a name that nothing else has, in this or another process."""
        return f"{self.process}-{next(self._numbers)}"

    def position_behind(self, position: Position) -> Position:
        """Return the position of what is said now."""
        return Position(max(milliseconds(), position.milliseconds), next(self._numbers))

    def now(self) -> int:
        """Return the time in milliseconds since the epoch."""
        return milliseconds()

    def lane(self, name: str) -> Lane:
        """Return a new lane for the room of this name, which begins behind what that room has lost."""
        return Lane(self.limits, self._lost.get(name, self.start), self.counts, slow=self.slow)

    # Cleaning

    def keep(self, room: Kept) -> None:
        """Hold a room until nothing has been said in it for so long that its history is over."""
        self._kept[room.name] = room
        self._kept.move_to_end(room.name)
        self._expire()
        if self._cleaner is not None and here.hub is self._cleaner_hub and len(self._kept) == 1:
            self._come_again()

    def let_linger(self, room: Kept, present: Present) -> None:
        """Tell that a user has left, unless one comes back before."""
        self._lingering.append((time.monotonic() + self.linger, room, present))
        self.clean()

    def clean(self) -> None:
        """Tell who has left for good, and let go of old history."""
        if here.hub is not self._cleaner_hub:
            return  # of a thread whose members have gone
        while self._lingering and self._lingering[0][0] <= time.monotonic():
            _, room, present = self._lingering.popleft()
            if room.attendance.let_go(present):
                room.gone(present)
        self._leave_hub()
        with self._lock:
            self._expire()
        self._come_again()

    def _expire(self) -> None:
        now = milliseconds()
        while self._kept:
            room = next(iter(self._kept.values()))
            newest = room.lane.log.position
            if newest.milliseconds + self.limits.seconds * 1000 > now:
                break
            room.lane.log.expire(now)
            del self._kept[room.name]
            self._lost[room.name] = newest
            self._lost.move_to_end(room.name)
            if len(self._lost) > MOST_LOSSES:
                self.start = max(self.start, self._lost.popitem(last=False)[1])

    def _come_again(self) -> None:
        assert self._cleaner is not None
        due = [self._lingering[0][0]] if self._lingering else []
        if self._kept:
            age = (milliseconds() - next(iter(self._kept.values())).lane.log.position.milliseconds) / 1000
            due.append(time.monotonic() + self.limits.seconds - age)
        if due:
            self._cleaner.set(min(due))

    # Listeners

    def say_to(self, user: str, message: Message) -> None:
        """Have all sockets of a user here get a message."""
        if (text := message.for_members) is not None:
            self.post(user, text)

    def post(self, user: str, message: Sendable) -> None:
        """Have all sockets of a user here get a message. One that takes it not is too slow for rooms."""
        prepared, counts = Prepared(message), self.counts
        counts.broadcasts += 1
        for ws in self.sockets(user):
            if ws.post(prepared):
                counts.delivered += 1
            elif ws.closed:
                pass
            elif self.slow == "skip":
                counts.skipped += 1
            else:
                counts.closed_slow += 1
                ws.close(CloseCode.TRY_AGAIN_LATER, TOO_SLOW)

    def sockets(self, user: str) -> Iterable[WebSocket]:
        """Return the sockets of a user here, each once."""
        return dict.fromkeys(member.ws for member in self.people.get(user, ()))

    def tell_gap(self, room: Kept) -> None:
        """Have listeners called for a room in which something may be missing."""
        self._run_soon([partial(listener, room) for listener in self.on_gap])

    def tell(self, listeners: Iterable[Listener], room: Kept, present: Present) -> None:
        """Have listeners called in the order in which things happened, in a greenlet."""
        if present.user is not None:
            self._run_soon([partial(listener, room, present.user, present.info) for listener in listeners])

    def _run_soon(self, events: list[Callable[[], object]]) -> None:
        self._events += events
        if self._events and (self._teller is None or self._teller.dead):
            self._teller = gevent.spawn_raw(self._run_listeners)

    def _run_listeners(self) -> None:
        while self._events:
            event = self._events.popleft()
            try:
                event()
            except Exception:
                log.exception("a listener of rooms failed")


_homes: WeakSet[Home] = WeakSet()


def _pass_away() -> None:
    for home in list(_homes):
        for _, link in home.links:
            if link.span is not None:
                with suppress(Exception, gevent.Timeout):  # others find out by themselves
                    gevent.with_timeout(1.0, link.span.pass_away, home.linger)


atexit.register(_pass_away)


def _begin_in_child() -> None:
    if any(link.is_used for home in list(_homes) for _, link in home.links):
        gevent.reinit()  # the hub, which only gevent's own fork does
    for home in list(_homes):
        home.close()  # a round that is under way is the parent's


if hasattr(os, "register_at_fork"):  # Windows has none
    os.register_at_fork(after_in_child=_begin_in_child)


def milliseconds() -> int:
    """Return the time since the epoch."""
    return time.time_ns() // 1_000_000
