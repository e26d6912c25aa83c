"""The names of gevent-websocket: code that imports them finds ours, and what is gone says what to write instead."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from urllib.request import urlopen

import pytest
import socketio
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from .raw import BINARY, PING, PONG, TEXT, Raw, close_frame, frame, request
from .servers import (
    COMPAT,
    DEADLINE,
    FRONT_ENDS,
    ROOT,
    App,
    Server,
    get,
    legacy_apps,
    log_after,
    missing,
    serve,
    wait_for,
)
from .test_legacy import check_upgrade
from .test_readme import free_port, running

pytestmark = pytest.mark.slow  # it starts servers or installs packages


@pytest.fixture(scope="module", params=FRONT_ENDS)
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with legacy_apps(request.param, tmp_path_factory.mktemp) as start:
        yield start


@pytest.fixture(scope="module")
def compat(app: App) -> Server:
    return app("gevent_websocket_app", COMPAT)


def test_names_of_gevent_websocket_are_ours_though_it_is_installed_too(compat: Server) -> None:
    status, body = get(compat, "/where")
    assert status == 200
    assert "geventws.server.WebSocketServer" in body
    assert "geventws.server.WebSocketHandler" in body
    assert compat.log.count("geventws.compat stands in for the installed gevent-websocket") == 1


def test_chat_of_websocket_applications_reaches_all_clients(compat: Server) -> None:
    with compat.connect("/chat", subprotocols=["other", "chat"]) as ann, compat.connect("/chat") as bob:
        assert ann.subprotocol == "chat"
        for ws, name in ((ann, "ann"), (bob, "bob")):
            assert ws.recv(DEADLINE) == "welcome"
            ws.send(json.dumps({"name": name}))
        ann.send(json.dumps({"text": "hello"}))
        assert ann.recv(DEADLINE) == bob.recv(DEADLINE) == "ann: hello"
        before = len(compat.log)
        ann.close(4000, "gone home")
        wait_for(lambda: "chat closed: gone home" in compat.log[before:], "on_close")
        bob.send(json.dumps({"text": "anybody?"}))
        assert bob.recv(DEADLINE) == "bob: anybody?"
    assert "Traceback" not in compat.log[before:]


def test_resource_finds_apps_by_path_and_kind(compat: Server) -> None:
    with compat.connect("/echo") as ws:
        ws.send("hello")
        assert ws.recv(DEADLINE) == "hello"
    assert get(compat, "/") == (200, "page")
    assert get(compat, "/echo")[0] == 404
    with pytest.raises(InvalidStatus, match="404"):
        compat.connect("/where")


def test_an_application_has_its_protocol(compat: Server) -> None:
    with compat.connect("/by-protocol") as ws:
        ws.send("hello")
        assert ws.recv(DEADLINE) == "hello"
    compat.wait_for_log("protocol closed: over")


def test_frames_may_be_sent_by_opcode(compat: Server) -> None:
    def talk() -> None:
        with Raw(compat, request("/pings")) as raw:
            raw.head()
            assert raw.frame() == (PING, b"are you there")
            raw.send(frame(PONG, b"are you there"))
            assert raw.frame() == (TEXT, b"text")
            assert raw.frame() == (BINARY, b"binary")
            raw.send(close_frame(1000))
            assert raw.closes() == (1000, "")

    log = log_after(compat, '"GET /pings HTTP/1.1" 101', talk)
    assert "own ping ended by connection closed with code 1000" in log
    assert "Traceback" not in log


def test_ping_of_a_thread_that_outlives_the_server_finds_the_end() -> None:
    code = """
import threading
from geventws import ConnectionClosed
from tests.pairs import Opener, until_closed
opened = []

def other_thread():
    ws, peer = Opener(("", "", None))()
    opened.append(ws)
    peer.sock.close()
    until_closed(ws)

thread = threading.Thread(target=other_thread)
thread.start()
thread.join()
try:
    opened[0].send_frame("", opened[0].OPCODE_PING)
