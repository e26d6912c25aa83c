"""WebSocketServer and WebSocketHandler: the seam with gevent.pywsgi.

Knows pywsgi's handler; everything about WebSocket is the gateway's.
"""

from __future__ import annotations

import errno
import io
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import fields, replace
from email.message import Message
from http import HTTPStatus
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import gevent
import gevent.socket
from gevent import pywsgi

from . import handshake
from .frameworks import expect_disconnects
from .gateway import Application, Gateway, StartResponse, TakenSocket, Upgrade, tell_lost_upgrade
from .listener import REQUEST_TIMEOUT, Listener, end_wait
from .loglines import path_of, printable
from .monitor import watch
from .options import TOKEN, Options, RequestLimits
from .shared import EMPTY, shared

MAX_HEADER_SIZE = 65_536  # bytes, all lines together; or more, where the limit of one is raised
MAX_LINES_OF_LIMIT = 8  # header lines of limit_request_field_size
LINGER = 1.0  # seconds for a client to end the connection on which its request was refused
LINGER_READS = 64  # of 16 KiB at most

_request_line = re.compile(
    # RFC 9112 §3: two targets go with one method each, the others are paths, with or without a host.
    r"(?:OPTIONS \*|CONNECT [!-\"$-.0->@-~]+|"
    rf"{TOKEN} (?:/|(?i:https?)://[!-\"$-.0->A-~]+)[!-\"$-~]*) HTTP/[0-9]\.[0-9]"
)
_absolute_form = re.compile(r"https?://([^/?#]+)([/?].*)?", re.IGNORECASE)
_header_line = re.compile(TOKEN.encode() + rb":[ \t]*[^\x00-\x08\x0a-\x1f\x7f]*\r\n")

# gevent-websocket called these hooks. A subclass may have used one to refuse clients. We never call them, so the
# subclass would let everyone in.
_NEVER_CALLED = {"run_websocket", "upgrade_connection", "upgrade_websocket"}

# Arguments that gevent's server knows. It passes any other name on to its wrapper for TLS.
_ARGUMENTS = {
    *("backlog", "spawn", "log", "error_log", "handler_class", "environ", "ssl_context", "certfile", "keyfile"),
    *("ca_certs", "cert_reqs", "ssl_version", "ciphers", "server_side"),
    *("do_handshake_on_connect", "suppress_ragged_eofs"),
}

# What a handler has in place of its request's, once that has become a WebSocket.
_NOTHING = io.BytesIO()
_NO_INPUT = pywsgi.Input(_NOTHING, 0)
_NO_HEADERS = Message()
_SWITCHED = "101 Switching Protocols"

_gateways: WeakKeyDictionary[Any, Gateway] = WeakKeyDictionary()
_all_limits: WeakKeyDictionary[Any, RequestLimits] = WeakKeyDictionary()


def _gateway(server: Any) -> Gateway:
    """Return the gateway of a server; a plain pywsgi.WSGIServer gets one of its own here."""
    gateway = _gateways.get(server)
    if gateway is None:
        gateway = _gateways[server] = Gateway(Options.from_environ(os.environ))
        expect_disconnects(server.application)
    return gateway


def _limits(server: Any) -> RequestLimits:
    """Return the limits of a server; a plain pywsgi.WSGIServer has those of the environment."""
    limits = _all_limits.get(server)
    if limits is None:
        limits = _all_limits[server] = RequestLimits.from_environ(os.environ)
    return limits


def _may_move(handler: WebSocketHandler) -> bool:
    """Whether a connection may go on in another greenlet: no TLS wrapper closes it.

    Not where a subclass may take the end of an overridden method for that of the request.
    """
    server = handler.server
    if type(handler) is not WebSocketHandler or type(server) not in (WebSocketServer, pywsgi.WSGIServer):
        return False
    if not server.started or server._spawn is None:  # close() forgets the pool in which to spawn
        return False
    return type(handler.socket) is gevent.socket.socket


