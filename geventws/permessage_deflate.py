"""permessage-deflate: what both ends agree on, and payloads of messages through zlib, within a limit.

Knows RFC 7692 and zlib; knows no frame, message type or socket.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from .errors import InvalidPayload
from .options import Options

NAME = "permessage-deflate"

Parameters = Sequence[tuple[str, str | None]]
Settings = tuple[int, int, int]  # level, window bits and memory level of a compressor

_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
_LIMITS = ("server_max_window_bits", "client_max_window_bits")
_bits = re.compile(r"[89]|1[0-5]")

_TAIL = b"\x00\x00\xff\xff"  # the end of every flush, which does not travel (§7.2.1)
_LAST_BLOCK = b"\x03\x00"  # an empty block that ends a DEFLATE stream (RFC 1951 §3.2.6)
_MOST_STREAMS = 16  # DEFLATE streams in one message; each costs a copy of what is left of it

# Compressors that nobody uses. A full flush makes one as good as new, and
# spares 256 KiB of malloc for each message: 4.3 µs for 144 bytes of JSON, instead of 62 where malloc asks the kernel.
_free: dict[tuple[Any, int, int, int], list[Any]] = {}


# See _inflate.c; None where it is not compiled. A message of 64 bytes in 0.7 µs, frame and all, instead of 6.
inflate_frame: Callable[[bytes, int, int], tuple[bytes, int] | None] | None = None
# Of the extra `speed`; None where it is not installed. For messages by themselves, within the widest window: 4 KiB of
# JSON in two thirds of zlib's time. What it keeps between messages takes more memory than zlib's, and what it sends
# within a narrow window more bytes. What breaks an agreed window it refuses more often.
zlib_ng: Any = None
if not os.environ.get("GEVENTWS_PURE"):
    with suppress(ImportError):
        from ._inflate import inflate_frame
    with suppress(ImportError):
        from zlib_ng import zlib_ng
_ERRORS = (zlib.error,) if zlib_ng is None else (zlib.error, zlib_ng.error)
# zlib-ng's levels for those of zlib, in messages of up to 8 KiB and in larger ones: the fastest by which no kind of
# message becomes more than 1 % larger. Below 1 KiB none gains much.
_LEVELS = {1: (2, 2), 2: (2, 2), 3: (3, 3), 4: (3, 4), 5: (5, 5), 6: (6, 7), 7: (7, 7), 8: (7, 7), 9: (7, 7)}
_PAYS, _LARGE = 1024, 8193  # bytes
# Bytes. Below this limit the size of what inflate_frame() takes could be too much by itself.
SMALLEST_LIMIT = 2048


class Agreement(NamedTuple):
    """What the two ends agreed on. Window bits are None where nothing was said: 15."""

    server_no_context_takeover: bool = True
    client_no_context_takeover: bool = True
    server_max_window_bits: int | None = None
    client_max_window_bits: int | None = None

    def __str__(self) -> str:
        """Return the agreement as the Sec-WebSocket-Extensions header of the response tells it."""
        flags = [flag for flag in _FLAGS if getattr(self, flag)]
        limits = [f"{limit}={getattr(self, limit)}" for limit in _LIMITS if getattr(self, limit)]
        return "; ".join([NAME, *flags, *limits])


_safari_15 = re.compile(r"\bVersion/15\b.*\bSafari/|\bOS 15_.*\bAppleWebKit/")


def forgets_to_forget(user_agent: str) -> bool:
    """Whether a client is known to look back at earlier messages although it agreed not to: Safari 15, on any system.

    Its second compressed message could not be inflated (1007). Told by the User-Agent, as uWebSockets does.
    """
    return bool(_safari_15.search(user_agent))


def negotiate(offers: Iterable[tuple[str, Parameters]], options: Options) -> Agreement | None:
    """Return what the first acceptable offer of permessage-deflate leads to, None if there is none.

    Source: RFC 7692 §5.1, §7.1.
    """
    if not options.deflate:
        return None
    agreements = (_agree(parameters, options) for name, parameters in offers if name == NAME)
    return next(filter(None, agreements), None)


def _agree(parameters: Parameters, options: Options) -> Agreement | None:
    asked = dict(parameters)
    if len(asked) < len(parameters) or not asked.keys() <= {*_FLAGS, *_LIMITS}:
        return None
    if any(asked.get(flag) is not None for flag in _FLAGS):
        return None
    server_bits = asked.get("server_max_window_bits", "15")
    client_bits = asked.get("client_max_window_bits") or "15"  # without a value it says that the client knows it
    if server_bits is None or not _bits.fullmatch(server_bits) or not _bits.fullmatch(client_bits):
        return None
    if server_bits == "8":
        return None  # zlib inflates a window of 256 bytes but cannot compress for one
    bits, takes_over = options.deflate_window_bits, options.deflate_context_takeover
    limits_server = "server_max_window_bits" in asked or bits < 15
    limits_client = "client_max_window_bits" in asked and min(int(client_bits), bits) < 15
    return Agreement(
        server_no_context_takeover=not takes_over or "server_no_context_takeover" in asked,
        client_no_context_takeover=not takes_over or "client_no_context_takeover" in asked,
        server_max_window_bits=min(int(server_bits), bits) if limits_server else None,
        client_max_window_bits=min(int(client_bits), bits) if limits_client else None,
    )


class Deflate:
    """Compression at one end of a connection, the server's unless client=True.

    Without context takeover it holds no zlib state between messages.
    """

    __slots__ = (
        "_compressor",
        "_inflater",
        "_keeps_compressor",
        "_keeps_inflater",
        "_peer_bits",
        "_streams",
        "inflate_frame",
        "pending",
        "settings",
        "threshold",
    )

    def __init__(self, agreement: Agreement, options: Options, *, client: bool = False) -> None:
        server = agreement.server_no_context_takeover, agreement.server_max_window_bits or 15
        peer = agreement.client_no_context_takeover, agreement.client_max_window_bits or 15
        (forgets, bits), (peer_forgets, peer_bits) = (peer, server) if client else (server, peer)
        self.threshold = options.deflate_threshold  # bytes; smaller messages are sent as they are
        # zlib tidies the hash table of its memory level each time a small window has passed: 121 to 57 µs for 4 KiB.
        memory_level = options.deflate_memory_level if bits > 11 else min(options.deflate_memory_level, 5)
        self.settings = options.deflate_level, max(bits, 9), memory_level  # of our compressor
        self._peer_bits = max(peer_bits, 9)  # zlib takes 9 for 8 when it compresses
        self._keeps_compressor = not forgets
        self._keeps_inflater = not peer_forgets
        self._compressor: Any = None
        self._inflater: Any = None
        # For a small message in one frame, of a peer that looks back at nothing; None: go the general way.
        self.inflate_frame = inflate_frame if peer_forgets and peer_bits == 15 else None
        self.pending = False  # what inflate() got may become more
        self._streams = 0  # DEFLATE streams in the message that is arriving

    def compress(self, payload: bytes) -> bytes | None:
        """Return a payload compressed, None where it is better sent as it is. Source: RFC 7692 §7.2.1."""
        if not self._keeps_compressor:
            return compress(payload, self.settings)
        compressor, self._compressor = self._compressor or _new_compressor(zlib, *self.settings), None
        compressed = _flushed(compressor, payload, zlib.Z_SYNC_FLUSH) if payload else None
        self._compressor = compressor  # not one that ran out of memory, whose bytes the peer would miss
        return compressed

    def forget_sent(self) -> None:
        """Look back no more at what was sent: the peer got a compressed payload that is not from here."""
        self._compressor = None

    def inflate(self, piece: bytes, most: int, *, last: bool) -> bytes:
        """Return what the next piece of a message inflates to, the first `most` bytes of it, 1 at least.

        When `pending` is true then, there may be more of it: call again with b"" and the same `last`. Raises
        InvalidPayload for what is no DEFLATE stream, and for a last piece that leaves it incomplete.
        Source: RFC 7692 §7.2.2.
        """
        if last and not self.pending:
            piece += _TAIL if self._keeps_inflater else _TAIL + _LAST_BLOCK
        try:
            data = self._inflate(piece, most)
            self.pending = len(data) == most
            if last and not self.pending:
                self._end_message()
        except _ERRORS as exc:
            raise InvalidPayload("compressed data is corrupt") from exc
        return data

    def _inflate(self, piece: bytes, most: int) -> bytes:
        inflater = self._inflater
        if inflater is None:
            inflater = self._new_inflater()
        elif not inflater.eof:
            piece = inflater.unconsumed_tail + piece
        elif piece := inflater.unused_data + piece:
            inflater = self._next_stream()
        data: bytes = inflater.decompress(piece, most)
        while len(data) < most and (rest := inflater.unused_data):
            inflater = self._next_stream()
            data += inflater.decompress(rest, most - len(data))
        return data

    def _new_inflater(self) -> Any:
        swift = zlib_ng and not self._keeps_inflater and self._peer_bits == 15
        self._inflater = (zlib_ng if swift else zlib).decompressobj(-self._peer_bits)
        return self._inflater

    def _next_stream(self) -> Any:
        """Return the inflater for what stands behind a block with BFINAL (§7.2.3.4)."""
        self._streams += 1
        if self._streams == _MOST_STREAMS:
            raise InvalidPayload(f"compressed message of more than {_MOST_STREAMS} DEFLATE streams")
        return self._new_inflater()

    def _end_message(self) -> None:
        """Check that the message ended between two blocks, where one more block ends the stream."""
        inflater, self._streams = self._inflater, 0
        if not self._keeps_inflater:
            self._inflater = None
        elif not inflater.eof:
            inflater = inflater.copy()
            inflater.decompress(_LAST_BLOCK)
        if not inflater.eof or inflater.unused_data:
            raise InvalidPayload("compressed message is incomplete")


def compress(payload: bytes, settings: Settings) -> bytes | None:
    """Return a payload compressed by itself, looking back at nothing; None where it is better sent as it is."""
    level, bits, memory_level = settings
    library: Any = zlib
    if zlib_ng and bits == 15 and len(payload) >= _PAYS:
        library, level = zlib_ng, _LEVELS[level][len(payload) >= _LARGE]
    free = _free.setdefault((library, level, bits, memory_level), [])
    try:
        compressor = free.pop()
    except IndexError:
        compressor = _new_compressor(library, level, bits, memory_level)
    compressed = _flushed(compressor, payload, zlib.Z_FULL_FLUSH)
    free.append(compressor)
    return compressed if len(compressed) < len(payload) else None


def _new_compressor(library: Any, level: int, bits: int, memory_level: int) -> Any:
    return library.compressobj(level, zlib.DEFLATED, -bits, memory_level)


def _flushed(compressor: Any, payload: bytes, mode: int) -> bytes:
    compressed: bytes = compressor.compress(payload) + compressor.flush(mode)
    return compressed[: -len(_TAIL)]
