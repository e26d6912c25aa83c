"""docs/comparison.md: each cell is measured here on the installed packages, or is a figure of the benchmarks."""

from __future__ import annotations

import inspect
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from geventws import Options

from .raw import BINARY, CLOSE, PING, PONG, TEXT, Raw, frame, request
from .servers import ROOT, Server, missing
from .test_conformance import tables

pytestmark = pytest.mark.slow  # it starts servers

PAGE = (ROOT / "docs" / "comparison.md").read_text()
HAPPENS, THERE_IS, FIGURES, _ = tables(PAGE)
PEERS = {  # gunicorn's worker, the app, and the package that it needs
    "geventws": ("geventws.Worker", "ours", "flask"),
    "gevent-websocket": ("geventwebsocket.gunicorn.workers.GeventWebSocketWorker", "older", "geventwebsocket"),
    "flask-sock": ("gevent", "sock", "flask_sock"),
}


@contextmanager
def serving(peer: str, directory: Path) -> Iterator[Server]:
    """Serve the app of a peer with gunicorn and its defaults."""
    worker, app, _ = PEERS[peer]
    command = [sys.executable, "-m", "gunicorn", "-k", worker, "--bind", "127.0.0.1:0", "--access-logfile", "-"]
    command += ["--graceful-timeout", "3", f"tests.apps_compared:{app}"]
    server = Server(command, "127.0.0.1:0", None, directory / "log", {"PYTHONPATH": str(ROOT)})
    try:
        yield server
    finally:
        server.stop()


def need(*names: str) -> None:
    for name in names:
        if find_spec(name) is None:
            missing(f"{name} is not installed")


# What happens


def status(server: Server, path: str, **changes: str) -> str:
    with Raw(server, request(path, **changes)) as raw:
        return raw.head().split()[1]


def said(raw: Raw) -> str:
    """Return what the server says next in the stream."""
    first, second = raw.take(2)
    if first >> 4 == 4:  # a letter
        return "HTTP in the stream"
    opcode = first & 15
    payload = raw.take(second)
    if first & 0x40:
        payload = zlib.decompressobj(-15).decompress(payload)
    if opcode == CLOSE:
        code = int.from_bytes(payload[:2], "big")
        return f"close {code}" if payload else "close without code"
    return {TEXT: "text ", BINARY: "binary ", PONG: "pong"}[opcode] + payload.decode()


def opened(server: Server, path: str, then: bytes = b"", **changes: str) -> Raw:
    raw = Raw(server, request(path, **changes))
    assert raw.head().split()[1] == "101"
    raw.send(then)
    return raw


def foreign_page(server: Server) -> str:
    return status(server, "/echo", Origin="https://evil.example")


def refusal(server: Server) -> str:
    return status(server, "/refuse")


def unmasked(server: Server) -> str:
    with opened(server, "/echo", b"\x81\x02hi") as raw:
        return said(raw)


def large(server: Server) -> str:
    with opened(server, "/size", frame(BINARY, bytes(2 << 20))) as raw:
        return said(raw)


def bomb(server: Server) -> str:
    with Raw(server, request("/size", Sec_WebSocket_Extensions="permessage-deflate")) as raw:
        if "permessage-deflate" not in raw.head():
            return "no compression"
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        data = squeeze.compress(bytes(64 << 20)) + squeeze.flush(zlib.Z_SYNC_FLUSH)
        wire = bytearray(frame(BINARY, data[:-4]))
        wire[0] |= 0x40
        raw.send(bytes(wire))
        return said(raw)


def early(server: Server) -> str:
    with Raw(server, request("/echo") + frame(TEXT, b"early")) as raw:
        raw.head()
        raw.send(frame(TEXT, b"late"))
        return said(raw)


def ping(server: Server) -> str:
    with opened(server, "/busy", frame(TEXT, b"go") + frame(PING)) as raw:
        return said(raw)


def failing(server: Server) -> str:
    with opened(server, "/fail", frame(TEXT, b"go")) as raw:
        return said(raw)


def closing(server: Server) -> str:
    with opened(server, "/bye", frame(TEXT, b"go")) as raw:
        return said(raw)


def stop(server: Server) -> str:
    with opened(server, "/echo") as raw:
        server.process.send_signal(signal.SIGTERM)
        try:
            return said(raw)
        except (AssertionError, ConnectionError):
            return "end without Close"


