"""Middleware of others: nothing bypasses it, and nothing is lost behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from .raw import Raw, request
from .servers import DEADLINE, FRONT_ENDS, Server, serve

pytestmark = pytest.mark.slow  # it starts servers or installs packages

APPS = "tests.apps_middleware"
IMPORTS = "import geventws\nfrom flask import Flask\nfrom tests.apps_middleware import Guard\n"

# gunicorn.conf.py of a worker that serves its app behind Guard.
GUARDED = {
    "a hook": "def post_worker_init(worker):\n    worker.wsgi = Guard(worker.wsgi)\n",
    "a worker's load_wsgi": (
        "class worker_class(geventws.Worker):\n"
        "    def load_wsgi(self):\n        super().load_wsgi()\n        self.wsgi = Guard(self.wsgi)\n"
    ),
    "a late patch": (
        "def post_worker_init(worker):\n    call = Flask.__call__\n"
        "    Flask.__call__ = lambda app, *arguments: Guard(call.__get__(app))(*arguments)\n"
    ),
    "the app's own wsgi_app": "def post_worker_init(worker):\n    worker.wsgi.wsgi_app = Guard(worker.wsgi.wsgi_app)\n",
}


@pytest.mark.parametrize("name", GUARDED)
def test_no_websocket_bypasses_what_http_passes(tmp_path: Path, name: str) -> None:
    (tmp_path / "conf.py").write_text(IMPORTS + GUARDED[name])
    arguments = ["-c", str(tmp_path / "conf.py")]
    if "worker_class" in GUARDED[name]:  # -k would win
        (tmp_path / "guarded.py").write_text(IMPORTS + GUARDED[name])
        arguments = ["--pythonpath", str(tmp_path), "-k", "guarded.worker_class"]
    with serve(f"{APPS}:app", tmp_path, front_end="worker", arguments=arguments) as server:
        for path in ("/echo", "/pushes"):
            with pytest.raises(InvalidStatus) as refused:
                server.connect(path)
            assert refused.value.response.status_code == 401
        with server.connect("/echo?word=please") as ws:
            ws.send("hello")
            assert ws.recv(DEADLINE) == "hello"


@pytest.mark.parametrize("app", ["app", "function", "hidden", "mounted", "plain"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_client_that_leaves_is_no_error_behind_any_middleware(tmp_path: Path, front_end: str, app: str) -> None:
    with serve(f"{APPS}:{app}", tmp_path, front_end=front_end) as server:
        for path in ("/pushes", "/below/pushes") if app == "mounted" else ("/pushes",):
            with Raw(server, request(path)) as raw:
                raw.head()
                raw.frame()
            server.wait_for_log(f"{path} close")
        assert "ERROR" not in server.log
        assert "Traceback" not in server.log


def status(server: Server, path: str, origin: str) -> int:
    """Return the status of the answer to a handshake of this origin."""
    try:
        with server.connect(path, origin=origin):
            return 101
    except InvalidStatus as exc:
        return exc.response.status_code


@pytest.mark.parametrize("app", ["app", "function", "hidden", "mounted"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_origins_of_a_route_hold_behind_any_middleware(tmp_path: Path, front_end: str, app: str) -> None:
    with serve(f"{APPS}:{app}", tmp_path, front_end=front_end) as server:
        assert status(server, "/partner", "https://partner.example") == 101
        assert status(server, "/partner", "https://evil.example") == 403
        assert status(server, "/echo", "https://partner.example") == 403
        assert status(server, "/pushes", "https://partner.example") == 403
        if app == "mounted":  # below, an app without Sockets, which takes HandshakeError for a failure
            assert status(server, "/below/pushes", "https://partner.example") == 403


@pytest.mark.parametrize("app", ["mounted_function", "mounted_app"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_origins_of_a_route_hold_in_an_app_mounted_below(tmp_path: Path, front_end: str, app: str) -> None:
    with serve(f"{APPS}:{app}", tmp_path, front_end=front_end) as server:
        assert status(server, "/below/partner", "https://partner.example") == 101
        assert status(server, "/below/partner", "https://evil.example") == 403
        assert status(server, "/below/echo", "https://partner.example") == 403
        assert status(server, "/pushes", "https://partner.example") == 403


@pytest.mark.parametrize("app", ["recorded", "validated"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_middleware_sees_a_whole_wsgi_response_at_the_end_of_a_websocket(
    tmp_path: Path, front_end: str, app: str
) -> None:
    with serve(f"{APPS}:{app}", tmp_path, front_end=front_end) as server:
        for path, status in (("/echo", "101"), ("/plain", "200")):
            with server.connect(path) as ws:
                ws.send("hello")
            server.wait_for_log(f"{path} close 1000")
            server.wait_for_log(f"closed {path} {status}")
            if app == "recorded":
                server.wait_for_log(f"recorded {path} {status}")
        assert "Traceback" not in server.log
        assert "Warning" not in server.log


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_debugger_shows_the_traceback_of_a_view_that_failed(tmp_path: Path, front_end: str) -> None:
    with serve(f"{APPS}:debugged", tmp_path, front_end=front_end) as server:
        with server.connect("/fails") as ws:
            ws.send("hello")
            with pytest.raises(ConnectionClosedError, match="1011"):
                ws.recv(DEADLINE)
        server.wait_for_log("KeyError: 'in a view behind a debugger'")
