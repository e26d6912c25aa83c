"""Turns: work of many connections on one hub, of which each pass of the loop does only so much.

Knows the hub; knows nothing of what the work is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from gevent import get_hub

WORK_PER_PASS = 1 << 18  # bytes inflated: a quarter of a millisecond, and more for a view that gets them


class Turns:
    """What the work of one hub has cost in this pass of its loop, and who waits for the next pass."""

    __slots__ = ("_timer", "_waiting", "left")

    def __init__(self, loop: Any) -> None:
        self.left = WORK_PER_PASS  # bytes that may still be inflated in this pass
        self._waiting: deque[Callable[[], None]] = deque()
        # Not run_callback(): the loop runs callbacks by dozens, and those they add, before it looks at a socket again.
        self._timer = loop.timer(0)

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
        for _ in range(len(self._waiting)):
            if self.left <= 0:
                break
            self._waiting.popleft()()


_turns: WeakKeyDictionary[Any, Turns] = WeakKeyDictionary()


def turns() -> Turns:
    """Return the turns of this thread's hub."""
    hub = get_hub()
    if hub not in _turns:
        _turns[hub] = Turns(hub.loop)
    return _turns[hub]
