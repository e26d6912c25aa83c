"""Small compressed frames: what C makes of them is what Python makes of them, or nothing."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventws import permessage_deflate
from geventws.connection import Connection, Event
from geventws.options import Options
from geventws.permessage_deflate import Agreement, Deflate

from .servers import missing
from .test_frames import KEY, bounded, plain_frame

InflateFrame = Callable[[bytes, int, int], tuple[bytes, int] | None]
IS_COMPILED = find_spec("geventws._inflate") is not None
PLENTY = 1 << 20
TAIL = b"\x00\x00\xff\xff"


@pytest.fixture(scope="module")
def inflate_frame() -> InflateFrame:
    if not IS_COMPILED:
        missing("the compiled geventws._inflate (a C compiler and zlib.h when geventws was installed)")
    from geventws._inflate import inflate_frame

    return inflate_frame


def deflated(payload: bytes, level: int = -1, mode: int = zlib.Z_SYNC_FLUSH) -> bytes:
    compressor = zlib.compressobj(level, wbits=-15)
    return (compressor.compress(payload) + compressor.flush(mode)).removesuffix(TAIL)


def frame_of(first: int, payload: bytes) -> bytes:
    return plain_frame(first, payload, KEY)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, 64, 120, 125, 126, 127, 500, 2000, 2036])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_payload_of_a_whole_frame_is_given_with_its_end(inflate_frame: InflateFrame, size: int, level: int) -> None:
    payload = noise(size)
    frame = frame_of(0xC2, deflated(payload, level))
    for before in (b"", b"123"):
        assert inflate_frame(before + frame + b"more", len(before), PLENTY) == (payload, len(before + frame))


def test_what_is_large_is_left(inflate_frame: InflateFrame) -> None:
    for size, is_small in [(8192, True), (8193, False), (PLENTY, False)]:
        frame = frame_of(0xC2, deflated(bytes(size)))
        assert inflate_frame(frame, 0, PLENTY) == ((bytes(size), len(frame)) if is_small else None)
    assert inflate_frame(frame_of(0xC2, deflated(noise(2100))), 0, PLENTY) is None


def test_what_becomes_as_much_as_is_allowed_is_left(inflate_frame: InflateFrame) -> None:
    frame = frame_of(0xC1, deflated(bytes(100)))
    assert inflate_frame(frame, 0, 101) == (bytes(100), len(frame))
    assert inflate_frame(frame, 0, 100) is None
    assert inflate_frame(frame, 0, 0) is None


def test_frame_that_is_cut_anywhere_is_left(inflate_frame: InflateFrame) -> None:
    for size in (20, 130):
        frame = frame_of(0xC2, deflated(noise(size)))
        for stop in range(len(frame)):
            assert inflate_frame(frame[:stop], 0, PLENTY) is None


def length_and_key_that_inflate() -> bytes:
    """Return a frame of 0x100FE bytes. From the middle of this length on, 127 bytes are one DEFLATE stream."""
    stored = b"\x00\x01\x00\xfe\xffA" + b"\x00" + struct.pack("<HH", 115, 0xFFFF - 115) + bytes(115) + b"\x00"
    return b"\xc1\xff" + bytes(4) + stored


UNUSUAL = {
    "no mask": b"\xc1\x02\x03\x00",
    "two bytes of length where one is enough": b"\xc1\xfe\x00\x05" + KEY + bytes(5),
    "eight bytes of length": b"\xc1\xff" + (200).to_bytes(8, "big") + KEY + bytes(200),
    "eight bytes of length that look like a message": length_and_key_that_inflate(),
    "a last block": frame_of(0xC1, deflated(b"hello", mode=zlib.Z_FINISH)),
    "two streams": frame_of(0xC1, deflated(b"hello", mode=zlib.Z_FINISH) + deflated(b"you")),
    "no DEFLATE stream": frame_of(0xC1, b"\xff" * 20),
    "the beginning of a block": frame_of(0xC1, deflated(b"hello hello")[:5]),
    "a block that looks back too far": frame_of(0xC1, bytes.fromhex("4a0402")),
}


@pytest.mark.parametrize("unusual", UNUSUAL)
def test_unusual_frame_is_left(inflate_frame: InflateFrame, unusual: str) -> None:
    assert inflate_frame(UNUSUAL[unusual], 0, PLENTY) is None
    frame = frame_of(0xC1, deflated(b"next"))
    assert inflate_frame(frame, 0, PLENTY) == (b"next", len(frame))  # nothing of the one before is left


@pytest.mark.parametrize(
    "arguments", [(b"12",), (b"12", 0, 9, 9), ("12", 0, 9), (b"12", -1, 9), (b"12", 3, 9), (b"12", 0.5, 9)]
)
def test_it_reads_nothing_outside_its_data(inflate_frame: InflateFrame, arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        inflate_frame(*arguments)


payloads = st.one_of(
    st.text(max_size=300).map(str.encode),
    st.binary(max_size=300),
    st.integers(0, 20_000).map(bytes),
    st.integers(2000, 2100).map(noise),
)
frames = st.one_of(
    payloads.map(lambda payload: frame_of(0xC1, deflated(payload))),
    payloads.map(lambda payload: frame_of(0xC2, deflated(payload, mode=zlib.Z_FINISH))),
    payloads.map(lambda payload: frame_of(0xC2, payload)),
    payloads.map(lambda payload: frame_of(0x41, deflated(payload)) + frame_of(0x80, b"")),
    st.sampled_from([frame_of(0x89, b"ping"), frame_of(0x82, b"plain"), *UNUSUAL.values()]),
)


def events(wire: bytes, sizes: list[int], inflate: InflateFrame | None, limit: int, most: int, largest: int) -> Any:
    """Return what a connection makes of wire, in pieces of these sizes in turn, and where it stands in the end."""
    deflate = Deflate(Agreement(), Options())
    deflate.inflate_frame = inflate
    connection = Connection(max_message_size=largest, deflate=deflate)
    given: list[list[Event]] = []
    start = 0
    for n in range(200_000):
        if connection.limited:
            given.append(connection.receive_data(b"", limit, most))
        elif start < len(wire):
            stop = start + sizes[n % len(sizes)]
            given.append(connection.receive_data(wire[start:stop], limit, most))
            start = stop
        else:
            return given, connection.state, connection.inflated, connection.take_pongs()
    raise AssertionError("it does not end")


@bounded
@given(
    st.lists(frames, max_size=6).map(b"".join),
    st.lists(st.integers(1, 400), min_size=1, max_size=4),
    st.integers(1, 4),
    st.sampled_from([7, 100, 8192, 65_536]),
    st.sampled_from([10, 1000, 2048, PLENTY]),
)
def test_connection_gives_the_same_events_call_by_call(
    inflate_frame: InflateFrame, wire: bytes, sizes: list[int], limit: int, most: int, largest: int
) -> None:
    in_c, in_python = (events(wire, sizes, how, limit, most, largest) for how in (inflate_frame, None))
    assert in_c == in_python


def test_peer_that_looks_back_and_one_with_a_smaller_window_go_the_general_way() -> None:
    for agreement in (Agreement(client_no_context_takeover=False), Agreement(client_max_window_bits=12)):
        assert Deflate(agreement, Options()).inflate_frame is None
    assert Deflate(Agreement(), Options()).inflate_frame is permessage_deflate.inflate_frame


@pytest.mark.parametrize(("pure", "expected"), [("", "builtin_function_or_method"), ("1", "NoneType")])
def test_compiled_function_is_used_unless_pure_python_is_asked_for(
    inflate_frame: InflateFrame, pure: str, expected: str
) -> None:
    program = "from geventws.permessage_deflate import inflate_frame; print(type(inflate_frame).__name__)"
    environ = {**os.environ, "GEVENTWS_PURE": pure}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
