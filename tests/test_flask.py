from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from flask import Blueprint, Flask, url_for
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus

from geventws import WebSocket
from geventws.flask import Sockets
from geventws.testing import connect

from .servers import DEADLINE, FRONT_ENDS, Server, serve


@pytest.fixture(scope="module", params=FRONT_ENDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve("tests.apps_flask:wrapped", tmp_path_factory.mktemp("server"), front_end=request.param) as server:
        yield server


def rules(app: Flask) -> list[str]:
    return sorted(str(rule) for rule in app.url_map.iter_rules() if rule.websocket)


def view(ws: WebSocket) -> None:
    pass


def test_each_app_of_a_factory_gets_the_routes_before_and_after() -> None:
    sockets = Sockets()
    sockets.route("/early")(view)
    apps = [Flask("one"), Flask("two")]
    for app in apps:
        sockets.init_app(app)
    sockets.route("/late", endpoint="late")(view)
    assert [rules(app) for app in apps] == [["/early", "/late"]] * 2


def test_rules_are_declared_as_flask_sockets_has_it() -> None:
    app, blueprint = Flask("app"), Blueprint("chat", "chat", url_prefix="/chat")
    blueprint.add_url_rule("/rooms", None, view)  # type: ignore[arg-type]
    sockets = Sockets(app)
    sockets.add_url_rule("/plain", None, view)
    sockets.add_url_rule("/named", "a name", view, max_message_size=10)
    sockets.register_blueprint(blueprint)
    sockets.register_blueprint(Blueprint("empty", "empty"))
    assert rules(app) == ["/chat/rooms", "/named", "/plain"]
    with connect(app, "/chat/rooms"):
        pass
    with app.test_request_context():
        assert url_for("chat.view") == "ws://localhost/chat/rooms"
    with pytest.raises(TypeError, match="needs its view"):
        sockets.add_url_rule("/")
    with pytest.raises(TypeError, match="needs a Blueprint"):
        sockets.register_blueprint(app)  # type: ignore[arg-type]


def test_one_view_takes_several_routes() -> None:
    app = Flask("app")
    sockets = Sockets(app)
    sockets.route("/one")(sockets.route("/two")(view))
    assert rules(app) == ["/one", "/two"]


def test_a_view_that_cannot_be_served_is_refused_at_its_declaration() -> None:
    async def coroutine(ws: WebSocket) -> None:
        pass

    def generator(ws: WebSocket) -> Iterator[str]:
        yield "hello"

    async def asynchronous_generator(ws: WebSocket) -> AsyncIterator[str]:
        yield "hello"

    with pytest.raises(TypeError, match=r"coroutine is async: .*a plain def"):
        Sockets().route("/")(coroutine)
    with pytest.raises(TypeError, match="asynchronous_generator is async"):
        Sockets().route("/")(asynchronous_generator)
    for view in (generator, functools.wraps(generator)(lambda ws: generator(ws))):
        with pytest.raises(TypeError, match="generator has a yield"):
            Sockets().route("/")(view)
    with pytest.raises(TypeError, match="has a yield"):
        Sockets().route("/", endpoint="named")(functools.partial(generator))


def test_a_route_without_its_url_is_refused_at_its_declaration() -> None:
    with pytest.raises(TypeError, match=r'@sockets.route\("/path"\)'):
        Sockets().route(view)  # type: ignore[arg-type]


@pytest.mark.parametrize("app", ["app", Flask])
def test_what_is_no_app_is_refused_where_it_is_given(app: Any) -> None:
    with pytest.raises(TypeError, match=r"Sockets needs a Flask app or a Blueprint, not .*app"):
        Sockets(app)


@pytest.mark.parametrize("option", [{"methods": ["GET"]}, {"websocket": True}])
def test_options_that_a_sockets_route_has_anyway_are_refused_in_words(option: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="leave methods and websocket out"):
        Sockets(Flask("app")).route("/", **option)


def lose_one(server: Server) -> None:
    with server.connect("/leave"):
        pass
    server.wait_for_log("/leave close 1000")


def test_a_send_to_another_that_is_gone_is_no_failure_of_the_server(server: Server) -> None:
    lose_one(server)
    with server.connect("/send-to-the-dead") as ws:
        ws.send("go")
        with pytest.raises(ConnectionClosedOK, match="1000"):
            ws.recv(DEADLINE)
    server.wait_for_log(r"WARNING\].* /send-to-the-dead view ended because another's WebSocket")
    assert "Exception on /send-to-the-dead [GET]" not in server.log


def test_a_send_by_http_to_one_that_is_gone_is_an_error_of_http(server: Server) -> None:
    lose_one(server)
    answer = server.exchange(b"GET /send-to-the-dead-by-http HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500 ")


def test_an_app_in_middleware_takes_disconnects_for_the_end_they_are(server: Server) -> None:
    before = len(server.log)
    with server.connect("/plain") as ws:
        ws.send("hello")
        assert ws.recv(DEADLINE) == "hello"
    server.wait_for_log("/plain close 1000")
    server.wait_for_log(r'"GET /plain HTTP/1.1" 101')
    assert "Traceback" not in server.log[before:]


def test_an_answer_that_comes_too_late_is_told_to_the_client_and_in_the_log(server: Server) -> None:
    with (
        server.connect("/forbidden-too-late") as ws,
        pytest.raises(ConnectionClosedError, match=r"1008.*403 F"),
    ):
        ws.recv(DEADLINE)
    server.wait_for_log("/forbidden-too-late answered 403 FORBIDDEN after the handshake, too late")


def test_a_stream_that_fails_before_its_first_piece_is_closed(server: Server) -> None:
    with pytest.raises(InvalidStatus, match="500"):
        server.connect("/broken-stream")
    server.wait_for_log("stream was closed")


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_an_apps_own_handler_is_left_in_place(tmp_path_factory: pytest.TempPathFactory, front_end: str) -> None:
    with serve("tests.apps_flask:own", tmp_path_factory.mktemp("own"), front_end=front_end) as server:
        with server.connect("/plain") as ws:
            ws.send("hello")
            assert ws.recv(DEADLINE) == "hello"
        server.wait_for_log("my own handler ran")
