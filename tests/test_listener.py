"""The listener: servers that run out of descriptors, and strangers at a TLS port."""

from __future__ import annotations

import os
import resource
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .crowd import TEXT, frame, page
from .servers import (
    DEADLINE,
    FRONT_ENDS,
    Server,
    cpu_seconds,
    plain_socket,
    process_id,
    serve,
    upgrade_request,
    wait_for,
)

pytestmark = pytest.mark.slow  # it starts servers or installs packages

APP = "tests.apps:app"


def open_descriptors(pid: int) -> int:
    """Return how many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextmanager
def starving(directory: Path, front_end: str) -> Iterator[tuple[Server, int]]:
    """A server, and its process id, with ten file descriptors left and no other limit."""
    with serve(APP, directory, front_end=front_end, env={"GEVENTWS_MAX_CONNECTIONS": "100000"}) as server:
        assert page(server) == "hello"
        pid = process_id(server)
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_descriptors(pid) + 10, hard))
        yield server, pid


def strangers(server: Server, stack: ExitStack, count: int) -> list[socket.socket]:
    """Return that many connections, each of which asks for a WebSocket and may wait for its answer."""
    found = [stack.enter_context(server.socket()) for _ in range(count)]
    for sock in found:
        sock.sendall(upgrade_request("/echo"))
    return found


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_running_out_of_descriptors_is_logged_spins_nothing_and_heals(tmp_path: Path, front_end: str) -> None:
    with starving(tmp_path, front_end) as (server, pid):
        with server.connect("/echo") as ws, ExitStack() as stack:
            strangers(server, stack, 40)
            server.wait_for_log("cannot accept connections")
            before = cpu_seconds(pid)
            end = time.monotonic() + 2
            while time.monotonic() < end:  # the connection that it has is served all the while
                ws.send("during")
                assert ws.recv(DEADLINE) == "during"
                time.sleep(0.1)
            assert cpu_seconds(pid) - before < 0.4
            assert server.log.count("cannot accept connections") == 1
        assert page(server) == "hello"
        assert "Traceback" not in server.log


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_comings_and_goings_at_the_limit_are_one_outage_in_the_log(tmp_path: Path, front_end: str) -> None:
    with starving(tmp_path, front_end) as (server, _), ExitStack() as stack:
        queue = strangers(server, stack, 40)
        server.wait_for_log("cannot accept connections")
        for _ in range(10):
            for sock in queue[:5]:  # the oldest leave, and as many come
                sock.close()
            queue = queue[5:] + strangers(server, stack, 5)
            for sock in queue[:5]:  # those next in line
                assert sock.recv(12) == b"HTTP/1.1 101"
        assert server.log.count("cannot accept connections") == 1


# TLS


@pytest.fixture(scope="module")
def tls_servers(
    tmp_path_factory: pytest.TempPathFactory, certificate: tuple[str, str, ssl.SSLContext]
) -> Iterator[dict[str, tuple[Server, socket.socket]]]:
    """A TLS server of each kind, with a peer that never begins its TLS handshake."""
    with ExitStack() as stack:
        servers = {}
        for front_end in FRONT_ENDS:
            directory = tmp_path_factory.mktemp(front_end)
            server = stack.enter_context(serve(APP, directory, front_end=front_end, certificate=certificate))
            servers[front_end] = server, stack.enter_context(plain_socket(server))
        yield servers


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "zeros": bytes(100),
    "half a hello": bytes.fromhex("16030100c8010000c40303"),
    "wrong version": bytes.fromhex("16020000020100"),
    "an alert": bytes.fromhex("15030100020228"),
    "nothing": b"",
}


@pytest.mark.parametrize("ending", ["close", "reset"])
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_garbage_on_a_tls_port_is_no_error(
    tls_servers: dict[str, tuple[Server, socket.socket]], front_end: str, garbage: bytes, ending: str
) -> None:
    server, _ = tls_servers[front_end]
    failures = server.log.count("TLS handshake failed")
    with server.socket() as other, plain_socket(server) as sock:
        sock.sendall(garbage)
        # One thread: two threads in one OpenSSL connection, as in many a client, lose bytes now and then.
        other.sendall(upgrade_request("/echo") + frame(TEXT, b"served"))
        answer = b""
        while not answer.endswith(b"\r\n\r\n\x81\x06served"):
            data = other.recv(65536)
            assert data, f"the stream ended after {answer!r}"
            answer += data
        assert page(server) == "hello"
        if ending == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for(lambda: server.log.count("TLS handshake failed") == failures + 1, "a line about it")
    assert "Traceback" not in server.log


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_peer_that_never_begins_its_tls_handshake_is_dropped(
    tls_servers: dict[str, tuple[Server, socket.socket]], front_end: str
) -> None:
    server, silent = tls_servers[front_end]
    assert silent.recv(1) == b""
    server.wait_for_log("TLS handshake failed: TLS handshake timed out")
    assert "Traceback" not in server.log
