"""The doctor's client: a URL read as a browser reads it, a handshake, and a WebSocket that is waited for with a limit.

Knows sockets, TLS and the wire; judges nothing.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit
from wsgiref.headers import Headers

import gevent
from gevent import socket, ssl

from .. import handshake
from ..connection import OPEN, Close, Connection, Event, Failure, Ping
from ..errors import WebSocketError
from ..options import Options
from ..permessage_deflate import NAME, Deflate
from ..testing import read_response

LARGEST = 1 << 26  # bytes of a message to the doctor
MOST_OF_ANSWER = 65_536  # bytes of a head, and of a body, that are read
BODY_TIMEOUT = 2.0  # seconds for what a refusal says
LEAVE_TIMEOUT = 2.0  # seconds for the answer to a Close
SAFE = "/?%:@!$&'()*+,;=~[]"  # what a path and a query may hold as it is
SECURE = {"ws": False, "wss": True, "http": False, "https": True}


class Target(NamedTuple):
    """What is asked for, and where. address is a host and a port, or the path of a Unix socket."""

    host: str  # as the Host header has it: without a port that is the default
    name: str  # of the certificate
    secure: bool
    resource: str  # path and query
    address: tuple[str, int] | str

    @property
    def url(self) -> str:
        return f"{'wss' if self.secure else 'ws'}://{self.host}{self.resource}"

    @property
    def origin(self) -> str:
        """That of a page of the same host."""
        return f"{'https' if self.secure else 'http'}://{self.host}"

    @property
    def place(self) -> str:
        """The address as people write it."""
        return f"unix:{self.address}" if isinstance(self.address, str) else _joined(*self.address)


def read_url(url: str, via: str | None = None) -> Target:
    """Return what a URL asks for; via is HOST:PORT or unix:PATH to connect to. Raises ValueError for a bad one."""
    parts = urlsplit(url)
    if parts.scheme not in SECURE or not parts.hostname:
        raise ValueError(f"the URL must be such as ws://127.0.0.1:8000/echo or wss://app.example/echo, not {url!r}")
    if "@" in parts.netloc:
        raise ValueError("browsers send no name and password of a URL: give --header 'Authorization: ...'")
    if parts.fragment:
        raise ValueError(f"the URL {url!r} has a fragment, which no client may send")  # RFC 6455 §3
    secure = SECURE[parts.scheme]
    try:
        name, port = parts.hostname.encode("idna").decode(), parts.port
    except (ValueError, UnicodeError) as exc:
        raise ValueError(f"the URL {url!r} has no valid host and port: {exc}") from exc
    default = 443 if secure else 80
    host = _joined(name, port) if port not in {None, default} else _joined(name)
    resource = quote(parts.path or "/", safe=SAFE) + (f"?{quote(parts.query, safe=SAFE)}" if parts.query else "")
    return Target(host, name, secure, resource, _address(via) if via else (name, port or default))


def _joined(name: str, port: int | None = None) -> str:
    name = f"[{name}]" if ":" in name else name
    return name if port is None else f"{name}:{port}"


def _address(via: str) -> tuple[str, int] | str:
    if via.startswith("unix:") and len(via) > 5:
        return via.removeprefix("unix:")
    host, _, port = via.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"--via must be HOST:PORT or unix:PATH, such as 127.0.0.1:8000, not {via!r}")
    return host.strip("[]"), int(port)


# Sockets


def resolve(target: Target) -> list[tuple[int, Any]]:
    """Return families and addresses to try in turn. Raises OSError for a name that has none."""
    if isinstance(target.address, str):
        return [(socket.AF_UNIX, target.address)]
    found = socket.getaddrinfo(*target.address, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def dial(family: int, address: Any, within: float) -> Any:
    """Return a connected socket. Raises OSError, which is TimeoutError where nobody answers."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        with gevent.Timeout(within, TimeoutError(f"no answer within {within:g} s")):
            sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def secured(sock: Any, name: str, within: float, *, verify: bool = True) -> Any:
    """Return the socket under TLS, as a browser would that knows HTTP/1.1 alone. Raises OSError, and closes it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # gevent's, which waits without blocking the hub
    context.load_default_certs()
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with gevent.Timeout(within, TimeoutError(f"no TLS handshake within {within:g} s")):
            return context.wrap_socket(sock, server_hostname=name)
    except BaseException:
        sock.close()
        raise


# The handshake


class Answer(NamedTuple):
    """What a server says to a handshake: a 101 too. head ends before the empty line."""

    status: int
    phrase: str
    headers: Headers
    body: str
    head: bytes

    @property
    def rule(self) -> str | None:
        """The name of the rule by which geventws itself refuses."""
        return self.headers[handshake.REFUSED]


class NoAnswer(Exception):
    """No HTTP answer came; received holds what did come."""

    def __init__(self, reason: str, received: bytes = b"") -> None:
        super().__init__(reason)
        self.received = received


def request(
    target: Target,
    headers: Iterable[tuple[str, str]] = (),
    *,
    origin: str | None = None,
    subprotocols: Iterable[str] = (),
    deflate: bool = False,
    version: str = handshake.VERSION,
) -> dict[str, str]:
    """Return the headers of a handshake."""
    asked = {
        "Host": target.host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": version,
        "User-Agent": "geventws-check",
    }
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.title(), []).append(value)
    asked |= {name: ("; " if name == "Cookie" else ", ").join(each) for name, each in values.items()}
    if origin is not None:
        asked["Origin"] = origin
    if subprotocols:
        asked["Sec-WebSocket-Protocol"] = ", ".join(subprotocols)
    if deflate:
        asked["Sec-WebSocket-Extensions"] = f"{NAME}; client_max_window_bits"  # as browsers do
    return asked


def ask(sock: Any, target: Target, asked: dict[str, str], within: float) -> tuple[Answer, bytes]:
    """Send a handshake; return the answer, and what came behind a 101. Raises NoAnswer and OSError."""
    lines = [f"GET {target.resource} HTTP/1.1", *(f"{name}: {value}" for name, value in asked.items())]
    data = b""
    try:
        with gevent.Timeout(within, NoAnswer(f"no answer within {within:g} s")):
            sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
            while b"\r\n\r\n" not in data:
                piece = sock.recv(65_536)
                data += piece
                if not piece or len(data) > MOST_OF_ANSWER:
                    break
    except OSError as exc:
        raise NoAnswer(f"the connection was cut: {exc.strerror or exc}", data) from exc
    head, whole, rest = data.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?", head)
    if not whole or not status:
        raise NoAnswer("the connection was closed without an answer" if not data else "no HTTP answer", data)
    fields = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
    headers = Headers([(name, value.strip(" \t")) for name, _, value in fields])
    code, phrase = int(status[1]), (status[2] or b"").decode("latin-1")
    if code == 101:
        return Answer(code, phrase, headers, "", head), rest
    return Answer(code, phrase, headers, _body(sock, headers, rest), head), b""


def _body(sock: Any, headers: Headers, data: bytes) -> str:
    """Return the body of a refusal, as far as it comes soon."""
    length = headers["Content-Length"] or ""
    size = min(int(length), MOST_OF_ANSWER) if length.isascii() and length.isdecimal() else MOST_OF_ANSWER
    try:
        with gevent.Timeout(BODY_TIMEOUT, False):
            while len(data) < size and not data.endswith(b"0\r\n\r\n") and (piece := sock.recv(65_536)):
                data += piece
    except OSError:
        pass
    return data.decode(errors="replace")


# The WebSocket


class Lost(NamedTuple):
    """The connection has ended without a Close."""

    reason: str


class Client:
    """The client's end of an open WebSocket, which waits for whatever comes with a limit."""

    def __init__(self, sock: Any, answer: Answer, rest: bytes, asked: dict[str, str]) -> None:
        """Take what ask() has returned. Raises WebSocketError for a 101 that does not fit the request."""
        self.answer = answer
        environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in asked.items()}
        headers, self.agreement = read_response(answer.head, environ)
        self.subprotocol = headers["Sec-WebSocket-Protocol"]
        self.pings = 0  # that came
        deflate = Deflate(self.agreement, Options(), client=True) if self.agreement else None
        self._connection = Connection(client=True, max_message_size=LARGEST, deflate=deflate)
        self._sock = sock
        self._events: deque[Event | Lost] = deque()
        self._eof = False
        self._take(rest)

    @property
    def has_ended(self) -> bool:
        """Whether it is closed, or begins to."""
        return self._eof or self._connection.state is not OPEN

    def send(self, message: str | bytes, within: float) -> None:
        """Send a message, if the connection stands: how it has ended, receive() tells."""
        with suppress(WebSocketError):
            self._write(self._connection.encode_message(message), within)

    def ping(self, payload: bytes, within: float) -> None:
        """Send a Ping; receive() gives its Pong."""
        self._write(self._connection.encode_ping(payload), within)

    def receive(self, within: float) -> Event | Lost | None:
        """Return the next message, Pong, Close, Failure or Lost; None when the time is over. Answers Pings."""
        if within <= 0:
            return None  # though there may be more: a view may never stop to send
        end = monotonic() + within
        while not self._events:
            if self._eof:
                return Lost("the connection has ended")
            data = None
            try:
                with gevent.Timeout(max(end - monotonic(), 0.001), False):
                    data = self._sock.recv(65_536)
            except OSError as exc:
                self._lose(exc.strerror or str(exc))
                continue
            if data is None:
                return None
            self._take(data) if data else self._lose("closed without a Close")
        return self._events.popleft()

    def close(self) -> None:
        """Begin to close with 1000; receive() gives the answer."""
        self._write(self._connection.close(), LEAVE_TIMEOUT)

    def leave(self) -> None:
        """Close with 1000 as politely as time allows."""
        self.close()
        end = monotonic() + LEAVE_TIMEOUT
        while not isinstance(self.receive(end - monotonic()), (Close, Lost, type(None))):
            pass
        self._sock.close()

    def _take(self, data: bytes) -> None:
        for event in self._connection.receive_data(data):
            if isinstance(event, Ping):
                self.pings += 1
                self._write(self._connection.take_pongs(), LEAVE_TIMEOUT)
            else:
                self._events.append(event)
            if isinstance(event, (Close, Failure)):
                self._write(self._connection.close(), LEAVE_TIMEOUT)

    def _write(self, data: bytes, within: float) -> None:
        try:
            with gevent.Timeout(within, False):
                self._sock.sendall(data)
        except OSError:
            pass  # the next read tells

    def _lose(self, reason: str) -> None:
        self._eof = True
        self._connection.receive_eof()
        self._events.append(Lost(reason))
