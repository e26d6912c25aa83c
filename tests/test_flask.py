from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from flask import Blueprint, Flask, request, url_for
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus

from geventws import WebSocket
from geventws.flask import Sockets
from geventws.testing import Refused, connect

from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, serve


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in FRONT_ENDS])
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
    app = Flask("app")
    sockets = Sockets(app)
    sockets.add_url_rule("/plain", None, view)
    sockets.add_url_rule("/named", "a name", view, max_message_size=10)
    sockets.add_url_rule("/posted", "posted", view, methods=["GET", "POST"])
    assert rules(app) == ["/named", "/plain", "/posted"]
    assert app.test_client().post("/posted").status_code == 405
    with pytest.raises(TypeError, match="needs its view"):
        sockets.add_url_rule("/")
    with pytest.raises(TypeError, match="give its route endpoint="):
        sockets.add_url_rule("/", None, functools.partial(view))


def page(**parameters: str) -> str:
    return "the page"


def tell_endpoint(ws: WebSocket, **parameters: str) -> None:
    ws.send(str(request.endpoint))


@pytest.fixture(params=["page first", "socket first"])
def in_order(request: pytest.FixtureRequest) -> Callable[..., None]:
    """A function that calls the one for the page and the one for the socket, in either order."""

    def call(*both: Callable[[], object]) -> None:
        for function in both if request.param == "page first" else reversed(both):
            function()

    return call


@pytest.mark.parametrize(
    ("rule", "path", "options"),
    [
        ("/x", "/x", {}),
        ("/x/", "/x/", {}),
        ("/x/", "/x", {"strict_slashes": False}),
        ("/rooms/<name>", "/rooms/lobby", {}),
        ("/x", "http://chat.example.org/x", {"subdomain": "chat"}),
    ],
)
def test_one_url_is_a_page_and_a_websocket(
    in_order: Callable[..., None], rule: str, path: str, options: dict[str, Any]
) -> None:
    app = Flask("app", subdomain_matching=True)
    app.config["SERVER_NAME"] = "example.org"
    sockets = Sockets(app)
    in_order(
        lambda: app.route(rule, methods=["GET", "POST"], **options)(page),
        lambda: sockets.route(rule, **options)(tell_endpoint),
    )
    client = app.test_client()
    assert client.get(path).text == client.post(path).text == "the page"
    with connect(app, path) as ws:
        assert ws.receive() == "tell_endpoint"


def test_a_page_and_a_websocket_of_one_name_are_both_found_by_it(in_order: Callable[..., None]) -> None:
    app, blueprint = Flask("app"), Blueprint("chat", "chat", url_prefix="/chat")
    for part in (app, blueprint):
        sockets = Sockets(part)
        declare_page = functools.partial(part.add_url_rule, "/page", "view", page)
        in_order(declare_page, functools.partial(sockets.add_url_rule, "/socket", "view", tell_endpoint))
    app.register_blueprint(blueprint)
    for prefix, name in {"": "view", "/chat": "chat.view"}.items():
        with app.test_request_context():
            assert url_for(name) == f"{prefix}/page"
            assert url_for(f"{name}:websocket") == f"ws://localhost{prefix}/socket"
        assert app.test_client().get(f"{prefix}/page").text == "the page"
        assert app.test_client().get(f"{prefix}/socket").status_code == 426
        with connect(app, f"{prefix}/socket") as ws:
            assert ws.receive() == f"{name}:websocket"


def test_a_page_for_any_url_and_a_websocket_below_it_are_both_found(in_order: Callable[..., None]) -> None:
    app = Flask("app")
    sockets = Sockets(app)
    in_order(lambda: app.route("/<path:anything>")(page), lambda: sockets.route("/x")(tell_endpoint))
    assert app.test_client().get("/x").text == "the page"
    with connect(app, "/x") as ws:
        assert ws.receive() == "tell_endpoint"


def test_where_only_a_websocket_is_http_is_answered_as_ever() -> None:
    app = Flask("app")
    Sockets(app).route("/x/")(view)
    client = app.test_client()
    assert [client.open("/x/", method=method).status_code for method in ("GET", "HEAD", "POST")] == [426, 426, 405]
    assert set(client.options("/x/").headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert client.get("/x").headers["Location"] == "http://localhost/x/"
    assert client.get("/absent").status_code == 404


def test_two_pages_or_two_websockets_of_one_name_are_refused_by_flask() -> None:
    app = Flask("app")
    sockets = Sockets(app)
    sockets.route("/x", endpoint="view")(view)
    app.add_url_rule("/y", "view", page)
    with pytest.raises(AssertionError, match="overwriting an existing endpoint"):
        sockets.route("/z", endpoint="view")(tell_endpoint)
    with pytest.raises(AssertionError, match="overwriting an existing endpoint"):
        app.add_url_rule("/z", "view", lambda: "another")


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("prefix", ["", "/", "/chat", "/chat/"])
def test_a_blueprint_registered_with_sockets_has_only_websockets(prefix: str, is_late: bool) -> None:
    app = Flask("app")
    blueprint: Any = Blueprint("chat", __name__, static_folder="legacy")
    nested: Any = Blueprint("in", "in")
    blueprint.add_url_rule("/x", None, tell_endpoint, methods=["GET", "POST"])
    nested.add_url_rule("/<name>", "named", tell_endpoint, max_message_size=20)
    blueprint.register_blueprint(nested, url_prefix="/nested")
    blueprint.before_request(lambda: ("banned", 403) if "banned" in request.path else None)
    sockets = Sockets() if is_late else Sockets(app)
    sockets.register_blueprint(blueprint, **({"url_prefix": prefix} if prefix else {}))
    if is_late:
        sockets.init_app(app)
    prefix = prefix.rstrip("/")
    assert rules(app) == [f"{prefix}/nested/<name>", f"{prefix}/x"]
    with connect(app, f"{prefix}/x") as ws:
        assert ws.receive() == "chat.tell_endpoint"
    with connect(app, f"{prefix}/nested/lobby") as ws:
        assert ws.receive() == "chat.in.named"
    with pytest.raises(Refused, match="403"):
        connect(app, f"{prefix}/nested/banned")
    with app.test_request_context():
        assert url_for("chat.tell_endpoint") == f"ws://localhost{prefix}/x"
        with app.test_client().get(url_for("chat.static", filename="__init__.py")) as response:
            assert response.status_code == 200


def test_what_is_no_blueprint_is_refused_where_it_is_registered() -> None:
    with pytest.raises(TypeError, match="needs a Blueprint"):
        Sockets(Flask("app")).register_blueprint(Flask("other"))  # type: ignore[arg-type]


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

    class Callable:
        def __call__(self, ws: WebSocket) -> Iterator[str]:
            yield "hello"

    for view in (functools.partial(generator), Callable(), Callable().__call__, functools.partial(Callable())):
        with pytest.raises(TypeError, match="has a yield"):
            Sockets().route("/", endpoint="named")(view)


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


def test_a_flask_that_is_too_old_is_told_with_the_first_that_will_do() -> None:
    code = "import flask.globals; del flask.globals.request_ctx; import geventws.flask"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert "MissingPackage: geventws.flask needs Flask, from 2.3 on (" in done.stderr


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


@pytest.mark.slow
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_an_apps_own_handler_is_left_in_place(tmp_path_factory: pytest.TempPathFactory, front_end: str) -> None:
    with serve("tests.apps_flask:own", tmp_path_factory.mktemp("own"), front_end=front_end) as server:
        with server.connect("/plain") as ws:
            ws.send("hello")
            assert ws.recv(DEADLINE) == "hello"
        server.wait_for_log("my own handler ran")
