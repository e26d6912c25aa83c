"""Flask as it is lived: logins, options of routes, few database connections, and `flask geventws`."""

from __future__ import annotations

import dataclasses
import html
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import gevent
import pytest
from flask import Blueprint, Flask, Request, Response, current_app, g, redirect, request, session, url_for
from flask.sessions import SessionInterface, SessionMixin
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.typing import Origin, Subprotocol
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import geventws
from geventws import WebSocket, WebSocketError
from geventws.flask import Sockets
from geventws.testing import Refused, connect

from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, missing, serve, upgrade_request, wait_for

pytestmark = pytest.mark.slow  # it starts servers or installs packages

PARTNER, STRANGER = "https://partner.example", "https://stranger.example"


@pytest.fixture(scope="module", params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest) -> str:
    for package in ("flask_login", "flask_sqlalchemy"):
        if find_spec(package) is None:
            missing(f"{package} is not installed")
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def server(front_end: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("lived")
    env = {"LIVED_DATABASE": str(directory / "database"), "GEVENTWS_ACCEPT_AFTER": "off"}
    with serve("tests.apps_flask_lived:mounted", directory, front_end=front_end, env=env) as server:
        yield server


class Answer(NamedTuple):
    body: str
    cookie: str  # as the client sends it back


def get(server: Server, path: str, **headers: str) -> Answer:
    """Return the answer to a GET request."""
    with closing(http.client.HTTPConnection("localhost")) as connection:
        connection.sock = server.socket()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return Answer(answer.read().decode(), (answer.headers["Set-Cookie"] or "").partition(";")[0])


def refusal(server: Server, path: str, **options: Any) -> Any:
    """Return the HTTP answer to a handshake that is refused."""
    with pytest.raises((InvalidStatus, ValueError)) as caught:
        server.connect(path, **options).close()
    # The client wants to follow a redirect, and cannot with a socket that we gave it.
    error = caught.value if isinstance(caught.value, InvalidStatus) else caught.value.__cause__
    assert isinstance(error, InvalidStatus)
    return error.response


# Who it is


def test_flask_geventws_comes_up_under_a_debugger(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    debugged = [sys.executable, "-X", "frozen_modules=off", "-m", "debugpy", "--listen", f"127.0.0.1:{port}"]
    command = [*debugged, "-m", "flask", "--app", "tests.apps_middleware:app", "geventws", "--bind", "127.0.0.1:0"]
    server = Server(command, "127.0.0.1:0", None, tmp_path / "log", {})
    try:
        with server.connect("/echo") as ws:
            ws.send("hello")
            assert ws.recv(DEADLINE) == "hello"
    finally:
        server.stop(signal.SIGINT)
    assert "KeyError" not in server.log


def test_user_session_and_g_are_there_in_a_view_however_long_it_waits(server: Server) -> None:
    with server.connect("/me", additional_headers={"Cookie": get(server, "/login/ada").cookie}) as ws:
        for _ in range(2):  # from the second on, behind a wait that gave the database connection back
            ws.send("who?")
            assert json.loads(ws.recv(DEADLINE)) == ["ada", "blue", "/me"]


def test_login_required_below_the_route_redirects_to_the_login_with_a_cookie(server: Server) -> None:
    answer = refusal(server, "/me")
    assert answer.status_code == 302
    assert answer.headers["Location"] == "/login?next=%2Fme"
    assert answer.headers["Set-Cookie"].startswith("session=")


def test_login_required_above_the_route_guards_nothing_as_everywhere_in_flask(server: Server) -> None:
    with server.connect("/decorated-above") as ws:
        assert ws.recv(DEADLINE) == "not guarded"


def test_before_request_refuses_in_http(server: Server) -> None:
    assert refusal(server, "/banned").status_code == 401
    answer = refusal(server, "/moved")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/login")
    assert answer.headers["Set-Cookie"].partition(";")[0] == "came_from=moved"


class OnTheServer(SessionInterface):
    """Sessions that stay on the server, each saved by whatever request has read it."""

    class Session(dict[str, Any], SessionMixin):
        pass

    def __init__(self) -> None:
        self.stored: dict[str, dict[str, Any]] = {"1": {"user": "ada"}}

    def open_session(self, app: Flask, request: Request) -> SessionMixin:
        return self.Session(self.stored[request.cookies["session"]])

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        if session:
            self.stored["1"] = dict(session)


@pytest.mark.parametrize("path", ["/sockets", "/plain", "/fails"])
def test_a_logout_is_not_undone_by_the_end_of_a_socket_that_was_open(path: str) -> None:
    app = Flask("app")
    app.session_interface = sessions = OnTheServer()
    sockets = Sockets(app)
    seen: list[str] = []

    @app.after_request
    def note(response: Response) -> Response:
        seen.append(session.get("user", "nobody"))
        return response

    @sockets.route("/sockets")
    def view(ws: WebSocket) -> None:
        for _ in ws:
            ws.send(session["user"])

    @sockets.route("/fails")
    def fails(ws: WebSocket) -> None:
        view(ws)
        raise ArithmeticError("in the view")

    app.add_url_rule("/plain", "plain", lambda: view(request.environ["wsgi.websocket"]) or "")
    expected = pytest.raises(ArithmeticError) if path == "/fails" else nullcontext()
    with expected, connect(app, path, cookies={"session": "1"}) as ws:
        ws.send("who?")
        assert ws.receive() == "ada"
        sessions.stored["1"] = {"csrf": "token"}  # ada logs out meanwhile
    assert sessions.stored["1"] == {"csrf": "token"}
    assert seen == ["ada"]


def test_a_session_is_saved_with_a_refusal() -> None:
    app = Flask("app")
    app.session_interface = sessions = OnTheServer()

    @Sockets(app).route("/")
    def view(ws: WebSocket) -> Response:
        session["next"] = "/"
        return redirect("/login")  # type: ignore[return-value]

    with pytest.raises(Refused, match="302"):
        connect(app, "/", cookies={"session": "1"})
    assert sessions.stored["1"] == {"user": "ada", "next": "/"}


def test_url_for_gives_pages_as_http_and_sockets_as_ws(server: Server) -> None:
    with server.connect("/rooms/lobby") as ws:
        assert json.loads(ws.recv(DEADLINE)) == {
            "page": "/login",
            "page, external": "http://localhost/login",
            "socket": "ws://localhost/rooms/other",
            "socket, external": "ws://localhost/rooms/lobby",
        }
    answer = get(server, "/urls", Host="app.example:8000")
    assert json.loads(answer.body) == ["ws://app.example:8000/rooms/lobby", "/login"]


def test_url_for_keeps_to_tls() -> None:
    app = Flask("app")
    sockets = Sockets(app)
    app.add_url_rule("/page", "page", str)

    @sockets.route("/urls")
    def urls(ws: WebSocket) -> None:
        ws.send_json([url_for("page", _external=True), url_for("urls")])

    with connect(app, "wss://app.example/urls") as ws:
        assert json.loads(ws.receive() or "") == ["https://app.example/page", "wss://app.example/urls"]


# Options of routes


def test_a_handshake_completed_by_the_first_use_has_the_options_of_the_route(server: Server) -> None:
    with server.connect("/up", subprotocols=[Subprotocol("v1"), Subprotocol("v2")]) as ws:
        assert ws.subprotocol == "v2"
        ws.send("x" * (3 << 20))
        assert ws.recv(DEADLINE) == str(3 << 20)
        ws.send("x" * (5 << 20))
        with pytest.raises(ConnectionClosedError, match="1009"):
            ws.recv(DEADLINE)


def test_other_routes_keep_the_options_of_the_server(server: Server) -> None:
    with server.connect("/count", subprotocols=[Subprotocol("v2")]) as ws:
        assert ws.subprotocol is None
        ws.send("x" * (3 << 20))
        with pytest.raises(ConnectionClosedError, match="1009"):
            ws.recv(DEADLINE)


def test_accept_wins_over_the_route(server: Server) -> None:
    with server.connect("/accept-wins", subprotocols=[Subprotocol("v1"), Subprotocol("v2")]) as ws:
        assert ws.subprotocol == "v2"
        ws.send("x" * 50)
        assert ws.recv(DEADLINE) == "50"
        ws.send("x" * 101)
        with pytest.raises(ConnectionClosedError, match="1009"):
            ws.recv(DEADLINE)


def test_a_route_may_have_its_handshake_completed_for_it_where_the_server_does_not(server: Server) -> None:
    with server.socket() as sock:
        sock.sendall(upgrade_request("/silent"))
        assert sock.recv(1000).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    ("path", "allowed", "refused"),
    [
        ("/judged/own", [PARTNER, None], [STRANGER, "http://localhost", "null"]),
        ("/judged/any", [PARTNER, STRANGER, "http://localhost", "null", None], []),
        ("/judged/none", ["http://localhost", None], [PARTNER, STRANGER, "null"]),
        ("/judged/bare", ["http://localhost", None], [PARTNER, STRANGER]),
    ],
)
def test_origins_are_those_of_the_route_and_else_of_the_server(
    server: Server, path: str, allowed: list[str | None], refused: list[str]
) -> None:
    for origin in allowed:
        with server.connect(path, origin=origin and Origin(origin)) as ws:
            assert ws.recv(DEADLINE) == "welcome"
    before = len(server.log)
    for origin in refused:
        assert refusal(server, path, origin=Origin(origin)).status_code == 403
        server.wait_for_log(f"{path} refused: 403 Forbidden: origin {origin!r}")
    assert "ran on" not in server.log[before:]


@pytest.mark.parametrize("path", ["/judged/page", "/judged/absent", "/mounted/"])
def test_what_is_no_socket_route_is_closed_to_strangers_too(server: Server, path: str) -> None:
    before = len(server.log)
    assert refusal(server, path, origin=Origin(PARTNER)).status_code == 403
    wait_for(lambda: f"{path} refused: 403 Forbidden: origin {PARTNER!r}" in server.log[before:], "line in the log")
    assert "ran on" not in server.log[before:]


def test_who_is_refused_cannot_get_at_the_raw_socket(server: Server) -> None:
    before = len(server.log)
    refusal(server, "/mounted/", origin=Origin(PARTNER))
    wait_for(lambda: "raw socket None None" in server.log[before:], "report of the app")


def one_route(**options: Any) -> Flask:
    app = Flask("app")

    @app.before_request
    def note() -> None:
        app.extensions["seen"] = True

    @Sockets(app).route("/", **options)
    def view(ws: WebSocket) -> None:
        ws.send("welcome")

    return app


def test_narrower_origins_of_a_route_bind_before_anything_else_runs() -> None:
    app = one_route(origins=[PARTNER])
    with pytest.raises(Refused, match=r"403 .*stranger") as caught:
        connect(app, "/", origin=STRANGER, options={"origins": ["*"]})
    assert caught.value.status == 403
    assert "seen" not in app.extensions
    with connect(app, "/", origin=PARTNER, options={"origins": ["*"]}) as ws:
        assert ws.receive() == "welcome"


def test_who_is_refused_by_a_route_gets_no_handshake_from_what_runs_after() -> None:
    app = one_route(origins=[PARTNER])

    @app.after_request
    def use(response: Response) -> Response:
        with suppress(WebSocketError):
            request.environ["wsgi.websocket"].send("leaked")
        return response

    with pytest.raises(Refused, match="403"):
        connect(app, "/", origin=STRANGER, options={"origins": ["*"]})


def test_origins_of_a_route_open_no_app_mounted_beside() -> None:
    inner = one_route()
    inner.add_url_rule("/page", "page", str)
    app = DispatcherMiddleware(one_route(origins=[PARTNER]), {"/inner": inner})
    for path in ("/inner/", "/inner/page", "/inner/absent"):
        with pytest.raises(Refused, match=r"403 .*partner"):
            connect(app, path, origin=PARTNER)
    assert "seen" not in inner.extensions
    with connect(app, "/", origin=PARTNER) as ws:
        assert ws.receive() == "welcome"


def test_middleware_may_use_the_websocket_before_a_route_without_options() -> None:
    app = one_route()
    inner = app.wsgi_app

    def middleware(environ: Any, start_response: Any) -> Any:
        environ["wsgi.websocket"].send("from middleware")
        return inner(environ, start_response)

    app.wsgi_app = middleware  # type: ignore[method-assign]
    with connect(app, "/") as ws:
        assert [ws.receive(), ws.receive()] == ["from middleware", "welcome"]


def test_only_an_app_whose_routes_have_origins_sees_strangers_at_all() -> None:
    for options, paths in [({"subprotocols": ["v2"]}, []), ({"origins": ["*.example.org"]}, ["/absent"])]:
        app = one_route(**options)
        seen: list[str] = []
        inner = app.wsgi_app

        def middleware(environ: Any, start_response: Any, seen: list[str] = seen, inner: Any = inner) -> Any:
            seen.append(environ["PATH_INFO"])
            return inner(environ, start_response)

        app.wsgi_app = middleware  # type: ignore[method-assign]
        with pytest.raises(Refused, match="403"):
            connect(app, "/absent", origin=STRANGER)
        assert seen == paths


def test_origins_come_too_late_in_accept() -> None:
    app = Flask("app")

    @Sockets(app).route("/")
    def view(ws: WebSocket) -> None:
        ws.accept(origins=["*"])

    with pytest.raises(TypeError, match="origins are judged before the view runs"):
        connect(app, "/")


def test_options_hold_on_a_blueprint_in_each_app_of_a_factory() -> None:
    sockets = Sockets()

    @sockets.route("/up", subprotocols=["v2"], origins=[PARTNER])
    def view(ws: WebSocket) -> None:
        ws.accept()
        ws.send(str(ws.subprotocol))

    for name in ("one", "two"):
        app, blueprint = Flask(name), Blueprint("api", name)
        sockets.init_app(blueprint)
        app.register_blueprint(blueprint, url_prefix="/api")
        with connect(app, "/api/up", subprotocols=["v2"], origin=PARTNER) as ws:
            assert ws.receive() == "v2"


@pytest.mark.parametrize("field", dataclasses.fields(geventws.Options), ids=lambda field: str(field.name))
def test_each_option_is_one_of_a_route_or_says_why_not(field: dataclasses.Field[Any]) -> None:
    options: dict[str, Any] = {field.name: field.default}
    if field.name in {
        "hosts",
        "max_connections",
        "max_connections_per_address",
        "shutdown_code",
        "shutdown_reason",
        "closes_per_second",
        "hub_warning",
    }:
        with pytest.raises(TypeError, match=f"{field.name} .*an option of the server"):
            Sockets().route("/", **options)
        return
    with connect(one_route(**options), "/", origin="http://localhost") as ws:
        assert ws.receive() == "welcome"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_mesage_size": 5}, "max_mesage_size is no option of geventws; did you mean max_message_size?"),
        ({"max_message_size": 0}, "max_message_size must be at least 1"),
        ({"ping_interval": "often"}, "ping_interval must be a number of seconds or None, not 'often'"),
        ({"origins": ["https://app.example/"]}, "origins: 'https://app.example/'"),
        ({"subprotocols": [3]}, "subprotocols: 3"),
    ],
)
def test_a_wrong_option_is_named_at_its_declaration(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(complaint)):
        Sockets().route("/", **options)


