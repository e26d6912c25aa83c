"""geventws.testing as its users have it: their apps, their tests, and a real gateway between."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import logging
import os
import re
import subprocess
import sys
import textwrap
import time
import traceback
import warnings
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.cookies import SimpleCookie
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest
from flask import Flask, Response, abort, g, jsonify, redirect, request, session, stream_with_context
from flask.testing import FlaskClient
from werkzeug.datastructures import Headers
from werkzeug.test import Client as WerkzeugClient

from geventws import ConnectionClosed, Options, ProtocolError, WebSocket
from geventws.flask import Sockets
from geventws.handshake import accept_key
from geventws.testing import Client, Refused, connect, read_response

from .pairs import KEY, hold_hub, until, watched_hub
from .servers import DEADLINE, ROOT, missing
from .test_readme import blocks

SOON = 0.05  # seconds, where a test wants to see time run out
BRIEF = 0.3  # seconds, where something must happen before

Environ = dict[str, Any]
App = Callable[[Environ, Any], Iterable[bytes]]
MakeApp = Callable[[Callable[[WebSocket], Any]], Any]


@pytest.fixture(autouse=True)
def quiet_hub() -> Iterator[None]:
    with watched_hub(within=60):
        yield


# Apps


def echo(ws: WebSocket) -> None:
    for message in ws:
        ws.send(message)


def wsgi(view: Callable[[WebSocket], Any]) -> App:
    """Return a plain WSGI app whose only view this is."""

    def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
        view(environ["wsgi.websocket"])
        return []

    return app


def flask_app(view: Callable[[WebSocket], Any], *, bare: bool = False, **config: Any) -> Flask:
    """Return a Flask app with this view at /view, on a Sockets route or on one that takes it from the bare environ."""
    app = Flask("users")
    app.config.update(config)
    if bare:
        app.add_url_rule("/view", "view", lambda: view(request.environ["wsgi.websocket"]) or "", websocket=True)
    else:
        Sockets(app).route("/view")(view)
    return app


MAKERS: dict[str, MakeApp] = {
    "wsgi": wsgi,
    "sockets": flask_app,
    "sockets, testing": partial(flask_app, TESTING=True),
    "bare": partial(flask_app, bare=True),
    "bare, testing": partial(flask_app, bare=True, TESTING=True),
}
every_kind = pytest.mark.parametrize("make_app", MAKERS.values(), ids=MAKERS)


def members_app() -> Flask:
    """An app with logins, and a chat for those who have one."""
    app = Flask("members")
    app.secret_key = "secret"
    sockets = Sockets(app)
    members: set[WebSocket] = set()

    @app.get("/login/<name>")
    def login(name: str) -> str:
        session["name"] = name
        return "welcome"

    @sockets.route("/chat")
    def chat(ws: WebSocket) -> Response | None:
        if "name" not in session:
            return redirect("/login")  # type: ignore[return-value]
        name = session["name"]
        ws.accept(headers=[("Set-Cookie", f"seen={name}; Path=/"), ("Set-Cookie", "other=1; Path=/elsewhere")])
        members.add(ws)
        try:
            for message in ws:
                for member in list(members):
                    member.send(f"{name}: {message!s}")
        finally:
            members.discard(ws)
            for member in list(members):
                member.send(f"{name} left")
        return None

    @app.get("/cookies")
    def cookies() -> Response:
        return jsonify(request.cookies)

    @sockets.route("/lost")
    def lost(ws: WebSocket) -> Response:
        response = Response("no", 403)
        response.set_cookie("refused", "yes")
        return response

    return app


# Messages


@every_kind
def test_text_binary_and_json_come_back_from_an_app_of_each_kind(make_app: MakeApp) -> None:
    with connect(make_app(echo), "/view") as ws:
        for message in ("hello", "é€😀", "", b"\x00\xff", b"", "x" * 70_000):
            ws.send(message)
            assert ws.receive() == message
        ws.send_json({"a": [1, None, "é"]})
        assert ws.receive_json() == {"a": [1, None, "é"]}
        assert ws.close_code is None
    assert ws.close_code == 1000


def test_what_is_no_json_and_no_message_is_refused() -> None:
    with connect(wsgi(echo), "/") as ws:
        ws.send("no JSON")
        with pytest.raises(ValueError):
            ws.receive_json()
        with pytest.raises(TypeError, match="send_json"):
            ws.send({"a": 1})  # type: ignore[arg-type]


def test_both_ends_may_send_much_before_either_reads() -> None:
    size, count = 1 << 18, 24

    def view(ws: WebSocket) -> None:
        for _ in range(count):
            ws.send(bytes(size))
        ws.send(str(sum(len(ws.receive() or "") for _ in range(count))))

    with connect(wsgi(view), "/") as ws:
        for _ in range(count):
            ws.send(bytes(size))
        assert [len(ws.receive()) for _ in range(count)] == [size] * count
        assert ws.receive() == str(size * count)


def test_iteration_ends_with_the_connection() -> None:
    def view(ws: WebSocket) -> None:
        for number in range(3):
            ws.send(str(number))
        ws.close(4001, "that is all")

    with connect(wsgi(view), "/") as ws:
        assert list(ws) == ["0", "1", "2"]
        assert (ws.close_code, ws.close_reason) == (4001, "that is all")
        assert list(ws) == []
        for use in (ws.receive, ws.receive_json, lambda: ws.send("x")):
            with pytest.raises(ConnectionClosed, match="4001: that is all"):
                use()


def test_what_the_view_sent_is_there_after_the_close() -> None:
    def view(ws: WebSocket) -> None:
        ws.send("early")
        assert ws.receive() is None

    with connect(wsgi(view), "/") as ws:
        pass
    assert list(ws) == ["early"]


def test_close_tells_the_view_and_waits_for_its_end() -> None:
    ended = []

    def view(ws: WebSocket) -> None:
        assert ws.receive() is None
        gevent.sleep(SOON)
        ended.append((ws.close_code, ws.close_reason))

    with connect(wsgi(view), "/") as ws:
        ws.close(4002, "leaving")
        assert ended == [(4002, "leaving")]
        ws.close()
    assert (ws.close_code, ws.close_reason) == (4002, "leaving")


def test_a_code_that_may_not_be_sent_is_refused() -> None:
    with connect(wsgi(echo), "/") as ws:
        with pytest.raises(ValueError, match="1006"):
            ws.close(1006)
        ws.send("still open")
        assert ws.receive() == "still open"


def test_two_clients_chat() -> None:
    app = members_app()

    def member(name: str) -> Any:
        client = app.test_client()
        client.get(f"/login/{name}")
        return client

    with connect(member("ada"), "/chat") as ada, connect(member("bob"), "/chat") as bob:
        ada.send("hello")
        assert ada.receive() == bob.receive() == "ada: hello"
        bob.send("bye")
        assert ada.receive() == bob.receive() == "bob: bye"
        bob.close()
        assert ada.receive() == "bob left"


def test_pings_are_answered_while_the_test_waits() -> None:
    def view(ws: WebSocket) -> None:
        ws.accept()
        while ws.latency is None:
            gevent.sleep(0.01)
        ws.send(str(ws.ping(DEADLINE) < DEADLINE))

    with connect(wsgi(view), "/", options={"ping_interval": SOON}, timeout=DEADLINE) as ws:
        assert ws.receive() == "True"


# The request


def seen(path: str = "/", app_path: str = "", **asked: Any) -> Environ:
    """Return the environ that a view gets."""
    environs = []

    def view(ws: WebSocket) -> None:
        environs.append(dict(ws.environ))
        ws.accept()

    with connect(wsgi(view), path, **asked):
        pass
    (environ,) = environs
    return environ


def test_path_and_query_string_are_those_of_the_request() -> None:
    environ = seen("/r%C3%A4ume/küche?name=%41da&x=é")
    assert environ["PATH_INFO"].encode("latin-1").decode() == "/räume/küche"
    assert environ["QUERY_STRING"].encode("latin-1").decode() == "name=%41da&x=é"


@pytest.mark.parametrize(
    ("path", "scheme", "host", "port", "path_info"),
    [
        ("/a", "http", "localhost", "80", "/a"),
        ("ws://app.example/a", "http", "app.example", "80", "/a"),
        ("wss://app.example/a", "https", "app.example", "443", "/a"),
        ("https://app.example:8443", "https", "app.example:8443", "8443", "/"),
        ("http://[::1]:80/a", "http", "[::1]:80", "80", "/a"),
    ],
)
def test_a_url_gives_scheme_and_host(path: str, scheme: str, host: str, port: str, path_info: str) -> None:
    environ = seen(path)
    assert environ["wsgi.url_scheme"] == scheme
    assert environ["HTTP_HOST"] == host
    assert environ["SERVER_NAME"] in host
    assert environ["SERVER_PORT"] == port
    assert environ["PATH_INFO"] == path_info


def test_headers_cookies_and_what_a_server_sets_reach_the_view() -> None:
    environ = seen(
        headers=[("X-Several", "1"), ("x-several", "2"), ("Authorization", "Bearer é"), ("Cookie", "a=1")],
        cookies={"b": "2", "odd": 'a"; b'},
        origin="http://localhost",
        subprotocols=["v2", "v1"],
        environ={"REMOTE_ADDR": "203.0.113.9", "REMOTE_USER": "ada"},
    )
    assert environ["HTTP_X_SEVERAL"] == "1, 2"
    assert environ["HTTP_AUTHORIZATION"] == "Bearer é"
    cookies = SimpleCookie(environ["HTTP_COOKIE"])
    assert {key: cookies[key].value for key in cookies} == {"a": "1", "b": "2", "odd": 'a"; b'}
    assert environ["HTTP_ORIGIN"] == "http://localhost"
    assert environ["HTTP_SEC_WEBSOCKET_PROTOCOL"] == "v2, v1"
    assert environ["REMOTE_ADDR"] == "203.0.113.9"
    assert environ["REMOTE_USER"] == "ada"
    assert "HTTP_SEC_WEBSOCKET_EXTENSIONS" not in environ
    assert seen(headers={"X-One": "1"})["HTTP_X_ONE"] == "1"
    assert "HTTP_COOKIE" not in seen()
    assert "HTTP_ORIGIN" not in seen()


def test_a_cookie_of_any_text_reaches_flask() -> None:
    app = flask_app(lambda ws: ws.send(request.cookies["name"]))
    with connect(app, "/view", cookies={"name": "é€😀; a=b"}) as ws:
        assert ws.receive() == "é€😀; a=b"


def test_each_handshake_has_a_key_of_its_own() -> None:
    one, other = seen(), seen()
    assert one["HTTP_SEC_WEBSOCKET_KEY"] != other["HTTP_SEC_WEBSOCKET_KEY"]
    assert len(b64decode(one["HTTP_SEC_WEBSOCKET_KEY"])) == 16
    assert one["HTTP_SEC_WEBSOCKET_VERSION"] == "13"


def test_each_client_has_an_address_of_its_own() -> None:
    def view(ws: WebSocket) -> None:
        ws.send(str(ws.remote_address))

    with connect(wsgi(view), "/") as one, connect(wsgi(view), "/") as other:
        assert len({one.receive(), other.receive()}) == 2


def test_a_flask_apps_own_host_root_and_scheme_are_asked() -> None:
    def view(ws: WebSocket) -> None:
        ws.send(request.url)

    config = {"SERVER_NAME": "app.example", "APPLICATION_ROOT": "/root", "PREFERRED_URL_SCHEME": "https"}
    app = flask_app(view)
    app.config.update(config)
    with connect(app, "/view?x=1") as ws:
        assert ws.receive() == "https://app.example/root/view?x=1"
    assert app.test_client().get("/view").request.url == "https://app.example/root/view"


def test_subprotocol_and_headers_are_those_of_the_101() -> None:
    def view(ws: WebSocket) -> None:
        ws.accept(subprotocols=["v1"], headers={"X-Server": "yes"})

    with connect(wsgi(view), "/", subprotocols=["v2", "v1"]) as ws:
        assert ws.subprotocol == "v1"
        assert ws.headers["x-server"] == "yes"
        assert ws.headers["Missing"] is None
    with connect(wsgi(view), "/") as ws:
        assert ws.subprotocol is None


def test_compression_is_offered_on_request() -> None:
    text = "all work and no play " * 500

    def view(ws: WebSocket) -> None:
        ws.receive()
        ws.send(text)
        ws.send(f"{ws.bytes_received} {ws.bytes_sent}")

    takeover = {"deflate_context_takeover": True}
    several: list[dict[str, Any]] = [{}, {"deflate": True}, {"deflate": True, "options": takeover}]
    for asked in several:
        with connect(wsgi(view), "/", **asked) as ws:
            ws.send(text)
            assert ws.receive() == text
            sizes = [int(size) for size in str(ws.receive()).split()]
            agreed = ws.headers["Sec-WebSocket-Extensions"] or ""
        assert ("permessage-deflate" in agreed) == bool(asked)
        assert all(size < 1000 for size in sizes) if asked else all(size > 10_000 for size in sizes)
    with connect(wsgi(view), "/", deflate=True, options={"deflate": False}) as ws:
        assert ws.headers["Sec-WebSocket-Extensions"] is None


@pytest.mark.parametrize("bits", [9, 12, 15])
def test_every_window_that_is_agreed_on_is_kept(bits: int) -> None:
    options = Options(deflate_window_bits=bits, deflate_context_takeover=True, deflate_threshold=1)
    with connect(wsgi(echo), "/", deflate=True, options=options) as ws:
        for message in (os.urandom(5000).hex(), "again " * 2000, "again " * 2000):
            ws.send(message)
            assert ws.receive() == message


# Options


@pytest.mark.parametrize("options", [{"max_message_size": 10}, Options(max_message_size=10)], ids=["dict", "Options"])
def test_options_are_the_servers(options: Any) -> None:
    with connect(wsgi(echo), "/", options=options) as ws:
        ws.send("x" * 11)
        with pytest.raises(ConnectionClosed) as closed:
            ws.receive()
    assert closed.value.code == ws.close_code == 1009


def test_options_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEVENTWS_SUBPROTOCOLS", "v1")
    with connect(wsgi(echo), "/", subprotocols=["v1"]) as ws:
        assert ws.subprotocol == "v1"


def test_all_clients_of_the_process_count() -> None:
    limit = {"max_connections": 1}
    with connect(wsgi(echo), "/", options=limit):
        with pytest.raises(Refused) as refused:
            connect(wsgi(echo), "/other", options=limit)
        assert refused.value.status == 503
        assert refused.value.headers["Retry-After"]
    with connect(wsgi(echo), "/", options=limit):
        pass


def test_clients_of_one_address_share_its_places() -> None:
    limit = {"max_connections_per_address": 1}
    with connect(wsgi(echo), "/", options=limit) as first:
        with pytest.raises(Refused) as caught:
            connect(wsgi(echo), "/", options=limit)
        assert (caught.value.status, caught.value.headers["Geventws-Refused"]) == (429, "address")
        with connect(wsgi(echo), "/", options=limit, environ={"REMOTE_ADDR": "192.0.2.1"}) as other:
            for ws in (first, other):
                ws.send("hello")
                assert ws.receive() == "hello"
    with connect(wsgi(echo), "/", options=limit) as next_one:
        next_one.send("hello")
        assert next_one.receive() == "hello"


def test_a_silent_view_on_a_sockets_route_is_accepted_for_it() -> None:
    go = gevent.event.Event()

    def view(ws: WebSocket) -> None:
        go.wait()
        ws.send("at last")

    with connect(flask_app(view), "/view", options={"accept_after": SOON}) as ws:
        go.set()
        assert ws.receive() == "at last"


# Refusals


def refusing(status: int) -> Flask:
    app = Flask("refusing")
    sockets = Sockets(app)

    @sockets.route("/no")
    def no(ws: WebSocket) -> None:
        abort(status, "the reason")

    return app


@pytest.mark.parametrize("status", [401, 403, 418])
def test_a_view_that_aborts_refuses(status: int) -> None:
    with pytest.raises(Refused, match=rf"^/no\?x was answered with {status} .*the reason") as refused:
        connect(refusing(status), "/no?x")
    assert refused.value.status == status
    assert refused.value.headers["content-type"] == "text/html; charset=utf-8"
    assert b"the reason" in refused.value.body


def test_a_path_without_a_view_is_not_found() -> None:
    with pytest.raises(Refused) as refused:
        connect(refusing(401), "/nowhere")
    assert refused.value.status == 404


def test_a_redirect_shows_where_to() -> None:
    with pytest.raises(Refused) as refused:
        connect(members_app(), "/chat")
    assert refused.value.status == 302
    assert refused.value.headers["Location"] == "/login"


def test_another_version_of_the_protocol_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        connect(wsgi(echo), "/", headers={"Sec-WebSocket-Version": "8"})
    assert refused.value.status == 426
    assert refused.value.headers["Sec-WebSocket-Version"] == "13"


@pytest.mark.parametrize("beside", [[], [Flask("with_sockets")]], ids=["alone", "beside an app that may judge"])
def test_origin_is_checked(beside: list[Flask]) -> None:
    for app in beside:
        Sockets(app).route("/judged", origins=["https://app.example"])(echo)
    with pytest.raises(Refused) as refused:
        connect(wsgi(echo), "/", origin="https://evil.example")
    assert refused.value.status == 403
    for origin, options in (("http://localhost", {}), ("https://app.example", {"origins": ["https://app.example"]})):
        with connect(wsgi(echo), "/", origin=origin, options=options) as ws:
            ws.send("hello")
            assert ws.receive() == "hello"


def test_a_page_is_no_websocket() -> None:
    def page(environ: Environ, start_response: Any) -> Iterator[bytes]:
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"written, ")
        yield b"streamed "
        gevent.sleep(SOON)
        yield b"page"

    with pytest.raises(Refused, match=r"^/ was answered with 200 OK: written, streamed page$") as refused:
        connect(page, "/")
    assert refused.value.body == b"written, streamed page"


def test_a_long_page_is_not_shown_whole() -> None:
    def page(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("404 Not Found", [])
        return [b"\xff" * 100_000]

    with pytest.raises(Refused) as refused:
        connect(page, "/")
    assert len(str(refused.value)) < 300
    assert len(refused.value.body) == 100_000


def test_an_app_that_does_nothing_is_told() -> None:
    with pytest.raises(RuntimeError, match="the view of / neither used its WebSocket nor answered in HTTP"):
        connect(wsgi(lambda ws: None), "/")


# Exceptions of the view


class Mistake(Exception):
    pass


def fail(ws: WebSocket) -> None:
    raise Mistake("in the view")


def fail_later(ws: WebSocket) -> None:
    ws.send("fine")
    ws.receive()
    fail(ws)


def lines_of(exc: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(exc.__traceback__)]


@every_kind
def test_an_exception_before_the_handshake_leaves_connect(make_app: MakeApp) -> None:
    with pytest.raises(Mistake) as raised:
        connect(make_app(fail), "/view")
    assert lines_of(raised.value)[-1] == "fail"


@every_kind
def test_an_exception_leaves_receive_behind_the_messages(make_app: MakeApp) -> None:
    with connect(make_app(fail_later), "/view") as ws:
        ws.send("go on")
        assert ws.receive() == "fine"
        with pytest.raises(Mistake) as raised:
            ws.receive()
        assert lines_of(raised.value)[-2:] == ["fail_later", "fail"]
        with pytest.raises(ConnectionClosed):  # it is told once
            ws.receive()
        assert ws.close_code == 1011


@every_kind
def test_an_exception_leaves_the_block(make_app: MakeApp) -> None:
    with pytest.raises(Mistake), connect(make_app(fail_later), "/view") as ws:
        ws.send("go on")


@every_kind
def test_an_exception_leaves_send_and_iteration(make_app: MakeApp) -> None:
    for use in (list, lambda ws: ws.send("again")):
        with connect(make_app(fail_later), "/view") as ws:
            ws.send("go on")
            until(lambda: ws.close_code, "the close")
            with pytest.raises(Mistake):
                use(ws)


@every_kind
def test_an_exception_at_the_end_of_the_view_leaves_the_block(make_app: MakeApp) -> None:
    def view(ws: WebSocket) -> None:
        try:
            echo(ws)
        finally:
            fail(ws)

    with pytest.raises(Mistake), connect(make_app(view), "/view"):
        pass


def test_an_exception_is_shown_beside_the_failure_that_it_caused() -> None:
    with pytest.raises(Mistake) as raised, connect(wsgi(fail_later), "/") as ws:
        ws.send("go on")
        assert ws.receive() == "something else"
    assert isinstance(raised.value.__context__, AssertionError)


def test_a_skip_in_the_block_stays_a_skip() -> None:
    with pytest.raises(pytest.skip.Exception), connect(wsgi(fail_later), "/") as ws:
        ws.send("go on")
        pytest.skip("not today")


def generator_app(environ: Environ, start_response: Any) -> Iterator[bytes]:
    fail_later(environ["wsgi.websocket"])
    yield b""


class BadBody:
    """A body whose close() fails, of an app that uses its WebSocket."""

    def __init__(self, environ: Environ, start_response: Any) -> None:
        environ["wsgi.websocket"].send("fine")

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        raise Mistake("in close")


def late_page(environ: Environ, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b"first"
    raise Mistake("in the page")


def test_an_exception_in_a_body_is_one_of_the_view() -> None:
    for app in (generator_app, BadBody):
        with pytest.raises(Mistake), connect(app, "/") as ws:
            assert ws.receive() == "fine"
            ws.send("go on")
    with pytest.raises(Mistake):
        connect(late_page, "/")


def test_a_stream_of_flask_that_fails_shows_why() -> None:
    def view(ws: WebSocket) -> Response:
        def pieces() -> Iterator[str]:
            yield "first"
            raise Mistake("in the stream")

        return Response(stream_with_context(pieces()))

    with pytest.raises(Mistake):
        connect(flask_app(view), "/view")


def test_exits_and_outcomes_of_pytest_are_exceptions_too() -> None:
    def leave(ws: WebSocket) -> None:
        ws.receive()
        sys.exit("no")

    def give_up(ws: WebSocket) -> None:
        pytest.fail("in the view")

    with pytest.raises(SystemExit, match="no"), connect(wsgi(leave), "/") as ws:
        ws.send("x")
    with pytest.raises(pytest.fail.Exception, match="in the view"):
        connect(wsgi(give_up), "/")
    with pytest.raises(StopIteration), connect(wsgi(lambda ws: next(iter(ws.receive() or ""))), "/") as ws:
        ws.send("")


@every_kind
def test_the_end_of_the_views_own_connection_is_no_exception(make_app: MakeApp) -> None:
    def view(ws: WebSocket) -> None:
        while True:
            ws.send(ws.receive() or "")

    with connect(make_app(view), "/view") as ws:
        ws.send("hello")
        assert ws.receive() == "hello"
    assert ws.close_code == 1000


def test_the_end_of_anothers_connection_is_one() -> None:
    others: list[WebSocket] = []

    def view(ws: WebSocket) -> None:
        others.append(ws)
        for _ in ws:
            others[0].send("are you there?")

    with connect(wsgi(view), "/"):
        pass
    with pytest.raises(ConnectionClosed), connect(wsgi(view), "/") as ws:
        ws.send("x")
        list(ws)


def test_an_exception_that_the_app_handles_is_the_apps() -> None:
    early, late = flask_app(fail), flask_app(fail_later)
    for app in (early, late):
        app.register_error_handler(Mistake, lambda exc: ("handled", 500))
    with pytest.raises(Refused, match="handled"):
        connect(early, "/view")
    with connect(late, "/view") as ws:
        ws.send("go on")
        assert list(ws) == ["fine"]
        assert ws.close_code == 1011


@pytest.mark.parametrize("name", ["bottle", "django"])
def test_frameworks_that_let_exceptions_pass_show_them(name: str) -> None:
    make_app: Callable[[Callable[[WebSocket], Any]], Any] = {"bottle": bottle_app, "django": django_app}[name]
    with pytest.raises(Mistake):
        connect(make_app(fail), "/view")
    with pytest.raises(Mistake), connect(make_app(fail_later), "/view") as ws:
        assert ws.receive() == "fine"
        ws.send("go on")


def bottle_app(view: Callable[[WebSocket], Any]) -> Any:
    if find_spec("bottle") is None:
        missing("the package `bottle`")
    import bottle

    app = bottle.Bottle()
    app.catchall = False
    app.route("/view", callback=lambda: view(bottle.request.environ["wsgi.websocket"]))
    return app


def django_app(view: Callable[[WebSocket], Any]) -> Any:
    if find_spec("django") is None:
        missing("the package `django`")
    import django.urls
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler

    if not settings.configured:
        settings.configure(DEBUG_PROPAGATE_EXCEPTIONS=True, ALLOWED_HOSTS=["*"])
        django.setup()
    settings.ROOT_URLCONF = (django.urls.path("view", lambda http: view(http.environ["wsgi.websocket"])),)
    return WSGIHandler()


def test_an_exception_of_another_greenlet_is_not_the_views() -> None:
    app = flask_app(echo)
    app.add_url_rule("/page", view_func=lambda: fail(None))  # type: ignore[arg-type]
    with connect(app, "/view") as ws:
        assert app.test_client().get("/page").status_code == 500
        ws.send("hello")
        assert ws.receive() == "hello"


def test_flask_is_left_as_it_was() -> None:
    app = flask_app(fail)
    for _ in range(2):
        with pytest.raises(Mistake):
            connect(app, "/view")
    assert app.test_client().get("/view").status_code == 426
    assert not app.testing


def test_a_normal_end_leaves_no_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def view(ws: WebSocket) -> None:
        while True:
            ws.send(ws.receive() or "")

    app = flask_app(view, bare=True)
    for _ in range(2):
        with connect(app, "/view") as ws:
            ws.send("hello")
            assert ws.receive() == "hello"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# Time


def waiting(ws: WebSocket) -> None:
    ws.accept()
    gevent.sleep(1000)


def test_receive_gives_up_and_says_what_it_waited_for() -> None:
    with connect(wsgi(echo), "/view?x", timeout=BRIEF) as ws:
        before = time.monotonic()
        with pytest.raises(TimeoutError) as raised:
            ws.receive()
        assert time.monotonic() - before >= BRIEF
        line = echo.__code__.co_firstlineno + 1
        where = f"{os.path.relpath(__file__)}:{line} in echo"
        assert str(raised.value) == f"no message on /view?x within {BRIEF:g} s; it is at {where}"
        with pytest.raises(TimeoutError, match=r"within 0.01 s"):
            ws.receive(timeout=0.01)
        with pytest.raises(TimeoutError, match="no message on"):
            list(ws)
        ws.send("still open")
        assert ws.receive() == "still open"


def test_there_is_a_limit_by_default() -> None:
    assert 1 <= inspect.signature(connect).parameters["timeout"].default <= 10


def test_a_view_that_decides_nothing_is_killed() -> None:
    ended = []

    def view(ws: WebSocket) -> None:
        try:
            gevent.sleep(1000)
        finally:
            ended.append(True)

    with pytest.raises(TimeoutError, match=r"no handshake on / within 0.3 s; it is at .*test_testing.py:\d+ in view"):
        connect(wsgi(view), "/", timeout=BRIEF)
    assert ended == [True]


def test_a_view_that_does_not_end_is_named_and_killed() -> None:
    ended = []

    def view(ws: WebSocket) -> None:
        try:
            waiting(ws)
        finally:
            ended.append(ws.close_code)

    message = r"the view of /room did not end within 0.3 s of the close, and was killed; it is at .* in waiting"
    with pytest.raises(TimeoutError, match=message), connect(wsgi(view), "/room", timeout=BRIEF) as ws:
        pass
    assert ended == [1000]
    assert ws.close_code == 1000


def test_a_view_that_does_not_end_hides_no_failure() -> None:
    with pytest.raises(Mistake) as raised, connect(wsgi(waiting), "/", timeout=BRIEF):
        raise Mistake("in the test")
    assert raised.value.__context__ is None


def test_what_a_killed_view_raised_is_shown_as_the_cause() -> None:
    def view(ws: WebSocket) -> None:
        try:
            waiting(ws)
        except gevent.GreenletExit:
            fail(ws)

    with pytest.raises(TimeoutError) as raised, connect(wsgi(view), "/", timeout=BRIEF):
        pass
    assert isinstance(raised.value.__cause__, Mistake)


def test_a_view_that_blocks_the_thread_has_its_time() -> None:
    def view(ws: WebSocket) -> None:
        for _ in ws:
            hold_hub(3 * SOON)
            ws.send("done")

    with connect(wsgi(view), "/") as ws:
        ws.send("go on")
        assert ws.receive(timeout=SOON) == "done"


def test_a_timeout_of_the_test_itself_passes_through() -> None:
    with connect(wsgi(echo), "/") as ws, pytest.raises(gevent.Timeout), gevent.Timeout(SOON):
        ws.receive()


# Cookies


def test_the_clients_session_is_the_views() -> None:
    client = members_app().test_client()
    with pytest.raises(Refused):
        connect(client, "/chat")
    client.get("/login/ada")
    with connect(client, "/chat", cookies={"more": "1"}) as ws:
        ws.send("hello")
        assert ws.receive() == "ada: hello"


def test_cookies_of_the_handshake_come_back_into_the_client() -> None:
    client = members_app().test_client()
    client.get("/login/ada")
    with connect(client, "/chat"):
        assert client.get("/cookies").json["seen"] == "ada"  # type: ignore[index]
    with pytest.raises(Refused):
        connect(client, "/lost")
    cookies = client.get("/cookies").json
    assert cookies is not None
    assert set(cookies) == {"session", "seen", "refused"}  # and none that is for another path
    assert client.get_cookie("other", path="/elsewhere")


def test_cookies_of_one_client_are_not_anothers() -> None:
    app = members_app()
    one, other = app.test_client(), app.test_client()
    one.get("/login/ada")
    with connect(one, "/chat"), pytest.raises(Refused):
        connect(other, "/chat")


def test_a_client_may_have_no_cookies() -> None:
    client = members_app().test_client(use_cookies=False)
    client.get("/login/ada")
    with pytest.raises(Refused):
        connect(client, "/chat")


def test_a_clients_environ_counts() -> None:
    client = flask_app(lambda ws: ws.send(request.headers["Authorization"])).test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = "Bearer token"
    with connect(client, "/view") as ws:
        assert ws.receive() == "Bearer token"


class Extending(FlaskClient):
    """Adds a header as Flask's users do who found it on the web."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        headers = kwargs.pop("headers", Headers())
        headers.extend({"Authorization": "Bearer token"})
        kwargs["headers"] = headers
        return super().open(*args, **kwargs)


