"""Monitor: says what has kept the hub from its sockets, and warns of the drivers that are known to.

Knows gevent's monitor thread, and the names of drivers; knows no WebSocket.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from time import monotonic, time
from typing import Any, NamedTuple

import gevent
from gevent import config, get_hub
from gevent.events import EventLoopBlocked, subscribers

from . import loglines

log = logging.getLogger("geventws")

QUIET = 60.0  # seconds between two lines about one place
PATIENCE = 10.0  # seconds after which a block is told on stderr, because the hub may never come back to tell it


class Block(NamedTuple):
    """What the hub was seen to wait for."""

    place: str  # file, function and its first line
    line: int  # that ran
    stack: str


class Monitor:
    """Watches this thread's hub, by gevent's monitor thread, for blocks of so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.blocks = 0  # times that the hub was blocked
        self.blocked_seconds = 0.0  # all of them together
        self._hub = hub = get_hub()
        self._since = 0.0  # by time.time(): the hub has not looked at its sockets since, and that is being noted
        self._is_printed = False
        self._seen: dict[str, Block] = {}  # since then, by place
        self._told: dict[str, float] = {}  # places, and when each was told, by time.monotonic()
        self._watcher = hub.loop.async_(ref=False)
        self._watcher.start(self._end)
        if not hub:  # it never ran; the monitor thread takes that for its end, and leaves
            gevent.sleep(0)
        # gevent finds a greenlet that ran at two looks and did not switch between: any block of twice this time.
        config.max_blocking_time = seconds / 2
        subscribers.append(self._blocked)
        is_for_all, config.monitor_thread = config.monitor_thread, True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that memory is not watched without psutil
            hub.start_periodic_monitoring_thread()
        config.monitor_thread = is_for_all

    def _blocked(self, event: Any) -> None:
        """Note what blocks the hub. This runs in the monitor thread, which may use neither the hub nor its locks."""
        hub = self._hub
        loop, frame = hub.loop, sys._current_frames().get(hub.thread_ident)
        if type(event) is not EventLoopBlocked or getattr(event, "hub", hub) is not hub or not loop or not frame:
            return
        event.info.clear()  # which gevent would print
        since = loop.now()
        block = _block_of(frame)
        if since != loop.now():
            return  # it is over, and the stack another's
        if since != self._since:
            self._since, self._is_printed = since, False
            self._seen.clear()
        self._seen[block.place] = block
        self._watcher.send()
        if not self._is_printed and time() - since > PATIENCE:
            self._is_printed = True
            print("geventws:", _line(time() - since, block), file=sys.stderr, flush=True)

    def _end(self) -> None:
        """Tell, on the hub, what has blocked it."""
        lasted, blocks = time() - self._since, list(self._seen.values())
        self._seen.clear()
        if lasted < self.seconds or not blocks:
            return
        self.blocks += 1
        self.blocked_seconds += lasted
        now = monotonic()
        self._told = {place: at for place, at in self._told.items() if now - at < QUIET}
        for block in blocks:
            if block.place not in self._told:
                self._told[block.place] = now
                loglines.write(log, logging.WARNING, "%s", _line(lasted, block))


monitor: Monitor | None = None  # of this process


def watch(seconds: float | None) -> None:
    """Warn of what blocks this thread's hub for so many seconds; None is for nothing. Warn of drivers that block."""
    global monitor
    for line in blocking_drivers():
        log.warning("%s; see docs/gevent.md", line)
    if seconds is not None and monitor is None:
        monitor = Monitor(seconds)


def blocking_drivers() -> list[str]:
    """Return a line for each database driver that is loaded and holds the hub while it waits for its server."""
    found = []
    postgres = sys.modules.get("psycopg2.extensions")
    if postgres is not None and postgres.get_wait_callback() is None:
        found.append(
            "psycopg2 blocks all connections of this process during each query: "
            "call psycogreen.gevent.patch_psycopg() at the start, or use psycopg 3"
        )
    if "MySQLdb._mysql" in sys.modules:  # PyMySQL may have the name MySQLdb, and never this one
        found.append("mysqlclient blocks all connections of this process during each query: use PyMySQL")
    return found


def _block_of(frame: Any) -> Block:
    """Return what runs in a frame: its place is the innermost code of the app's directory, or else of all."""
    here = os.getcwd() + os.sep
    stack = list(traceback.walk_stack(frame))
    code, line = next(
        (
            (each.f_code, line)
            for each, line in stack
            if each.f_code.co_filename.startswith(here) and "site-packages" not in each.f_code.co_filename
        ),
        (stack[0][0].f_code, stack[0][1]),
    )
    place = f"{code.co_filename}:{code.co_firstlineno} {code.co_name}"
    return Block(place, line, "".join(traceback.format_stack(frame)).rstrip())


def _line(lasted: float, block: Block) -> str:
    file, _, function = block.place.partition(":")
    return (
        f"{function.partition(' ')[2]}() in {file}, line {block.line}, blocked the hub for {lasted:.1f} s, "
        f"in which no connection was served; see docs/gevent.md\n{block.stack}"
    )
