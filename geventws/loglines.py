"""Log lines of hub callbacks and of idle views, written by one greenlet of the hub.

Knows logging and the hub. A handler may block, and a hub callback must not. Run in a view, a handler would
deepen its stack for good, by a page of memory and a thread object.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import gevent
from gevent import get_hub
from gevent.queue import JoinableQueue

from .message import Prepared

MOST_LINES = 4096  # that wait for a handler which is slower than what there is to say

# In the environ, where a server trusts who connects to it: the address that the header X-Forwarded-For ends with.
FORWARDED = "geventws.forwarded"

LONGEST = 64  # characters of an address

_writers: WeakKeyDictionary[Any, _Writer] = WeakKeyDictionary()
_address = re.compile(rf"[0-9A-Fa-f.:\[\]]{{2,{LONGEST}}}")
_word = re.compile(rf"[!-~]{{1,{LONGEST}}}")
_ENDED = gevent.Timeout().timer  # what a gevent.Timeout has for its timer once its block has ended


class _Log(logging.Logger):
    """A logger that only its level silences, and that never fails who logs.

    dictConfig() and fileConfig() disable each that they do not name.
    """

    @property
    def disabled(self) -> bool:
        """False: Python's logging.config alone sets it."""
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None: ...

    def handle(self, record: logging.LogRecord) -> None:
        """Have a record written. What a filter or handler raises goes to stderr."""
        try:
            super().handle(record)
        except BaseException as exc:
            if comes_from_outside(exc):
                raise
            traceback.print_exc()


def hardened(log: logging.Logger) -> logging.Logger:
    """Return a logger, which may be of a class that the program has set, as one that is as _Log is."""
    if not isinstance(log, _Log):
        log.__class__ = type("Logger", (_Log, type(log)), {})
    return log


def comes_from_outside(error: BaseException) -> bool:
    """Whether what was raised here is another's: a kill(), Ctrl-C, or a gevent.Timeout whose block has not ended."""
    if isinstance(error, gevent.Timeout):
        return error.timer is not _ENDED
    return isinstance(error, (gevent.GreenletExit, KeyboardInterrupt))


log = hardened(logging.getLogger("geventws"))


class _Writer:
    """The lines that wait, and the greenlet that writes them."""

    def __init__(self) -> None:
        self.lines: Any = JoinableQueue()
        self.dropped = 0  # lines for which there was no room
        self.greenlet = gevent.spawn_raw(self.run)

    def run(self) -> None:
        while True:
            log, level, line, values, fields = self.lines.get()
            try:
                say(log, level, line, *values, fields=fields)
                if self.dropped and self.lines.empty():
                    dropped, self.dropped = self.dropped, 0
                    log.warning("%d lines of this log were dropped: its handler is slower than they came", dropped)
            finally:
                self.lines.task_done()


def say(
    log: logging.Logger,
    level: int,
    line: str,
    *values: object,
    fields: Mapping[str, object] | None = None,
    exc_info: bool = False,
) -> None:
    """Log now, with fields as attributes of the record."""
    try:
        log.log(level, line, *values, extra=fields, exc_info=exc_info)
    except KeyError:  # the program's own record factory has set one of that name
        log.log(level, line, *values, exc_info=exc_info)


def write(
    log: logging.Logger, level: int, line: str, *values: object, fields: Mapping[str, object] | None = None
) -> None:
    """Log soon, in the order of the calls, with fields as attributes of the record."""
    if log.isEnabledFor(level):
        writer = _writer()
        if writer.lines.qsize() < MOST_LINES:
            writer.lines.put((log, level, line, values, fields))
        else:
            writer.dropped += 1


def wait_for_lines(seconds: float) -> None:
    """Return when the lines of this hub's greenlets are written, after so many seconds at most."""
    if get_hub() in _writers:
        _writer().lines.join(seconds)


def _writer() -> _Writer:
    """Return this hub's, whose greenlet a handler may have ended."""
    hub = get_hub()
    writer = _writers.get(hub)
    if writer is None:
        writer = _writers[hub] = _Writer()
    elif writer.greenlet.dead:
        writer.greenlet = gevent.spawn_raw(writer.run)
    return writer


def printable(text: str) -> str:
    """Return text as it may stand in a log: a peer's line breaks and escape sequences are shown, not obeyed."""
    return text if text.isprintable() else repr(text)


def address_of(environ: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return host and port of who asks, None on a Unix socket. The port is 0 where ProxyFix has set the host."""
    host = environ.get("REMOTE_ADDR")
    if not host:
        return None
    before = environ.get("werkzeug.proxy_fix.orig")
    if before is not None and before.get("REMOTE_ADDR") != host:
        return host, 0
    return host, int(environ.get("REMOTE_PORT") or 0)


def peer_of(environ: Mapping[str, Any], number: int | None = None) -> str:
    """Return who asks as logs show it: with its port, or where that is not known with the connection's number."""
    address = address_of(environ)
    if FORWARDED in environ and (address is None or address[1]):
        address = environ[FORWARDED], 0
    host, port = address or ("unix", 0)
    if not _word.fullmatch(host):  # ProxyFix takes any text
        host = repr(host[:LONGEST])
    if port:
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return host if number is None else f"{host}#{number}"


def forwarded_for(header: str) -> str | None:
    """Return the address that a trusted proxy has put behind those of X-Forwarded-For, None where it is no address."""
    last = header.rpartition(",")[2].strip()
    return last if _address.fullmatch(last) else None


def path_of(environ: dict[str, Any]) -> str:
    """Return the path of a request, decoded, without its query string."""
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return path.encode("latin-1", errors="replace").decode(errors="replace")


def route_of(environ: dict[str, Any]) -> str | None:
    """Return the rule of a request's URL, where Werkzeug has matched it."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return None if rule is None else str(rule)


def about(ws: Any) -> dict[str, object]:
    """Return the fields of each record that tells of a WebSocket."""
    kept = ws.session.route if ws.accepted else None
    return {"id": ws.id, "path": ws.path, "route": kept or route_of(ws.environ)}


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
