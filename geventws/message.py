"""Messages: one that is to be sent, one that is sent to many, and one that is still arriving.

Knows what text and binary are, and the frame of a whole message; knows no connection or socket.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from .errors import InvalidPayload
from .frames import BINARY, FIN, RSV1, TEXT, encode_frame, mask_joined
from .permessage_deflate import Deflate, Settings, compress

Sendable = str | bytes | bytearray | memoryview

NOT_UTF_8 = "text is not UTF-8"
SMALL_PIECE = 4096  # bytes of a message below which a piece is joined to others at once


def encode(message: Sendable, binary: bool | None = None) -> tuple[int, bytes]:
    """Return first byte and payload of a message's frame: str as text, bytes-like as binary, unless `binary` decides.

    Raises TypeError for another type and ValueError for text that UTF-8 cannot carry.
    """
    if isinstance(message, str):
        payload = message.encode()
    elif isinstance(message, (bytes, bytearray, memoryview)):
        payload = bytes(message)
        if binary is False:
            payload.decode()  # a text frame with anything but UTF-8 would end the connection at the peer
    else:
        raise TypeError(f"a message is str or bytes, not {type(message).__name__}; send_json() sends other values")
    return FIN | (BINARY if binary or (binary is None and not isinstance(message, str)) else TEXT), payload


_lone_surrogate = re.compile("[\ud800-\udfff]")


def to_json(obj: Any) -> str:
    """Return obj as the text of JSON. Raises TypeError or ValueError for what JSON cannot hold."""
    try:
        text = json.dumps(obj, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except RecursionError as exc:
        raise ValueError("JSON is nested too deeply") from exc
    if not text.isascii() and _lone_surrogate.search(text):  # half a character has no UTF-8, but JSON has \ud83d
        text = json.dumps(obj, separators=(",", ":"), allow_nan=False)
    return text


def from_json(message: str | bytes) -> Any:
    """Return a message decoded from JSON. Raises ValueError for what is none, and for a number too large for float."""
    try:
        return json.loads(message, parse_float=_finite, parse_constant=_finite)
    except RecursionError as exc:
        raise ValueError("JSON is nested too deeply") from exc


def _finite(text: str) -> float:
    """Return a number of JSON. Raises ValueError for what JSON does not have: Infinity, by name or by size, and NaN."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"JSON has no number {text[:32]}")
    return number


class Prepared:
    """One message to be sent to many: its frame is made once for each encoding, whatever the number of connections.

    str is text and bytes-like binary; binary=True or False decides otherwise. Raises TypeError for another type and
    ValueError for text that UTF-8 cannot carry.
    """

    __slots__ = ("_first", "_frames", "_payload")

    def __init__(self, message: Sendable, binary: bool | None = None) -> None:
        self._first, self._payload = encode(message, binary)
        self._frames: dict[Settings | None, bytes] = {}  # None: as it is

    @property
    def message(self) -> str | bytes:
        """The message as the peer's view gets it."""
        return self._payload.decode() if self._first == FIN | TEXT else self._payload

    @property
    def size(self) -> int:
        """Bytes of its payload, as it is."""
        return len(self._payload)

    def frame(self, deflate: Deflate | None) -> bytes:
        """Return the frame for a server's connection that compresses so, which will send it next."""
        settings = deflate.settings if deflate is not None and len(self._payload) >= deflate.threshold else None
        frame = self._frames.get(settings) or self._make(settings)
        if deflate is not None and frame[0] & RSV1:
            deflate.forget_sent()  # what its compressor remembers is not what the peer has seen last
        return frame

    def forget_frames(self) -> None:
        """Keep the payload alone; frames are made again where they are needed again."""
        self._frames.clear()

    def _make(self, settings: Settings | None) -> bytes:
        payload = compress(self._payload, settings) if settings else None
        if payload is not None:
            frame = encode_frame(self._first | RSV1, payload)
        elif settings:
            frame = self._frames.get(None) or self._make(None)
        else:
            frame = encode_frame(self._first, self._payload)
        self._frames[settings] = frame
        return frame


class Joined(Prepared):
    """Prepared messages whose frames leave in one write: one system call costs more than a few hundred bytes in it."""

    __slots__ = ("_joined", "_parts")

    def __init__(self, parts: Sequence[Prepared]) -> None:
        self._parts = parts
        self._joined: dict[tuple[Settings, int] | None, tuple[bytes, bool]] = {}  # by what decides over compression

    @property
    def message(self) -> bytes:
        """Their frames, as they are."""
        return self.frame(None)

    def frame(self, deflate: Deflate | None) -> bytes:
        """Return all frames for a server's connection that compresses so, which will send them next."""
        kind = (deflate.settings, deflate.threshold) if deflate is not None else None
        joined = self._joined.get(kind)
        if joined is None:
            frames = [part.frame(deflate) for part in self._parts]
            joined = self._joined[kind] = b"".join(frames), any(frame[0] & RSV1 for frame in frames)
        if deflate is not None and joined[1]:
            deflate.forget_sent()
        return joined[0]


class Incomplete:
    """A message that is still arriving: its bytes so far, checked as they come."""

    __slots__ = ("_pieces", "_tail", "compressed", "is_text", "masking_key", "size", "weight")

    def __init__(self, is_text: bool, compressed: bool) -> None:
        self.is_text = is_text
        self.compressed = compressed
        self.size = 0  # bytes so far
        self.weight = 0
        self.masking_key = b""  # of what is still masked
        self._pieces: list[bytes | bytearray] = []
        self._tail = b""  # the last bytes, where they end inside a character

    def add(self, chunk: bytes) -> None:
        """Append payload bytes.

        Raises InvalidPayload or UnicodeDecodeError at the first byte that cannot be UTF-8 (§8.1).
        """
        self.size += len(chunk)
        # Joined once in the end, 1 MiB is copied one time less than in a bytearray. Small ones are not worth an object.
        if len(chunk) >= SMALL_PIECE:
            self._pieces.append(chunk)
        elif self._pieces and isinstance(self._pieces[-1], bytearray):
            self._pieces[-1] += chunk
        else:
            self._pieces.append(bytearray(chunk))
        if self.is_text and (self._tail or not chunk.isascii()):
            unchecked = self._tail + chunk
            _, valid = codecs.utf_8_decode(unchecked)
            self._tail = unchecked[valid:]
            if self._tail[:1] == b"\xed" and self._tail[1:] >= b"\xa0":
                raise InvalidPayload(NOT_UTF_8)  # a surrogate, which Python sees only at its third byte

    def finish(self) -> str | bytes:
        """Return the whole message. Raises UnicodeDecodeError for text that ends inside a character."""
        data = mask_joined(self._pieces, self.masking_key) if self.masking_key else b"".join(self._pieces)
        return data.decode() if self.is_text else data
