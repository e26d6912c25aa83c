"""Peers that send compression bombs, in a process of their own, so that a probe beside them measures the server.

    python -m tests.bombs PORT ATTACK

Prints "ready" when the peers are connected, and at the end what they did, as JSON.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from .raw import BINARY, TEXT, frame, request

CONTINUATION = 0
OFFER = "permessage-deflate"
LIMIT = 1 << 20  # max_message_size of the server, bytes
SECONDS = 0.6  # that an attack goes on


def compressed(data: bytes) -> bytes:
    """Return the payload of a message that is compressed as far as zlib can."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def message(opcode: int, payload: bytes, size: int = 1 << 62) -> bytes:
    """Return a compressed message in fragments of this many bytes."""
    pieces = [payload[start : start + size] for start in range(0, len(payload), size)]
    last = len(pieces) - 1
    frames = [frame(CONTINUATION if index else opcode, piece, fin=index == last) for index, piece in enumerate(pieces)]
    wire = b"".join(frames)
    return bytes([wire[0] | 0x40]) + wire[1:]


class Attack(NamedTuple):
    """Peers that send a bomb as fast as the server takes it: first one, then many at a time."""

    path: str
    bomb: bytes
    peers: int
    reads: bool = True
    width: int = 1  # bytes that Python takes for each character of the message


ZEROS = compressed(bytes(LIMIT))
ALMOST = compressed(bytes(LIMIT - 1))  # does not reach the limit, so that one more message may follow
WIDE = compressed(b"a" * (LIMIT - 4) + "\N{MUSICAL SYMBOL G CLEF}".encode())
PAST = compressed(bytes(64 * LIMIT))

ATTACKS = {
    "single frames": Attack("/echo", message(BINARY, ZEROS), 4),
    "fragments": Attack("/echo", message(BINARY, ZEROS, 16), 4),
    "many at once": Attack("/echo", message(BINARY, ZEROS), 100),
    "many at once, of wide characters": Attack("/echo", message(TEXT, WIDE), 100, width=4),
    "many that do not read": Attack("/echo", message(BINARY, ZEROS), 100, reads=False),
    "to a view that does not read": Attack("/sleeps", message(BINARY, ALMOST), 50),
    "past the limit": Attack("/echo", message(BINARY, PAST), 20),
    "past the limit, in fragments": Attack("/echo", message(BINARY, PAST, 1000), 20),
}


class Peer:
    """One connection of an attack."""

    def __init__(self, port: int, attack: Attack) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.sendall(request(attack.path, Sec_WebSocket_Extensions=OFFER))
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.sock.recv(1)
        assert head.startswith(b"HTTP/1.1 101 ") and OFFER.encode() in head, head
        self.sock.setblocking(False)
        self._unsent = memoryview(attack.bomb)
        self._piece = memoryview(attack.bomb * -(-65_536 // len(attack.bomb)))

    def write(self) -> int:
        """Send once; return how many bytes."""
        self._unsent = self._unsent or self._piece
        size = self.sock.send(self._unsent)
        self._unsent = self._unsent[size:]
        return size


def send_bombs(port: int, attack: Attack) -> dict[str, int]:
    """Attack for SECONDS; a peer that the server ends is followed by another."""
    told = {"connections": 0, "sent": 0, "received": 0}
    selector = selectors.DefaultSelector()

    def join() -> None:
        peer = Peer(port, attack)
        told["connections"] += 1
        selector.register(peer.sock, selectors.EVENT_WRITE | (selectors.EVENT_READ if attack.reads else 0), peer)

    for _ in range(attack.peers):
        join()
    print("ready", flush=True)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for key, events in selector.select(0.1):
            peer: Peer = key.data
            try:
                received = len(peer.sock.recv(1 << 20)) if events & selectors.EVENT_READ else 1
                told["received"] += received if events & selectors.EVENT_READ else 0
                told["sent"] += peer.write() if events & selectors.EVENT_WRITE else 0
            except BlockingIOError:
                continue
            except ConnectionError:
                received = 0
            if not received:
                selector.unregister(peer.sock)
                peer.sock.close()
                join()
    return told


def main(arguments: Sequence[str]) -> None:
    os.nice(10)
    print(json.dumps(send_bombs(int(arguments[0]), ATTACKS[arguments[1]])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
