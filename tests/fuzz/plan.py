"""Plans for the connection target: what an input means.

Settings, calls at offsets of the wire, then the wire itself, or what to build its frames of.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from geventws.options import Options
from geventws.permessage_deflate import Agreement

from . import Reader
from .reference import TAIL

CLIENT, FRAMES, DEFLATE, EAGER = 1, 2, 4, 8  # bits of an input's first byte
WINDOW_BITS = (None, 9, 12, 15)
COMPRESS_ALL, COMPRESS_LARGE = Options(deflate_threshold=1), Options()
MASKING_KEY = bytes.fromhex("37fa213d")
LONGEST_WIRE = 1 << 17  # bytes
CALLS = ("close", "message", "ping", "pongs", "eof")


class Call(NamedTuple):
    """What is called once `offset` bytes of the wire are fed."""

    offset: int
    what: str
    argument: int


class Plan(NamedTuple):
    """What an input means."""

    client: bool
    max_message_size: int
    limit: int
    options: Options
    agreement: Agreement | None
    calls: tuple[Call, ...]
    wire: bytes


def decode(data: bytes) -> Plan:
    reader = Reader(data)
    settings = reader.byte()
    client = bool(settings & CLIENT)
    options = COMPRESS_ALL if settings & EAGER else COMPRESS_LARGE
    agreement = None
    if settings & DEFLATE:
        bits = reader.byte()
        agreement = Agreement(bool(bits & 1), bool(bits & 2), WINDOW_BITS[bits >> 2 & 3], WINDOW_BITS[bits >> 4 & 3])
    max_message_size = 1 + reader.number(2)
    limit = 1 + reader.byte() % 4
    offset = 0
    calls = []
    for _ in range(reader.byte() % 8):
        offset += reader.byte()
        calls.append(Call(offset, CALLS[reader.byte() % len(CALLS)], reader.byte()))
    wire = _frames(reader, client, agreement) if settings & FRAMES else reader.rest()
    return Plan(client, max_message_size, limit, options, agreement, tuple(calls), wire[:LONGEST_WIRE])


def _frames(reader: Reader, client: bool, agreement: Agreement | None) -> bytes:
    """Return valid frames of what is left to read: first byte, style, payload, each."""
    wire = bytearray()
    deflater = None
    forgets, bits = (agreement or Agreement())[0::2] if client else (agreement or Agreement())[1::2]
    while reader and len(wire) < LONGEST_WIRE:
        first, style = reader.byte(), reader.byte()
        size = style & 0x7F
        payload = reader.take(size) if size < 126 else reader.take(size - 125) * reader.number(2)
        if style & 0x80:
            if deflater is None:
                deflater = zlib.compressobj(wbits=-(bits or 15))
            payload = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
            first |= 0x40 if first & 0x0F else 0
            if first & 0x80:
                payload = payload.removesuffix(TAIL)
                deflater = None if forgets else deflater
        wire += frame(first, payload, masked=not client)
    return bytes(wire)


def frame(first: int, payload: bytes, *, masked: bool) -> bytes:
    size = len(payload)
    mask_bit = 0x80 if masked else 0
    if size < 126:
        header = bytes([first, mask_bit | size])
    elif size < 1 << 16:
        header = bytes([first, mask_bit | 126]) + size.to_bytes(2, "big")
    else:
        header = bytes([first, mask_bit | 127]) + size.to_bytes(8, "big")
    if not masked:
        return header + payload
    keys = (MASKING_KEY * (size // 4 + 1))[:size]
    masked_payload = int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")
    return header + MASKING_KEY + masked_payload.to_bytes(size, "big")


def seeds() -> Iterator[bytes]:
    """Yield plans to start from: what the connection's own tests feed it, compressed messages, every call."""
    from tests.test_connection import FACTS, FAULTS

    for fact in (*FACTS, *FAULTS):
        size = min(fact.max_message_size, 1 << 16) - 1
        yield bytes([CLIENT if fact.client else 0]) + size.to_bytes(2, "big") + bytes(2) + bytes.fromhex(fact.wire)
    deflater = zlib.compressobj(wbits=-15)
    hello = (deflater.compress(b"Hello") + deflater.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)
    deflater = zlib.compressobj(wbits=-15)
    ended = deflater.compress(b"Hello") + deflater.flush()
    stored = b"\0\4\0\xfb\xffaaaa"
    for client, bits in itertools.product((0, CLIENT), (0, 1, 2, 3, 0b010111)):
        start = bytes([client | DEFLATE | EAGER, bits, 1, 0, 0])
        for payload in (hello, ended + b"\0", ended, ended * 20, hello[:-3], b"\xff", stored, b"\1", b""):
            yield start + b"\0" + frame(0xC1, payload, masked=not client) + frame(0xC2, hello, masked=not client)
            fragments = ((0x41, payload[:3]), (0x89, b"?"), (0x80, payload[3:]))
            yield start + b"\0" + b"".join(frame(*fragment, masked=not client) for fragment in fragments)
    for settings in (0, CLIENT, DEFLATE, DEFLATE | CLIENT, DEFLATE | EAGER):
        start = bytes([settings]) + (b"\3" if settings & DEFLATE else b"")
        for call, argument in itertools.product(range(len(CALLS)), range(16)):
            frames = bytes.fromhex("89 01 3f 01 05 48656c6c6f 89 01 21 80 00 88 04 03e8 6f6b")
            yield (
                bytes([start[0] | FRAMES]) + start[1:] + bytes([1, 0, 0, 2, argument, call, argument, 8, 0, 7]) + frames
            )
        for most, first, style in itertools.product((b"\xff\xff", b"\0\x40"), (0x01, 0x02, 0x81), (0x7E, 0x7F, 0xFE)):
            frames = bytes([first, style]) + b"a" * ((style & 0x7F) - 125) + bytes.fromhex("0200 8080 8980 8180")
            yield bytes([start[0] | FRAMES]) + start[1:] + most + bytes(2) + frames
