"""Many connections, and too many."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import gunicorn
import pytest

from .crowd import TEXT, Crowd, allow_descriptors, frame, page
from .raw import Raw, request
from .servers import DEADLINE, FRONT_ENDS, Server, cpu_seconds, process_id, serve, upgrade_request, wait_for

pytestmark = pytest.mark.slow  # it starts servers or installs packages

APP = "tests.apps:app"


@contextmanager
def descriptor_limit(count: int) -> Iterator[None]:
    """Start processes with this soft limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def echo_once(crowd: Crowd) -> None:
    """Have each member's text come back."""
    for number, member in enumerate(crowd.members):
        member.send(frame(TEXT, b"%d" % number))
    crowd.wait(lambda: all(member.frames for member in crowd.members), "echo for each")
    assert [member.frames for member in crowd.members] == [[(TEXT, b"%d" % n)] for n in range(len(crowd.members))]


def cost_of_pages(server: Server, count: int) -> float:
    """Return the server's processor time for some pages, in seconds, each on a connection of its own."""
    before = cpu_seconds(process_id(server))
    for _ in range(count):
        assert page(server) == "hello"
    return cpu_seconds(process_id(server)) - before


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_1500_open_websockets_make_a_page_no_dearer(tmp_path: Path, front_end: str) -> None:
    allow_descriptors(4096)
    with serve(APP, tmp_path, front_end=front_end) as server, Crowd(server) as crowd:
        alone = cost_of_pages(server, 200)
        crowd.join("/echo", 1500)
        assert {member.status for member in crowd.members} == {101}
        echo_once(crowd)
        assert cost_of_pages(server, 200) < 2 * alone + 0.2  # the pings of 1500 take less
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
        assert page(server) == "hello"


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


def from_address(path: str, forwarded: str) -> bytes:
    """Return a handshake that a proxy has passed on for this client."""
    return request(path, X_Forwarded_For=f"203.0.113.250, {forwarded}")


# gunicorn 23 trusts single addresses alone.
TRUSTED = "127.0.0.0/8" if gunicorn.version_info >= (27,) else "127.0.0.2,127.0.0.1"

# How the server knows the client: its app, where it listens, its arguments, and who does not come from a proxy.
WAYS = {
    "ProxyFix": ("fixed", False, ["worker", "server"], []),
    "gunicorn": ("app", False, ["worker"], []),  # which trusts 127.0.0.1
    "gunicorn, told": ("app", False, ["worker"], ["--forwarded-allow-ips", TRUSTED]),
    "a Unix socket": ("app", True, ["worker", "server"], []),
}


@pytest.mark.parametrize("path", ["/echo", "/plain", "/silent"])
@pytest.mark.parametrize(
    ("way", "front_end"), [(way, front_end) for way, (_, _, ends, _) in WAYS.items() for front_end in ends]
)
def test_one_address_behind_a_proxy_gets_429_and_another_does_not(
    tmp_path: Path, way: str, front_end: str, path: str
) -> None:
    app, unix, _, arguments = WAYS[way]
    env = {"GEVENTWS_MAX_CONNECTIONS_PER_ADDRESS": "2", "GEVENTWS_ACCEPT_AFTER": "0.1"}
    with (
        serve(
            f"tests.apps_addresses:{app}", tmp_path, front_end=front_end, unix=unix, arguments=arguments, env=env
        ) as server,
        ExitStack() as stack,
    ):
        for address in ("198.51.100.1", "198.51.100.1", "198.51.100.2", "2001:db8::1", "2001:db8::2"):
            raw = stack.enter_context(Raw(server, from_address(path, address)))
            assert raw.head().startswith("HTTP/1.1 101 ")
        for address in ("198.51.100.1", "2001:db8::3"):
            answer = server.exchange(from_address(path, address))
            head, _, body = answer.decode().partition("\r\n\r\n")
            assert head.startswith("HTTP/1.1 429 ")
            assert "\r\nRetry-After: 10" in head and "\r\nConnection: close" in head
            assert "the option max_connections_per_address allows no more" in body
        server.wait_for_log(rf"WARNING.* 198\.51\.100\.1 {path} refused: 429 .*max_connections_per_address")
        assert len(re.findall("refused", server.log)) == 1
        assert "Traceback" not in server.log
        raw.reset()  # one of 2001:db8::

        def welcome() -> bool:
            with Raw(server, from_address(path, "2001:db8::3")) as client:
                return client.head().startswith("HTTP/1.1 101 ")

        wait_for(welcome, "a welcome in the place of the one that left")


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_address_that_a_stranger_writes_counts_for_nothing(tmp_path: Path, front_end: str) -> None:
    arguments = ["--forwarded-allow-ips", "192.0.2.1"] if front_end == "worker" else []
    env = {"GEVENTWS_MAX_CONNECTIONS_PER_ADDRESS": "1"}
    with (
        serve("tests.apps_addresses:app", tmp_path, front_end=front_end, arguments=arguments, env=env) as server,
        Raw(server, from_address("/echo", "198.51.100.1")) as raw,
    ):
        raw.head()
        assert server.exchange(from_address("/echo", "198.51.100.2")).startswith(b"HTTP/1.1 429 ")


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_default_max_connections_leaves_descriptors_for_http(tmp_path: Path, front_end: str) -> None:
    with ExitStack() as stack:
        with descriptor_limit(160):
            server = stack.enter_context(serve(APP, tmp_path, front_end=front_end))
        with Crowd(server) as crowd:
            crowd.join("/echo", 130)
            statuses = [member.status for member in crowd.members]
            assert statuses == [101] * 96 + [503] * 34
            assert page(server) == "hello"
        assert "cannot accept" not in server.log
