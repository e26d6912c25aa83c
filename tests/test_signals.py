"""Signals: told in the order of a connection's life, with what an APM needs, and never at a connection's cost."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import gevent
import pytest
from flask import Flask, abort, request
from gevent import get_hub, getcurrent

from geventws import signals
from geventws.errors import ConnectionClosed
from geventws.flask import Sockets
from geventws.testing import Refused, connect
from geventws.websocket import WebSocket

from .pairs import WITHIN, until
from .servers import ROOT

Told = list[tuple[str, Any, dict[str, Any]]]


@pytest.fixture
def told() -> Iterator[Told]:
    """Name, sender and fields of each signal that was sent."""
    heard: Told = []
    with ExitStack() as stack:
        for name in signals.__all__:

            def receiver(sender: Any, *, name: str = name, **fields: Any) -> None:
                assert getcurrent() is not get_hub()
                heard.append((name, sender, fields))

            stack.enter_context(getattr(signals, name).connected_to(receiver))
        yield heard


def until_told(told: Told, *names: str) -> None:
    until(lambda: [name for name, _, _ in told] == list(names), f"{names}, not {told}")


def flask_app() -> Flask:
    app = Flask(__name__)
    sockets = Sockets(app)

    @sockets.route("/echo/<name>")
    def echo(ws: WebSocket, name: str) -> None:
        for message in ws:
            ws.send(message)

    @sockets.route("/fail")
    def fail(ws: WebSocket) -> None:
        ws.receive()
        raise KeyError("in the view")

    @app.route("/plain", websocket=True)
    def plain() -> str:
        request.environ["wsgi.websocket"].receive()
        raise KeyError("in the view")

    @app.errorhandler(ZeroDivisionError)
    def handle(error: ZeroDivisionError) -> tuple[str, int]:
        return "divided", 500

    @sockets.route("/handled")
    def handled(ws: WebSocket) -> None:
        ws.receive()
        raise ZeroDivisionError

    @sockets.route("/partners", origins=["https://partner.example"])
    def partners(ws: WebSocket) -> None:
        ws.receive()

    @sockets.route("/forbidden")
    def forbidden(ws: WebSocket) -> None:
        abort(401)

    return app


def test_opened_then_closed_are_told_of_a_connection(told: Told) -> None:
    with connect(flask_app(), "/echo/ann") as ws:
        until_told(told, "opened")
        ws.send("hello")
        assert ws.receive() == "hello"
    until_told(told, "opened", "closed")
    (_, sender, fields), (_, last, end) = told
    assert isinstance(sender, WebSocket) and last is sender
    assert fields == {"id": sender.id, "path": "/echo/ann", "route": "/echo/<name>"}
    assert end.items() >= fields.items()
    assert (end["cause"], end["code"], end["messages"]) == ("client", 1000, {"received": 1, "sent": 1})


def test_opened_is_told_in_the_greenlet_of_the_view_and_its_request(told: Told) -> None:
    found = []

    def receiver(ws: WebSocket, **fields: Any) -> None:
        found.append((getcurrent(), request.path))
        ws.user = "ann"

    app = Flask(__name__)

    @Sockets(app).route("/me")
    def me(ws: WebSocket) -> None:
        ws.accept()
        found.append((getcurrent(), request.path))
        ws.send(str(ws.user))

    with signals.opened.connected_to(receiver), connect(app, "/me") as ws:
        assert ws.receive() == "ann"
    assert found[0] == found[1]
    until_told(told, "opened", "closed")


def test_opened_is_told_behind_a_hub_callback_that_completes_the_handshake(told: Told) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["wsgi.websocket"].accept_soon()
        gevent.sleep(60)
        return []

    with suppress(TimeoutError), connect(app, "/", options={"accept_after": 0.01}, timeout=1) as ws:
        until_told(told, "opened")
        ws.close()
    until(lambda: "closed" in [name for name, _, _ in told], "the end, while the view still sleeps")


def fail(app: Any, path: str) -> None:
    """Have a view fail; a test client raises what it raised."""
    with suppress(KeyError, ConnectionClosed), connect(app, path) as ws:
        ws.send("go")
        assert ws.receive() is None


FAILURES = {"/fail": KeyError, "/plain": KeyError, "/handled": None}


@pytest.mark.parametrize("path", FAILURES)
def test_view_that_fails_is_told_with_its_exception(told: Told, path: str) -> None:
    app = flask_app()
    app.config["PROPAGATE_EXCEPTIONS"] = False
    fail(app, path)
    until(lambda: len(told) == 3, "three signals")
    by_name = {name: (sender, fields) for name, sender, fields in told}
    sender, fields = by_name["view_failed"]
    assert sender is by_name["opened"][0]
    error = FAILURES[path]
    assert fields["error"] is None if error is None else isinstance(fields["error"], error)
    assert by_name["closed"][1]["cause"] == "view_failed"
    assert by_name["closed"][1]["code"] == 1011


def test_bare_view_that_fails_is_told_with_its_exception(told: Told) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["wsgi.websocket"].receive()
        raise KeyError("in the view")

    fail(app, "/")
    until(lambda: len(told) == 3, "three signals")
    (error,) = [fields["error"] for name, _, fields in told if name == "view_failed"]
    assert error.args == ("in the view",)


REFUSALS: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "origin": ("/echo/ann", {"origin": "https://evil.example"}, 403, "origin"),
    "origin of a route": ("/partners", {"origin": "https://evil.example"}, 403, "origin"),
    "version": ("/echo/ann", {"headers": {"Sec-WebSocket-Version": "8"}}, 426, "version"),
    "no version": ("/echo/ann", {"headers": {"Sec-WebSocket-Version": ""}}, 426, "version"),
    "full": ("/echo/ann", {"options": {"max_connections": 1}}, 503, "full"),
    "the view": ("/forbidden", {}, 401, "view"),
    "no such route": ("/nowhere", {}, 404, "view"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusal_is_told_once_with_status_and_rule(told: Told, refusal: str) -> None:
    path, options, status, rule = REFUSALS[refusal]
    app = flask_app()
    with ExitStack() as stack:
        if rule == "full":
            stack.enter_context(connect(app, path))
            until_told(told, "opened")
            told.clear()
        with pytest.raises(Refused):
            stack.enter_context(connect(app, path, **options))
        ((name, environ, fields),) = told
    assert name == "refused"
    assert environ["PATH_INFO"] == path
    assert (fields["path"], fields["status"], fields["rule"]) == (path, status, rule)
    assert str(status) in fields["reason"] if rule == "view" else fields["reason"]


def test_view_that_fails_before_any_use_is_a_refusal(told: Told) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise KeyError("before any use")

    with pytest.raises(KeyError):
        connect(app, "/").__enter__()
    assert [(name, fields["status"], fields["rule"]) for name, _, fields in told] == [("refused", 500, "view")]


def own_timeout() -> None:
    with gevent.Timeout(0.001):
        gevent.sleep(60)


def exit_program() -> None:
    sys.exit(3)


def fail_in_any_way() -> None:
    raise BaseException("no APM there")


def fail_as_usual() -> None:
    raise RuntimeError("no APM there")


def connect_a_crowd(stack: ExitStack, signal: Any, receiver: Callable[..., None]) -> None:
    """Connect so many that some come before any other receiver and some behind it: blinker has no order."""
    for number in range(CROWD):

        def one(sender: object, *, number: int = number, **fields: object) -> None:
            receiver(sender, number=number, **fields)

        stack.enter_context(signal.connected_to(one))


CROWD = 20


@pytest.mark.parametrize("how", [fail_as_usual, fail_in_any_way, exit_program, own_timeout])
def test_receiver_that_fails_costs_neither_the_connection_nor_other_receivers(
    caplog: pytest.LogCaptureFixture, how: Callable[[], None]
) -> None:
    heard: Counter[str] = Counter()

    def bad(sender: object, **fields: object) -> None:
        how()

    app = flask_app()
    app.config["PROPAGATE_EXCEPTIONS"] = False
    with ExitStack() as stack:
        for name in signals.__all__:

            def count(sender: object, *, name: str = name, **fields: object) -> None:
                heard[name] += 1

            stack.enter_context(getattr(signals, name).connected_to(bad))
            connect_a_crowd(stack, getattr(signals, name), count)
        with connect(app, "/echo/ann") as ws:
            ws.send("hello")
            assert ws.receive() == "hello"
        fail(app, "/fail")
        with pytest.raises(Refused) as refused:
            connect(app, "/nowhere").__enter__()
        assert refused.value.status == 404
        until(lambda: sum(heard.values()) == 6 * CROWD, "six signals")
    assert heard == {"opened": 2 * CROWD, "closed": 2 * CROWD, "view_failed": CROWD, "refused": CROWD}
    assert sum("a receiver of a signal failed" in line for line in caplog.messages) == 6


def be_killed() -> None:
    gevent.spawn_later(0.01, gevent.kill, getcurrent())


def run_out_of_time() -> None:
    gevent.Timeout.start_new(0.01)


@pytest.mark.parametrize("interrupt", [be_killed, run_out_of_time])
def test_interruption_of_a_view_passes_its_receivers_at_once_and_all_hear(
    told: Told, interrupt: Callable[[], None]
) -> None:
    caught: list[BaseException] = []
    heard: list[int] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        interrupt()
        try:
            environ["wsgi.websocket"].accept()
        except BaseException as exc:
            caught.append(exc)
        return []

    with ExitStack() as stack:
        connect_a_crowd(stack, signals.opened, lambda ws, number, **fields: heard.append(number))
        for _ in range(2):  # of which the interruption ends one

            def slow(ws: WebSocket, **fields: Any) -> None:
                gevent.sleep(0.01 if caught else WITHIN)

            stack.enter_context(signals.opened.connected_to(slow))
        with suppress(ConnectionClosed), connect(app, "/") as ws:
            ws.receive()
        until_told(told, "opened", "closed")
    assert [type(error) for error in caught] in ([gevent.GreenletExit], [gevent.Timeout])
    assert sorted(heard) == list(range(CROWD))


def test_what_is_told_of_a_connection_comes_in_its_order_though_receivers_wait() -> None:
    order: list[tuple[str, int]] = []

    def slow(sender: object, **fields: object) -> None:
        gevent.sleep(0.02)

    app = flask_app()
    app.config["PROPAGATE_EXCEPTIONS"] = False
    with ExitStack() as stack:
        for name in ("opened", "view_failed", "closed"):

            def note(ws: object, number: int, *, name: str = name, **fields: object) -> None:
                order.append((name, number))

            stack.enter_context(getattr(signals, name).connected_to(slow))
            connect_a_crowd(stack, getattr(signals, name), note)
        fail(app, "/fail")
        until(lambda: len(order) == 3 * CROWD, "three signals")
        assert [name for name, _ in order] == ["opened"] * CROWD + ["view_failed"] * CROWD + ["closed"] * CROWD
        order.clear()
        with suppress(ConnectionClosed), connect(app, "/echo/ann") as ws:
            ws.close()  # while the first receivers of `opened` wait
        until(lambda: len(order) == 2 * CROWD, "two signals")
        assert [name for name, _ in order] == ["opened"] * CROWD + ["closed"] * CROWD
    until(lambda: not signals._last, "the end of all turns")


def test_receiver_may_connect_and_disconnect_as_it_is_told(told: Told) -> None:
    heard: list[str] = []

    def second(ws: WebSocket, **fields: Any) -> None:
        heard.append("second")

    def first(ws: WebSocket, **fields: Any) -> None:
        heard.append("first")
        signals.opened.disconnect(first)
        signals.opened.connect(second)

    signals.opened.connect(first)
    try:
        for _ in range(2):
            with connect(flask_app(), "/echo/ann"):
                until(lambda: "opened" in [name for name, _, _ in told], "opened")
            until(lambda: told and told[-1][0] == "closed", "closed")
            told.clear()
    finally:
        signals.opened.disconnect(second)
    assert heard == ["first", "second"]


def test_muted_signal_is_not_sent(told: Told) -> None:
    with signals.opened.muted(), connect(flask_app(), "/echo/ann"):
        pass
    until_told(told, "closed")


@pytest.mark.parametrize("propagates", [False, True])
def test_failure_is_not_kept_by_what_it_was_told_of(told: Told, propagates: bool) -> None:
    app = flask_app()
    app.config["PROPAGATE_EXCEPTIONS"] = propagates
    fail(app, "/fail")
    until(lambda: len(told) == 3, "three signals")
    assert "geventws.error" not in told[0][1].environ


def test_failure_that_is_false_is_told_all_the_same(told: Told) -> None:
    class Nothing(Exception):
        def __len__(self) -> int:
            return 0

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["wsgi.websocket"].receive()
        raise Nothing

    with suppress(Nothing, ConnectionClosed), connect(app, "/") as ws:
        ws.send("go")
        assert ws.receive() is None
    until(lambda: len(told) == 3, "three signals")
    assert [type(fields["error"]) for name, _, fields in told if name == "view_failed"] == [Nothing]


WITHOUT = """
import sys
sys.modules["blinker"] = None
from gevent import monkey; monkey.patch_all()
from geventws import signals
from geventws.testing import connect
def app(environ, start_response):
    for message in environ["wsgi.websocket"]:
        environ["wsgi.websocket"].send(message)
    return []
with connect(app, "/") as ws:
    ws.send("hello")
    print(ws.receive())
for connect in (signals.opened.connect, signals.closed.connect_via, signals.refused.connected_to):
    try:
        connect(print)
    except RuntimeError as exc:
        print(exc)
"""


def test_without_blinker_nothing_is_told_and_connecting_says_why() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "hello",
        *3 * ["signals need the package blinker, which comes with Flask: pip install blinker"],
    ]
    assert done.stderr == ""


def test_spans_of_the_docs_tell_of_each_connection() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "observing.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "spans = []" in block]
    names: dict[str, Any] = {}
    exec(block, names)
    app = flask_app()
    app.config["PROPAGATE_EXCEPTIONS"] = False
    with connect(app, "/echo/ann"):
        pass
    fail(app, "/fail")
    until(lambda: len(names["spans"]) == 2, "both spans")
    told = [(span["name"], span["error"], span["code"], span["cause"]) for span in names["spans"]]
    assert told == [("/echo/<name>", None, 1000, "client"), ("/fail", "KeyError('in the view')", 1011, "view_failed")]
