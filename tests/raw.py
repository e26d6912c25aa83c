"""A WebSocket client by hand: bytes over a socket, for what no library would send, hide or show."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Mapping
from types import TracebackType

from .servers import Server

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MASKING_KEY = bytes.fromhex("37fa213d")  # RFC 6455 §5.7

HANDSHAKE: Mapping[str, str] = {
    "Host": "localhost",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",  # RFC 6455 §1.3, and its answer:
    "Sec-WebSocket-Version": "13",
}
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def request(path: str, *, method: str = "GET", version: str = "HTTP/1.1", **changes: str | None) -> bytes:
    """Return a handshake whose headers are changed: Sec_WebSocket_Key=None leaves that one out."""
    headers = {**HANDSHAKE, **{name.replace("_", "-"): value for name, value in changes.items()}}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"{method} {path} {version}", *lines, "", ""]).encode("latin-1")


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """Return a masked frame. Source: RFC 6455 §5.2."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", fin << 7 | opcode, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", fin << 7 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", fin << 7 | opcode, 0x80 | 127, size)
    key = (MASKING_KEY * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return head + MASKING_KEY + masked.to_bytes(size, "big")


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a masked Close frame."""
    return frame(CLOSE, struct.pack("!H", code) + reason.encode())


class Raw:
    """A connection: what it reads is counted in `total`, and handed out as an HTTP head, then as frames."""

    def __init__(self, server: Server, sent: bytes) -> None:
        self.sock = server.socket()
        self.total = 0  # bytes received
        self._buffer = b""
        self.sock.sendall(sent)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def half_close(self) -> None:
        """Send no more: EOF for the peer, without a word of TLS, while reading goes on."""
        socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def head(self) -> str:
        """Return the next HTTP head, up to its empty line."""
        while b"\r\n\r\n" not in self._buffer:
            assert self._more(), f"the connection ended inside a head: {self._buffer!r}"
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head.decode("latin-1")

    def take(self, size: int) -> bytes:
        """Return exactly size bytes."""
        while len(self._buffer) < size:
            assert self._more(), f"the connection ended, {size} bytes were expected: {self._buffer!r}"
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame, which must be whole and not masked."""
        first, size = self.take(2)
        assert first & 0xF0 == 0x80 and size < 0x80, f"no frame of a server: {first:#x} {size:#x}"
        if size >= 126:
            size = int.from_bytes(self.take(2 if size == 126 else 8), "big")
        return first & 0x0F, self.take(size)

    def closes(self) -> tuple[int, str]:
        """Return code and reason of the Close frame that must be next."""
        opcode, payload = self.frame()
        assert opcode == CLOSE, f"opcode {opcode} with {payload[:100]!r} where Close was expected"
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    def rest(self) -> bytes:
        """Return everything until the server ends the connection, which must not be by a reset."""
        while self._more():
            pass
        data, self._buffer = self._buffer, b""
        return data

    def reset(self) -> None:
        """Drop the connection without a word: a TCP reset, on a Unix socket a plain end."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _more(self) -> bool:
        data = self.sock.recv(1 << 20)
        self.total += len(data)
        self._buffer += data
        return bool(data)
