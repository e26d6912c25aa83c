"""The seam with gunicorn: upgrade requests are served outside its frames, and nothing of it is missed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
