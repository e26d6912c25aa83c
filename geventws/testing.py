"""connect(): a client for tests, which runs a view of a WSGI app on the real protocol, without a server or port.

join() is one in a room, without an app. Knows WSGI, the gateway and Flask by its looks; knows no server or pytest.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import sys
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from http.cookies import SimpleCookie
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes, urlsplit
from wsgiref.headers import Headers

import gevent
from gevent.event import Event
from gevent.socket import socketpair

from . import handshake
from .connection import Connection, Ping, Pong
from .errors import CloseCode, ConnectionClosed, ProtocolError, WebSocketError
from .frameworks import expect_disconnects
from .gateway import Application, Gateway, Upgrade
from .loglines import printable
from .options import Options
from .permessage_deflate import NAME, Agreement, Deflate
from .transport import Transport
from .websocket import WebSocket

if TYPE_CHECKING:
    from .rooms import Member, Room

__tracebackhide__ = True  # pytest shows the lines of the test and of the view

TIMEOUT = 5.0  # seconds: enough on a busy machine, and only a test that fails waits so long
KILL_TIMEOUT = 1.0  # seconds for a killed view to end
LARGEST = 1 << 40  # bytes of a message to a test: its memory is its own
EXCERPT = 200  # characters of a refusal that its exception shows

_SECURE = {"ws": False, "wss": True, "http": False, "https": True}
_header_value = re.compile(r"[\t -~\x80-\xff]*")
_ports = itertools.cycle(range(49152, 65536))  # RFC 6335 §6: those that clients get
_FRAMEWORK = {"flask.testing", "werkzeug.test"}  # modules of the test clients that others are made of
_OURS = "geventws.testing"  # marks the request, in an environ, that a client makes for connect()
_of_http = re.compile(r"wsgi\.(?!url_scheme)|werkzeug\.|CONTENT_|REQUEST_METHOD|SERVER_PROTOCOL")  # not of a handshake
_live: dict[WebSocket, gevent.Greenlet] = {}  # of all clients, as one server process counts them
_counts: dict[str, int] = {}  # the same, by their addresses


class Refused(WebSocketError):
    """The app answered in HTTP: status is an int, headers are found in any case of letters, body is bytes."""

    def __init__(self, path: str, status: str, headers: Headers, body: bytes) -> None:
        excerpt = " ".join(body.decode(errors="replace").split())[:EXCERPT]
        super().__init__(f"{path} was answered with {status}" + (f": {excerpt}" if excerpt else ""))
        self.status = int(status[:3])
        self.headers = headers
        self.body = body


def connect(
    app: Any,
    path: str,
    *,
    headers: handshake.Headers = (),
    cookies: Mapping[str, str] | None = None,
    origin: str | None = None,
    subprotocols: Sequence[str] = (),
    deflate: bool = False,
    environ: Mapping[str, Any] | None = None,
    options: Options | Mapping[str, Any] | None = None,
    timeout: float = TIMEOUT,
) -> Client:
    """Open a WebSocket to a WSGI app, or to that of app.test_client() with its cookies; for a with statement.

    path may hold a query string, or be a whole URL such as wss://app.example/chat. subprotocols and deflate are
    what the client offers. environ holds what a server would set, such as REMOTE_ADDR; options are the server's.
    timeout is seconds, for each thing waited for.

    Raises Refused when the app answers in HTTP, TimeoutError when it does nothing, and what its view raises.
    """
    client = app if hasattr(app, "run_wsgi_app") else None
    application = app if client is None else client.application
    if not callable(application):
        raise TypeError(f"connect() needs a WSGI app, or Flask's app.test_client(), not {app!r}")
    if not isinstance(options, Options):
        options = Options.from_environ(os.environ).replace(**(options or {}))
    if isinstance(subprotocols, str):
        raise TypeError(f"subprotocols must be a sequence of names, not the string {subprotocols!r}")
    asked = list(headers.items() if isinstance(headers, Mapping) else headers)
    given = SimpleCookie({name: str(value).encode().decode("latin-1") for name, value in (cookies or {}).items()})
    asked += [("Cookie", f"{name}={morsel.coded_value}") for name, morsel in given.items()]
    if origin is not None:
        asked.append(("Origin", origin))
    if subprotocols:
        asked.append(("Sec-WebSocket-Protocol", ", ".join(subprotocols)))
    if deflate:
        asked.append(("Sec-WebSocket-Extensions", f"{NAME}; client_max_window_bits"))  # as browsers do
    request = {**_request(path, getattr(application, "config", None)), **getattr(client, "environ_base", {})}
    if client is not None and client.open.__module__ not in _FRAMEWORK:
        _variables(asked)  # checked, before the client makes what it likes of them
        opened = _opened(client, path, asked)
        asked = [("Cookie", opened.pop("HTTP_COOKIE"))] if "HTTP_COOKIE" in opened else []
        request |= opened
    _exchange_cookies(client, request, [])
    if "HTTP_COOKIE" in request:
        asked.append(("Cookie", request["HTTP_COOKIE"]))
    request |= {**_variables(asked), **(environ or {})}
    if not handshake.wants_websocket(request):
        raise ValueError("the Upgrade header must name websocket; a test client of HTTP makes the other requests")
    sent = dict(request)  # apps write into theirs
    try:
        ws = Client(application, path, request, options, timeout)
    except Refused as refused:
        _exchange_cookies(client, sent, refused.headers.items())
        raise
    _exchange_cookies(client, sent, ws.headers.items())
    return ws


def join(
    room: Room, *, user: str | None = None, info: Any = None, since: str | None = None, timeout: float = TIMEOUT
) -> Client:
    """Open a WebSocket that only hears what is said in a room, without an app; for a with statement.

    user, info and since are those of room.join(), whose result is the client's attribute `member`. timeout is seconds,
    for each thing waited for. Raises what room.join() raises, and TimeoutError.
    """
    joined: list[Member] = []

    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ws: WebSocket = environ["wsgi.websocket"]
        with room.join(ws, user=user, info=info, since=since) as member:
            joined.append(member)
            for _ in ws:
                pass
        return []

    client = connect(view, f"/{quote(room.name, safe='')}", timeout=timeout)
    if not client._wait(lambda: joined or client._view.ready(), timeout):
        client._kill()
        raise TimeoutError(f"{room!r} could not be joined within {timeout:g} s")
    client._raise_error()
    client.member = joined[0]
    return client


class Client:
    """The client's end of a WebSocket whose other end is in a view; connect() opens it.

    The view runs in a greenlet of this thread, whenever the test waits: in connect(), receive(), iteration and close().
    Other threads must not use it.
    """

    def __init__(self, app: Application, path: str, environ: dict[str, Any], options: Options, timeout: float) -> None:
        """Run the view until it decides on the handshake; tests call connect()."""
        self.headers = Headers([])  # of the 101 response
        self.subprotocol: str | None = None
        self.member: Member | None = None  # of the room, where join() opened it
        self._path = printable(path)
        self._timeout = timeout
        self._environ = environ
        self._connection = Connection(client=True, max_message_size=LARGEST)
        self._messages: deque[str | bytes] = deque()
        self._head: bytes | None = b""  # of the response, as far as it came; None once the handshake is complete
        self._answer = ("", Headers([]))  # status and headers of an answer in HTTP
        self._body: list[bytes] = []
        self._error: BaseException | None = None  # what the view raised, until the test is told
        self._changed = Event()
        self._hub = gevent.get_hub()
        self._server, sock = socketpair()
        self._transport = Transport(sock, self, max_outbox=sys.maxsize, send_timeout=None)
        self._transport.start()
        self._view = gevent.spawn(self._run, app, options)
        self._view.rawlink(lambda greenlet: self._changed.set())
        try:
            in_time = self._wait(lambda: self._head is None or self._view.ready() or self._transport.closed, timeout)
            place = self._place()
        finally:
            if self._head is not None:
                self._kill()
        if self._head is None:
            return
        self._raise_error()
        status, answered = self._answer
        if status:
            raise Refused(self._path, status, answered, b"".join(self._body))
        if in_time:
            raise RuntimeError(f"the view of {self._path} neither used its WebSocket nor answered in HTTP")
        raise TimeoutError(f"no handshake on {self._path} within {timeout:g} s{place}")

    # Messages

    def send(self, message: str | bytes | bytearray | memoryview) -> None:
        """Send str as a text message, bytes-like as a binary one, without waiting.

        Raises ConnectionClosed when the connection has ended, or what the view raised.
        """
        self._check_thread()
        try:
            frame = self._connection.encode_message(message)
        except ConnectionClosed:
            self._raise_error()
            raise
        self._transport.write(frame)

    def send_json(self, obj: Any) -> None:
        """Send obj as a text message of JSON."""
        self.send(json.dumps(obj))

    def receive(self, timeout: float | None = None) -> str | bytes:
        """Return the view's next message, str for text and bytes for binary; wait at most timeout seconds for it.

        By default that is the timeout of connect(). Raises TimeoutError when the time runs out, ConnectionClosed
        when the connection has ended, and what the view raised.
        """
        if not self._await_message(timeout):
            raise ConnectionClosed(self.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason)
        return self._messages.popleft()

    def receive_json(self, timeout: float | None = None) -> Any:
        """Return the next message decoded from JSON. Raises ValueError for what is none, else as receive() does."""
        return json.loads(self.receive(timeout))

    def __iter__(self) -> Iterator[str | bytes]:
        """Give each message until the connection ends; wait for each as receive() does."""
        while self._await_message():
            yield self._messages.popleft()

    def _await_message(self, timeout: float | None = None) -> bool:
        """Return whether there is a message, once there is one or none will come any more."""
        self._check_thread()
        seconds = self._timeout if timeout is None else timeout
        if not self._wait(lambda: self._messages or self.close_code is not None, seconds):
            raise TimeoutError(f"no message on {self._path} within {seconds:g} s{self._place()}")
        if not self._messages:
            self._raise_error()
        return bool(self._messages)

    # The end

    @property
    def close_code(self) -> int | None:
        """Code of the first Close either way, 1006 where the connection ended without; None while open."""
        return self._connection.close_code

    @property
    def close_reason(self) -> str:
        """Reason of the first Close either way."""
        return self._connection.close_reason

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Close the connection if it is open, and wait for the end of the view.

        Raises what the view raised; or TimeoutError when it does not end in time, and kills it.
        """
        place = self._leave(code, reason)
        if place is not None:
            within = f"within {self._timeout:g} s of the close"
            raise TimeoutError(f"the view of {self._path} did not end {within}, and was killed{place}") from self._error
        self._raise_error()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is None:
            self.close()
            return
        self._leave()
        if isinstance(exc, Exception):
            self._raise_error()  # often the cause of what failed in the test, which it shows as well

    def _leave(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> str | None:
        """Close, and wait for the view; return where it was if it had to be killed."""
        self._check_thread()
        self._transport.write(self._connection.close(code, reason))
        ended, place = False, ""
        try:
            ended = self._wait(lambda: self._view.ready() and self._transport.closed, self._timeout)
            place = self._place()
        finally:
            if not ended:
                self._kill()
        return None if ended else place

    def _kill(self) -> None:
        self._view.kill(timeout=KILL_TIMEOUT)
        self._transport.close()
        self._server.close()  # of a view that was not even started

    def _raise_error(self) -> None:
        """Raise what the view raised, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    # The view, in its greenlet

    def _run(self, app: Application, options: Options) -> None:
        def run(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            with self._watch():
                return _Body(app(environ, start_response), self._watch)

        run.app = app  # type: ignore[attr-defined]  # as middleware has it, for the gateway to see what it is

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
            self._answer = status, Headers(headers)
            return self._body.append

        try:
            with self._watch(), _flask_errors(self._note):
                gateway = Gateway(options, _live, counts=_counts)
                expect_disconnects(app)
                body = gateway.run(run, self._environ, Upgrade(self._server, start_response))
                try:
                    self._body.extend(body)
                finally:
                    getattr(body, "close", _ignore)()
        except KeyboardInterrupt:
            raise
        except BaseException:
            pass  # noted: the test gets it
        finally:
            self._server.close()

    @contextmanager
    def _watch(self) -> Iterator[None]:
        try:
            yield
        except BaseException as exc:
            self._note(exc)
            raise

    def _note(self, exc: BaseException) -> None:
        """Keep what the view raised, but for ends of the connection, refusals, and ends of the program."""
        if isinstance(exc, (gevent.GreenletExit, GeneratorExit, KeyboardInterrupt)):
            return
        ws = self._environ.get("wsgi.websocket")
        is_end = isinstance(exc, ConnectionClosed) and ws is not None and ws.accepted and exc.websocket in {None, ws}
        is_refusal = ws is not None and ws.refusal is exc  # which the client gets as an answer
        if self._error is None and not is_end and not is_refusal:
            self._error = exc

    # Waiting

    def _check_thread(self) -> None:
        if gevent.get_hub() is not self._hub:
            raise RuntimeError(f"the WebSocket on {self._path} is of another thread, and must be used there")

    def _wait(self, done: Callable[[], object], timeout: float) -> bool:
        """Let the view run until done() is true; return whether it is, which timeout seconds decide."""
        with gevent.Timeout(timeout, False):
            while not done():
                self._changed.clear()
                self._changed.wait()
        return bool(done())  # also where a view that blocked the thread held up both

    def _place(self) -> str:
        """Return which line of the app the view has come to, as the end of a sentence."""
        frame = self._view.gr_frame
        while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in {"gevent", "geventws"}:
            frame = frame.f_back
        if frame is None:
            return ""
        return f"; it is at {os.path.relpath(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"

    # Owner of the transport: the rest runs in hub callbacks

    def data_received(self, data: bytes) -> None:
        """Take in bytes: the response first, then messages and control frames."""
        if self._head is not None:
            self._head, is_whole, data = (self._head + data).partition(b"\r\n\r\n")
            if not is_whole:
                return
            try:
                self.headers, agreement = read_response(self._head, self._environ)
            except WebSocketError as exc:
                self._note(exc)
                self._transport.close()
                return
            self.subprotocol = self.headers["Sec-WebSocket-Protocol"]
            if agreement is not None:
                self._connection.deflate = Deflate(agreement, Options(), client=True)
            self._head = None
        for event in self._connection.receive_data(data):
            if isinstance(event, (str, bytes)):
                self._messages.append(event)
            elif isinstance(event, Ping):
                self._transport.write(self._connection.take_pongs())
            elif not isinstance(event, Pong):
                self._transport.write(self._connection.close())
        self._changed.set()

    def eof_received(self) -> None:
        """The view's end is closed."""
        self._transport.close()

    def connection_lost(self, cause: str, reason: str) -> None:
        """The socket is closed."""
        self._connection.receive_eof(reason)
        self._changed.set()

    def drained(self) -> None:
        """The view's end took what was waiting."""


class _Body:
    """The body of an app's answer, watched: an app that is a generator runs only when it is iterated."""

    def __init__(self, body: Iterable[bytes], watch: Callable[[], AbstractContextManager[None]]) -> None:
        self._body = body
        self._watch = watch

    def __iter__(self) -> Iterator[bytes]:
        with self._watch():
            yield from self._body

    def close(self) -> None:
        with self._watch():
            getattr(self._body, "close", _ignore)()


def read_response(head: bytes, request: Mapping[str, Any]) -> tuple[Headers, Agreement | None]:
    """Return the headers of a handshake's response, and the compression that it agrees to.

    head ends before the empty line. Raises ProtocolError for a response that does not complete the handshake, in
    RFC 6455 §4.1 (1 to 6) and RFC 7692 §7.1.
    """
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = Headers([(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines)])
    upgrade, connection = headers["Upgrade"] or "", headers["Connection"] or ""
    subprotocol = headers["Sec-WebSocket-Protocol"]
    offered = handshake.parse_subprotocols(request.get("HTTP_SEC_WEBSOCKET_PROTOCOL"))
    extensions = handshake.parse_extensions(headers["Sec-WebSocket-Extensions"])
    known = handshake.parse_extensions(request.get("HTTP_SEC_WEBSOCKET_EXTENSIONS"))
    faults = {
        f"status {status!r}": not status.startswith("HTTP/1.1 101 "),
        f"Upgrade {upgrade!r}": upgrade.lower() != "websocket",
        f"Connection {connection!r}": "upgrade" not in map(str.strip, connection.lower().split(",")),
        "a Sec-WebSocket-Accept that does not fit the key": headers["Sec-WebSocket-Accept"]
        != handshake.accept_key(request["HTTP_SEC_WEBSOCKET_KEY"]),
        f"subprotocol {subprotocol!r}, which was not offered": subprotocol not in {None, *offered},
        "an extension that was not offered": not {name for name, _ in extensions} <= {name for name, _ in known},
    }
    for fault, is_found in faults.items():
        if is_found:
            raise ProtocolError(f"the response to the handshake has {fault}")
    agreements = [_agreement(parameters) for _, parameters in extensions]
    return headers, agreements[0] if agreements else None


def _agreement(parameters: Iterable[tuple[str, str | None]]) -> Agreement:
    agreed: dict[str, Any] = {"server_no_context_takeover": False, "client_no_context_takeover": False}
    try:
        agreed |= {name: value is None or int(value) for name, value in parameters}
        return Agreement(**agreed)
    except (TypeError, ValueError) as exc:
        raise ProtocolError(f"the response agrees to {NAME} with parameters that it does not have: {exc}") from exc


# The request


def _request(path: str, config: object) -> dict[str, Any]:
    """Return the environ of a handshake for a path or URL; a Flask app's config may name its host and root."""
    if not isinstance(path, str):
        raise TypeError(f"path must be a string, not {path!r}")
    url = urlsplit(path)
    if not (path.startswith("/") or (url.scheme in _SECURE and url.netloc)):
        raise ValueError(f"path {path!r} must begin with a slash, or be a URL such as ws://localhost/chat")
    if url.fragment:
        raise ValueError(f"path {path!r} has a fragment, which no client may send")  # RFC 6455 §3
    config = config if isinstance(config, dict) else {}
    is_secure = _SECURE[url.scheme or config.get("PREFERRED_URL_SCHEME", "http")]
    host = url.netloc or config.get("SERVER_NAME") or "localhost"
    server = urlsplit(f"//{host}")
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": config.get("APPLICATION_ROOT", "").rstrip("/"),
        "PATH_INFO": unquote_to_bytes(url.path or "/").decode("latin-1"),
        "QUERY_STRING": url.query.encode().decode("latin-1"),
        "SERVER_NAME": server.hostname or "",
        "SERVER_PORT": str(server.port or (443 if is_secure else 80)),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": __name__,
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": str(next(_ports)),
        "HTTP_HOST": host,
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_KEY": b64encode(os.urandom(16)).decode(),
        "HTTP_SEC_WEBSOCKET_VERSION": handshake.VERSION,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https" if is_secure else "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def _variables(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers as variables of the environ; those of one name are joined."""
    variables: dict[str, str] = {}
    for name, value in headers:
        if not isinstance(value, str):
            raise TypeError(f"header {name} must be a string, not {value!r}")
        if not _header_value.fullmatch(value):
            raise ValueError(f"header {name}: {value!r} holds a character that headers may not")
        variable = f"HTTP_{name.upper().replace('-', '_')}"
        comma = "; " if variable == "HTTP_COOKIE" else ", "
        variables[variable] = comma.join(filter(None, [variables.get(variable), value]))
    return variables


# Flask


def _exchange_cookies(client: Any, request: dict[str, Any], headers: list[tuple[str, str]]) -> None:
    """Have a test client of Flask, if any, put its cookies into a request, and keep those that these headers set."""
    if client is None:
        return

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", headers)
        return []

    twin = copy(client)  # with the same cookies
    twin.application = answer
    twin.run_wsgi_app(request)


def _opened(client: Any, path: str, headers: list[tuple[str, str]]) -> dict[str, Any]:
    """Return what the environ of a request holds that a test client makes by an open() of its own.

    Its requests to the app besides are made. Raises TypeError if this one is not among them.
    """
    made: dict[str, Any] = {}
    headers_class = sys.modules["werkzeug.datastructures"].Headers
    run_wsgi_app = client.run_wsgi_app

    def take(environ: dict[str, Any], buffered: bool = False) -> Any:
        if environ.pop(_OURS, None) is not made:
            return run_wsgi_app(environ, buffered=buffered)
        made.update(environ)
        return [], "200 OK", headers_class()

    client.run_wsgi_app = take
    try:
        url = path.replace("ws", "http", 1) if path.startswith(("ws:", "wss:")) else path
        client.open(url, method="GET", headers=headers_class(headers), environ_overrides={_OURS: made})
    finally:
        del client.run_wsgi_app
    if not made:
        raise TypeError(f"{type(client).__name__}.open() does not make the request that it is asked for")
    return {name: value for name, value in made.items() if not _of_http.match(name)}


@contextmanager
def _flask_errors(note: Callable[[BaseException], None]) -> Iterator[None]:
    """Note what a Flask view in this greenlet raises, though Flask may log it and answer 500 itself."""
    flask = sys.modules.get("flask")
    if flask is None or not hasattr(flask.got_request_exception, "receivers"):  # until 2.3 Flask may have no signals
        yield
        return
    view = gevent.getcurrent()

    def take(app: object, exception: BaseException, **unused: Any) -> None:
        if gevent.getcurrent() is view:
            note(exception)

    with flask.got_request_exception.connected_to(take):
        yield


def _ignore(*unused: object) -> None:
    pass
