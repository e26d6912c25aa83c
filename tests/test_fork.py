"""A child forked from a server, in which gevent's hub goes on: what it may not do to its parent's clients."""

from __future__ import annotations

import http.client
import os
import signal
import ssl
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from .servers import DEADLINE, FRONT_ENDS, serve

pytestmark = pytest.mark.slow  # it starts servers or installs packages

APP = "tests.apps_fork:app"
COUNT = 50


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_forked_child_takes_nothing_from_its_parents_clients(
    tmp_path: Path, front_end: str, tls: bool, certificate: tuple[str, str, ssl.SSLContext]
) -> None:
    with (
        serve(APP, tmp_path, front_end=front_end, certificate=certificate if tls else None) as server,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(server.connect("/echo")) for _ in range(10)]
        for ws in clients:
            ws.send("before")
            assert ws.recv(DEADLINE) == "before"
        connection = stack.enter_context(closing(http.client.HTTPConnection("localhost")))
        connection.sock = server.socket()
        connection.request("GET", "/fork")
        pid = int(connection.getresponse().read())
        try:
            server.wait_for_log("child runs")
            for number in range(COUNT):
                for ws in clients:
                    ws.send(str(number))
            assert [[ws.recv(DEADLINE) for _ in range(COUNT)] for ws in clients] == [list(map(str, range(COUNT)))] * 10
            # Nor is it the child that accepts.
            for _ in range(10):
                stack.enter_context(server.connect("/echo"))
        finally:
            os.kill(pid, signal.SIGKILL)
        for ws in clients:
            ws.send("after")
            assert ws.recv(DEADLINE) == "after"
        assert "Traceback" not in server.log
