"""The gateway alone: one request on a socket pair, without a server."""

from __future__ import annotations

import gc
import logging
import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any

import gevent
import gevent.event
import gevent.lock
import pytest

from geventws import signals
from geventws.connection import Close
from geventws.errors import ConnectionClosed, HandshakeError, WebSocketError
from geventws.gateway import Gateway, TakenSocket, Upgrade
from geventws.options import Options
from geventws.websocket import WebSocket

from .pairs import ENVIRON, WITHIN, Opener, Peer, close_frame, joined, settle


class Asked:
    """A request for a WebSocket that a gateway runs in a greenlet: its peer, and what is answered in HTTP."""

    def __init__(self, app: Any, gateway: Gateway, upgrade: type[Upgrade], changes: dict[str, Any]) -> None:
        self.server, client = joined("unix")
        self.peer = Peer(client)
        self.status = ""
        self.headers: dict[str, str] = {}
        self.written = b""
        self.raised: BaseException | None = None
        self.body: Any = None
        arguments = app, {**ENVIRON, **changes}, upgrade(self.server, self.start_response)
        self.running = gevent.spawn(self._run, gateway, *arguments)

    def _run(self, gateway: Gateway, *arguments: Any) -> None:
        try:
            self.body = gateway.run(*arguments)
        except BaseException as exc:
            self.raised = exc

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        self.status, self.headers = status, dict(headers)
        return self.write

    def write(self, data: bytes) -> None:
        self.written += data

    def end(self) -> Asked:
        """Return this when its run is over."""
        self.running.join(WITHIN)
        assert self.running.ready()
        return self

    def closes(self) -> Close:
        """Return the Close that comes behind the 101; answer it, and leave."""
        self.peer.open()
        event = self.peer.receive()
        assert isinstance(event, Close)
        self.peer.sock.sendall(close_frame())
        self.peer.sock.close()
        return event


@pytest.fixture
def ask(errors: Any) -> Iterator[Callable[..., Asked]]:
    """Runs an app on a request for a WebSocket."""
    made: list[Asked] = []

    def start(app: Any, gateway: Gateway | None = None, upgrade: type[Upgrade] = Upgrade, **changes: Any) -> Asked:
        made.append(Asked(app, gateway or Gateway(Options()), upgrade, changes))
        return made[-1]

    yield start
    for asked in made:
        asked.peer.sock.close()
        asked.running.kill()
        asked.server.close()