class _Refused(pywsgi._InvalidClientRequest):  # type: ignore[misc]
    """A request head that gets an answer of its own, whose body is the text."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Input(io.BytesIO):
    """The empty wsgi.input of an upgrade request. It notes that simple-websocket asked it for the raw socket."""

    def __init__(self, rfile: Any) -> None:
        super().__init__()
        self._rfile = rfile
        self.is_hijacked = False

    @property
    def raw(self) -> Any:
        self.is_hijacked = True
        return self._rfile.raw

    def take_back(self) -> None:
        """Take the socket away from the app, which may still hold this object."""
        self._rfile = TakenSocket()


class WebSocketHandler(pywsgi.WSGIHandler):  # type: ignore[misc]
    """For gevent.pywsgi.WSGIServer(..., handler_class=WebSocketHandler): adds wsgi.websocket to upgrade requests."""

    # A client that leaves is no error: with TLS that is an end of file of its own kind.
    ignored_socket_errors = (*pywsgi.WSGIHandler.ignored_socket_errors, ssl.SSL_ERROR_EOF)
    application: Any
    path: Any
    socket: Any
    _fault: Exception | None = None  # of the request line

    def __init_subclass__(cls) -> None:
        for name in _NEVER_CALLED & vars(cls).keys():
            raise TypeError(f"geventws never calls {cls.__name__}.{name}: refuse in the app, before any use of ws")

    def read_requestline(self) -> str:
        """Wait for the next request of the connection; "" ends it, as it does when the server stops."""
        waiting: set[Any] = getattr(self.server, "waiting_handlers", set())
        if getattr(self.server, "is_stopping", False):
            return ""
        waiting.add(self)
        try:
            line: str = super().read_requestline()
            if line == "\r\n":  # RFC 9112 §2.2: one empty line before the request is to be ignored
                line = super().read_requestline()
        finally:
            waiting.discard(self)
        bare = line.removesuffix("\r\n")
        self._fault = None
        if len(bare) > _limits(self.server).limit_request_line:
            self._fault = _Refused(
                HTTPStatus.REQUEST_URI_TOO_LONG, "the request line is longer than the option limit_request_line allows"
            )
        elif line and (bare == line or not bare):
            self._fault = pywsgi._InvalidClientRequest(f"malformed request line {line[:80]!r}")
        return bare[: pywsgi.MAX_REQUEST_LINE - 1] or line  # pywsgi gives a longer one an answer of its own

    def handle_one_request(self) -> Any:
        """Serve the connection's next request, whose head must be there within REQUEST_TIMEOUT."""
        self._patience = gevent.Timeout.start_new(REQUEST_TIMEOUT, TimeoutError("no whole request head in time"))
        try:
            result = super().handle_one_request()
        finally:
            self._patience.close()
        if not isinstance(result, tuple):
            return result
        # Not by pywsgi, which closes at once: what is unread then makes a reset, in which the answer may be lost.
        self._orig_status, answer = result
        self.socket.sendall(answer)
        self.time_finish = time.time()
        self.log_request()
        self._linger()
        return None

    def _linger(self) -> None:
        """Throw away what the client still sends, until it has seen the end of the answer, or for LINGER seconds."""
        with gevent.Timeout(LINGER, False):
            self.socket.shutdown(socket.SHUT_WR)
            for _ in range(LINGER_READS):
                if not self.socket.recv(16_384):
                    break

    def read_request(self, raw_requestline: str) -> bool:
        """Parse the request line and the headers."""
        try:
            if self._fault is not None:
                raise self._fault
            if not _request_line.fullmatch(raw_requestline):
                raise pywsgi._InvalidClientRequest(f"malformed request line {raw_requestline[:80]!r}")
            super().read_request(raw_requestline)
        finally:
            self._patience.close()
        if absolute := _absolute_form.fullmatch(self.path):
            # RFC 9112 §3.2.2: the target's host stands for the Host header.
            del self.headers["Host"]
            self.headers["Host"] = absolute[1]
            self.path = absolute[2] or "/"
        return True

    def handle(self) -> None:
        """Serve the connection; that the client leaves is no error."""
        with suppress(OSError):
            super().handle()

    def _handle_client_error(self, ex: Exception) -> Any:
        if isinstance(ex, OSError):
            return None
        super()._handle_client_error(ex)  # which logs it
        status, text = HTTPStatus.BAD_REQUEST, "malformed request\n"
        if isinstance(ex, _Refused):
            status, text = ex.status, f"{ex}\n"
        self.response_length = len(text)
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\n"
            f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(text)}\r\n\r\n"
        )
        return str(status.value), (head + text).encode()

    def handle_one_response(self) -> None:
        """Run the app; for a WebSocket in a greenlet of its own, which holds nothing of how the request was read."""
        if not handshake.wants_websocket(self.environ) or not _may_move(self):
            super().handle_one_response()
            return
        self.close_connection = True
        _follow(self.server._spawn, _MovedUpgrade(copy(self)).serve)
        self.socket = None  # or handle() closes it

    def run_application(self) -> None:
        """Run the app, through the gateway if the request asks for a WebSocket."""
        if not handshake.wants_websocket(self.environ):
            if handshake.has_lost_upgrade(self.environ):
                tell_lost_upgrade(path_of(self.environ))
            try:
                super().run_application()
            finally:
                # Where a broken body ends nobody knows.
                if self.wsgi_input._chunked_input_error:
                    self.close_connection = True
            return
        self.close_connection = True
        app, upgrade = self.application, _Upgrade(self)

        def run(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
            return _gateway(self.server).run(app, environ, upgrade)

        self.application = run
        try:
            super().run_application()
        finally:
            self.application = app  # run() holds us: only the garbage collector would free both

    def leave_http(self, size: int) -> None:
        """Have pywsgi write nothing more, and log a 101 of this size at the end."""
        self._orig_status = _SWITCHED
        self.status = _SWITCHED.encode()
        self.code = 101
        self.response_headers: list[tuple[bytes, bytes]] = []
        self.headers_sent = self.connection_upgraded = True
        self.response_use_chunked = False
        self.response_length = size  # keeps an error answer of pywsgi out of the WebSocket's stream

    # The rest is pywsgi's

    def MessageClass(self, fp: Any, *args: Any) -> Any:
        """Parse the request's headers, refusing what two parsers could understand in two ways.

        Source: RFC 9112 §5 (lines), §6 (length), §3.2 (Host).
        """
        lines: list[bytes] = []
        size = 0
        limits = _limits(self.server)
        longest, too_large = limits.limit_request_field_size, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        while (line := fp.readline(longest + 1)) != b"\r\n":
            if not line:
                raise ConnectionResetError("the client left inside its request head")
            size += len(line)
            if len(line) > longest:
                raise _Refused(too_large, "a header line is longer than the option limit_request_field_size allows")
            if len(lines) >= limits.limit_request_fields:
                raise _Refused(too_large, "there are more header lines than the option limit_request_fields allows")
            if size > max(MAX_HEADER_SIZE, MAX_LINES_OF_LIMIT * longest):
                raise _Refused(too_large, "all header lines together are too long for limit_request_field_size")
            if not _header_line.fullmatch(line):
                raise pywsgi._InvalidClientRequest(f"malformed header line {line[:80]!r}")
            lines.append(line)
        headers = super().MessageClass(io.BytesIO(b"\r\n"), *args)
        for line in lines:
            name, _, value = line.decode("latin-1").partition(":")
            headers[name] = value.strip(" \t\r\n")
        coding, length, host = (headers.get_all(name) or [] for name in ("transfer-encoding", "content-length", "host"))
        if coding and (
            [name.lower() for name in coding] != ["chunked"] or length or self.request_version != "HTTP/1.1"
        ):
            raise pywsgi._InvalidClientRequest(f"Transfer-Encoding {coding} with Content-Length {length}")
        if len(length) > 1 or any(not (text.isascii() and text.isdigit()) for text in length):
            raise pywsgi._InvalidClientRequest(f"Content-Length {length}")
        if len(host) > 1 or (not host and self.request_version == "HTTP/1.1"):
            raise pywsgi._InvalidClientRequest(f"Host {host}")
        return headers

    def _headers(self) -> Iterator[tuple[str, str]]:
        """Give the headers as variables of the environ. A name with "_" is left out: it could pose as one with "-"."""
        for name, value in self.headers.items():
            if "_" not in name and name.lower() not in {"content-type", "content-length"}:
                yield "HTTP_" + name.replace("-", "_").upper(), value

    def _connection_upgrade_requested(self) -> bool:
        """Whether the app gets the connection as a body. It never does, because it would read the next request."""
        return False

    def format_request(self) -> str:
        """Return the access log line: Common Log Format, then the duration in seconds."""
        return _access_line(
            _host(self.client_address),
            self.requestline,
            self._orig_status,
            self.response_length,
            self.time_start,
            self.time_finish,
        )


def _follow(spawn: Callable[..., object], serve: Callable[[], None]) -> None:
    """Spawn a greenlet once this one has ended and has left its pool, which may have no room for both.

    It is the hub that spawns it then: gevent keeps no stack of ours for it.
    """
    greenlet = gevent.getcurrent()
    if isinstance(greenlet, gevent.Greenlet):
        greenlet.rawlink(lambda _: spawn(serve))
    else:  # a raw one, which no pool counts
        spawn(serve)


def _host(address: Any) -> str:
    return (address[0] if isinstance(address, tuple) else "") or "-"


def _access_line(host: str, request: str | None, status: str | None, size: int, began: float, ended: float) -> str:
    moment = time.strftime("%d/%b/%Y:%H:%M:%S %z", time.localtime(began))
    quoted = printable(request or "").replace('"', '\\"')  # a quote would end the field
    return f'{host} - - [{moment}] "{quoted}" {(status or "000").split()[0]} {size or "-"} {max(ended - began, 0):.6f}'


class _Upgrade(Upgrade):
    """An upgrade request that pywsgi has parsed, and whose handler stays to the end."""

    __slots__ = ("_environ", "_handler")

    def __init__(self, handler: Any) -> None:
        super().__init__(handler.socket, handler.start_response)
        self._handler = handler
        self._environ = handler.environ
        # pywsgi reads the rest of a request's body in the end; here that would be frames, or never come.
        handler.wsgi_input.content_length = 0
        handler.wsgi_input.chunked_input = False
        handler.wsgi_input.socket = None
        self._environ["wsgi.input"] = _Input(handler.rfile)

    # What the gateway asks of a front end

    def take_leftover(self) -> bytes:
        """Return what the buffered reader read beyond the request, without waiting."""
        self.sock.settimeout(0.0)
        rfile = self._handler.rfile
        try:
            data = rfile.peek()
        except OSError:  # nothing there yet; or a lost peer, which the transport will find too
            return b""
        leftover: bytes = rfile.read(len(data))
        return leftover

    def on_accept(self, size: int) -> None:
        handler = self._handler
        handler.leave_http(size)
        # The reader holds 8 KiB, and a reference that would keep the socket from closing.
        handler.rfile.close()
        handler.rfile, handler.wsgi_input = _NOTHING, _NO_INPUT
        if type(handler) is WebSocketHandler:  # the access line of a subclass may have some of them
            handler.headers = _NO_HEADERS
        body, self._environ["wsgi.input"] = self._environ["wsgi.input"], EMPTY
        if isinstance(body, _Input):
            body.take_back()

    @property
    def is_hijacked(self) -> bool:
        body = self._environ["wsgi.input"]
        return isinstance(body, _Input) and body.is_hijacked

    def on_hijack(self) -> None:
        self._handler.leave_http(1)
        # simple-websocket reads on a duplicate, which would keep the connection open for as long as the peer likes.
        with suppress(OSError):
            self.sock._sock.shutdown(socket.SHUT_RDWR)

    def on_end(self, size: int) -> None:
        self._handler.response_length = size


class _MovedUpgrade(_Upgrade):
    """An upgrade request in a greenlet of its own, outside pywsgi's frames, and without its handler from the 101 on."""

    __slots__ = ("_began", "_host", "_request", "_server", "_size")

    def __init__(self, handler: Any) -> None:
        if type(handler.environ) is dict:
            handler.environ = shared(handler.environ)
        super().__init__(handler)
        self._server = handler.server
        # What the last request of the connection has left.
        handler.status = None
        handler.headers_sent = handler.response_use_chunked = handler.connection_upgraded = False
        handler.time_start = time.time()
        # The server closes the socket behind the greenlet that has read the request. As a file made of it would, this
        # holds it.
        self.sock._io_refs += 1

    def serve(self) -> None:
        """Run the app and close the connection, as pywsgi's handle_one_response() and handle() do."""
        self.sock._io_refs -= 1
        self.sock._closed = False
        try:
            self._write(_gateway(self._server).run(self._handler.application, self._environ, self))
        except BaseException as exc:
            self._fail(exc)
        finally:
            with suppress(OSError):
                self._end()

    def _write(self, body: Iterable[bytes]) -> None:
        handler = self._handler
        if handler is not None:
            handler.application = lambda *unused: body
            pywsgi.WSGIHandler.run_application(handler)

    def _fail(self, exc: BaseException) -> None:
        handler = self._handler
        if handler is None:
            context = self._server.secure_environ_class(self._environ)
            self._server.loop.handle_error(context, type(exc), exc, exc.__traceback__)
        elif not isinstance(exc, OSError) or exc.errno not in handler.ignored_socket_errors:
            handler.handle_error(type(exc), exc, exc.__traceback__)

    def _end(self) -> None:
        handler, ended = self._handler, time.time()
        if handler is None:
            line = _access_line(self._host, self._request, _SWITCHED, self._size, self._began, ended)
            self._server.log.write(line + "\n")
            return
        handler.time_finish = ended
        try:
            handler.log_request()
        finally:
            with suppress(OSError):
                self.sock._sock.recv(16_384)  # what is unread makes a reset of the close
            handler.rfile.close()  # which holds the socket
            self.sock.close()

    def on_accept(self, size: int) -> None:
        """Let go of what was for HTTP."""
        super().on_accept(size)
        handler = self._handler
        self._host, self._request = _host(handler.client_address), handler.requestline
        self._began, self._size = handler.time_start, size
        self._handler = self.sock = self.start_response = None

    def on_end(self, size: int) -> None:
        self._size = size


class WebSocketServer(Listener, pywsgi.WSGIServer):  # type: ignore[misc]
    """gevent.pywsgi.WSGIServer whose apps find a WebSocket in environ["wsgi.websocket"].

    options is an Options, or names and values of some: WebSocketServer(("127.0.0.1", 8000), app,
    options={"ping_interval": 10}); also of those that limit a request head: limit_request_line, limit_request_fields,
    limit_request_field_size. gateway is that of another server: then both have one max_connections, and the other's
    options of WebSockets; stop() of one ends the WebSockets of both, for good. The rest is as WSGIServer has it. Raises
    TypeError for an unknown argument or option.
    """

    handler_class = WebSocketHandler

    def __init__(
        self,
        listener: Any,
        application: Application | None = None,
        *args: Any,
        options: Options | Mapping[str, Any] | None = None,
        gateway: Gateway | None = None,
        **kwargs: Any,
    ) -> None:
        limits: dict[str, Any] = {}
        if not isinstance(options, Options):
            changes = dict(options or {})
            limits = {field.name: changes.pop(field.name) for field in fields(RequestLimits) if field.name in changes}
            options = Options.from_environ(os.environ).replace(**changes)
        for name in kwargs.keys() - _ARGUMENTS:
            raise TypeError(f"WebSocketServer has no argument {name}; those of geventws go into options={{...}}")
        super().__init__(listener, application, *args, **kwargs)
        self.waiting_handlers: set[WebSocketHandler] = set()
        self.is_stopping = False
        self.gateway = _gateways[self] = gateway or Gateway(options)
        _all_limits[self] = replace(RequestLimits.from_environ(os.environ), **limits)
        expect_disconnects(application)

    def start(self) -> None:
        """Accept connections from now on, as WSGIServer does."""
        super().start()
        watch(self.gateway.options.hub_warning)

    def begin_stop(self) -> None:
        """Close the listener and idle connections. What is under way goes on until stop()."""
        if self.is_stopping:
            return
        self.is_stopping = True
        self.close()
        for handler in self.waiting_handlers:
            end_wait(handler.socket, ConnectionResetError(errno.ECONNRESET, "the server stops"))

    def stop(self, timeout: float | None = None) -> None:
        """Close the listener, idle connections and all WebSockets (shutdown_code), then stop as WSGIServer does.

        timeout is seconds, by default twice close_timeout; views still running then are killed.
        """
        self.begin_stop()
        end = monotonic() + (2 * self.gateway.options.close_timeout if timeout is None else timeout)
        self.gateway.stop(end - monotonic())
        super().stop(max(end - monotonic(), 0))
