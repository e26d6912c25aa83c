"""Turns: how much work for all its connections a hub does in one pass of the loop, and how long a view may go on.

Only a pass that polls counts. Knows the hub; knows nothing of what the work is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import gevent
from gevent import get_hub

from .fast import StreakFields, TurnsFields

TURN = 0.005  # seconds that a view may go on before the loop looks at sockets and timers
SENDS = 64  # of a view to its own WebSocket, for the same
WORK_PER_PASS = 1 << 18  # bytes inflated: a quarter of a millisecond, and more for a view that gets them


class Streak(StreakFields):
    """The WebSocket that one hub sends to, and since when it sends to no other, within one pass of the loop."""

    __slots__ = ("_count", "_now", "_pass")

    def __init__(self, loop: Any) -> None:
        self.target: object = None
        self.until = 0.0  # by time.monotonic(); who sets the target sets it to 0
        self._now: Callable[[], float] = loop.now  # when the loop looked at its sockets last
        self._pass = 0.0
        self._count = 0

    def go_on(self, *, is_own: bool) -> None:
        """Let others run if the target was sent to for a whole turn without a wait, or SENDS times by its own view."""
        self._count = self._count + is_own if self.until else 0
        if self._count >= SENDS or monotonic() > self.until:
            if self._now() == self._pass:
                pause()
            self._pass = self._now()
            self.until = monotonic() + TURN
            self._count = 0


def pause() -> None:
    """Let the loop look at sockets and timers once; sleep(0) would come back after dozens of callbacks."""
    gevent.sleep(1e-9)


class Turns(TurnsFields):
    """What the work of one hub has cost in this pass of its loop, and who waits for the next pass."""

    __slots__ = ("_waiting",)

    def __init__(self, loop: Any) -> None:
        self.left = WORK_PER_PASS  # bytes that may still be inflated in this pass
        self._waiting: deque[Callable[[], None]] = deque()
        # Not run_callback(): the loop runs callbacks by dozens, and those they add, before it looks at a socket again.
        # Behind sockets, which libev would serve last: so they wait for one part of the work at most, and not for two.
        self._timer = loop.timer(0, priority=loop.MINPRI)

    def spend(self, work: int) -> None:
        """Note work that was done."""
        self.left -= work
        self._next_pass()

    def wait(self, callback: Callable[[], None]) -> None:
        """Run callback in a later pass, behind all that wait already."""
        self._waiting.append(callback)
        self._next_pass()

    def _next_pass(self) -> None:
        if not self._timer.active:
            self._timer.start(self._begin_pass)

    def _begin_pass(self) -> None:
        self._timer.stop()
        self.left = WORK_PER_PASS
        if self._waiting:
            self._next_pass()
        end = monotonic() + TURN
        for _ in range(len(self._waiting)):
            if self.left <= 0 or monotonic() > end:
                break
            self._waiting.popleft()()


_turns: WeakKeyDictionary[Any, Turns] = WeakKeyDictionary()
_streaks: WeakKeyDictionary[Any, Streak] = WeakKeyDictionary()


def streak_of_hub() -> Streak:
    """Return the streak of this thread's hub."""
    hub = get_hub()
    streak = _streaks.get(hub)
    if streak is None:
        streak = _streaks[hub] = Streak(hub.loop)
    return streak


def turns() -> Turns:
    """Return the turns of this thread's hub."""
    hub = get_hub()
    own = _turns.get(hub)
    if own is None:
        own = _turns[hub] = Turns(hub.loop)
    return own
