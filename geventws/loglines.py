"""Log lines of hub callbacks and of idle views, written by one greenlet of the hub.

Knows logging and the hub. A handler may block, and a hub callback must not. Run in a view, a handler would
deepen its stack for good, by a page of memory and a thread object.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any
from weakref import WeakKeyDictionary

import gevent
from gevent import get_hub
from gevent.queue import Queue

from .message import Prepared

MOST_LINES = 4096  # that wait for a handler which is slower than what there is to say

_writers: WeakKeyDictionary[Any, _Writer] = WeakKeyDictionary()


class _Writer:
    """The lines that wait, and the greenlet that writes them."""

    def __init__(self) -> None:
        self.lines: Any = Queue()
        self.dropped = 0  # lines for which there was no room
        self.greenlet = gevent.spawn_raw(self.run)

    def run(self) -> None:
        while True:
            log, level, line, values = self.lines.get()
            try:
                log.log(level, line, *values)
                if self.dropped and self.lines.empty():
                    dropped, self.dropped = self.dropped, 0
                    log.warning("%d lines of this log were dropped: its handler is slower than they came", dropped)
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
        if writer.lines.qsize() < MOST_LINES:
            writer.lines.put((log, level, line, values))
        else:
            writer.dropped += 1


def printable(text: str) -> str:
    """Return text as it may stand in a log: a peer's line breaks and escape sequences are shown, not obeyed."""
    return text if text.isprintable() else repr(text)


def peer_of(environ: dict[str, Any]) -> str:
    """Return the peer of a request as logs show it."""
    host = environ.get("REMOTE_ADDR")
    return f"{host}:{int(environ.get('REMOTE_PORT') or 0)}" if host else "unix"


def path_of(environ: dict[str, Any]) -> str:
    """Return the path of a request, decoded, without its query string."""
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return path.encode("latin-1").decode(errors="replace")


def route_of(environ: dict[str, Any]) -> str | None:
    """Return the rule of a request's URL, where Werkzeug has matched it."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return None if rule is None else str(rule)


def describe(event: object) -> str:
    """Return an event, or a message on its way out, as a line of the log shows it."""
    if isinstance(event, Prepared):
        event = event.message
    if isinstance(event, (bytearray, memoryview)):
        event = bytes(event)  # a memoryview shows no content, and its length may count other things than bytes
    if isinstance(event, (str, bytes)):
        kind = "text" if isinstance(event, str) else "binary"
        return f"{kind} {event[:64]!r}{f'… ({len(event)})' if len(event) > 64 else ''}"
    return str(event)
