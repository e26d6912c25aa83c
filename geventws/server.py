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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
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
from .gateway import Application, Gateway, StartResponse, TakenSocket, tell_lost_upgrade
from .listener import REQUEST_TIMEOUT, Listener, end_wait
from .loglines import printable
from .monitor import watch
from .options import TOKEN, Options, RequestLimits

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
    """Whether a connection may go on in another greenlet: there is room for one, and no TLS wrapper closes it.

    Not where a subclass may take the end of an overridden method for that of the request.
    """
    server = handler.server
    if type(handler) is not WebSocketHandler or type(server) is not WebSocketServer:
        return False
    if not server.started or server._spawn is None or server.full():  # close() forgets the pool in which to spawn
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
    _is_moved = False  # into a greenlet of its own, which serves its last request

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
        if self._is_moved:
            return self.handle_one_response()
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
        if self._is_moved or not handshake.wants_websocket(self.environ) or not _may_move(self):
            super().handle_one_response()
            return
        self._is_moved = self.close_connection = True
        sock, self.socket = self.socket, None  # or handle() closes it
        self.server.keep_open(sock)
        self.server._spawn(self._handle_moved, sock, self.rfile, self.wsgi_input)

    def _handle_moved(self, sock: Any, rfile: Any, wsgi_input: Any) -> None:
        self.socket, self.rfile, self.wsgi_input = sock, rfile, wsgi_input
        del sock, rfile, wsgi_input  # this frame lives as long as the WebSocket
        self.handle()

    def run_application(self) -> None:
        """Run the app, through the gateway if the request asks for a WebSocket."""
        if not handshake.wants_websocket(self.environ):
            if handshake.has_lost_upgrade(self.environ):
                tell_lost_upgrade(self.environ["PATH_INFO"])
            try:
                super().run_application()
            finally:
                # Where a broken body ends nobody knows.
                if self.wsgi_input._chunked_input_error:
                    self.close_connection = True
            return
        self.close_connection = True
        # pywsgi reads the rest of a request's body in the end; here that would be frames, or never come.
        self.wsgi_input.content_length = 0
        self.wsgi_input.chunked_input = False
        self.wsgi_input.socket = None
        self.environ["wsgi.input"] = _Input(self.rfile)
        app = self.application

        def run(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
            return _gateway(self.server).run(app, environ, self)

        self.application = run
        try:
            super().run_application()
        finally:
            self.application = app  # run() holds us: only the garbage collector would free both

    # What the gateway asks of a front end

    @property
    def sock(self) -> Any:
        return self.socket

    def take_leftover(self) -> bytes:
        """Return what the buffered reader read beyond the request, without waiting."""
        self.socket.settimeout(0.0)
        try:
            data = self.rfile.peek()
        except OSError:  # nothing there yet; or a lost peer, which the transport will find too
            return b""
        leftover: bytes = self.rfile.read(len(data))
        return leftover

    def on_accept(self, size: int) -> None:
        # A length keeps an error answer of pywsgi out of the WebSocket's stream.
        self._leave_http("101 Switching Protocols", size)
        # The reader holds 8 KiB, and a reference that would keep the socket from closing.
        self.rfile.close()
        self.rfile, self.wsgi_input = _NOTHING, _NO_INPUT
        if type(self) is WebSocketHandler:  # the access line of a subclass may have some of them
            self.headers = _NO_HEADERS
        body, self.environ["wsgi.input"] = self.environ["wsgi.input"], io.BytesIO()
        if isinstance(body, _Input):
            body.take_back()

    @property
    def is_hijacked(self) -> bool:
        return isinstance(self.environ["wsgi.input"], _Input) and self.environ["wsgi.input"].is_hijacked

    def on_hijack(self) -> None:
        self._leave_http("101 Switching Protocols", 1)
        # simple-websocket reads on a duplicate, which would keep the connection open for as long as the peer likes.
        with suppress(OSError):
            self.socket._sock.shutdown(socket.SHUT_RDWR)

    def on_end(self, size: int) -> None:
        self.response_length = size

    # The rest is pywsgi's

    def _leave_http(self, status: str, size: int) -> None:
        """Have pywsgi write nothing more, and log this status and size at the end."""
        self.status = status.encode()
        self._orig_status = status
        self.code = 101
        self.response_headers: list[tuple[bytes, bytes]] = []
        self.headers_sent = self.connection_upgraded = True
        self.response_use_chunked = False
        self.response_length = size

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

    def _quoted_request(self) -> str:
        """Return the request line fit to stand between quotes: a quote in it would end the field of the log."""
        return printable(self.requestline or "").replace('"', '\\"')

    def format_request(self) -> str:
        """Return the access log line: Common Log Format, then the duration in seconds."""
        address = self.client_address
        started = time.strftime("%d/%b/%Y:%H:%M:%S %z", time.localtime(self.time_start))
        status = (self._orig_status or "000").split()[0]
        duration = max(self.time_finish - self.time_start, 0)
        return (
            f"{(address[0] if isinstance(address, tuple) else '') or '-'} - - [{started}] "
            f'"{self._quoted_request()}" {status} {self.response_length or "-"} {duration:.6f}'
        )


class WebSocketServer(Listener, pywsgi.WSGIServer):  # type: ignore[misc]
    """gevent.pywsgi.WSGIServer whose apps find a WebSocket in environ["wsgi.websocket"].

    options is an Options, or names and values of some: WebSocketServer(("127.0.0.1", 8000), app,
    options={"ping_interval": 10}); also of those that limit a request head: limit_request_line, limit_request_fields,
    limit_request_field_size. gateway is that of another server: then both have one max_connections, and the other's
    options of WebSockets. The rest is as WSGIServer has it. Raises TypeError for an unknown argument or option.
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
        self._kept_open: set[Any] = set()
        self.gateway = _gateways[self] = gateway or Gateway(options)
        _all_limits[self] = replace(RequestLimits.from_environ(os.environ), **limits)
        expect_disconnects(application)

    def start(self) -> None:
        """Accept connections from now on, as WSGIServer does."""
        super().start()
        watch(self.gateway.options.hub_warning)

    def keep_open(self, sock: Any) -> None:
        """Leave a socket open when the greenlet ends that accepted it."""
        self._kept_open.add(sock)

    def do_close(self, sock: Any, *args: Any) -> None:
        """Close a connection behind its greenlet, unless it goes on in another."""
        if sock in self._kept_open:
            self._kept_open.discard(sock)
        else:
            super().do_close(sock, *args)

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