except ConnectionClosed as exc:
    print(exc.websocket is opened[0])
"""
    assert tells(code) == "True\n"


def test_a_view_that_may_still_refuse_is_no_client_of_a_chat(compat: Server) -> None:
    with Raw(compat, request("/undecided")) as raw, compat.connect("/chat") as ws:
        compat.wait_for_log("undecided")
        assert ws.recv(DEADLINE) == "welcome"
        ws.send(json.dumps({"name": "ann"}))
        ws.send(json.dumps({"text": "hello"}))
        assert ws.recv(DEADLINE) == "ann: hello"
        assert get(compat, "/") == (200, "page")
        assert raw.head().startswith("HTTP/1.1 403 ")


@pytest.mark.parametrize("name", ["socketio_app", "flask_sockets_app"])
def test_packages_that_import_geventwebsocket_find_ours(app: App, name: str) -> None:
    server = app(name, COMPAT)
    if name == "socketio_app":
        assert get(server, "/websockets-by") == (200, "geventwebsocket")
        check_upgrade(server.port, "acknowledged")
    else:
        with server.connect("/echo/hello") as ws:
            assert str(ws.recv(DEADLINE)).startswith("hello /echo/hello")


@pytest.fixture(scope="module")
def idioms(app: App) -> Server:
    return app("idioms_app", COMPAT)


def test_a_loop_on_receive_ends_with_none_and_then_by_websocket_errors(idioms: Server) -> None:
    def talk() -> None:
        with idioms.connect("/loop") as ws:
            ws.send("hello")
            assert ws.recv(DEADLINE) == "hello"

    log = log_after(idioms, "loop ended, closed True", talk)
    assert log.count("loop: ConnectionClosed") == 3
    assert "Traceback" not in log


def test_a_websocket_has_the_attributes_of_old(idioms: Server) -> None:
    with idioms.connect("/attributes", origin=Origin("http://localhost")) as ws:
        found = json.loads(ws.recv(DEADLINE))
    expected = {"origin": "http://localhost", "protocol": None, "version": "13", "path": "/attributes"}
    assert found == {**expected, "closed": False}


@pytest.mark.parametrize(
    ("path", "offered", "chosen"),
    [
        ("/attributes", ["other", "graphql-ws"], "graphql-ws"),
        ("/attributes", ["other"], None),
        ("/attributes", [], None),
        ("/loop", ["graphql-ws"], None),
    ],
)
def test_the_apps_app_protocol_names_the_subprotocol(
    idioms: Server, path: str, offered: list[str], chosen: str | None
) -> None:
    with idioms.connect(path, subprotocols=[Subprotocol(name) for name in offered]) as ws:
        assert ws.subprotocol == chosen


def test_app_protocol_is_found_in_middleware_and_by_the_test_client() -> None:
    assert not tells(
        """
from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix
from geventws.flask import Sockets
from geventws.testing import connect
app = Flask(__name__)
app.app_protocol = lambda path: "graphql-ws" if path == "/socket" else None
sockets = Sockets(app)
sockets.route("/socket", endpoint="socket")(lambda ws: ws.accept())
sockets.route("/own", endpoint="own", subprotocols=["own"])(lambda ws: ws.accept())
for served in (app, ProxyFix(app), app.test_client()):
    for path, chosen in {"/socket": "graphql-ws", "/own": "own"}.items():
        with connect(served, path, subprotocols=["own", "graphql-ws"]) as ws:
            assert ws.subprotocol == chosen, (served, path, ws.subprotocol)
