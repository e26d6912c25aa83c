"""zlib-ng in zlib's place, of the extra `speed`: what a peer gets is as small, and what is wrong is refused alike."""

from __future__ import annotations

import base64
import itertools
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventws.options import Options
from geventws.permessage_deflate import Deflate, compress

from .test_frames import bounded
from .test_permessage_deflate import FORGETS, message_of
from .test_permessage_deflate import KEEPS as LOOKS_BACK

if os.environ.get("GEVENTWS_PURE"):
    pytest.skip("zlib-ng is left out by GEVENTWS_PURE", allow_module_level=True)
if not os.environ.get("CI"):  # which must have it
    pytest.importorskip("zlib_ng")
from zlib_ng import zlib_ng

TAIL = b"\x00\x00\xff\xff"
ROOT = Path(__file__).resolve().parents[1]
LEVELS = range(1, 10)


def flushed(compressor: Any, payload: bytes, mode: int = zlib.Z_FULL_FLUSH) -> bytes:
    payload = compressor.compress(payload) + compressor.flush(mode)
    return payload.removesuffix(TAIL)


# Which does what


SENT = (b"to be or not to be, that is the question: " * 20)[:754] + random.Random(1).randbytes(90) * 3


def test_zlib_ng_compresses_a_message_by_itself_and_zlib_what_is_small_or_narrow_or_looks_back() -> None:
    assert len(SENT) == 1024
    by_zlib, by_zlib_ng = (flushed(library.compressobj(5, wbits=-15), SENT) for library in (zlib, zlib_ng))
    assert by_zlib != by_zlib_ng
    assert compress(SENT, (5, 15, 8)) == by_zlib_ng
    assert Deflate(FORGETS, Options(deflate_level=5)).compress(SENT) == by_zlib_ng
    assert Deflate(LOOKS_BACK, Options(deflate_level=5)).compress(SENT) == by_zlib
    assert compress(SENT, (5, 12, 8)) == flushed(zlib.compressobj(5, wbits=-12), SENT)
    assert compress(SENT[1:], (5, 15, 8)) == flushed(zlib.compressobj(5, wbits=-15), SENT[1:])


@pytest.mark.parametrize(
    ("pure", "agreement", "module"),
    [
        ("", "Agreement()", "zlib_ng"),
        ("", "Agreement(client_max_window_bits=12)", "zlib"),
        ("", "Agreement(client_no_context_takeover=False)", "zlib"),
        ("1", "Agreement()", "zlib"),
    ],
)
def test_error_of_whichever_inflates_is_an_invalid_payload(pure: str, agreement: str, module: str) -> None:
    program = f"""if True:
        from geventws.errors import InvalidPayload
        from geventws.options import Options
        from geventws.permessage_deflate import Agreement, Deflate

        deflate = Deflate({agreement}, Options())
        try:
            deflate.inflate(b"\\xff" * 9, 99, last=True)
        except InvalidPayload as exc:
            print(type(exc.__cause__).__module__)
    """
    environ = {**os.environ, "GEVENTWS_PURE": pure}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == module


# As small


