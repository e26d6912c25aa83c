"""Log lines of hub callbacks and of idle views, written by one greenlet of the hub.

Knows logging and the hub. A handler may block, which a hub callback must not; and it would deepen the stack of
each view once and for good, by a page of memory and a thread object.
"""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

import gevent
from gevent import get_hub
from gevent.queue import SimpleQueue

_writers: WeakKeyDictionary[Any, _Writer] = WeakKeyDictionary()


class _Writer:
    def __init__(self) -> None:
        self.lines: Any = SimpleQueue()
        self.greenlet = gevent.spawn_raw(self._write)

    def _write(self) -> None:
        while True:
            log, level, line, values = self.lines.get()
            log.log(level, line, *values)


def write(log: logging.Logger, level: int, line: str, *values: object) -> None:
    """Log soon, in the order of the calls."""
    if log.isEnabledFor(level):
        hub = get_hub()
        writer = _writers.get(hub)
        if writer is None or writer.greenlet.dead:  # a handler raised
            writer = _writers[hub] = _Writer()
        writer.lines.put((log, level, line, values))