def test_options_of_flasks_own_rules_stay_theirs() -> None:
    app = Flask("app")

    @Sockets(app).route("/page/<int:number>", defaults={"colour": "blue"}, max_queue=3, strict_slashes=False)
    def view(ws: WebSocket, number: int, colour: str) -> None:
        ws.send(f"{number} {colour} {ws.options.max_queue}")

    with connect(app, "/page/7") as ws:
        assert ws.receive() == "7 blue 3"


# The database


def test_twenty_waiting_views_hold_no_connection_of_a_pool_of_two(server: Server) -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(server.connect("/count")) for _ in range(20)]
        for _ in range(2):
            for ws in crowd:
                ws.send("ada")
            assert [ws.recv(DEADLINE) for ws in crowd] == ["1"] * 20


def test_without_the_hook_each_view_that_asked_the_database_keeps_its_connection(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            ws = stack.enter_context(server.connect("/count-and-hold"))
            ws.send("ada")
            assert ws.recv(DEADLINE) == "1"
        third = stack.enter_context(server.connect("/count-and-hold"))
        third.send("ada")
        with pytest.raises(ConnectionClosedError, match="1011"):
            third.recv(DEADLINE)
    server.wait_for_log("QueuePool limit of size 2")


def waiting(events: list[str], *hooks: Any) -> Flask:
    """Return an app whose view notes each message, and what a hook notes before it waits."""
    app = Flask("app")

    def note() -> None:
        events.append(f"wait of {current_app.name}, {g.messages} messages")

    @Sockets(app, before_wait=[note, *hooks]).route("/")
    def view(ws: WebSocket) -> None:
        g.messages = 0
        for message in ws:
            g.messages += 1
            events.append(str(message))
            ws.send(message)

    return app


def test_before_wait_runs_in_the_views_context_and_only_where_it_waits() -> None:
    events: list[str] = []
    with connect(waiting(events), "/") as ws:
        ws.send("one")
        ws.send("two")  # which is there already when the view is done with the first
        assert [ws.receive(), ws.receive()] == ["one", "two"]
        ws.send("three")
        assert ws.receive() == "three"
    assert events == [
        "wait of app, 0 messages",
        *("one", "two", "wait of app, 2 messages"),
        *("three", "wait of app, 3 messages"),
    ]


def test_an_error_in_before_wait_is_one_of_the_view() -> None:
    def fail() -> None:
        raise OSError("the database is gone")

    with pytest.raises(OSError, match="the database is gone"), connect(waiting([], fail), "/") as ws:
        ws.send("one")
        ws.receive()


def test_a_message_that_comes_while_before_wait_runs_is_received() -> None:
    events: list[str] = []
    with connect(waiting(events, lambda: gevent.sleep(0.05)), "/") as ws:
        for number in range(3):
            ws.send(str(number))
            assert ws.receive() == str(number)


def test_two_that_receive_get_a_clear_error_though_before_wait_lets_others_run() -> None:
    app = Flask("app")

    @Sockets(app, before_wait=[lambda: gevent.sleep(0.05)]).route("/")
    def view(ws: WebSocket) -> None:
        ws.accept()
        readers = [gevent.spawn(ws.receive) for _ in range(2)]
        gevent.joinall(readers, count=1)
        gevent.joinall(readers)
        ws.send_json([[reader.value, str(reader.exception or "")] for reader in readers])

    with connect(app, "/") as ws:
        gevent.sleep(0.2)
        ws.send("for the one that waits")
        answers = sorted(json.loads(ws.receive() or ""), key=str)
    assert ["for the one that waits", ""] in answers
    assert any("only one can" in error for _, error in answers)


@pytest.mark.parametrize("hooks", [len, ["remove"]])
def test_before_wait_must_be_a_list_of_functions(hooks: Any) -> None:
    with pytest.raises(TypeError, match="before_wait must be a list of functions"):
        Sockets(before_wait=hooks)


# flask geventws

APP = """
import socket
from flask import Flask
from geventws.flask import Sockets

patched = socket.socket.__module__
app = Flask(__name__)
sockets = Sockets(app)

@app.get("/")
def page():
    return "%s " + patched + f" debug={app.debug}"

@app.get("/fails")
def fails():
    secret = 41
    raise ArithmeticError("in the page")

@sockets.route("/echo")
def echo(ws):
    ws.accept()
    for message in ws:
        if message == "fail":
            raise ArithmeticError("in the view")
        ws.send(message)

def create_app(name):
    made = Flask(name)
    made.add_url_rule("/", "page", lambda: f"made {name} debug={made.debug}")
    return made
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with app.py, from which `flask geventws` may be started."""
    if "geventws" not in entry_points(group="flask.commands").names:
        missing("geventws is not installed with its entry points: pip install -e .")
    (tmp_path / "app.py").write_text(APP % "good")
    return tmp_path


def flask(directory: Path, *arguments: str) -> list[str]:
    there = ["sh", "-c", 'cd "$0" && exec "$@"', str(directory)]
    return [*there, sys.executable, "-m", "flask", *arguments]


ENV = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "120"}


