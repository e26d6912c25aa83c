"""WebSocketServer and its handler, in this process: what pywsgi does not do by itself."""

from __future__ import annotations

import gc
import io
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent import pywsgi

from geventws import WebSocket, WebSocketHandler, WebSocketServer
from geventws.connection import Close
from geventws.errors import WebSocketError

from .pairs import WITHIN, Peer, close_frame, settle, until
from .servers import upgrade_request

Start = Callable[..., Any]


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Echo, and answer plain requests with what came."""
    ws: WebSocket | None = environ.get("wsgi.websocket")
    if ws is None:
        start_response("200 OK", [("Content-Type", "text/plain")])
        body = environ["wsgi.input"].read()
        return [f"{environ['PATH_INFO']} {environ['HTTP_HOST']} {body.decode()}".encode()]
    if environ["PATH_INFO"] == "/raw":
        environ["wsgi.input"].raw._sock.send(b"by hand")
        return []
    for message in ws:
        ws.send(message)
    return []


@pytest.fixture
def start(errors: Any) -> Iterator[Start]:
    """Starts a server, of ours unless another class is given, and returns it."""
    started: list[Any] = []

    def start(application: Any = app, server_class: Any = WebSocketServer, **arguments: Any) -> Any:
        server = server_class(("127.0.0.1", 0), application, **{"log": None, **arguments})
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop(0)


def connected(server: Any) -> Any:
    """Return a socket that is connected to the server."""
    sock = gevent.socket.create_connection(("127.0.0.1", server.server_port))
    sock.settimeout(WITHIN)
    return sock


def exchange(server: Any, request: bytes) -> bytes:
    """Send bytes as they are; return all that comes."""
    sock = connected(server)
    sock.sendall(request)
    answer = b"".join(iter(lambda: sock.recv(65536), b""))
    sock.close()
    return answer


def get(path: str, *lines: str) -> bytes:
    """Return a request, on a connection that ends behind it."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *lines, "", ""]).encode()


def opened_on(server: Any, path: str = "/") -> Peer:
    """Return the peer of a WebSocket of the server."""
    peer = Peer(connected(server))
    peer.sock.sendall(upgrade_request(path))
    assert peer.open().startswith("HTTP/1.1 101 ")
    return peer


# What it serves


@pytest.mark.parametrize("kind", ["ours", "pywsgi's"])
def test_websockets_and_pages_are_served_on_one_port(start: Start, kind: str) -> None:
    arguments = {} if kind == "ours" else {"server_class": pywsgi.WSGIServer, "handler_class": WebSocketHandler}
    server = start(**arguments)
    peer = opened_on(server)
    peer.send("hello")
    assert peer.receive() == "hello"
    assert exchange(server, get("/page")).endswith(b"/page localhost ")
    peer.sock.close()


def test_frames_behind_the_request_are_the_first(start: Start) -> None:
    peer = Peer(connected(start()))
    peer.sock.sendall(upgrade_request("/") + peer.frame("early"))
    peer.open()
    assert peer.receive() == "early"
    peer.sock.close()


def test_the_target_of_an_absolute_request_names_the_host(start: Start) -> None:
    server = start()
    for target, path in (("http://other.example/path", "/path"), ("HTTP://other.example", "/")):
        assert exchange(server, get(target)).endswith(f"{path} other.example ".encode())


def test_an_empty_line_before_a_request_is_ignored(start: Start) -> None:
    assert exchange(start(), b"\r\n" + get("/")).endswith(b"/ localhost ")


def test_an_app_may_use_the_raw_socket_and_nothing_of_http_is_added(start: Start) -> None:
    assert exchange(start(), upgrade_request("/raw")) == b"by hand"


def test_the_access_line_comes_at_the_end_with_bytes_and_duration(start: Start) -> None:
    lines: list[str] = []

    class Log:
        def write(self, line: str) -> None:
            lines.append(line)

    server = start(log=Log())
    peer = opened_on(server, '/a"b')
    peer.sock.sendall(close_frame())
    peer.read_all()
    peer.sock.close()
    until(lambda: lines, "the access line")
    assert r'"GET /a\"b HTTP/1.1" 101 ' in lines[0]
    address = lines[0].split()[0]
    assert address == "127.0.0.1"


