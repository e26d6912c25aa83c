"""A client's side of the wire, small and quick: handshake, frames, permessage-deflate.

Knows RFC 6455 and RFC 7692; knows no socket, and shares no code with the server it tests.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Mapping

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
FIN, RSV1 = 0x80, 0x40
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
FLUSHED = b"\x00\x00\xff\xff"  # ends each message before it is cut off, RFC 7692 §7.2.1


class Misbehaved(Exception):
    """The server did something wrong: what, for counting, and the details."""

    def __init__(self, kind: str, details: str = "") -> None:
        super().__init__(kind, details)
        self.kind = kind
        self.details = details


def request(key: bytes, offer: str) -> bytes:
    """Return the opening handshake for /echo, with an offer of extensions unless it is empty."""
    lines = [
        "GET /echo HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(key).decode()}",
        "Sec-WebSocket-Version: 13",
    ]
    if offer:
        lines.append(f"Sec-WebSocket-Extensions: {offer}")
    return "\r\n".join([*lines, "", ""]).encode()


def check_answer(head: bytes, key: bytes) -> str:
    """Return the extension that the server agreed to, "" for none. Raises Misbehaved."""
    status, *lines = head.decode("latin-1").split("\r\n")
    if not status.startswith("HTTP/1.1 101 "):
        raise Misbehaved("handshake refused", status)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    accept = base64.b64encode(hashlib.sha1(base64.b64encode(key) + GUID).digest()).decode()
    if headers.get("sec-websocket-accept") != accept:
        raise Misbehaved("wrong Sec-WebSocket-Accept", head.decode("latin-1"))
    return headers.get("sec-websocket-extensions", "")


def frame(first: int, payload: bytes, key: bytes, *, masked: bool = False) -> bytes:
    """Return a frame; masked says that the payload is so already."""
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + key + (payload if masked else mask(payload, key))


def mask(payload: bytes, key: bytes) -> bytes:
    size = len(payload)
    repeated = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")


def next_frame(buffer: bytearray) -> tuple[int, bytes] | None:
    """Take a server's frame off the buffer: first byte and payload; None while it is not whole."""
    if len(buffer) < 2:
        return None
    size, start = buffer[1], 2
    if size & 0x80:
        raise Misbehaved("masked frame")
    if size >= 126:
        start = 4 if size == 126 else 10
        if len(buffer) < start:
            return None
        size = int.from_bytes(buffer[2:start], "big")
    if len(buffer) < start + size:
        return None
    first, payload = buffer[0], bytes(buffer[start : start + size])
    del buffer[: start + size]
    return first, payload


class Deflate:
    """What the handshake agreed on, as "permessage-deflate; client_max_window_bits=12"."""

    def __init__(self, agreed: str) -> None:
        name, *parameters = (part.strip() for part in agreed.split(";"))
        if name != "permessage-deflate":
            raise Misbehaved("wrong extension", agreed)
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        self._client_bits = _window_bits(values, "client_max_window_bits")
        self._server_bits = _window_bits(values, "server_max_window_bits")
        self._fresh_deflater = "client_no_context_takeover" in values
        self._fresh_inflater = "server_no_context_takeover" in values
        self._deflater = self._new_deflater()
        self._inflater = zlib.decompressobj(-self._server_bits)

    def _new_deflater(self) -> zlib._Compress:
        return zlib.compressobj(1, zlib.DEFLATED, -self._client_bits)

    def compress(self, data: bytes) -> bytes:
        if self._fresh_deflater:
            self._deflater = self._new_deflater()
        compressed = self._deflater.compress(data) + self._deflater.flush(zlib.Z_SYNC_FLUSH)
        return compressed.removesuffix(FLUSHED)

    def inflate(self, data: bytes, limit: int) -> bytes:
        """Return the message. Raises Misbehaved for what is no deflated message of up to limit bytes."""
        if self._fresh_inflater:
            self._inflater = zlib.decompressobj(-self._server_bits)
        try:
            message = self._inflater.decompress(data + FLUSHED, limit + 1)
        except zlib.error as exc:
            raise Misbehaved("wrong bytes", f"deflated: {exc}") from exc
        if len(message) > limit or self._inflater.unconsumed_tail:
            raise Misbehaved("wrong bytes", f"more than {limit} bytes came inflated")
        return message


def _window_bits(values: Mapping[str, str], name: str) -> int:
    return int(values.get(name) or 15)