@contextmanager
def flask_server(directory: Path, *arguments: str, **env: str) -> Iterator[Server]:
    command = flask(directory, *arguments, "--bind", "127.0.0.1:0")
    server = Server(command, "127.0.0.1:0", None, directory / "log", {**ENV, **env})
    try:
        yield server
    finally:
        server.stop()


def flask_answer(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of flask that ends by itself."""
    return subprocess.run(
        flask(directory, *arguments), env={**os.environ, **ENV}, capture_output=True, text=True, timeout=DEADLINE
    )


def port_after(server: Server, starts: int) -> int:
    """Return the port of the process that was started as the so-manieth."""
    pattern = r" serves \S+ on http://127\.0\.0\.1:(\d+)"
    found = wait_for(lambda: re.findall(pattern, server.log)[starts - 1 :], f"start {starts} of the server")
    return int(found[0])


def test_flask_serves_app_py_patched_with_what_the_command_line_says(directory: Path) -> None:
    with flask_server(directory, "geventws", "--subprotocols", "v2", "--no-access-log") as server:
        assert get(server, "/").body == "good gevent._socket3 debug=False"
        with server.connect("/echo", subprotocols=[Subprotocol("v2")]) as ws:
            assert ws.subprotocol == "v2"
            ws.send("hello")
            assert ws.recv(DEADLINE) == "hello"
        assert '"GET / HTTP' not in server.log


@pytest.mark.parametrize(
    ("arguments", "env", "answer"),
    [
        (["--app", "app:create_app('mine')", "geventws"], {}, "made mine debug=False"),
        (["--app", "app", "--debug", "geventws"], {}, "good gevent._socket3 debug=True"),
        (["geventws"], {"FLASK_APP": "app:app", "FLASK_DEBUG": "1"}, "good gevent._socket3 debug=True"),
        (["geventws"], {"FLASK_DEBUG": "0"}, "good gevent._socket3 debug=False"),
    ],
    ids=["factory", "--debug first", "FLASK_DEBUG=1", "FLASK_DEBUG=0"],
)
def test_flask_finds_the_app_as_its_own_commands_do(
    directory: Path, arguments: list[str], env: dict[str, str], answer: str
) -> None:
    with flask_server(directory, *arguments, **env) as server:
        assert get(server, "/").body == answer


def test_flask_explains_the_command(directory: Path) -> None:
    answer = flask_answer(directory, "geventws", "--help")
    assert answer.returncode == 0
    assert answer.stdout.startswith("usage: flask geventws ")
    assert "MODULE:APP" not in answer.stdout
    for flag in ("--bind", "--certfile", "--debug", "--max-message-size"):
        assert re.search(rf"^  {flag}\b", answer.stdout, re.MULTILINE)
    listed = flask_answer(directory, "--help").stdout
    assert re.search(r"^ +geventws +Serve this app and its WebSockets", listed, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--app", "absent", "geventws"], "geventws: Could not import 'absent'"),
        (["--app", "app:absent", "geventws"], "geventws: Failed to find attribute 'absent'"),
        (["--app", "app:create_app()", "geventws"], r"geventws: The factory 'create_app\(\)'.* could not be called"),
        (["--app", "app:create_app(", "geventws"], r"geventws: Failed to parse 'create_app\('"),
        (["geventws", "--bind", "8000"], "geventws: --bind must be HOST:PORT"),
        (["geventws", "--bnd", "8000"], "geventws: .*--bnd.*; see flask geventws --help"),
        (["geventws", "app:app"], "geventws: .*; name the app before the command: flask --app MODULE:APP geventws;"),
    ],
)
def test_flask_tells_a_mistake_in_words(directory: Path, arguments: list[str], complaint: str) -> None:
    answer = flask_answer(directory, *arguments)
    assert answer.returncode == 2
    assert re.match(complaint, answer.stderr)
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise KeyError('DATABASE_URL')", "KeyError: 'DATABASE_URL'"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    ],
)
@pytest.mark.parametrize("name", ["wrong", "wrong:create_app", None])
def test_flask_shows_the_traceback_of_its_app_from_the_apps_frames_on(
    directory: Path, code: str, error: str, name: str | None
) -> None:
    text = f"def create_app():\n    {code}\n" + "create_app()\n" * (name != "wrong:create_app")
    (directory / "wrong.py").write_text(text)
    (directory / "wsgi.py").write_text("import wrong\n")
    answer = flask_answer(directory, *([] if name is None else ["--app", name]), "geventws")
    assert answer.returncode == 2
    found = re.findall(r'^  File ".*/(.+)", line (\d+)', answer.stderr, re.MULTILINE)
    frames = {"wrong": ["3", "2"], "wrong:create_app": ["2"], None: ["1", "3", "2"]}[name]
    assert [line for _, line in found] == frames, answer.stderr
    assert answer.stderr.startswith("Traceback (most recent call last):\n")
    assert answer.stderr.endswith(f"geventws: loading the Flask app failed: {error} (wrong.py, line 2)\n")


def test_flask_without_any_app_says_how_to_name_one(directory: Path) -> None:
    (directory / "app.py").unlink()
    answer = flask_answer(directory, "geventws")
    assert answer.returncode == 2
    assert answer.stderr.startswith("geventws: Could not locate a Flask application")


def test_a_program_with_a_flask_group_of_its_own_is_told_what_to_do(directory: Path) -> None:
    manage = "import app\nfrom flask.cli import FlaskGroup\nFlaskGroup(create_app=lambda: app.app)()\n"
    (directory / "manage.py").write_text(manage)
    answer = subprocess.run(
        [sys.executable, "manage.py", "geventws"],
        cwd=directory,
        env={**os.environ, **ENV},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert answer.returncode == 2
    assert "use flask --app MODULE:APP geventws" in answer.stderr


def test_debug_restarts_while_sockets_are_open_that_do_not_answer_close(directory: Path) -> None:
    # The closing handshakes alone would take close_timeout, and the end of the views as much again.
    patient = {"GEVENTWS_CLOSE_TIMEOUT": str(2 * DEADLINE)}
    with flask_server(directory, "--app", "app", "geventws", "--debug", **patient) as server, ExitStack() as stack:
        assert get(server, "/").body == "good gevent._socket3 debug=True"
        crowd: list[socket.socket] = []
        for _ in range(5):
            sock = stack.enter_context(server.socket())
            sock.sendall(upgrade_request("/echo"))
            assert sock.recv(1000).startswith(b"HTTP/1.1 101 ")
            crowd.append(sock)
        (directory / "app.py").write_text(APP % "changed")
        server.port = port_after(server, 2)
        assert get(server, "/").body.startswith("changed ")
        for sock in crowd:
            assert sock.recv(1000)[:4] == bytes.fromhex("881303f4")  # Close with 1012


def test_debug_shows_the_traceback_of_a_view_in_the_log(directory: Path) -> None:
    with flask_server(directory, "geventws", "--debug") as server, server.connect("/echo") as ws:
        ws.send("fail")
        with pytest.raises(ConnectionClosedError, match="1011"):
            ws.recv(DEADLINE)
        server.wait_for_log(r"^  File \".*app\.py\", line \d+, in echo$")
        server.wait_for_log("^ArithmeticError: in the view")
        assert server.log.count("ArithmeticError: in the view") == 1


def test_debug_gives_a_console_on_a_page_that_fails_to_who_has_the_pin(directory: Path) -> None:
    with flask_server(directory, "geventws", "--debug") as server:
        text = get(server, "/fails").body
        assert "ArithmeticError: in the page" in html.unescape(text)
        secret = re.findall(r'SECRET = "(\w+)"', text)[0]
        frame = re.findall(r'id="frame-(\d+)"', text)[-1]

        def ask(cookie: str = "", **query: str) -> Answer:
            asked = urlencode({"__debugger__": "yes", "s": secret, **query})
            answer = get(server, f"/fails?{asked}", Host="127.0.0.1", Cookie=cookie)
            return answer._replace(body=html.unescape(re.sub(r"<.*?>", "", answer.body)))

        command = {"cmd": "secret + 1", "frm": frame}
        assert ">>> secret + 1" not in ask(**command).body
        cookie = ask(cmd="pinauth", pin=re.findall(r"Debugger PIN: (\S+)", server.log)[0]).cookie
        assert ask(cookie, **command).body == ">>> secret + 1\n42"


# docs/flask.md


def documented() -> dict[str, str]:
    """Return the files that docs/flask.md shows, by name; pieces of one file are joined."""
    files: dict[str, str] = {}
    for code in re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "flask.md").read_text(), re.MULTILINE | re.DOTALL
    ):
        first, _, rest = code.partition("\n")
        name = first.removeprefix("# ")
        assert name.endswith(".py"), f"the example that begins {first!r} names no file"
        files[name] = files.get(name, "") + rest
    return files


DRIVER = """
from app import app
from geventws.testing import Refused, connect

client = app.test_client()
try:
    connect(client, "/chat")
except Refused as refused:
    assert refused.status == 302 and refused.headers["Location"].startswith("/?next=")
client.get("/login/ada")
with connect(client, "/chat") as ws:
    ws.send("hello")
    assert ws.receive() == "ada says hello, to 1 of us"
with connect(app, "/upload", subprotocols=["v2"]) as ws:
    assert ws.subprotocol == "v2"
    ws.send(b"x" * (2 << 20))
    assert ws.receive() == "2097152 bytes"
with connect(app, "/widget", origin="https://partner.example") as ws:
    ws.send("?")
    assert ws.receive() == "42"
with connect(app, "/count") as ws:
    ws.send("3")
    assert [ws.receive() for _ in range(3)] == ["0", "1", "2"]
assert 'new WebSocket("ws://localhost/chat")' in client.get("/").text
print("done")
"""


def test_the_examples_of_the_documentation_run(directory: Path) -> None:
    for package in ("flask_login", "flask_sqlalchemy"):
        if find_spec(package) is None:
            missing(f"{package} is not installed")
    files = documented()
    for name, text in {**files, "drive.py": DRIVER}.items():
        (directory / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "drive.py"], cwd=directory, env={**os.environ, **ENV}, capture_output=True, text=True
    )
    assert done.stdout == "done\n", done.stderr
    text = (ROOT / "docs" / "flask.md").read_text()
    commands = re.findall(r"^flask (.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        with flask_server(directory, *command.split()) as server:
            assert get(server, "/login/ada").body == "welcome"