# What it refuses

HEAD = "GET / HTTP/1.1\r\nHost: localhost\r\n"
REFUSED = {
    "a long request line": (f"GET /{'a' * 100} HTTP/1.1\r\n\r\n", 414, "limit_request_line"),
    "a long header line": (f"{HEAD}X: {'a' * 100}\r\n\r\n", 431, "limit_request_field_size"),
    "many header lines": (HEAD + "X: a\r\n" * 10 + "\r\n", 431, "limit_request_fields"),
    "no request line": ("hello\r\n\r\n", 400, "malformed request"),
    "a bare line feed": ("GET / HTTP/1.1\nHost: localhost\n\n", 400, "malformed request"),
    "a header without a colon": (f"{HEAD}nonsense\r\n\r\n", 400, "malformed request"),
    "two lengths": (f"{HEAD}Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "malformed request"),
    "a length and a coding": (
        f"{HEAD}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "malformed request",
    ),
    "no host": ("GET / HTTP/1.1\r\n\r\n", 400, "malformed request"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_request_that_breaks_a_rule_gets_its_answer_and_the_next_one_is_served(start: Start, what: str) -> None:
    request, status, text = REFUSED[what]
    limits = {"limit_request_line": 80, "limit_request_field_size": 80, "limit_request_fields": 5}
    server = start(options=limits, error_log=None)
    answer = exchange(server, request.encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert text.encode() in answer
    assert exchange(server, get("/")).endswith(b"/ localhost ")


def test_header_lines_that_are_too_long_together_are_refused(start: Start) -> None:
    lines = "X: {}\r\n".format("a" * 8000) * 20
    assert exchange(start(error_log=None), f"{HEAD}{lines}\r\n".encode()).startswith(b"HTTP/1.1 431 ")


def test_a_client_that_leaves_inside_its_request_head_is_no_error(start: Start) -> None:
    server = start()
    sock = connected(server)
    sock.sendall(HEAD.encode())
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(100) == b""
    sock.close()


def test_a_body_whose_end_nobody_knows_ends_the_connection(start: Start) -> None:
    request = f"{HEAD}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n\r\n".replace("GET", "POST")
    answer = exchange(start(error_log=None), (request + HEAD + "\r\n").encode())
    assert answer.count(b"HTTP/1.1 ") == 1


def test_an_unknown_argument_of_the_server_is_not_taken_for_one_of_tls() -> None:
    with pytest.raises(TypeError, match="no argument option; those of geventws go into options="):
        WebSocketServer(("127.0.0.1", 0), None, option={"ping_interval": 10})


@pytest.mark.parametrize("hook", ["run_websocket", "upgrade_connection", "upgrade_websocket"])
def test_a_handler_whose_check_would_never_run_is_refused(hook: str) -> None:
    with pytest.raises(TypeError, match=f"never calls Guarded.{hook}: refuse in the app"):
        type("Guarded", (WebSocketHandler,), {hook: lambda self: None})


# How it stops


def test_stop_ends_idle_connections_and_websockets_and_returns_soon(start: Start) -> None:
    server = start()
    idle, peer = connected(server), opened_on(server)
    idle.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert idle.recv(65536)
    settle()
    stopping = gevent.spawn(server.stop)
    close: Any = peer.receive()
    assert close.code == 1012
    peer.sock.sendall(close_frame(1012))
    peer.read_all()
    peer.sock.close()
    assert b"".join(iter(lambda: idle.recv(65536), b"")).count(b"HTTP/1.1") == 0
    idle.close()
    stopping.get(timeout=WITHIN)
    with pytest.raises(OSError, match="refused"):
        connected(server)


def test_an_app_that_holds_its_input_cannot_use_the_socket_behind_the_handshake(start: Start) -> None:
    told: list[str] = []

    def holding(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        held, ws = environ["wsgi.input"], environ["wsgi.websocket"]
        ws.accept()
        try:
            held.raw.recv(1)
        except WebSocketError as exc:
            told.append(str(exc))
        return []

    peer = opened_on(start(holding))
    peer.sock.sendall(close_frame())
    peer.read_all()
    peer.sock.close()
    assert "takes the raw socket does so within accept_after seconds" in told[0]


@pytest.mark.parametrize("kind", ["ours", "pywsgi's"])
@pytest.mark.parametrize("spawn", ["default", gevent.spawn_raw, 100, 1], ids=["default", "raw", "pool", "full"])
def test_an_idle_websocket_holds_nothing_of_pywsgi(start: Start, spawn: Any, kind: str) -> None:
    files: list[str] = []

    def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        frame = sys._getframe()
        while frame:
            files.append(frame.f_code.co_filename)
            frame = frame.f_back  # type: ignore[assignment]
        for message in environ["wsgi.websocket"]:
            environ["wsgi.websocket"].send(message)
        return []

    arguments = {} if kind == "ours" else {"server_class": pywsgi.WSGIServer, "handler_class": WebSocketHandler}
    server = start(echo, spawn=spawn, **arguments)
    gc.collect()  # handlers of other tests
    for _ in range(3):  # also where the pool has room for one alone
        peer = opened_on(server)
        peer.send("hello")
        assert peer.receive() == "hello"
        settle()
        assert not [each for each in gc.get_objects() if type(each) is WebSocketHandler]
        peer.sock.sendall(close_frame(1000))
        assert isinstance(peer.receive(), Close)
        assert peer.sock.recv(1) == b""
        peer.sock.close()
    assert pywsgi.__file__ not in files
    until(lambda: not server.pool, "end of all greenlets")


def test_an_answer_in_http_may_come_behind_a_page_on_one_connection(start: Start) -> None:
    def refusing(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if "wsgi.websocket" not in environ:
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Length", "2")])
        return [b"no"]

    answer = exchange(start(refusing), b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n" + upgrade_request("/"))
    assert answer.split(b"\r\n")[0] == b"HTTP/1.1 200 OK"
    assert b"HTTP/1.1 403 Forbidden\r\n" in answer
    assert answer.endswith(b"no")


def test_an_error_of_a_view_is_an_answer_500_and_told_with_its_request(start: Start, errors: io.StringIO) -> None:
    def failing(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise ValueError("wrong")

    assert exchange(start(failing), upgrade_request("/")).startswith(b"HTTP/1.1 500 ")
    assert "ValueError: wrong" in errors.getvalue()
    assert "'HTTP_HOST': 'localhost', (hidden keys:" in errors.getvalue()
    errors.truncate(errors.seek(0))


def test_a_subclass_sees_one_request_and_its_headers_from_begin_to_end(start: Start) -> None:
    seen: list[str] = []

    class Seeing(WebSocketHandler):
        def handle_one_response(self) -> None:
            seen.append("begin")
            super().handle_one_response()
            seen.append(self._orig_status)

        def log_request(self) -> None:
            seen.append(self.headers["Host"])

    server = start(handler_class=Seeing)
    peer = opened_on(server)
    peer.sock.close()
    until(lambda: len(seen) > 2, "end of the request")
    assert seen == ["begin", "localhost", "101 Switching Protocols"]


def test_a_subclass_of_the_server_sees_a_connection_to_its_end(start: Start) -> None:
    handled: list[socket.socket] = []

    class Counting(WebSocketServer):
        def handle(self, sock: Any, address: Any) -> None:
            super().handle(sock, address)
            handled.append(sock)

    peer = opened_on(start(server_class=Counting))
    peer.send("hello")
    assert peer.receive() == "hello"
    assert not handled
    peer.sock.close()
    until(lambda: len(handled) == 1, "end of the connection")


def test_behind_close_a_websocket_still_counts_in_the_pool(start: Start) -> None:
    server = start(spawn=100)
    peer = Peer(connected(server))
    head, end = upgrade_request("/")[:-2], upgrade_request("/")[-2:]
    peer.sock.sendall(head)
    until(lambda: len(server.pool) == 1, "start of the connection")
    server.close()
    peer.sock.sendall(end)
    peer.open()
    peer.send("hello")
    assert peer.receive() == "hello"
    assert len(server.pool) == 1
    peer.sock.close()
