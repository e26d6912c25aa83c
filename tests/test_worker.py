"""The seam with gunicorn: upgrade requests are served outside its frames, and nothing of it is missed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from geventws import worker

from .servers import DEADLINE, Server, serve, upgrade_request

pytestmark = pytest.mark.slow  # it starts servers or installs packages


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve("tests.apps_worker:app", tmp_path_factory.mktemp("worker"), front_end="worker") as running:
        yield running


def answer(server: Server, path: str) -> bytes:
    with server.socket() as sock:
        sock.sendall(upgrade_request(path))
        return b"".join(iter(lambda: sock.recv(65536), b""))


def test_timeout_that_leaves_a_view_is_an_error_500(server: Server) -> None:
    assert answer(server, "/timeout").startswith(b"HTTP/1.1 500 ")
    server.wait_for_log(r"Error handling request (GET )?/timeout")  # gunicorn 23 names no method


def test_a_look_at_the_raw_socket_leaves_the_refusal_to_http(server: Server) -> None:
    assert answer(server, "/looks-at-the-socket").startswith(b"HTTP/1.1 403 ")


def test_who_closes_its_input_closes_nobody_elses(server: Server) -> None:
    for _ in range(3):
        with server.connect("/") as ws:
            assert ws.recv(DEADLINE) == "b''"


def test_strings_that_peers_choose_are_shared_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_shared_strings", {})
    made = "".join(["web", "socket"]), "".join(["web", "socket"])
    assert worker._one(made[0]) is worker._one(made[1])
    for number in range(2000):
        worker._one(f"agent {number}")
        worker._one("x" * 1000 + str(number))
    assert len(worker._shared_strings) == worker._MOST_SHARED
    assert max(map(len, worker._shared_strings)) <= worker._LONGEST_SHARED
