"""Log lines of hub callbacks and of idle views, written by one greenlet of the hub.

Knows logging and the hub. A handler may block, which a hub callback must not; and it would deepen the stack of
each view once and for good, by a page of memory and a thread object.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any
from weakref import WeakKeyDictionary

import gevent
from gevent import get_hub
from gevent.queue import Queue

_writers: WeakKeyDictionary[Any, _Writer] = WeakKeyDictionary()


class _Writer:
    """The lines that wait, and the greenlet that writes them."""

    def __init__(self) -> None:
        self.lines: Any = Queue()
        self.greenlet = gevent.spawn_raw(self.run)

    def run(self) -> None:
        while True:
            log, level, line, values = self.lines.get()
            try:
                log.log(level, line, *values)
            except Exception:  # of a handler or filter: the other lines are not to be lost for it
                traceback.print_exc()


def write(log: logging.Logger, level: int, line: str, *values: object) -> None:
    """Log soon, in the order of the calls."""
    if log.isEnabledFor(level):
        hub = get_hub()
        writer = _writers.get(hub)
        if writer is None:
            writer = _writers[hub] = _Writer()
        elif writer.greenlet.dead:
            writer.greenlet = gevent.spawn_raw(writer.run)
        writer.lines.put((log, level, line, values))