def of_view(view: Callable[[WebSocket], object]) -> Any:
    """Return an app that runs a view on the WebSocket and says no more."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        view(environ["wsgi.websocket"])
        return []

    return app


def wait(ws: WebSocket) -> None:
    """Be a view that receives until the end."""
    for _ in ws:
        pass


# Who is let in


def test_a_gateway_that_stops_refuses_with_503(ask: Any) -> None:
    gateway = Gateway(Options())
    gateway.begin_stop()
    asked = ask(of_view(wait), gateway).end()
    assert (asked.status, asked.headers["Retry-After"]) == ("503 Service Unavailable", "1")
    assert asked.body == [b"503 Service Unavailable: the server is stopping\n"]


def test_one_more_than_max_connections_is_refused_until_one_has_left(ask: Any) -> None:
    gateway = Gateway(Options(max_connections=1))
    first = ask(of_view(wait), gateway)
    first.peer.open()
    assert ask(of_view(wait), gateway).end().headers["Retry-After"] == "10"
    first.peer.sock.close()
    first.end()
    ask(of_view(wait), gateway).peer.open()


def fail(ws: WebSocket) -> None:
    wait(ws)
    raise ValueError("fails behind its use")


def leave(ws: WebSocket) -> None:
    ws.close()


def accept_badly(ws: WebSocket) -> None:
    with pytest.raises(ValueError, match="belongs to the handshake"):
        ws.accept(headers={"Upgrade": "x"})
    wait(ws)


def accept_in_a_thread(ws: WebSocket) -> None:
    def accept() -> HandshakeError | None:
        try:
            ws.accept()
        except HandshakeError as exc:
            return exc  # the pool prints what is raised
        return None

    refusal = gevent.get_hub().threadpool.apply(accept)
    if refusal is not None:
        raise refusal
    wait(ws)


@pytest.mark.parametrize("view", [wait, fail, leave, accept_badly, accept_in_a_thread])
@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_place_of_an_address_is_free_again_once_whatever_the_end(
    ask: Any, caplog: pytest.LogCaptureFixture, view: Any, end: str
) -> None:
    gateway = Gateway(Options(max_connections_per_address=1))
    for _ in range(3):
        asked = ask(of_view(view), gateway, REMOTE_ADDR="192.0.2.1")
        asked.peer.open()
        ask(of_view(wait), gateway, REMOTE_ADDR="192.0.2.2").peer.sock.close()
        if view is not leave:
            refused = ask(of_view(view), gateway, REMOTE_ADDR="192.0.2.1").end()
            assert (refused.status, refused.headers["Retry-After"]) == ("429 Too Many Requests", "10")
            assert b"max_connections_per_address" in refused.body[0]
        if end == "is killed":
            asked.running.kill(block=False)
        asked.peer.sock.close()
        asked.end()
        settle()
    assert gateway.addresses is not None
    assert (gateway.addresses._counts, gateway.addresses._places) == ({}, {})


@pytest.mark.parametrize("answer", ["404 Not Found", "failure", "nothing"])
def test_request_that_opens_no_websocket_takes_no_place(ask: Any, answer: str) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if answer == "failure":
            raise ValueError(answer)
        if answer != "nothing":
            start_response(answer, [])
        return []

    gateway = Gateway(Options(max_connections_per_address=1))
    for _ in range(2):
        ask(app, gateway, REMOTE_ADDR="192.0.2.1").end()
    ask(of_view(wait), gateway, REMOTE_ADDR="192.0.2.1").peer.open()


def test_silent_view_of_a_client_without_a_place_is_ended(ask: Any) -> None:
    gateway = Gateway(Options(max_connections_per_address=1, accept_after=0.01))
    asked = [ask(of_view(lambda ws: gevent.event.Event().wait()), gateway, REMOTE_ADDR="192.0.2.1") for _ in range(2)]
    asked[0].peer.open()
    assert asked[1].end().status == "429 Too Many Requests"
    assert len(gateway.live) == 1


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/caf\xc3\xa9", "/café"),  # as WSGI has it
        ("/\xff", "/\ufffd"),
        ("/日本", "/??"),  # as WSGI has it never, but some middleware
    ],
)
def test_a_refusal_shows_the_path_as_the_end_of_a_websocket_does(
    ask: Any, caplog: pytest.LogCaptureFixture, path: str, shown: str
) -> None:
    ask(of_view(wait), PATH_INFO=path, HTTP_ORIGIN="https://evil.example").end()
    assert f" {shown} refused: 403 " in caplog.text
    caplog.clear()
    caplog.set_level(logging.INFO, "geventws")
    asked = ask(of_view(wait), PATH_INFO=path)
    asked.peer.open()
    asked.peer.sock.close()
    asked.end()
    settle()
    assert f" {shown} close 1006 " in caplog.text


@pytest.mark.parametrize(("method", "has_body"), [("POST", True), ("HEAD", False)])
def test_a_refusal_has_its_reason_as_body_but_for_head(ask: Any, method: str, has_body: bool) -> None:
    asked = ask(of_view(wait), REQUEST_METHOD=method).end()
    assert asked.status.startswith("405 ")
    assert bool(asked.body) is has_body


def test_no_limit_of_descriptors_is_none_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert Gateway(Options()).max_connections == sys.maxsize
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1000, 1000))
    assert Gateway(Options()).max_connections == 900


# How views end


def raising(error: BaseException, *, used: bool) -> Any:
    def view(ws: WebSocket) -> None:
        if used:
            ws.accept()
        raise error

    return of_view(view)


ENDS = {
    "own": (ConnectionClosed(1001), 1000, ""),
    "failure": (KeyError("in the view"), 1011, "/ view failed"),
    "timeout": (gevent.Timeout(1), 1011, "/ view failed"),
    "sys.exit": (SystemExit(1), 1011, "/ view failed"),
    "kill": (gevent.GreenletExit(), 1001, ""),
    "like flask-sock": (StopIteration(), 1000, ""),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_leaves_a_view_decides_on_the_close_and_the_log(
    ask: Any, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    error, code, line = ENDS[end]
    asked = ask(raising(error, used=True))
    assert asked.closes().code == code
    assert asked.end().body == ()
    failures = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert bool(failures) is bool(line)
    assert line in "".join(failures)


def test_the_end_of_anothers_websocket_ends_a_view_with_a_warning(
    ask: Any, caplog: pytest.LogCaptureFixture, opened: Opener
) -> None:
    other, _ = opened()
    foreign = ConnectionClosed(1001)
    foreign.websocket = other
    assert ask(raising(foreign, used=True)).closes().code == 1000
    assert "/ view ended because another's WebSocket, to which it sent, had closed" in caplog.text


def test_an_interrupt_from_the_keyboard_ends_the_program_behind_the_close(ask: Any) -> None:
    asked = ask(raising(KeyboardInterrupt(), used=True))
    assert asked.closes().code == 1001
    assert isinstance(asked.end().raised, KeyboardInterrupt)


@pytest.mark.parametrize("error", [KeyError("early"), gevent.GreenletExit(), KeyboardInterrupt()])
def test_what_leaves_a_view_before_the_handshake_is_the_servers_to_answer(ask: Any, error: BaseException) -> None:
    asked = ask(raising(error, used=False)).end()
    assert asked.raised is error
    assert not asked.peer.has_data()


def test_an_exit_before_the_handshake_ends_the_request_and_no_program(ask: Any) -> None:
    raised = ask(raising(SystemExit(3), used=False)).end().raised
    assert isinstance(raised, RuntimeError)
    assert str(raised) == "view of / called sys.exit(3)"


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [("200 OK", 1000, ""), ("403 Forbidden", 1008, "403 Forbidden"), ("500 Internal Server Error", 1011, "")],
)
def test_an_answer_that_comes_too_late_becomes_a_close(ask: Any, status: str, code: int, reason: str) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.websocket"].accept()
        start_response(status, [])(b"nothing that the stream may hold")
        return [b"nor this"]

    asked = ask(app)
    assert asked.closes() == Close(code, reason)
    assert asked.end().status == ""


@pytest.mark.parametrize("error", [KeyError("close"), SystemExit(3), gevent.Timeout(1), gevent.GreenletExit()])
def test_what_leaves_the_close_of_a_body_leaves_no_websocket_open(
    ask: Any, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    class Fails(list[bytes]):
        def close(self) -> None:
            raise error

    def app(environ: dict[str, Any], start_response: Any) -> Fails:
        environ["wsgi.websocket"].accept()
        return Fails()

    asked = ask(app)
    assert asked.closes().code == 1000
    is_kill = isinstance(error, gevent.GreenletExit)
    assert asked.end().raised is (error if is_kill else None)
    assert ("/ closing the response failed" in caplog.text) is not is_kill


@contextmanager
def slow_log(seconds: float) -> Iterator[list[str]]:
    """Have a handler of the log wait over each line; give the lines that it is through with."""
    lines: list[str] = []
    over = gevent.event.Event()

    class Slow(logging.Handler):
        def createLock(self) -> None:
            self.lock = gevent.lock.RLock()

        def emit(self, record: logging.LogRecord) -> None:
            over.wait(seconds)
            lines.append(record.getMessage())

    handler = Slow()
    log = logging.getLogger("geventws")
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        over.set()


@pytest.mark.parametrize("used", [wait, leave, fail])
def test_kill_that_comes_while_the_peer_is_waited_for_is_an_end_like_any_other(ask: Any, used: Any) -> None:
    asked = ask(of_view(used))
    asked.peer.open()
    if used is not leave:
        asked.peer.sock.sendall(close_frame())
    settle()  # the peer leaves the connection open
    assert not asked.running.ready()
    asked.running.kill()
    assert (asked.raised, asked.body) == (None, ())


def test_view_that_is_killed_while_its_failure_is_logged_leaves_no_websocket_open(ask: Any) -> None:
    with slow_log(60):
        asked = ask(raising(KeyError("in the view"), used=True))
        asked.peer.open()
        settle()  # the handler waits
        asked.running.kill()
        with suppress(ConnectionResetError):
            assert asked.peer.sock.recv(100) == b""


# Answers in HTTP


class Body:
    """A body that fails where it is told to, and notes its close."""

    def __init__(self, *, fails: str = "") -> None:
        self.fails = fails
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        if self.fails == "first":
            raise KeyError("first")
        yield b"page"

    def close(self) -> None:
        self.closed = True
        if self.fails == "close":
            raise KeyError("close")


def test_an_app_may_answer_in_http_by_its_body_or_by_write(ask: Any) -> None:
    body = Body()

    def app(environ: dict[str, Any], start_response: Any) -> Body:
        start_response("200 OK", [("X-A", "b"), ("Connection", "keep-alive")])(b"written")
        with pytest.raises(WebSocketError, match="already answered with HTTP 200 OK"):
            environ["wsgi.websocket"].accept()
        return body

    asked = ask(app).end()
    assert (asked.status, asked.headers) == ("200 OK", {"X-A": "b", "Connection": "close"})
    assert asked.written + b"".join(asked.body) == b"writtenpage"
    assert not body.closed
    asked.body.close()
    assert body.closed


def test_an_app_that_is_a_generator_runs_up_to_its_first_bytes(ask: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        wait(environ["wsgi.websocket"])
        yield b""

    asked = ask(app)
    asked.peer.open()
    asked.peer.sock.sendall(close_frame())
    assert asked.peer.receive() == Close(1000, "")
    asked.peer.sock.close()
    assert asked.end().body == ()


class Echo:
    """Apps of every kind that can be called."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        return self.method(environ, start_response)

    def method(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        wait(environ["wsgi.websocket"])
        return []

    @staticmethod
    def function(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        return Echo().method(environ, start_response)


class StaticEcho:
    __call__ = staticmethod(Echo.function)


class CompiledEcho:
    __call__ = partial(Echo.function)


@pytest.mark.parametrize("app", [Echo(), Echo().method, Echo.function, StaticEcho(), CompiledEcho()])
def test_an_app_may_be_whatever_can_be_called(ask: Any, app: Any) -> None:
    asked = ask(app)
    gevent.sleep(0)
    asked.peer.sock.close()
    asked.end()
    assert asked.raised is None


@pytest.mark.skipif(sys.version_info < (3, 11), reason="each call goes through C")
def test_an_app_that_is_an_object_has_no_deeper_stack_than_a_function(ask: Any) -> None:
    asked = ask(Echo()), ask(Echo.function)
    settle()
    as_object, as_function = (each.running._stack_saved for each in asked)
    assert as_object == as_function


def test_a_body_that_fails_at_its_first_bytes_is_closed(ask: Any) -> None:
    body = Body(fails="first")
    assert isinstance(ask(lambda environ, start_response: body).end().raised, KeyError)
    assert body.closed


def test_a_body_that_cannot_be_closed_ends_no_websocket(ask: Any, caplog: pytest.LogCaptureFixture) -> None:
    body = Body(fails="close")

    def app(environ: dict[str, Any], start_response: Any) -> Body:
        environ["wsgi.websocket"].accept()
        return body

    assert ask(app).closes().code == 1000
    assert body.closed
    assert "/ closing the response failed" in caplog.text


# Raw sockets


class Hijacked(Upgrade):
    """An upgrade whose app writes on the raw socket."""

    is_hijacked = True


def test_an_app_that_does_nothing_has_used_the_raw_socket_and_others_are_left_alone_from_then_on(ask: Any) -> None:
    gateway = Gateway(Options(accept_after=0.01))
    silent = gevent.event.Event()
    told: list[str] = []

    class Noted(Upgrade):
        def on_hijack(self) -> None:
            told.append("hijack")

    ask(of_view(lambda ws: None), gateway, Noted).end()
    assert told == ["hijack"]
    asked = ask(of_view(lambda ws: silent.wait()), gateway)
    gevent.sleep(0.03)  # until after accept_after
    assert not asked.peer.has_data()
    silent.set()
    asked.end()


def test_a_failure_on_the_raw_socket_is_logged_and_nothing_of_http_written(
    ask: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("500 Internal Server Error", [])(b"failed")
        raise KeyError("on the raw socket")

    asked = ask(app, None, Hijacked).end()
    assert (asked.status, asked.written, asked.raised) == ("", b"", None)
    assert "KeyError: 'on the raw socket'" in caplog.text


def test_the_raw_socket_is_gone_behind_the_handshake_in_words() -> None:
    with pytest.raises(WebSocketError, match="takes the raw socket does so within accept_after seconds"):
        TakenSocket().recv(1)


# The end of all


def test_stop_closes_all_with_the_shutdown_code_and_returns_when_the_views_have_ended(ask: Any) -> None:
    gateway = Gateway(Options(shutdown_code=1001))
    asked = [ask(of_view(wait), gateway) for _ in range(3)]
    settle()
    stopping = gevent.spawn(gateway.stop, WITHIN)
    assert [each.closes() for each in asked] == [Close(1001, "server restarting")] * 3
    stopping.get(timeout=WITHIN)
    assert not gateway.live


def test_stop_says_how_many_it_closes_and_closes_no_more_in_a_second(
    ask: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geventws")
    gateway = Gateway(Options(closes_per_second=4, shutdown_reason="back at noon"))
    closed_at: list[float] = []

    def noting(ws: WebSocket) -> None:
        wait(ws)
        closed_at.append(monotonic())

    asked = [ask(of_view(noting), gateway) for _ in range(4)]
    settle()
    stopping = gevent.spawn(gateway.stop, WITHIN)
    assert [each.closes() for each in asked] == [Close(1012, "back at noon")] * 4
    stopping.get(timeout=WITHIN)
    assert closed_at[-1] - closed_at[0] > 0.6  # seconds; three pauses of 0.25
    assert "stopping: closing 4 WebSockets within 1.0 s" in caplog.messages


def test_stop_closes_more_in_a_second_where_its_time_is_short(ask: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "geventws")
    gateway = Gateway(Options(closes_per_second=1))
    asked = [ask(of_view(wait), gateway) for _ in range(30)]
    settle()
    stopping = gevent.spawn(gateway.stop, 10)
    assert [each.closes().code for each in asked] == [1012] * 30
    stopping.get(timeout=WITHIN)
    assert "stopping: closing 30 WebSockets within 5.0 s" in caplog.messages


def test_stop_kills_a_view_that_does_not_notice_the_end(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geventws.gateway.DEAF_GRACE", 0.05)
    gateway = Gateway(Options())
    killed: list[str] = []

    def deaf(ws: WebSocket) -> None:
        ws.accept()
        try:
            gevent.event.Event().wait()
        except gevent.GreenletExit:
            killed.append("deaf")
            raise

    asked = ask(of_view(deaf), gateway)
    settle()
    stopping = gevent.spawn(gateway.stop, WITHIN)
    assert asked.closes().code == 1012
    stopping.get(timeout=WITHIN)
    assert killed == ["deaf"]


def test_a_second_stop_closes_nothing_faster_and_ends_all_at_its_own_end(
    ask: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geventws")
    gateway = Gateway(Options(closes_per_second=1))
    asked = [ask(of_view(wait), gateway) for _ in range(3)]
    for each in asked:
        each.peer.open()
    first = gevent.spawn(gateway.stop, WITHIN)
    settle()
    gateway.stop(0.05)
    assert not gateway.live
    first.get(timeout=WITHIN)
    for each in asked:
        each.end()
    told = [line for line in caplog.messages if line.startswith("stopping")]
    assert told == ["stopping: closing 3 WebSockets within 3.0 s"]


@pytest.mark.parametrize("within", [0.05, 0])
def test_stop_kills_what_is_still_there_at_its_end(ask: Any, within: float) -> None:
    gateway = Gateway(Options())
    asked = ask(of_view(lambda ws: gevent.event.Event().wait()), gateway)
    settle()
    gateway.stop(within)
    assert isinstance(asked.end().raised, gevent.GreenletExit)


def test_stop_waits_for_those_who_are_told_of_the_ends(ask: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "geventws")
    gateway = Gateway(Options(close_timeout=0.05))
    for _ in range(10):
        ask(of_view(wait), gateway).peer.open()
    heard: list[WebSocket] = []

    def slow(ws: WebSocket, **fields: Any) -> None:
        gevent.sleep(0.1)
        heard.append(ws)

    with signals.closed.connected_to(slow), slow_log(0.02) as lines:
        gateway.stop(WITHIN)
        assert len(heard) == 10
        assert sum(" close 1012 " in line for line in lines) == 10


def test_stop_waits_no_longer_than_a_moment_for_those_who_are_told(
    ask: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("geventws.gateway.NEWS_GRACE", 0.05)
    caplog.set_level(logging.INFO, "geventws")
    gateway = Gateway(Options(close_timeout=0.05))
    asked = ask(of_view(wait), gateway)
    asked.peer.open()
    told, over = gevent.event.Event(), gevent.event.Event()

    def endless(ws: WebSocket, **fields: Any) -> None:
        told.set()
        over.wait()

    with signals.closed.connected_to(endless), slow_log(3600):
        gateway.stop(WITHIN)
        assert told.is_set()
    over.set()


# Memory


def test_websocket_that_ended_is_freed_without_the_garbage_collector() -> None:
    server, client = joined("unix")
    kept: list[weakref.ref[Any]] = []
    sent: list[int] = []

    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ws = environ["wsgi.websocket"]
        kept.append(weakref.ref(ws))
        assert ws.receive() is None
        return []

    class Counted(Upgrade):
        def on_end(self, size: int) -> None:
            sent.append(size)

    gc.disable()
    try:
        running = gevent.spawn(Gateway(Options()).run, view, dict(ENVIRON), Counted(server, None))
        peer = Peer(client)
        head = peer.open()
        peer.sock.sendall(close_frame())
        answer = b"".join(iter(lambda: peer.sock.recv(100), b""))
        peer.sock.close()
        assert running.get(timeout=WITHIN) == ()
        settle()
        assert kept[0]() is None
    finally:
        gc.enable()
    assert sent == [len(head) + 4 + len(answer)]


class Failing(Gateway):
    """A gateway whose hook fails before the view, as an app's app_protocol() may with compat."""

    def options_for(self, app: Any, environ: Any) -> Options:
        raise ValueError("before the view")


def test_request_that_failed_before_its_view_is_not_accepted_later(capsys: pytest.CaptureFixture[str]) -> None:
    server, client = joined("unix")
    gateway = Failing(Options(accept_after=0.02))
    with pytest.raises(ValueError, match="before the view"):
        gateway.run(lambda environ, start_response: [], dict(ENVIRON), Upgrade(server, None))
    gevent.sleep(0.05)
    assert capsys.readouterr().err == ""
    server.close()
    client.close()
