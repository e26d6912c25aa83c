"""Census: the WebSockets of this process, listed, closed by what they are, and shown to `python -m geventws live`.

Knows the gateways, and the Unix socket by which a process tells of them; knows no server.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import reprlib
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import gevent.socket
from gevent.server import StreamServer

from .errors import CloseCode
from .frames import close_payload
from .gateway import gateways
from .listener import Listener
from .loglines import peer_of, route_of
from .options import OFF
from .turns import pause
from .websocket import WebSocket

log = logging.getLogger("geventws")

VARIABLE = "GEVENTWS_LIVE"  # the directory of the sockets, or off
LONGEST_REQUEST = 4096  # bytes
PATIENCE = 10.0  # seconds for one who asks to take the answer
AT_ONCE = 100  # WebSockets that are told of before others have their turn

_repr = reprlib.Repr()
_repr.maxother = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveConnection:
    """One WebSocket of this process, as it was when connections() looked."""

    id: str  # the process's and its own number in it, such as 4711-17
    route: str | None  # the rule of its URL, where the framework is Flask
    path: str
    peer: str
    forwarded_for: str | None  # the header X-Forwarded-For as it came: what a client wrote stands first in it
    attributes: Mapping[str, object]  # those that the app has set, but for names that begin with _
    since: float  # seconds since the epoch
    idle: float  # seconds in which no byte came, not even the answer to a ping
    latency: float | None  # seconds of the last ping that was answered
    messages_received: int
    messages_sent: int
    bytes_received: int
    bytes_sent: int
    outbox: int  # bytes that wait for the peer
    blocked: bool  # the peer does not take all that it is sent
    close_code: int | None  # where it has begun to close


def connections() -> list[LiveConnection]:
    """Return what is known of each open WebSocket of this process, the oldest first."""
    return [_look(ws) for ws in _open_ones()]


def close_all(predicate: Callable[[WebSocket], object], code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> int:
    """Close the WebSockets of this process for which predicate(ws) is true; return how many, and wait for no peer.

    Raises ValueError for a code that may not be sent, and what predicate raises, before any is closed.
    """
    close_payload(code, reason)
    chosen = [ws for ws in _open_ones() if not ws.closed and predicate(ws)]
    for ws in chosen:
        ws.close(code, reason)
    return len(chosen)


def _open_ones() -> list[WebSocket]:
    """Return the WebSockets whose handshake is complete and whose socket is not closed."""
    # A list of each first: in another thread, views come and go meanwhile. Gateways may share what is live.
    found = {ws: None for gateway in list(gateways) for ws in list(gateway.live)}
    return sorted((ws for ws in found if ws.accepted and not ws.has_ended), key=lambda ws: ws.opened_at or 0.0)


def _look(ws: WebSocket) -> LiveConnection:
    session = ws.session
    transport = session.transport
    return LiveConnection(
        id=ws.id,
        route=session.route or route_of(ws.environ),
        path=ws.path,
        peer=peer_of(ws.environ),
        forwarded_for=ws.environ.get("HTTP_X_FORWARDED_FOR"),
        attributes={name: value for name, value in vars(ws).items() if not name.startswith("_")},
        since=ws.opened_at or 0.0,
        idle=max(monotonic() - transport.last_received, 0.0),
        latency=ws.latency,
        messages_received=ws.messages_received,
        messages_sent=ws.messages_sent,
        bytes_received=ws.bytes_received,
        bytes_sent=ws.bytes_sent,
        outbox=transport.waiting,
        blocked=transport.blocked,
        close_code=ws.close_code,
    )


# For python -m geventws live: a Unix socket of each process, in a directory that no other user may enter


def directory(environ: Mapping[str, str]) -> Path | None:
    """Return the directory of the sockets, None where the variable says off."""
    named = environ.get(VARIABLE, "").strip()
    if named.lower() in OFF:
        return None
    return Path(named) if named else Path(tempfile.gettempdir(), f"geventws-{os.geteuid()}")


def check_private(directory: Path) -> None:
    """Raise PermissionError for a directory that another user has made, or may enter."""
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{directory} must be a directory of this user alone: mode 0700, and no link")


def publish(environ: Mapping[str, str] = os.environ) -> None:
    """Answer `python -m geventws live` from now on. Where that cannot be, the log says why, and all else goes on."""
    if not hasattr(os, "geteuid"):  # Windows
        return
    where = directory(environ)
    if where is None:
        return
    try:
        where.mkdir(0o700, parents=True, exist_ok=True)
        check_private(where)
        listener = _listen(where / f"{os.getpid()}.sock")
    except OSError as exc:
        log.warning("python -m geventws live will not see this process: %s; let %s name a directory", exc, VARIABLE)
        return
    _Server(listener, _answer).start()


class _Server(Listener, StreamServer):  # type: ignore[misc]
    """Accepts those who ask, in this process and in none that is forked from it."""


def _listen(path: Path) -> Any:
    """Return a socket that listens at path, whose name goes with this process."""
    new = path.with_suffix(".new")
    listener = gevent.socket.socket(socket.AF_UNIX)
    try:
        with suppress(FileNotFoundError):
            new.unlink()
        listener.bind(str(new))
        listener.listen()
        new.rename(path)  # only now: who cannot connect to a name takes its process for dead, and removes it
    except BaseException:
        listener.close()
        raise
    atexit.register(_remove, path, os.getpid())
    return listener


def _remove(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # no child's end is ours
        with suppress(OSError):
            path.unlink()


def _answer(client: Any, _address: object) -> None:
    """Do what one line of JSON asks, and answer in lines: {"close": id, "code": …, "reason": …}, or {} to list all.

    The last line, {"done": count}, says that the answer is whole. What is none of these gets no answer.
    """
    wrong = (OSError, KeyError, TypeError, ValueError)
    with suppress(*wrong), gevent.Timeout(PATIENCE, False), client, client.makefile("rwb") as stream:
        asked = json.loads(stream.readline(LONGEST_REQUEST))
        if "close" in asked:
            done = close_all(lambda ws: ws.id == asked["close"], asked["code"], asked["reason"])
        else:
            done = 0
            for line in _lines():
                stream.write(line)
                done += 1
        stream.write(json.dumps({"done": done}).encode() + b"\n")


def _lines() -> Iterator[bytes]:
    for number, ws in enumerate(_open_ones()):
        if number % AT_ONCE == AT_ONCE - 1:
            pause()
        seen = _look(ws)
        told = {field.name: getattr(seen, field.name) for field in fields(seen)}
        told["attributes"] = {name: _plain(value) for name, value in seen.attributes.items()}
        yield json.dumps(told).encode() + b"\n"


def _plain(value: object) -> object:
    """Return what JSON shows of an attribute: a number, text or None as it is, anything else by its repr()."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else _repr.repr(value)
