"""accept_after completes what nobody has decided, and overrules nothing that is."""

from __future__ import annotations

from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus

from .servers import DEADLINE, FRONT_ENDS, serve, upgrade_request

pytestmark = pytest.mark.slow  # it starts servers or installs packages

APPS = "tests.apps_decisions"
PUSH = b"GET /push HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
SOON = {"GEVENTWS_ACCEPT_AFTER": "0.2"}


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_refusal_stands_however_long_its_way_out_takes(tmp_path: Path, front_end: str) -> None:
    with serve(f"{APPS}:app", tmp_path, front_end=front_end, env=SOON) as server:
        slow = "/slow-start", "/slow-end/raised", "/slow-end/returned", "/slow-stream"
        for path in (*slow, "/plain-slow-start", "/plain-slow-end"):
            with pytest.raises(InvalidStatus) as refused:
                server.connect(path)
            assert refused.value.response.status_code == 401


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_refusal_that_comes_too_late_closes_with_1008(tmp_path: Path, front_end: str) -> None:
    with serve(f"{APPS}:app", tmp_path, front_end=front_end, env=SOON) as server:
        with server.connect("/slow-login") as ws, pytest.raises(ConnectionClosedError) as closed:
            ws.recv(DEADLINE)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "401 UNAUTHORIZED")


@pytest.mark.parametrize("app", ["app", "bare"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_view_of_a_plain_route_that_only_waits_has_its_handshake(tmp_path: Path, front_end: str, app: str) -> None:
    with serve(f"{APPS}:{app}", tmp_path, front_end=front_end, env=SOON) as server, server.connect("/parked") as ws:
        assert server.exchange(PUSH).endswith(b"done")
        assert ws.recv(DEADLINE) == "pushed"


def test_client_that_leaves_before_its_handshake_holds_no_slot(tmp_path: Path) -> None:
    arguments = ["--worker-connections", "1"]
    with serve(f"{APPS}:app", tmp_path, front_end="worker", env=SOON, arguments=arguments) as server:
        with server.socket() as sock:
            sock.sendall(upgrade_request("/parked"))
        assert server.exchange(PUSH).endswith(b"done")


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_app_that_takes_the_raw_socket_late_keeps_it(tmp_path: Path, front_end: str) -> None:
    with (
        serve(f"{APPS}:sock_app", tmp_path, front_end=front_end, env=SOON) as server,
        server.connect("/slow-sock") as ws,
    ):
        assert ws.recv(DEADLINE) == "mine"


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_raw_socket_is_not_given_once_the_handshake_is_complete(tmp_path: Path, front_end: str) -> None:
    with serve(f"{APPS}:takes_late", tmp_path, front_end=front_end, env=SOON) as server:
        answer = server.exchange(upgrade_request("/"))
        assert b"101 Switching Protocols" in answer
        assert b"mine" not in answer
        server.wait_for_log("app is told: the handshake is already complete: .* accept_after")


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_no_101_comes_behind_an_answer_that_was_written(tmp_path: Path, front_end: str) -> None:
    with serve(f"{APPS}:writes", tmp_path, front_end=front_end) as server:
        answer = server.exchange(upgrade_request("/"))
        assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert answer.endswith(b"\r\n\r\nno")
        server.wait_for_log("view is told: this request was already answered with HTTP 403 Forbidden")


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_app_that_returns_nothing_behind_its_websocket_closes_with_1000(tmp_path: Path, front_end: str) -> None:
    with serve(f"{APPS}:returns_nothing", tmp_path, front_end=front_end) as server:
        with server.connect("/") as ws:
            assert ws.recv(DEADLINE) == "hello"
            with pytest.raises(ConnectionClosedOK, match="1000"):
                ws.recv(DEADLINE)
        assert "Traceback" not in server.log
