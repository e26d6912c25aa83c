"""Peers that mean harm, in a process of their own, so that a probe beside them measures the server and not them.

python -m tests.hostile PORT ATTACK prints "ready" when the peers are in place, and in the end, as JSON, what they did.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass

from .raw import BINARY, PING, PONG, TEXT, close_frame, frame, request
from .servers import DEADLINE

CONTINUATION = 0
SECONDS = 0.5  # that a flood lasts, and that a crowd looks on when it has dropped its connections
BATCH = 200  # connections that wait for the server at a time: fewer than fit into a listener's queue

Told = dict[str, int]


def connect(port: int, sent: bytes = b"") -> socket.socket:
    """Return a connection to a server on this machine, on which these bytes are sent."""
    sock = socket.create_connection(("127.0.0.1", port), DEADLINE)
    sock.sendall(sent)
    return sock


def wait_for_101(sock: socket.socket) -> None:
    """Read the answer to a handshake, and frames that came with it."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = sock.recv(65_536)
        assert data, f"the connection ended inside a head: {head!r}"
        head += data
    assert head.startswith(b"HTTP/1.1 101 "), head


def reset(sock: socket.socket) -> None:
    """Drop a connection without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@dataclass(frozen=True)
class Flood:
    """Peers that send as fast as the server takes it; where it ends one, another comes."""

    path: str
    piece: bytes = b""  # sent again and again
    first: bytes = b""  # sent once before
    reads: bool = True
    peers: int = 4

    def run(self, port: int) -> Told:
        """Flood the server."""
        flooding = _Flooding(self, port)
        for _ in range(self.peers):
            flooding.join()
        print("ready", flush=True)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            flooding.step()
        return flooding.told


class _Flooding:
    """A flood while it lasts."""

    def __init__(self, flood: Flood, port: int) -> None:
        self.told = {"connections": 0, "sent": 0, "received": 0}  # count, bytes, bytes
        self._flood = flood
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._events = selectors.EVENT_WRITE * bool(flood.piece) | selectors.EVENT_READ * flood.reads
        self._silent: list[socket.socket] = []  # those that neither send nor read

    def join(self) -> None:
        """Have one more peer."""
        sock = connect(self._port, request(self._flood.path))
        wait_for_101(sock)
        sock.setblocking(False)
        self.told["connections"] += 1
        if self._events:
            self._selector.register(sock, self._events, memoryview(self._flood.first))
        else:
            self._silent.append(sock)

    def step(self) -> None:
        """Let each peer whom the server lets do one thing."""
        for key, events in self._selector.select(0.1):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            try:
                if events & selectors.EVENT_READ:
                    size = len(sock.recv(1 << 20))
                    self.told["received"] += size
                    if not size:
                        raise ConnectionResetError
                if events & selectors.EVENT_WRITE:
                    unsent = key.data or memoryview(self._flood.piece)
                    size = sock.send(unsent)
                    self.told["sent"] += size
                    self._selector.modify(sock, self._events, unsent[size:])
            except BlockingIOError:
                pass
            except ConnectionError:
                self._selector.unregister(sock)
                sock.close()
                self.join()


@dataclass(frozen=True)
class Crowd:
    """Connections that are all dropped at once, every other one by a reset."""

    asks: bool  # for a WebSocket, and gets one
    count: int = 10_000

    def run(self, port: int) -> Told:
        """Open all connections, then drop them."""
        print("ready", flush=True)
        socks: list[socket.socket] = []
        while len(socks) < self.count:
            # The last of each batch always asks: when it is answered, the server has taken those before it.
            batch = [connect(port, request("/echo") if self.asks else b"") for _ in range(BATCH - 1)]
            batch.append(connect(port, request("/echo")))
            for sock in batch if self.asks else batch[-1:]:
                wait_for_101(sock)
            socks += batch
        for number, sock in enumerate(socks):
            if number % 2:
                reset(sock)
            else:
                sock.close()
        time.sleep(SECONDS)
        return {"connections": len(socks)}


def _repeat(data: bytes) -> bytes:
    return data * (65_536 // len(data))


TINY = _repeat(frame(TEXT, b"x"))
TOO_BIG = struct.pack("!BBQ4x", 0x82, 0xFF, (1 << 63) - 1)

# Nothing that these send after their first bytes counts.
UNHEARD = {
    "more behind a broken rule": Flood("/echo", TINY, frame(3), reads=False),
    "more behind a Close": Flood("/echo", TINY, close_frame(1000), reads=False),
    "more of a message that is too big": Flood("/echo", TINY, TOO_BIG, reads=False),
}
FLOODS = {
    "pings": Flood("/echo", _repeat(frame(PING))),
    "pings, answers not read": Flood("/echo", _repeat(frame(PING, b"x" * 125)), reads=False),
    "pongs": Flood("/echo", _repeat(frame(PONG))),
    "messages": Flood("/echo", TINY),
    "messages, echoes not read": Flood("/echo", TINY, reads=False),
    "messages to a view that does not read": Flood("/never-reads", TINY),
    "messages of a megabyte": Flood("/echo", frame(BINARY, b"x" * (1 << 20))),
    "text of a megabyte": Flood("/echo", frame(TEXT, "é".encode() * (1 << 19))),
    "fragments": Flood("/echo", _repeat(frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x"))),
    "empty fragments": Flood("/echo", _repeat(frame(CONTINUATION, fin=False)), frame(TEXT, fin=False)),
    "broken rules, again and again": Flood("/echo", TINY, frame(3)),
    "Closes, again and again": Flood("/echo", TINY, close_frame(1000)),
    "more behind a broken rule": Flood("/echo", TINY, frame(3), reads=False),
    "more behind a Close": Flood("/echo", TINY, close_frame(1000), reads=False),
    "more of a message that is too big": Flood(
        "/echo", TINY, struct.pack("!BBQ4x", 0x82, 0xFF, 2**63 - 1), reads=False
    ),
    "readers that stop": Flood("/sends-endlessly", reads=False, peers=20),
}

CROWDS = {
    "connections": Crowd(asks=False),
    "WebSockets": Crowd(asks=True),
}

if __name__ == "__main__":
    port, name = int(sys.argv[1]), sys.argv[2]
    told = FLOODS[name].run(port) if name in FLOODS else CROWDS[name].run(port)
    print(json.dumps(told))