class Merging(FlaskClient):
    def open(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["headers"] = {**kwargs.get("headers", {}), "Authorization": "Bearer token"}
        return super().open(*args, **kwargs)


class Replacing(FlaskClient):
    def open(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["headers"] = {"Authorization": "Bearer token"}
        return super().open(*args, **kwargs)


class LoggingIn(FlaskClient):
    """Asks for its token by a request of its own."""

    token = ""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        if not self.token:
            self.token = super().open("/token", method="POST", json={"name": "ada"}).text
        kwargs.setdefault("environ_base", {})["HTTP_AUTHORIZATION"] = self.token
        return super().open(*args, json={}, **kwargs)


@pytest.mark.parametrize("client_class", [Extending, Merging, Replacing, LoggingIn])
def test_what_a_client_of_ones_own_adds_in_open_comes_with_the_handshake(client_class: type[FlaskClient]) -> None:
    def tell(ws: WebSocket) -> None:
        ws.send_json([request.headers["Authorization"], sorted(request.cookies), request.full_path])

    app = flask_app(tell)
    app.post("/token")(lambda: "Bearer token")
    app.test_client_class = client_class
    client = app.test_client()
    client.set_cookie("kept", "1")
    for _ in range(2):
        with connect(client, "/view?q=1", cookies={"given": "2"}, subprotocols=["v2"]) as ws:
            given = set() if client_class is Replacing else {"given"}
            assert ws.receive_json() == ["Bearer token", sorted({"kept", *given}), "/view?q=1"]
    assert client.get("/view").status_code == 426


def test_where_a_client_of_ones_own_asks_is_where_the_handshake_goes() -> None:
    class Elsewhere(FlaskClient):
        def open(self, *args: Any, **kwargs: Any) -> Any:
            kwargs["base_url"] = "https://app.example"
            return super().open(f"/v1{args[0]}", **kwargs)

    app = Flask("app", static_folder=None)
    Sockets(app).route("/v1/café", endpoint="cafe")(lambda ws: ws.send(request.url))
    app.test_client_class = Elsewhere
    with connect(app.test_client(), "/café") as ws:
        assert ws.receive() == "https://app.example/v1/café"


def test_a_client_of_ones_own_that_asks_nothing_is_named() -> None:
    class Silent(FlaskClient):
        def open(self, *args: Any, **kwargs: Any) -> Any:
            return super().open("/other")

    app = flask_app(echo)
    app.test_client_class = Silent
    with pytest.raises(TypeError, match=r"Silent.open\(\) does not make the request"):
        connect(app.test_client(), "/view")


def test_a_test_client_of_werkzeug_will_do() -> None:
    client = WerkzeugClient(wsgi(lambda ws: ws.send(ws.environ["HTTP_COOKIE"])))
    client.set_cookie("a", "1")
    with connect(client, "/") as ws:
        assert ws.receive() == "a=1"


def test_a_flask_without_signals_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeSignal:
        """Flask's stand-in until 2.3, where blinker is not installed."""

        def connected_to(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("Signalling support is unavailable because the blinker library is not installed.")

    app = flask_app(echo)
    monkeypatch.setattr("flask.got_request_exception", FakeSignal())
    with connect(app, "/view") as ws:
        ws.send("hello")
        assert ws.receive() == "hello"


# What the view shares with the test


def test_the_view_sees_no_context_of_the_test() -> None:
    mine = contextvars.ContextVar("mine", default="none")

    def view(ws: WebSocket) -> None:
        ws.send(f"{mine.get()} {g.get('user')}")
        g.user = "view"

    app = flask_app(view)
    mine.set("test")
    with app.app_context():
        g.user = "test"
        with connect(app, "/view") as ws:
            assert ws.receive() == "none None"
        assert g.user == "test"


def greenlets() -> int:
    return sum(1 for found in gc.get_objects() if isinstance(found, gevent.Greenlet) and not found.dead)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_connect_that_is_stopped_at_once_leaves_no_socket() -> None:
    before = descriptors()
    with pytest.raises(TypeError):
        connect(wsgi(echo), "/", timeout="5")  # type: ignore[arg-type]
    assert descriptors() == before


@pytest.fixture
def no_logs() -> Iterator[None]:
    """Log nothing: pytest keeps the records, and they their tracebacks."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("no_logs")
def test_nothing_is_left_behind() -> None:
    app = flask_app(fail_later, TESTING=True)

    def use_all() -> None:
        with connect(wsgi(echo), "/", deflate=True) as ws:
            ws.send("x" * 1000)
            assert ws.receive() == "x" * 1000
        for path in ("/view", "/nowhere"):
            with suppress(Mistake, Refused), connect(app, path) as ws:
                ws.send("go on")
        with suppress(TimeoutError), connect(wsgi(waiting), "/", timeout=0.001):
            pass

    use_all()
    gc.collect()
    others = [found for found in gc.get_objects() if isinstance(found, (Client, WebSocket))]  # which tracebacks hold
    before = greenlets(), descriptors(), len(others)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(10):
            use_all()
        gevent.idle()
        gc.collect()
    clients = sum(1 for found in gc.get_objects() if isinstance(found, (Client, WebSocket)))
    assert (greenlets(), descriptors(), clients) == before
    assert [str(warning.message) for warning in warned] == []


def test_a_coroutine_uses_it_like_other_tests() -> None:
    async def talk() -> str | bytes:
        with connect(wsgi(echo), "/") as ws:
            ws.send("hello")
            await asyncio.sleep(0)
            return ws.receive()

    assert asyncio.run(talk()) == "hello"


PROGRAM = """
import socket, sys, threading, time
import flask
from geventws import ConnectionClosed
from geventws.flask import Sockets
from geventws.testing import connect

app = flask.Flask("program")
sockets = Sockets(app)

@sockets.route("/echo")
def echo(ws):
    for message in ws:
        time.sleep(0.01)
        ws.send(message)

def talk():
    for deflate in (False, True, False):
        with connect(app, "/echo", deflate=deflate) as one, connect(app, "/echo") as two:
            for ws in (one, two, one):
                ws.send("hello" * 100)
                assert ws.receive() == "hello" * 100
    done.append(True)

done = []
talk()
threads = [threading.Thread(target=talk) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(20)
print(len(done), socket.socket.__module__)
"""


@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
def test_programs_with_and_without_monkey_patching_use_it(patched: bool, tmp_path: Path) -> None:
    patch = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    (tmp_path / "program.py").write_text(patch + PROGRAM)
    command = [sys.executable, "-X", "dev", "-W", "error", "program.py"]
    run = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=3 * DEADLINE)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert run.stdout.split() == ["4", "gevent._socket3" if patched else "socket"]


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("app:app", "/"), TypeError, "needs a WSGI app, or Flask's app.test_client(), not 'app:app'"),
        ((None, "/"), TypeError, "needs a WSGI app, .* not None"),
        ((echo, "chat"), ValueError, "path 'chat' must begin with a slash"),
        ((echo, ""), ValueError, "path '' must begin with a slash"),
        ((echo, "localhost:5000/chat"), ValueError, "must .* be a URL such as ws://localhost/chat"),
        ((echo, "ftp://localhost/chat"), ValueError, "must .* be a URL such as ws://localhost/chat"),
        ((echo, "/chat#top"), ValueError, "has a fragment"),
        ((echo, b"/chat"), TypeError, "path must be a string, not b'/chat'"),
        ((echo, Path("/chat")), TypeError, "path must be a string, not PosixPath"),
    ],
)
def test_wrong_arguments_are_named(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("()", r"\(\)")):
        connect(*arguments)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"subprotocols": "v1"}, TypeError, "must be a sequence of names, not the string 'v1'"),
        ({"options": {"max_mesage_size": 1}}, TypeError, "did you mean max_message_size"),
        ({"headers": {"X-Bad": "a\r\nb"}}, ValueError, "header X-Bad: .* holds a character that headers may not"),
        ({"headers": {"X-Count": 1}}, TypeError, "header X-Count must be a string, not 1"),
        ({"origin": b"http://localhost"}, TypeError, "header Origin must be a string, not b'http"),
        ({"origin": "http://ex\u0101mple"}, ValueError, "header Origin"),
        ({"headers": {"Upgrade": "h2c"}}, ValueError, "the Upgrade header must name websocket"),
    ],
)
def test_wrong_options_are_named(asked: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        connect(wsgi(echo), "/", **asked)


def test_a_client_of_another_thread_is_told() -> None:
    with connect(wsgi(echo), "/room") as ws:
        uses: list[Callable[[], object]] = [ws.receive, ws.close, partial(ws.send, "x"), partial(list, ws)]
        with ThreadPoolExecutor(1) as other:
            for use in uses:
                with pytest.raises(RuntimeError, match="the WebSocket on /room is of another thread"):
                    other.submit(use).result()
        ws.send("still open")
        assert ws.receive() == "still open"


def test_a_client_of_another_framework_is_named() -> None:
    class OtherClient:
        def get(self, path: str) -> None: ...

    with pytest.raises(TypeError, match=r"not <.*OtherClient object"):
        connect(OtherClient(), "/")


# The client's half of the opening handshake

ANSWER = {
    "Upgrade": "WebSocket",
    "Connection": "keep-alive, upgrade",
    "Sec-WebSocket-Accept": accept_key(KEY),
    "Sec-WebSocket-Protocol": "v1",
    "Sec-WebSocket-Extensions": "permessage-deflate; server_max_window_bits=10; client_no_context_takeover",
}
OFFERS = ("Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions")
REQUEST = {
    "HTTP_SEC_WEBSOCKET_KEY": KEY,
    "HTTP_SEC_WEBSOCKET_PROTOCOL": "v2, v1",
    "HTTP_SEC_WEBSOCKET_EXTENSIONS": "permessage-deflate; client_max_window_bits",
}


def answer(changes: Mapping[str, str | None], status: str = "HTTP/1.1 101 Switching Protocols") -> bytes:
    headers = {**ANSWER, **changes}
    return "\r\n".join([status, *(f"{name}: {value}" for name, value in headers.items() if value is not None)]).encode()


def test_a_response_that_fits_the_request_is_taken() -> None:
    headers, agreement = read_response(answer({}), REQUEST)
    assert headers["Sec-WebSocket-Protocol"] == "v1"
    assert agreement == (False, True, 10, None)
    assert read_response(answer(dict.fromkeys(OFFERS)), REQUEST)[1] is None


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"Upgrade": None}, "Upgrade ''"),
        ({"Upgrade": "h2c"}, "Upgrade 'h2c'"),
        ({"Connection": None}, "Connection ''"),
        ({"Connection": "keep-alive"}, "Connection 'keep-alive'"),
        ({"Sec-WebSocket-Accept": None}, "Sec-WebSocket-Accept"),
        ({"Sec-WebSocket-Accept": accept_key(KEY).lower()}, "Sec-WebSocket-Accept"),
        ({"Sec-WebSocket-Protocol": "v3"}, "subprotocol 'v3', which was not offered"),
        ({"Sec-WebSocket-Extensions": "x-unknown"}, "an extension that was not offered"),
        ({"Sec-WebSocket-Extensions": "permessage-deflate; unknown"}, "parameters that it does not have"),
        ({"Sec-WebSocket-Extensions": "permessage-deflate; server_max_window_bits=ten"}, "parameters"),
    ],
)
def test_a_response_that_breaks_a_rule_is_refused(changes: dict[str, str | None], fault: str) -> None:
    with pytest.raises(ProtocolError, match=fault):
        read_response(answer(changes), REQUEST)


@pytest.mark.parametrize("status", ["HTTP/1.1 200 OK", "HTTP/1.0 101 Switching Protocols", "HTTP/1.1 1010", ""])
def test_a_response_with_another_status_is_refused(status: str) -> None:
    with pytest.raises(ProtocolError, match=f"status '{status}"):
        read_response(answer({}, status), REQUEST)


def test_nothing_that_was_not_offered_is_taken() -> None:
    for name, fault in zip(OFFERS, ("extension", "subprotocol"), strict=True):
        with pytest.raises(ProtocolError, match=fault):
            read_response(answer({name: None}), {"HTTP_SEC_WEBSOCKET_KEY": KEY})


# pytest


def run_pytest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (directory / "pytest.ini").write_text("[pytest]\n")  # no settings from the directories above
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", *arguments]
    return subprocess.run(
        command, cwd=directory, env=environment(), capture_output=True, text=True, timeout=5 * DEADLINE
    )


def test_the_documents_examples_pass(tmp_path: Path) -> None:
    found = blocks((ROOT / "docs" / "testing.md").read_text())
    assert {block.language for block in found} == {"python", "text"}
    tests = 0
    for block in found:
        if block.language == "python":
            name = block.code.split("\n", 1)[0].removeprefix("# ")
            with (tmp_path / name).open("a") as file:
                file.write(block.code)
            tests += len(re.findall(r"^def test_", block.code, re.MULTILINE))
    (shown,) = (block.code for block in found if block.language == "text")
    (tmp_path / "test_shown.py").write_text(
        textwrap.dedent(f"""
        import pytest
        from app import app
        from geventws.testing import connect

        def test_message_reads_as_shown():
            with pytest.raises(TimeoutError) as raised, connect(app, "/divide", timeout=0.5) as ws:
                ws.receive()
            assert f"TimeoutError: {{raised.value}}\\n" == {shown!r}.replace("5 s", "0.5 s")
        """)
    )
    run = run_pytest(tmp_path)
    assert f"{tests + 1} passed" in run.stdout, run.stdout + run.stderr
