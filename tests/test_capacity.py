"""Many connections, too many connections, and connections that lead nowhere."""

from __future__ import annotations

import os
import re
import resource
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .crowd import TEXT, Crowd, allow_descriptors, frame, page
from .servers import DEADLINE, FRONT_ENDS, Server, serve, upgrade_request, wait_for

pytestmark = pytest.mark.slow  # it starts servers or installs packages

APP = "tests.apps:app"


def process_id(server: Server) -> int:
    """Return the id of the process that serves: gunicorn's worker, or the server itself."""
    found = re.search(r"Booting worker with pid: (\d+)", server.log)
    return int(found[1]) if found else server.process.pid


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_descriptors(pid: int) -> int:
    """Return how many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextmanager
def descriptor_limit(count: int) -> Iterator[None]:
    """Start processes with this soft limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def longest_answer(server: Server, count: int) -> float:
    """Return the longest time that one of some pages took, each on a connection of its own."""
    longest = 0.0
    for _ in range(count):
        begun = time.monotonic()
        assert page(server) == "hello"
        longest = max(longest, time.monotonic() - begun)
    return longest


def echo_once(crowd: Crowd) -> None:
    """Have each member's text come back."""
    for number, member in enumerate(crowd.members):
        member.send(frame(TEXT, b"%d" % number))
    crowd.wait(lambda: all(member.frames for member in crowd.members), "echo for each")
    assert [member.frames for member in crowd.members] == [[(TEXT, b"%d" % n)] for n in range(len(crowd.members))]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_1500_open_websockets_leave_http_served_at_once(tmp_path: Path, front_end: str) -> None:
    allow_descriptors(4096)
    with serve(APP, tmp_path, front_end=front_end) as server, Crowd(server) as crowd:
        crowd.join("/echo", 1500)
        assert {member.status for member in crowd.members} == {101}
        echo_once(crowd)
        assert longest_answer(server, 20) < 1
        with server.connect("/echo") as ws:
            ws.send("room for one more")
            assert ws.recv(DEADLINE) == "room for one more"
        assert not any(member.ended_at for member in crowd.members)


@pytest.mark.parametrize("path", ["/echo", "/accepted-by-another"])
def test_websocket_holds_no_slot_of_worker_connections(tmp_path: Path, path: str) -> None:
    with (
        serve(APP, tmp_path, front_end="worker", arguments=["--worker-connections", "10"]) as server,
        Crowd(server) as crowd,
    ):
        crowd.join(path, 50)
        echo_once(crowd)
        assert longest_answer(server, 20) < 1


def test_slots_stay_in_balance_when_websockets_come_and_go(tmp_path: Path) -> None:
    arguments = ["--worker-connections", "2"]
    with serve("tests.apps_capacity:app", tmp_path, front_end="worker", arguments=arguments) as server:
        for _ in range(5):
            with Crowd(server) as crowd:
                crowd.join("/echo", 3)
                echo_once(crowd)
        # A slot given back twice would let more than two views run at once, one never given back only one.
        with ThreadPoolExecutor(6) as pool:
            pages = list(pool.map(lambda _: int(page(server, "/crowded")), range(6)))
        assert max(pages) == 2


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_websocket_past_max_connections_gets_503_until_one_leaves(tmp_path: Path, front_end: str) -> None:
    with (
        serve(APP, tmp_path, front_end=front_end, env={"GEVENTWS_MAX_CONNECTIONS": "3"}) as server,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(server.connect("/echo")) for _ in range(3)]
        answer = server.exchange(upgrade_request("/echo"))
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"\r\nRetry-After: 10" in head
        assert b"max_connections" in body
        server.wait_for_log(r"WARNING.*127\.0\.0\.1.* /echo refused: 503 .*max_connections")
        assert page(server) == "hello"
        clients[1].close()

        def welcome() -> bool:
            with server.socket() as sock:
                sock.sendall(upgrade_request("/echo"))
                return sock.recv(65536).startswith(b"HTTP/1.1 101 ")

        wait_for(welcome, "a welcome in the place of the one that left")
        clients[0].send("still here")
        assert clients[0].recv(DEADLINE) == "still here"


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_default_max_connections_leaves_descriptors_for_http(tmp_path: Path, front_end: str) -> None:
    with ExitStack() as stack:
        with descriptor_limit(160):
            server = stack.enter_context(serve(APP, tmp_path, front_end=front_end))
        with Crowd(server) as crowd:
            crowd.join("/echo", 130)
            statuses = [member.status for member in crowd.members]
            assert statuses == [101] * 96 + [503] * 34
            assert longest_answer(server, 10) < 1
        assert "cannot accept" not in server.log


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
        assert longest_answer(server, 5) < 1
        assert "Traceback" not in server.log


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_comings_and_goings_at_the_limit_are_one_outage_in_the_log(tmp_path: Path, front_end: str) -> None:
    with starving(tmp_path, front_end) as (server, _), ExitStack() as stack:
        queue = strangers(server, stack, 40)
        server.wait_for_log("cannot accept connections")
        for _ in range(10):
            opened = server.log.count("/echo open")
            for sock in queue[:5]:  # the oldest leave, and as many come
                sock.close()
            queue = queue[5:] + strangers(server, stack, 5)
            wait_for(lambda: server.log.count("/echo open") >= opened + 5, "a welcome for those next in line")  # noqa: B023
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


def plain_socket(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), DEADLINE)


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