"""
    )


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_app_protocol_that_exits_ends_no_server(front_end: str, tmp_path: Path) -> None:
    with serve("tests.legacy.idioms_app:exits", tmp_path, front_end=front_end, env=COMPAT) as server:
        for _ in range(2):
            with pytest.raises(InvalidStatus, match="500"):
                server.connect("/loop")
        server.wait_for_log(r"RuntimeError: app_protocol\('/loop'\) called sys\.exit\(3\)")


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_clients_of_a_unix_socket_can_be_told_apart(front_end: str, tmp_path: Path) -> None:
    with (
        serve("tests.legacy.idioms_app:app", tmp_path, front_end=front_end, unix=True, env=COMPAT) as server,
        server.connect("/loop"),
        server.connect("/attributes") as ws,
    ):
        assert json.loads(ws.recv(DEADLINE))["path"] == "/attributes"


def test_send_takes_what_it_took(idioms: Server) -> None:
    with Raw(idioms, request("/kinds")) as raw:
        raw.head()
        expected = [
            (BINARY, b"bytearray"),
            (BINARY, b"memoryview"),
            (BINARY, b"text as binary"),
            (TEXT, b"bytes as text"),
            (TEXT, b""),
        ]
        assert [raw.frame() for _ in expected] == expected


@pytest.mark.parametrize("as_bytes", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_close_sends_code_and_message_however_they_are_given(idioms: Server, named: bool, as_bytes: bool) -> None:
    how = {"code": 4001, "message": "enoügh", "named": named, "bytes": as_bytes}
    with Raw(idioms, request("/closes")) as raw:
        raw.head()
        raw.send(frame(TEXT, json.dumps(how).encode()))
        assert raw.closes() == (4001, "enoügh")


def test_a_chat_that_keeps_websockets_in_a_set_forgets_the_dead(idioms: Server) -> None:
    with idioms.connect("/chat") as ann, Raw(idioms, request("/chat")) as bob:
        bob.head()
        ann.send("hello")
        assert ann.recv(DEADLINE) == "hello"
        assert bob.frame() == (TEXT, b"hello")
        bob.close()

        def until_one_is_dead() -> bool:
            ann.send("anybody?")
            assert ann.recv(DEADLINE) == "anybody?"
            return "chat: one is dead" in idioms.log

        wait_for(until_one_is_dead, "death of a client")


def test_a_view_that_only_sends_learns_from_send_that_its_client_has_left(idioms: Server) -> None:
    def leave() -> None:
        with Raw(idioms, request("/ticks")) as raw:
            raw.head()
            assert raw.frame() == (TEXT, b"tick")

    assert "Traceback" not in log_after(idioms, "ticks ended", leave)


def test_what_a_websocket_has_no_more_says_what_to_write_instead(idioms: Server) -> None:
    advice = {
        "read_message": "use ws.receive() and ws.send()",
        "handle_ping": "pings are answered by themselves",
        "stream": "its socket is read in the background",
        "rfile": "its socket is read in the background",
    }
    with idioms.connect("/gone") as ws:
        for name, words in advice.items():
            ws.send(name)
            assert f"has no attribute {name!r}: {words}" in str(ws.recv(DEADLINE))
        ws.send("nonsense")
        assert ws.recv(DEADLINE) == "'WebSocket' object has no attribute 'nonsense'"
    idioms.wait_for_log("set by the app, set by the app")


# Scripts that start a server of their own; {port} is where

SCRIPTS = {
    "WebSocketServer": """
from collections import OrderedDict
from geventwebsocket import Resource, WebSocketApplication, WebSocketServer
class Echo(WebSocketApplication):
    def on_message(self, message):
        self.ws.send(message)
WebSocketServer(("", {port}), Resource(OrderedDict([("/", Echo)])), debug=False, pre_start_hook=None).serve_forever()
""",
    "pywsgi.WSGIServer": """
from gevent import pywsgi
from geventwebsocket.handler import WebSocketHandler
def app(environ, start_response):
    ws = environ["wsgi.websocket"]
    while not ws.closed:
        for client in server.clients.values():
            assert client.ws is ws
            client.ws.send(ws.receive())
    return []
server = pywsgi.WSGIServer(("", {port}), app, handler_class=WebSocketHandler)
server.serve_forever()
""",
    "a registry of the app's own": """
