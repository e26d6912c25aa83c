"""Deadlines: moments at which callbacks are due, one timer for all of a hub.

Knows the hub and the clock; knows nothing of what the deadlines are for.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from gevent import get_hub


class Due:
    """Something that falls due at a moment, cheap to move: one timer serves all of a hub."""

    __slots__ = ("_clock", "_queued", "when")

    def __init__(self) -> None:
        self.when = math.inf  # by time.monotonic()
        self._queued = math.inf  # the earliest moment the clock looks at this
        self._clock = _clock()

    def fall_due(self) -> None:
        """Do what is due, which each kind has its own of; called by the hub."""

    def set(self, when: float) -> None:
        """Make it due at `when`, instead of any earlier choice; math.inf is never."""
        self.when = when
        if when < self._queued:
            self._leave_queue()
            self._queued = when
            self._clock.add(when, self)

    def cancel(self) -> None:
        """Never fall due."""
        self.when = math.inf
        self._leave_queue()

    def _leave_queue(self) -> None:
        if self._queued != math.inf:
            self._clock.remove(self._queued, self)
            self._queued = math.inf

    def look(self, now: float) -> None:
        """Fall due if it is time; else have the clock look again when it will be."""
        self._queued = math.inf
        if self.when <= now:
            self.when = math.inf
            self.fall_due()
        else:
            self.set(self.when)


class Deadline(Due):
    """A moment at which a callback is due."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        super().__init__()
        self._callback = callback

    def fall_due(self) -> None:
        """Run the callback."""
        self._callback()

    def cancel(self) -> None:
        """Never run the callback, and let go of it."""
        super().cancel()
        self._callback = _nothing


def _nothing() -> None:
    pass


class _Clock:
    """What falls due on one hub, by the moments at which it looks at it, and one timer for the first of these."""

    GRAIN = 0.01  # seconds between two looks at least, so that many deadlines share one wake-up

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        # A heap of moments is small, as those of keepalive are shared: one of deadlines took 11 % of a ping.
        self._moments: list[float] = []
        self._deadlines: dict[float, set[Due]] = {}
        self._timer: Any = None
        self._wakes_at = math.inf

    def add(self, when: float, deadline: Due) -> None:
        deadlines = self._deadlines.get(when)
        if deadlines is None:
            deadlines = self._deadlines[when] = set()
            heapq.heappush(self._moments, when)
        deadlines.add(deadline)
        if when < self._wakes_at:
            self._wake_at(when)

    def remove(self, when: float, deadline: Due) -> None:
        deadlines = self._deadlines[when]
        deadlines.remove(deadline)
        if not deadlines:
            del self._deadlines[when]
            if len(self._moments) > 2 * len(self._deadlines) + 100:  # most of them mean nothing any more
                self._moments = sorted(self._deadlines)

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.close()
        self._wakes_at = when
        # ref=False: deadlines alone do not keep a program running.
        self._timer = self._loop.timer(max(when - monotonic(), self.GRAIN), ref=False)
        self._timer.start(self._wake, update=True)

    def _wake(self) -> None:
        now = monotonic()
        self._wakes_at = -math.inf  # deadlines set meanwhile wait for the end of this round
        try:
            while self._moments and self._moments[0] <= now:
                deadlines = self._deadlines.get(self._moments[0])
                if deadlines:
                    deadlines.pop().look(now)
                else:
                    self._deadlines.pop(heapq.heappop(self._moments), None)
        finally:  # one callback that fails stops no other
            self._wakes_at = math.inf
            if self._moments:
                self._wake_at(self._moments[0])


_clocks: WeakKeyDictionary[Any, _Clock] = WeakKeyDictionary()


def _clock() -> _Clock:
    hub = get_hub()
    clock = _clocks.get(hub)
    if clock is None:
        clock = _clocks[hub] = _Clock(hub.loop)
    return clock