def lines(server: Server) -> str:
    server.stop()
    return str(sum("GET /bye" in line for line in server.log.splitlines()))


PROBES: dict[str, Callable[[Server], str]] = {
    "a page of another site asks": foreign_page,
    "the view calls `abort(401)` first": refusal,
    "a message comes with the handshake's packet": early,
    "a message has 2 MiB": large,
    "64 KB inflate to 64 MiB": bomb,
    "a frame is not masked": unmasked,
    "a ping comes while the view sleeps": ping,
    "the view raises": failing,
    'the view calls `close(4001, "bye")`': closing,
    "SIGTERM, while a client is connected": stop,
    "lines in the access log": lines,
}


@pytest.mark.parametrize("peer", PEERS)
def test_the_page_says_what_happens(peer: str, tmp_path: Path) -> None:
    need(PEERS[peer][2])
    with serving(peer, tmp_path) as server:
        seen = {row: probe(server) for row, probe in PROBES.items()}
    (column,) = (name for name in HAPPENS[0] if name.split()[:1] == [peer])
    assert seen == {row[""]: row[column] for row in HAPPENS}


# What there is


def default(function: Any, name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def is_typed(package: str) -> str:
    (path,) = import_module(package).__path__
    return "yes" if (Path(path) / "py.typed").exists() else "no"


def test_the_page_says_what_there_is() -> None:
    need("flask_sock", "flask_socketio", "geventwebsocket", "websockets")
    from engineio.base_server import BaseServer
    from flask_socketio import SocketIO, join_room
    from simple_websocket import Server as SimpleServer
    from websockets.asyncio.server import serve

    assert callable(join_room) and callable(SocketIO.test_client)
    packages = ("geventws", "geventwebsocket", "flask_sock", "flask_socketio", "websockets")
    sizes = [
        f"{Options().max_message_size:,}",
        "no limit",  # the test above sees it
        str(default(SimpleServer.__init__, "max_message_size")).replace("None", "no limit"),
        f"{default(BaseServer.__init__, 'max_http_buffer_size'):,}",
        f"{default(serve, 'max_size'):,}",
    ]
    pings = [
        f"{Options().ping_interval:g}",
        "none",
        str(default(SimpleServer.__init__, "ping_interval")).lower(),
        str(default(BaseServer.__init__, "ping_interval")),
        str(default(serve, "ping_interval")),
    ]
    rows = {row[""]: list(row.values())[1:] for row in THERE_IS}
    assert rows["largest message"] == sizes
    assert rows["seconds between pings"] == pings
    assert rows["type hints"] == [is_typed(package) for package in packages]
    assert rows["compression"][-1] == ("on" if default(serve, "compression") == "deflate" else "none")


def test_no_source_of_flask_socketio_knows_what_a_client_missed() -> None:
    need("flask_socketio")
    for package in ("flask_socketio", "socketio", "engineio"):
        for directory in import_module(package).__path__:
            assert not any("recover" in path.read_text().lower() for path in Path(directory).rglob("*.py"))


# How fast


def figures(file: str, heading: str, column: str) -> dict[str, str]:
    """Return a column of the first table of servers below a heading, by the servers."""
    text = (ROOT / "benchmarks" / file).read_text().partition(heading)[2]
    table = next(table for table in tables(text) if "server" in table[0])
    return {row["server"]: row[column].partition(" ")[0].replace("missing", "") for row in table}


def test_the_figures_are_those_of_the_benchmarks() -> None:
    summary = ("README.md", "Messages a second, and how many times")
    told = {
        "echoes/s, 64 bytes": figures(*summary, "small"),
        "echoes/s, 64 KiB": figures(*summary, "large"),
        "idle, KiB": figures("memory.md", "10,000 idle connections", "KiB"),
        "new/s": figures("connections.md", "Runs of 2 s", "connections/s"),
        "room, µs": figures("broadcast.md", "## 1,000 members, 100 messages a second, text", "CPU µs a member"),
    }
    for row in FIGURES:
        name = row["server"].split()[0]
        for column, by_server in told.items():
            found = {server.split()[0]: figure for server, figure in by_server.items()}
            assert row[column] == found.get(name, ""), (name, column)