from gevent import pywsgi
from geventwebsocket.handler import WebSocketHandler
class Server(pywsgi.WSGIServer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.clients = []
def app(environ, start_response):
    server.clients.append(environ["wsgi.websocket"])
    while not server.clients[-1].closed:
        server.clients[-1].send(server.clients[-1].receive())
    return []
server = Server(("", {port}), app, handler_class=WebSocketHandler)
server.serve_forever()
""",
    "bottle-websocket": """
import runpy, sys
sys.argv = ["app", "{port}"]
runpy.run_module("tests.legacy.bottle_websocket_app", run_name="__main__")
""",
    "Flask-SocketIO": """
from tests.legacy.socketio_app import app, socketio
socketio.run(app, port={port})
""",
    "Flask-SocketIO with its reloader": """
from tests.legacy.socketio_app import app, socketio
socketio.run(app, port={port}, debug=True, use_reloader=True)
""",
}
PATHS = {"bottle-websocket": "/echo/hello", "WebSocketServer": "/any"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_starts_its_own_server_has_ours_after_one_import(
    script: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if script == "bottle-websocket":
        request.getfixturevalue("bottle_websocket")
    port = free_port()
    (tmp_path / "program.py").write_text("import geventws.compat\n" + SCRIPTS[script].replace("{port}", str(port)))
    with running(tmp_path, [sys.executable, "program.py"], port):
        if "Flask-SocketIO" in script:
            with socketio.SimpleClient(request_timeout=60) as client:
                client.connect(f"http://127.0.0.1:{port}", transports=["websocket"], wait_timeout=DEADLINE)
                assert client.call("echo", "hello", timeout=DEADLINE) == "acknowledged"
        else:
            with connect(f"ws://127.0.0.1:{port}{PATHS.get(script, '/')}", compression=None) as ws:
                if script == "bottle-websocket":
                    assert ws.recv(DEADLINE) == "hello"
                for _ in range(2):
                    ws.send("again")
                    assert ws.recv(DEADLINE) == "again"
        with pytest.raises(InvalidStatus, match="403"):
            connect(f"ws://127.0.0.1:{port}/", origin=Origin("https://evil.example"))


def test_the_reloader_of_flask_socketio_starts_ours_again(tmp_path: Path) -> None:
    port = free_port()
    program = tmp_path / "program.py"
    program.write_text(f"""import geventws.compat
from flask import Flask
from flask_socketio import SocketIO
app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent")
app.route("/version")(lambda: "first")
if __name__ == "__main__":
    socketio.run(app, port={port}, use_reloader=True)
""")

    def version() -> str:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/version", timeout=DEADLINE) as page:
            return str(page.read().decode())
        return ""  # while there is no server

    with running(tmp_path, [sys.executable, "program.py"], port):
        assert wait_for(version, "start") == "first"
        program.write_text(program.read_text().replace("first", "second"))
        wait_for(lambda: version() == "second", "restart")
        with pytest.raises(InvalidStatus, match="403"):
            connect(f"ws://127.0.0.1:{port}/", origin=Origin("https://evil.example"))


@pytest.mark.parametrize("worker", ["geventwebsocket.gunicorn.workers.GeventWebSocketWorker", "flask_sockets.worker"])
@pytest.mark.parametrize("config", ["gunicorn.conf.py", "python:geventws.compat"])
def test_the_worker_of_gevent_websocket_is_ours_where_gunicorns_configuration_imports_compat(
    config: str, worker: str, tmp_path: Path
) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("import geventws.compat\n")
    by_variable = config.startswith("python:")
    env = {"GUNICORN_CMD_ARGS": f"--config {config}"} if by_variable else {}
    arguments = ["-k", worker] if by_variable else ["-k", worker, "--config", str(tmp_path / config)]
    app = "tests.legacy.gevent_websocket_app:app"
    with serve(app, tmp_path, front_end="worker", arguments=arguments, env=env) as server:
        server.wait_for_log(f"Using worker: {worker}")
        with server.connect("/echo") as ws:
            ws.send("hello")
            assert ws.recv(DEADLINE) == "hello"
        server.wait_for_log(r"/echo close 1000")


MY_WORKERS = {
    "mine.Worker": "from geventwebsocket.gunicorn.workers import GeventWebSocketWorker\n"
    "class Worker(GeventWebSocketWorker):\n    pass\n",
    "flask_sockets.worker": "",
    "geventwebsocket.gunicorn.workers.GeventWebSocketWorker": "",
}


@pytest.mark.parametrize("worker", MY_WORKERS)
def test_the_variable_refuses_a_worker_of_gevent_websocket_and_names_the_cure(worker: str, tmp_path: Path) -> None:
    if "geventws" not in entry_points(group="gevent.plugins.monkey.did_patch_all").names:
        missing("geventws is not installed with its entry points: pip install -e .")
    (tmp_path / "mine.py").write_text(MY_WORKERS[worker])
    (tmp_path / "app.py").write_text("app = None\n")  # which nothing of ours imports
    command = [sys.executable, "-m", "gunicorn", "-k", worker, "--bind", "127.0.0.1:0", "app:app"]
    env = {**os.environ, **COMPAT, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 3, done.stderr
    assert re.search("ImportError: geventwebsocket is imported already.*gunicorn.conf.py", done.stderr)
    (tmp_path / "gunicorn.conf.py").write_text("import geventws.compat\n")
    arguments = ["-k", worker, "--config", str(tmp_path / "gunicorn.conf.py")]
    app = "tests.legacy.gevent_websocket_app:app"
    path = {"PYTHONPATH": env["PYTHONPATH"]}
    with serve(app, tmp_path, front_end="worker", arguments=arguments, env={**COMPAT, **path}) as server:
        with server.connect("/echo") as ws:
            ws.send("hello")
            assert ws.recv(DEADLINE) == "hello"
        server.wait_for_log(r"/echo close 1000")


def test_compat_comes_too_late_where_gevent_websocket_is_in_use() -> None:
    code = "import geventwebsocket, geventws.compat"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert "ImportError: geventwebsocket is imported already" in done.stderr


@pytest.mark.parametrize(("value", "installed"), [("1", True), ("on", True), ("0", False), ("off", False), ("", False)])
def test_the_environment_variable_is_a_switch(value: str, installed: bool) -> None:
    code = "import sys, geventws; print('geventwebsocket' in sys.modules, 'geventws.compat' in sys.modules)"
    env = {**os.environ, "GEVENTWS_COMPAT": value}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(installed)] * 2


def test_a_misspelt_switch_is_no_switch() -> None:
    env = {**os.environ, "GEVENTWS_COMPAT": "flase"}
    done = subprocess.run([sys.executable, "-c", "import geventws"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert "ValueError: GEVENTWS_COMPAT must be on or off, not 'flase'" in done.stderr


@pytest.mark.parametrize("command", ["gunicorn", "python -m geventws", "flask geventws", "flask run", "python"])
def test_the_environment_variable_reaches_an_app_of_each_command_but_a_plain_program(
    command: str, tmp_path: Path
) -> None:
    port, target = free_port(), "tests.legacy.flask_compat_app"
    bind = ["--bind", f"127.0.0.1:{port}"]
    commands = {
        "gunicorn": ["-m", "gunicorn", "-k", "geventws.Worker", *bind, f"{target}:app"],
        "python -m geventws": ["-m", "geventws", *bind, f"{target}:app"],
        "flask geventws": ["-m", "flask", "--app", target, "geventws", *bind],
        "flask run": ["-m", "flask", "--app", target, "run", "--port", str(port)],
        "python": ["-c", f"import {target} as module; module.app.run(port={port})"],
    }
    with (
        running(tmp_path, [sys.executable, *commands[command]], port, env={**os.environ, **COMPAT}),
        urlopen(f"http://127.0.0.1:{port}/", timeout=DEADLINE) as page,
    ):
        found = page.read().decode()
    owner = "geventwebsocket.exceptions" if command == "python" else "geventws.errors"
    assert found == f"<class '{owner}.WebSocketError'>"


def with_compat(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program which has compat and then does this."""
    command = [sys.executable, "-c", f"import geventws.compat\n{code}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)


def tells(code: str) -> str:
    """Return what it writes to stdout."""
    done = with_compat(code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fails(code: str) -> str:
    """Return the last line that it fails with."""
    done = with_compat(code)
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "error"),
    {
        "import geventwebsocket.protocols.wamp": "ModuleNotFoundError: .*no geventwebsocket.protocols: .*WAMP",
        "from geventwebsocket.protocols.base import BaseProtocol": "ModuleNotFoundError: .*WebSocketApplication",
        "from geventwebsocket import protocols": "ImportError: .*no geventwebsocket.protocols: .*WebSocketApplication",
        "from geventwebsocket.websocket import MSG_SOCKET_DEAD": "ImportError: .*catch WebSocketError",
        "from geventwebsocket.websocket import Header": r"ImportError: .*use ws\.receive\(\)",
        "import geventwebsocket.nothing": "ModuleNotFoundError: .*no geventwebsocket.nothing: it has .* handler, .*$",
        "from geventwebsocket.handler import Nothing": "ImportError: .*no .*Nothing: it has Client, WebSocketHandler$",
    }.items(),
)
def test_an_import_of_what_is_gone_says_what_to_write_instead(code: str, error: str) -> None:
    assert re.match(error, fails(code))


def test_names_that_libraries_look_for_are_those_of_its_last_release() -> None:
    """Each module, and what it holds that can be compared, told by ours and by the real one."""
    code = """
import importlib, os, sys
import geventwebsocket
print(geventwebsocket.VERSION, geventwebsocket.get_version(), geventwebsocket.get_version((1, 2, 0, "beta", 3)))
from geventwebsocket._compat import PY2, PY3, iteritems, range_type, string_types, text_type
print(PY2, PY3, list(iteritems({"a": 1})), range_type, string_types, text_type)
from geventwebsocket.utils import get_version
for name in ("", ".exceptions", ".handler", ".resource", ".server", ".websocket", ".gunicorn.workers", "._compat"):
    print(name, os.path.isfile(importlib.import_module("geventwebsocket" + name).__file__))
"""
    real = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert tells(code) == real.stdout


def test_names_that_tools_look_for_are_missing_as_ever() -> None:
    code = "import geventwebsocket; assert not hasattr(geventwebsocket, '__warningregistry__'); import nothing_at_all"
    assert fails(code) == "ModuleNotFoundError: No module named 'nothing_at_all'"


WORKER = "from geventwebsocket.gunicorn.workers import GeventWebSocketWorker as Base\n"


@pytest.mark.parametrize(
    ("code", "error"),
    {
        "from geventwebsocket.handler import WebSocketHandler as Base\n"
        "class Mine(Base):\n    def upgrade_websocket(self): ...": "never calls Mine.upgrade_websocket: refuse in",
        "from geventws import WebSocketHandler as Base\n"
        "class Mine(Base):\n    def upgrade_connection(self): ...": "never calls Mine.upgrade_connection: refuse in",
        WORKER + "class Mine(Base):\n    wsgi_handler = object": "never calls Mine.wsgi_handler: .* WSGI middleware",
        "from geventwebsocket import WebSocketApplication as Base\n"
        "class Mine(Base):\n    protocol_class = object": "never calls Mine.protocol_class: .* WebSocketApplication",
        "from geventwebsocket import WebSocketServer\n"
        "WebSocketServer(('', 0), None, pre_start_hook=print)": "never calls pre_start_hook: refuse in the app",
    }.items(),
)
def test_a_hook_that_would_never_be_called_is_refused(code: str, error: str) -> None:
    assert re.match(f"TypeError: geventws {error}", fails(code))


def test_a_handler_that_overrides_what_is_pywsgis_is_as_good_as_ever() -> None:
    code = """
from geventwebsocket.handler import WebSocketHandler
class Mine(WebSocketHandler):
    def get_environ(self): ...
import nothing_at_all"""
    assert fails(code) == "ModuleNotFoundError: No module named 'nothing_at_all'"