def cut_from(data: bytes, size: int) -> list[bytes]:
    """Return pieces of data, spread over it."""
    return [data[start : start + size] for start in range(0, len(data) - size, (len(data) - size) // 8)]


def payloads() -> dict[str, list[bytes]]:
    from benchmarks.deflate import Writer

    write, noise = Writer(), random.Random(7692).randbytes(1 << 20)
    prose = b"".join(path.read_bytes() for path in sorted((ROOT / "docs").glob("*.md")))
    code = b"".join(path.read_bytes() for path in sorted((ROOT / "geventws").glob("*.py")))
    kinds = {"events of a chat": [write.chat(150) for _ in range(40)]}
    for size in (1 << 10, 1 << 12, 1 << 16):
        kinds[f"JSON of {size}"] = [write.json(size) for _ in range(8)]
        kinds[f"HTML of {size}"] = [write.text(size) for _ in range(8)]
        kinds[f"text of {size}"] = cut_from(prose, size)
        kinds[f"code of {size}"] = cut_from(code, size)
        kinds[f"base64 of {size}"] = cut_from(base64.b64encode(noise), size)
    return kinds


@pytest.fixture(scope="module")
def kinds() -> dict[str, list[bytes]]:
    return payloads()


@pytest.mark.parametrize("level", LEVELS)
def test_messages_of_each_kind_are_at_most_a_hundredth_larger(level: int, kinds: dict[str, list[bytes]]) -> None:
    for kind, messages in kinds.items():
        by_zlib = sum(len(flushed(zlib.compressobj(level, wbits=-15), message)) for message in messages)
        ours = sum(len(compress(message, (level, 15, 8)) or message) for message in messages)
        assert ours <= 1.01 * by_zlib, kind


# As right


words = st.sampled_from([b"the ", b'{"id":', b"\0" * 300, SENT, random.Random(2).randbytes(9000)])
messages = st.binary(max_size=200) | st.lists(words, max_size=12).map(b"".join)


@bounded
@given(st.sampled_from(LEVELS), st.integers(1, 9), st.lists(messages, min_size=1, max_size=4))
def test_zlib_inflates_each_message_by_itself(level: int, memory_level: int, sent: list[bytes]) -> None:
    for message in sent:
        compressed = compress(message, (level, 15, memory_level))
        if compressed is not None:
            inflater = zlib.decompressobj(-15)
            assert inflater.decompress(compressed + TAIL) == message
            assert not inflater.eof and not inflater.unused_data


def inflated(library: Any, pieces: Sequence[bytes], most: int) -> list[tuple[bytes, bool, bytes] | str]:
    """Return what each call gives, whether the stream ended with it, and what is behind its end."""
    inflater, calls = library.decompressobj(-15), list[Any]()
    for piece in pieces:
        data = None
        while data is None or (inflater.unconsumed_tail and not inflater.eof):
            try:
                data = inflater.decompress(piece, most)
            except library.error:
                return [*calls, "refused"]
            calls.append((data, inflater.eof, inflater.unused_data))
            piece = inflater.unconsumed_tail
    return calls


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A compressed message by either library, with bits flipped, bytes lost or more behind it."""
    library = draw(st.sampled_from([zlib, zlib_ng]))
    strategy = draw(st.sampled_from([zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY]))
    compressor = library.compressobj(draw(st.integers(0, 9)), zlib.DEFLATED, -15, 8, strategy)
    mode = draw(st.sampled_from([zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_FINISH]))
    stream = bytearray(b"".join(flushed(compressor, draw(messages)) for _ in range(draw(st.integers(0, 2)))))
    stream += flushed(compressor, draw(messages), mode)
    for place in draw(st.lists(st.integers(0, 8 * len(stream) - 1), max_size=3)) if stream else []:
        stream[place // 8] ^= 1 << place % 8
    del stream[len(stream) - draw(st.sampled_from([0, 0, 0, 1, 4, 9])) :]
    return bytes(stream) + draw(st.sampled_from([b"", b"", b"\0", b"\3\0", TAIL]))


@bounded
@given(
    streams() | st.binary(max_size=60),
    st.lists(st.integers(0, 1000), max_size=3),
    st.sampled_from([1, 77, 8192, 1 << 20]),
)
def test_both_inflate_the_same_from_any_bytes_call_by_call(stream: bytes, cuts: list[int], most: int) -> None:
    places = [0, *sorted(len(stream) * place // 1000 for place in cuts), len(stream)]
    pieces = [stream[start:stop] for start, stop in itertools.pairwise(places)]
    assert inflated(zlib_ng, pieces, most) == inflated(zlib, pieces, most)
    assert message_of(pieces, FORGETS) == message_of(pieces, LOOKS_BACK)
