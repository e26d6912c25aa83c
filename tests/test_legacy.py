"""Apps written for others run unchanged: real packages from PyPI on both front ends, each with its own client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import socketio
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from .raw import CLOSE, PING, PONG, TEXT, Raw, close_frame, frame, request
from .servers import COMPAT, DEADLINE, FRONT_ENDS, App, Server, get, legacy_apps, log_after, wait_for

pytestmark = pytest.mark.slow  # it starts servers or installs packages


@pytest.fixture(scope="module", params=FRONT_ENDS)
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with legacy_apps(request.param, tmp_path_factory.mktemp) as start:
        yield start


# flask-sock


def test_flask_sock_echoes(app: App) -> None:
    server = app("flask_sock_app")
    with server.connect("/echo/hello") as ws:
        assert ws.recv(DEADLINE) == "hello"
        for message in ("text", b"\x00binary", "x" * 70_000):
            ws.send(message)
            assert ws.recv(DEADLINE) == message
    assert get(server, "/") == (200, "page")


def test_flask_sock_closes_with_its_own_code_and_then_the_connection(app: App) -> None:
    with Raw(app("flask_sock_app"), request("/closes")) as raw:
        raw.head()
        raw.send(frame(TEXT, b"go"))
        assert raw.closes() == (4001, "enough")
        assert raw.rest() == b""


def test_flask_sock_is_told_of_the_clients_close(app: App) -> None:
    server = app("flask_sock_app")

    def leave() -> None:
        with server.connect("/catches") as ws:
            ws.close(4002, "had enough")

    log = log_after(server, '"GET /catches HTTP/1.1" 101', leave)
    assert "caught 4002 had enough" in log
    assert "Traceback" not in log


def test_flask_sock_is_told_of_a_lost_client(app: App) -> None:
    server = app("flask_sock_app")

    def vanish() -> None:
        with Raw(server, request("/catches")) as raw:
            raw.head()

    log = log_after(server, '"GET /catches HTTP/1.1" 101', vanish)
    assert "caught 1005 None" in log
    assert "Traceback" not in log


def test_flask_sock_view_that_only_sends_ends_when_its_client_has_left(app: App) -> None:
    server = app("flask_sock_app")

    def leave() -> None:
        with server.connect("/sends-without-end") as ws:
            assert ws.recv(DEADLINE) == "tick"

    assert "Traceback" not in log_after(server, '"GET /sends-without-end HTTP/1.1" 101', leave)


def test_flask_sock_pings_clients_by_itself(app: App) -> None:
    with Raw(app("flask_sock_app:pinging"), request("/echo")) as raw:
        raw.head()
        for _ in range(3):
            opcode, payload = raw.frame()
            assert opcode == PING
            raw.send(frame(PONG, payload))
        raw.send(frame(TEXT, b"still here"))
        while (found := raw.frame())[0] == PING:
            raw.send(frame(PONG, found[1]))
        assert found == (TEXT, b"still here")


def test_flask_sock_gives_up_a_client_that_answers_no_ping(app: App) -> None:
    server = app("flask_sock_app:pinging")

    def be_silent() -> None:
        with Raw(server, request("/catches")) as raw:
            raw.head()
            assert raw.frame()[0] == PING
            opcode, payload = raw.frame()
            assert opcode == CLOSE
            assert payload == b"\x03\xf0Ping/Pong timeout"  # 1008
            raw.send(close_frame(1008))

    assert "caught" in log_after(server, '"GET /catches HTTP/1.1" 101', be_silent)


def test_nothing_of_http_follows_in_the_stream_of_a_flask_sock_view_that_fails(app: App) -> None:
    server = app("flask_sock_app")
    with Raw(server, request("/fails")) as raw:
        raw.head()
        raw.send(frame(TEXT, b"go"))
        assert raw.rest() == b""
    server.wait_for_log("KeyError: 'in the view'")


# Flask-SocketIO: the same app on the WebSocket of ours, which Engine.IO takes where geventwebsocket can be imported,
# and on the raw socket, which simple-websocket takes where it cannot

SOCKETIO_APPS = {"socketio_app": "geventwebsocket", "socketio_simple_app": "simple-websocket"}
TRANSPORTS = {"websocket": ["websocket"], "polling": ["polling"], "upgrade": None}


@pytest.fixture(params=SOCKETIO_APPS)
def socketio_server(request: pytest.FixtureRequest, app: App) -> Server:
    return app(request.param)


@pytest.fixture(params=TRANSPORTS)
def client(request: pytest.FixtureRequest, socketio_server: Server) -> Iterator[socketio.SimpleClient]:
    """A client of python-socketio."""
    with socketio.SimpleClient(request_timeout=60) as client:
        url = f"http://127.0.0.1:{socketio_server.port}"
        client.connect(url, transports=TRANSPORTS[request.param], wait_timeout=DEADLINE)
        wanted = "polling" if request.param == "polling" else "websocket"
        wait_for(lambda: client.transport == wanted, f"transport {wanted}")
        yield client
        if client.client.eio.http is not None:
            client.client.eio.http.close()


@pytest.mark.parametrize(("name", "websockets_by"), SOCKETIO_APPS.items())
def test_socketio_app_found_what_its_name_says(app: App, name: str, websockets_by: str) -> None:
    assert get(app(name), "/websockets-by") == (200, websockets_by)


@pytest.mark.parametrize("message", ["text", b"\x00binary", {"nested": ["x" * 100_000, b"binary"]}])
def test_socketio_echoes_and_acknowledges(client: socketio.SimpleClient, message: object) -> None:
    assert client.call("echo", message, timeout=DEADLINE) == "acknowledged"
    assert client.receive(timeout=DEADLINE) == ["echo", message]


def test_socketio_speaks_to_a_room_and_from_a_background_task(client: socketio.SimpleClient) -> None:
    client.emit("join", "room")
    assert client.receive(timeout=DEADLINE) == ["joined", "room"]
    client.emit("say", ("room", "hello"))
    assert client.receive(timeout=DEADLINE) == ["said", "hello"]
    client.emit("count", 5)
    assert [client.receive(timeout=DEADLINE) for _ in range(5)] == [["number", index] for index in range(5)]


def test_socketio_learns_that_a_client_has_left_and_logs_no_error(socketio_server: Server) -> None:
    def leave() -> None:
        with Raw(socketio_server, request("/socket.io/?EIO=4&transport=websocket")) as raw:
            raw.head()
            assert raw.frame()[1].startswith(b"0{")
            raw.send(frame(TEXT, b"40"))
            assert raw.frame()[1].startswith(b"40{")
            raw.send(close_frame(1000))
            assert raw.closes()[0] == 1000
            assert raw.rest() == b""

    log = log_after(socketio_server, 'transport=websocket HTTP/1.1" 101', leave)
    assert "disconnected: transport close" in log
    assert "Traceback" not in log


def test_nothing_follows_the_close_of_an_upgraded_socketio_client(socketio_server: Server) -> None:
    status, body = get(socketio_server, "/socket.io/?EIO=4&transport=polling")
    assert status == 200
    sid = json.loads(body[1:])["sid"]
    with Raw(socketio_server, request(f"/socket.io/?EIO=4&transport=websocket&sid={sid}")) as raw:
        raw.head()
        raw.send(frame(TEXT, b"2probe"))
        assert raw.frame() == (TEXT, b"3probe")
        raw.send(frame(TEXT, b"5") + close_frame(1000))
        assert raw.closes()[0] == 1000
        assert raw.rest() == b""


def check_greeting(server: Server, greeting: str, line: str) -> None:
    """Talk to a view that greets, then echoes, and has this line in the log at its end; and to the page beside it."""

    def talk() -> None:
        with server.connect("/echo/hello") as ws:
            assert ws.recv(DEADLINE) == greeting
            ws.send("again")
            assert ws.recv(DEADLINE) == "again"

    assert "Traceback" not in log_after(server, line, talk)
    assert get(server, "/") == (200, "page")


def check_upgrade(port: int, acknowledgement: str) -> None:
    """Talk Socket.IO as its own client does by itself: polling first, then on a WebSocket."""
    with socketio.SimpleClient(request_timeout=60) as client:
        client.connect(f"http://127.0.0.1:{port}", wait_timeout=DEADLINE)
        wait_for(lambda: client.transport == "websocket", "upgrade from polling")
        assert client.call("echo", "hello", timeout=DEADLINE) == acknowledgement
        client.client.eio.http.close()


# Bottle and Django


def test_bottle_view_talks_until_its_client_leaves(app: App) -> None:
    server = app("bottle_app")

    def talk() -> None:
        with server.connect("/echo") as ws:
            ws.send("hello")
            assert ws.recv(DEADLINE) == "you said hello"

    log = log_after(server, '"GET /echo HTTP/1.1" 101', talk)
    assert "echo ended by WebSocketError" in log
    assert "Traceback" not in log
    assert get(server, "/") == (200, "page")


def test_bottle_view_says_to_plain_http_that_it_wants_a_websocket(app: App) -> None:
    status, body = get(app("bottle_app"), "/echo")
    assert status == 400
    assert "a WebSocket is wanted" in body


def test_django_view_talks_until_its_client_leaves(app: App) -> None:
    check_greeting(app("django_app"), "hello", '"GET /echo/hello HTTP/1.1" 101')


@pytest.mark.parametrize("name", ["bottle_app", "django_app"])
def test_view_refuses_a_websocket_by_http(app: App, name: str) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        app(name).connect("/refused")


@pytest.mark.usefixtures("bottle_websocket")
def test_plugin_of_bottle_websocket_hands_the_websocket_to_the_view(app: App) -> None:
    check_greeting(app("bottle_websocket_app", COMPAT), "hello", '"GET /echo/hello HTTP/1.1" 101')


# Flask-Sockets


def test_flask_sockets_view_has_the_websocket_and_flasks_context(app: App) -> None:
    check_greeting(
        app("flask_sockets_app"), "hello /echo/hello tests.legacy.flask_sockets_app", "GET /echo/hello HTTP/1.1"
    )


def test_outbox_that_only_asks_whether_its_socket_is_closed_gets_all_that_others_send(app: App) -> None:
    server = app("flask_sockets_app")
    with server.connect("/receive") as first, server.connect("/receive") as second, server.connect("/submit") as inbox:
        for message in ("one", "two", "three"):
            inbox.send(message)
            assert first.recv(DEADLINE) == second.recv(DEADLINE) == message
        first.close()
        server.wait_for_log("outbox ended")
        inbox.send("four")
        assert second.recv(DEADLINE) == "four"
    wait_for(lambda: server.log.count("outbox ended") == 2, "end of both outboxes")


def test_pages_and_websockets_are_found_as_dagit_and_flexx_declare_them(app: App) -> None:
    server = app("dagit_app", COMPAT)
    assert get(server, "/graphql") == (200, "the page of graphql")
    assert get(server, "/any/other") == (200, "the index")
    assert get(server, "/flexx/ws/app") == (200, "flexx ws/app")
    with server.connect("/graphql", subprotocols=[Subprotocol("graphql-ws")]) as ws:
        assert ws.subprotocol == "graphql-ws"
        ws.send("hello")
        assert ws.recv(DEADLINE) == "hello"
    with server.connect("/flexx/ws/app") as ws:
        ws.send("hello")
        assert ws.recv(DEADLINE) == "app: hello"


def test_uncured_flask_sockets_serves_pages_and_no_websocket(app: App) -> None:
    server = app("flask_sockets_uncured_app")
    assert get(server, "/") == (200, "page")
    with pytest.raises(InvalidStatus, match="500"):
        server.connect("/echo")
    server.wait_for_log("WebsocketMismatch")


# A plain route for the page and its WebSocket


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [("/", "echo"), ("/slash/", "slash"), ("/form", "form"), ("/blueprint/echo", "blueprint.echo")],
)
def test_a_plain_route_serves_page_and_websocket(app: App, path: str, endpoint: str) -> None:
    server = app("plain_routes_app")
    assert get(server, path) == (200, f"page of {path}")
    with server.connect(path) as ws:
        assert ws.recv(DEADLINE) == f"{path} {endpoint} {path}"
        ws.send("hello")
        assert ws.recv(DEADLINE) == "hello"


def test_a_route_for_websockets_comes_before_a_plain_one(app: App) -> None:
    server = app("plain_routes_app")
    assert get(server, "/both") == (200, "page beside a WebSocket")
    greetings = {"/both": "the route for WebSockets", "/rooms/7": "room 7", "/rooms/seven/8": "rest seven/8"}
    for path, greeting in greetings.items():
        with server.connect(path) as ws:
            assert ws.recv(DEADLINE) == greeting


@pytest.mark.parametrize(
    ("path", "status"), [("/only-post", 405), ("/members-only", 403), ("/both-by-http", 404), ("/slash", 308)]
)
def test_a_websocket_that_no_route_takes_gets_the_answer_of_http(app: App, path: str, status: int) -> None:
    with Raw(app("plain_routes_app"), request(path)) as raw:
        head = raw.head()
    assert head.startswith(f"HTTP/1.1 {status} ")
    if status == 308:
        assert "Location: ws://localhost/slash/" in head


def test_without_sockets_a_plain_route_refuses_websockets_and_the_log_says_once_why(app: App) -> None:
    server = app("plain_routes_app:without")
    for _ in range(2):
        with pytest.raises(InvalidStatus, match="400"):
            server.connect("/")
    assert get(server, "/") == (200, "page of /")
    assert server.log.count("@app.route(..., websocket=True), or the app geventws.flask.Sockets(app)") == 1


def test_a_plain_route_is_found_by_its_host(app: App) -> None:
    server = app("plain_routes_app:by_host()")
    with server.connect("/") as ws:
        assert ws.recv(DEADLINE) == "/ mine /"


ROUTES = [
    "/",
    "/slash",
    "/form",
    "/both",
    "/rooms/7",
    "/rooms/x",
    "/only-post",
    "/urls",
    "/blueprint/echo",
    "/static/x",
]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "PUT"])
def test_plain_requests_are_answered_as_by_an_app_that_never_heard_of_it(
    monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    from .legacy.plain_routes_app import app

    with_it = app.test_client().open(path, method=method)
    monkeypatch.delattr(app, "create_url_adapter")
    without = app.test_client().open(path, method=method)
    assert (with_it.status, dict(with_it.headers), with_it.data) == (
        without.status,
        dict(without.headers),
        without.data,
    )


def test_test_client_gets_the_page_of_a_plain_route_on_an_upgrade_request() -> None:
    from .legacy.plain_routes_app import app

    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert app.test_client().get("/form", headers=upgrade).text == "page of /form"
    assert app.test_client().post("/form", headers=upgrade).text == "saved"
    assert app.test_client().get("/urls", headers=upgrade).text == "/ ws://localhost/both http://localhost/slash/"
