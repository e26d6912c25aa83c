"""Deadlines: moments at which callbacks are due, one timer for all of a hub.

Knows the hub and the clock; knows nothing of what the deadlines are for.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

from gevent import get_hub


class Deadline:
    """A moment at which a callback is due, cheap to move: one timer serves all deadlines of a hub."""

    __slots__ = ("_callback", "_clock", "_queued", "when")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.when = math.inf  # by time.monotonic()
        self._queued = math.inf  # the earliest moment the clock looks at this deadline
        self._callback = callback
        self._clock = _clock()

    def set(self, when: float) -> None:
        """Make the callback due at `when`, instead of any earlier choice; math.inf is never."""
        self.when = when
        if when < self._queued:
            self._leave_queue()
            self._queued = when
            self._clock.look_at(when, self)

    def cancel(self) -> None:
        """Never run the callback, and let go of it."""
        self.when = math.inf
        self._callback = _nothing
        self._leave_queue()

    def _leave_queue(self) -> None:
        if self._queued != math.inf:
            self._queued = math.inf
            self._clock.forget_one()

    def look(self, now: float) -> None:
        """Run the callback if it is due; else have the clock look again when it will be."""
        self._queued = math.inf
        if self.when <= now:
            self.when = math.inf
            self._callback()
        else:
            self.set(self.when)


def _nothing() -> None:
    pass


class _Clock:
    """The deadlines of one hub: a heap, and one timer for its earliest entry."""

    GRAIN = 0.01  # seconds between two looks at least, so that many deadlines share one wake-up

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Deadline]] = []
        self._tie = itertools.count()
        self._forgotten = 0  # entries of the heap that mean nothing any more
        self._timer: Any = None
        self._wakes_at = math.inf

    def look_at(self, when: float, deadline: Deadline) -> None:
        heapq.heappush(self._heap, (when, next(self._tie), deadline))
        if when < self._wakes_at:
            self._wake_at(when)

    def forget_one(self) -> None:
        """Note an entry that means nothing any more; such ones go when they are most of the heap."""
        self._forgotten += 1
        if self._forgotten > max(len(self._heap) // 2, 100):
            self._heap = [entry for entry in self._heap if entry[0] == entry[2]._queued]
            heapq.heapify(self._heap)
            self._forgotten = 0

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
            while self._heap and self._heap[0][0] <= now:
                when, _, deadline = heapq.heappop(self._heap)
                if when == deadline._queued:
                    deadline.look(now)
        finally:  # one callback that fails stops no other
            self._wakes_at = math.inf
            if self._heap:
                self._wake_at(self._heap[0][0])


_clocks: WeakKeyDictionary[Any, _Clock] = WeakKeyDictionary()


def _clock() -> _Clock:
    hub = get_hub()
    clock = _clocks.get(hub)
    if clock is None:
        clock = _clocks[hub] = _Clock(hub.loop)
    return clock
