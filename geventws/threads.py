"""Threads: have a function run on another thread's hub, and wait here for what it gives.

Knows hubs and native locks; knows nothing of what the functions do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import gevent
from gevent import get_hub, getcurrent, monkey
from gevent._hub_local import get_hub_if_exists
from gevent.event import Event

from . import fast

T = TypeVar("T")

LOOK = 1.0  # seconds after which a thread that waits asks whether the hub still runs
PATIENCE = 30  # such questions without an answer; gunicorn, too, gives up a worker that computes for so many seconds
LITTLE_PATIENCE = 3  # the same where the hub did not run before, or the program ends

_allocate_lock, _local = monkey.get_original("_thread", ["allocate_lock", "_local"])


class HubEnded(RuntimeError):
    """The hub runs no more, or is held up for so long that nobody can tell."""


class _Here(_local):  # type: ignore[misc, valid-type]
    """What is of this OS thread."""

    poller: object = None
    hub: Any = None  # the one of home(): reading it never makes a hub, and two threads never have the same


here = _Here()


class _Door:
    """Where other threads leave functions for one hub.

    gevent's run_callback_threadsafe() counts up the loop's references while libev, which holds no lock, may count
    down others: with two threads that call, a program with many timers ends in LoopExit within seconds.
    """

    __slots__ = ("_functions", "_watcher", "answers", "is_stalled")

    def __init__(self, loop: Any) -> None:
        self.answers = 0
        self.is_stalled = False
        self._functions: deque[Callable[[], None]] = deque()
        self._watcher = loop.async_(ref=False)
        self._watcher.start(self._answer)

    def leave(self, function: Callable[[], None]) -> None:
        """Have the hub call function soon."""
        self._functions.append(function)
        self.ring()

    def ring(self) -> None:
        """Have the hub add to answers. Raises HubEnded where it is destroyed."""
        try:
            self._watcher.send()
        except ValueError as exc:
            raise HubEnded("the hub of this WebSocket is destroyed") from exc

    def _answer(self) -> None:
        self.answers += 1
        self.is_stalled = False
        for _ in range(len(self._functions)):
            self._functions.popleft()()


_doors: WeakKeyDictionary[Any, _Door] = WeakKeyDictionary()


def home() -> Any:
    """Return this thread's hub, to which other threads may give calls from now on."""
    hub = get_hub()
    if here.hub is not hub:
        _doors[hub] = _Door(hub.loop)
        here.hub = hub
        here.poller = fast.enter(hub)
    return hub


def call(hub: Any, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run function in a greenlet of a hub that another thread has; wait, and return or raise what function does.

    It sees the caller's context variables. Where the caller's thread has a hub too, its other greenlets run on; a
    callback of that hub holds it up. A caller that is interrupted interrupts function. Raises HubEnded where the hub
    has ended or does not run.
    """
    door = _doors[hub]
    own = get_hub_if_exists()
    pause = _Block() if own is None or own is getcurrent() else _Park(own)
    task = _Task(partial(function, *args, **kwargs), pause.end)
    try:
        _check(hub)
        door.leave(task.start)
        _wait(hub, door, pause)
    except BaseException:
        task.is_cancelled = True
        with suppress(HubEnded):
            door.leave(task.kill)
        raise
    finally:
        pause.close()
    error, task.error = task.error, None
    if error is None:
        return task.result  # type: ignore[no-any-return]
    try:
        raise error
    finally:
        del error  # whose traceback holds this frame


def _wait(hub: Any, door: _Door, pause: _Block | _Park) -> None:
    """Return when the pause is over. Raises HubEnded when the hub does not answer any more."""
    answers, unanswered = door.answers, 0
    while not pause.wait(LOOK):
        _check(hub)
        if door.answers != answers:
            answers, unanswered = door.answers, 0
        # A private name, but nothing public tells of the end before executors wait for their threads in it.
        is_short = door.is_stalled or getattr(threading, "_SHUTTING_DOWN", False)
        if unanswered >= (LITTLE_PATIENCE if is_short else PATIENCE):
            door.is_stalled = True
            raise HubEnded(
                f"the hub of this WebSocket has not run for {unanswered * LOOK:g} s: its server has ended, "
                "or a greenlet waits there, for this thread perhaps, by other means than gevent's"
            )
        unanswered += 1
        door.ring()


def _check(hub: Any) -> None:
    if hub.dead:
        raise HubEnded("the hub of this WebSocket has ended, with its thread or by destroy()")


class _Task:
    """A function on its way to a hub, and what it gave."""

    __slots__ = ("_context", "_end", "_function", "_greenlet", "error", "is_cancelled", "result")

    def __init__(self, function: Callable[[], Any], end: Callable[[], None]) -> None:
        self._context = copy_context()
        self._function = function
        self._end = end
        self._greenlet: Any = None
        self.is_cancelled = False
        self.result: Any = None
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begin, on the hub."""
        if not self.is_cancelled:
            self._greenlet = gevent.spawn_raw(self._run)
            self._greenlet.gr_context = self._context

    def kill(self) -> None:
        """End, on the hub."""
        if self._greenlet is not None:
            gevent.kill(self._greenlet)

    def _run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as exc:
            self.error = exc
        self._end()


class _Block:
    """How a thread without a hub waits."""

    def __init__(self) -> None:
        self._lock = _allocate_lock()
        self._lock.acquire()

    def wait(self, seconds: float) -> bool:
        """Return whether the end came within this time."""
        return bool(self._lock.acquire(timeout=seconds))

    def end(self) -> None:
        """End the pause, from any thread."""
        self._lock.release()

    def close(self) -> None:
        """Let go of what the pause took."""


class _Park:
    """How a greenlet waits in a thread that has a hub."""

    def __init__(self, hub: Any) -> None:
        self._event = Event()
        # A reference of the loop: it may have nothing else to wait for.
        self._watcher = hub.loop.async_()
        self._watcher.start(self._event.set)

    def wait(self, seconds: float) -> bool:
        """Return whether the end came within this time."""
        return bool(self._event.wait(seconds))

    def end(self) -> None:
        """End the pause, from any thread."""
        with suppress(ValueError):  # the caller's loop is gone
            self._watcher.send()

    def close(self) -> None:
        """Let go of what the pause took."""
        self._watcher.close()
