"""nginx, HAProxy, Caddy and Apache in front of both front ends, with the configurations of docs/deploying.md."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from .proxies import PROXIES, Caddy, Certificate, Nginx, Proxy, deployed, find, in_front, open_directory
from .servers import DEADLINE, FRONT_ENDS, Server, get, missing, wait_for

pytestmark = pytest.mark.slow  # it starts servers or installs packages

every_proxy = pytest.mark.parametrize("kind", PROXIES, ids=lambda kind: kind.name)
with_limit = pytest.mark.parametrize(
    "kind", [kind for kind in PROXIES if kind is not Caddy], ids=lambda kind: kind.name
)
IDLE, PING = 3, 1  # seconds: the idle limit of the proxies, and the option ping_interval

Front = Callable[..., Proxy]


def is_here(kind: type[Proxy]) -> bool:
    return find(kind.program) is not None


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """upstream(front_end, unix=False) serves the app of the page until the module ends."""
    servers: dict[tuple[str, bool], Server] = {}
    with ExitStack() as stack:

        def start(front_end: str, unix: bool = False) -> Server:
            if (front_end, unix) not in servers:
                directory = stack.enter_context(open_directory()) if unix else tmp_path_factory.mktemp("app")
                serving = deployed(directory, front_end=front_end, unix=unix, ping_interval=PING)
                servers[front_end, unix] = stack.enter_context(serving)
                if unix:
                    os.chmod(directory / "server.sock", 0o666)
            return servers[front_end, unix]

        yield start


def address(server: Server) -> str:
    return f"unix:{server.log_path.parent}/server.sock" if not server.port else f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def fronts(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Front]:
    """fronts(kind, server) runs a proxy before a server until the module ends; the same again is the same proxy."""
    proxies: dict[tuple[type[Proxy], str], Proxy] = {}
    with ExitStack() as stack:

        def start(kind: type[Proxy], server: Server) -> Proxy:
            key = (kind, address(server))
            if key not in proxies:
                directory = tmp_path_factory.mktemp(kind.program)
                proxies[key] = stack.enter_context(in_front(kind, directory, key[1], certificate, idle=IDLE))
            return proxies[key]

        yield start


def echoes(client: ClientConnection) -> None:
    for message in ("hello", b"\x00\xff", "é" * 100_000):
        client.send(message)
        assert client.recv(DEADLINE) == message


def end_of(client: ClientConnection) -> int | None:
    """Return the code of the Close that a client gets, or None if the connection just ends."""
    with pytest.raises(ConnectionClosed) as caught:
        client.recv(DEADLINE)
    return caught.value.rcvd.code if caught.value.rcvd else None


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
@every_proxy
def test_a_page_of_the_site_talks_and_a_strangers_does_not(
    upstream: Callable[..., Server], fronts: Front, kind: type[Proxy], front_end: str, unix: bool, tls: bool
) -> None:
    proxy = fronts(kind, upstream(front_end, unix))
    with proxy.connect("/echo", tls=tls, origin=proxy.origin(tls)) as client:
        echoes(client)
    for stranger in ("https://localhost.example", f"{proxy.origin(tls)}1"):
        with pytest.raises(InvalidStatus, match="403"):
            proxy.connect("/echo", tls=tls, origin=stranger).__enter__()


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
@every_proxy
def test_the_app_learns_the_scheme_that_the_browser_used(
    upstream: Callable[..., Server], fronts: Front, kind: type[Proxy], front_end: str, unix: bool
) -> None:
    proxy = fronts(kind, upstream(front_end, unix))
    assert proxy.get("/", tls=True) == (200, f"wss://localhost:{proxy.tls_port}/echo")
    assert proxy.get("/") == (200, f"ws://localhost:{proxy.port}/echo")


@pytest.fixture(scope="module")
def idle_pairs(
    upstream: Callable[..., Server], fronts: Front
) -> Iterator[dict[type[Proxy], tuple[ClientConnection, ClientConnection]]]:
    """Two WebSockets for each proxy that is here and has an idle limit: one with our pings, one without."""
    pairs = {}
    with ExitStack() as stack:
        for kind in PROXIES:
            if kind is not Caddy and is_here(kind):
                proxy = fronts(kind, upstream("worker"))
                pinged, unpinged = (stack.enter_context(proxy.connect(path)) for path in ("/echo", "/unpinged"))
                pairs[kind] = pinged, unpinged
        yield pairs


@with_limit
def test_our_pings_keep_an_idle_websocket_open_past_the_limit(
    upstream: Callable[..., Server],
    fronts: Front,
    idle_pairs: dict[type[Proxy], tuple[ClientConnection, ClientConnection]],
    kind: type[Proxy],
) -> None:
    fronts(kind, upstream("worker"))  # which tells where it is missing
    pinged, unpinged = idle_pairs[kind]
    assert end_of(unpinged) is None  # the limit is real, and has passed for the other too, which is older
    echoes(pinged)


@every_proxy
def test_a_reload_of_the_proxy(
    upstream: Callable[..., Server], kind: type[Proxy], tmp_path: Path, certificate: Certificate
) -> None:
    old, new = upstream("worker"), upstream("server")
    with in_front(kind, tmp_path, address(old), certificate) as proxy, proxy.connect("/echo") as client:
        proxy.reload(address(new))
        wait_for(lambda: proxy.get("/pid") == (200, str(new.process.pid)), "requests at the new app")
        if kind is Caddy:
            assert end_of(client) == 1001
        else:
            echoes(client)
        with proxy.connect("/echo", tls=True) as another:
            echoes(another)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@every_proxy
def test_a_stop_of_the_proxy_is_told_or_at_least_seen(
    upstream: Callable[..., Server], kind: type[Proxy], front_end: str, tmp_path: Path, certificate: Certificate
) -> None:
    server = upstream(front_end)

    def open_ones() -> int:
        return int(get(server, "/open")[1])

    before = open_ones()
    with in_front(kind, tmp_path, address(server), certificate) as proxy, proxy.connect("/echo") as client:
        echoes(client)
        assert open_ones() == before + 1
        proxy.stop()
        assert end_of(client) == (1001 if kind is Caddy else None)
        wait_for(lambda: open_ones() == before, "the end of the WebSocket in the app")


@pytest.fixture(scope="module")
def after_stop(
    tmp_path_factory: pytest.TempPathFactory, certificate: Certificate
) -> Callable[[str], dict[type[Proxy], tuple[int | None, int]]]:
    """after_stop(front_end) gives what each proxy that is here shows of a stop: the close code, then an HTTP status."""

    @cache
    def stop(front_end: str) -> dict[type[Proxy], tuple[int | None, int]]:
        with ExitStack() as stack:
            server = stack.enter_context(deployed(tmp_path_factory.mktemp("app"), front_end=front_end))
            proxies = {}
            for kind in PROXIES:
                if is_here(kind):
                    directory = tmp_path_factory.mktemp(kind.program)
                    proxy = stack.enter_context(in_front(kind, directory, address(server), certificate))
                    proxies[kind] = proxy, stack.enter_context(proxy.connect("/echo", tls=True))
            for _, client in proxies.values():
                echoes(client)
            server.process.send_signal(signal.SIGTERM)
            codes = [end_of(client) for _, client in proxies.values()]
            server.process.wait(DEADLINE)
            statuses = [proxy.get("/")[0] for proxy, _ in proxies.values()]
            return dict(zip(proxies, zip(codes, statuses, strict=True), strict=True))

    return stop


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@every_proxy
def test_a_stop_of_the_app_reaches_the_client(
    after_stop: Callable[[str], dict[type[Proxy], tuple[int | None, int]]], kind: type[Proxy], front_end: str
) -> None:
    if not is_here(kind):
        missing(kind.name)
    assert after_stop(front_end)[kind] == (1012, 503 if kind.name in {"HAProxy", "Apache"} else 502)


def test_nginx_limits_an_address(
    upstream: Callable[..., Server], tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Nginx, "limits", True)
    server = upstream("worker")
    with in_front(Nginx, tmp_path, address(server), certificate) as proxy, ExitStack() as stack:
        clients = [stack.enter_context(proxy.connect("/echo")) for _ in range(20)]
        with pytest.raises(InvalidStatus, match="503"):
            proxy.connect("/echo").__enter__()
        for client in clients:
            echoes(client)
