"""Compressed messages through a Connection: RFC 7692 §6 and §7 at every cut, limits, and other libraries' ends."""

from __future__ import annotations

import itertools
import tracemalloc
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame
from websockets.protocol import OPEN as WEBSOCKETS_OPEN
from websockets.protocol import Protocol, Side
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol, Opcode

from geventws.connection import FAILING, Close, Connection, Event, Failure, Ping, Pong
from geventws.handshake import parse_extensions
from geventws.options import Options
from geventws.permessage_deflate import Agreement, Deflate, negotiate

from .test_connection import feeds, receive
from .test_frames import bounded, plain_frame
from .test_permessage_deflate import (
    AGAIN,
    ALL_OPTIONS,
    BITS,
    BOMB,
    EXAMPLES,
    FORGETS,
    HELLO,
    KEEPS,
    MEBIBYTE,
    NOISE,
    TAIL,
    TAKEOVERS,
    P,
    flushed,
    pieces_of,
    zlib_payload,
)

TEXT, BINARY = 0x81, 0x82  # first bytes of a whole message
RSV1 = 0x40


def joined(agreement: Agreement | None, *, max_message_size: int = MEBIBYTE, client: bool = False) -> Connection:
    """Return one end of a connection with this agreement, None for no compression."""
    deflate = None if agreement is None else Deflate(agreement, Options(), client=client)
    return Connection(client=client, max_message_size=max_message_size, deflate=deflate)


def fragments(first: int, pieces: Sequence[bytes]) -> bytes:
    """Return the frames of a message; first is the first byte it would have whole."""
    opcodes = [first, *[0x80] * (len(pieces) - 1)]
    last = len(pieces) - 1
    return b"".join(plain_frame(opcode & (0xFF if index == last else 0x7F), piece)
                    for index, (opcode, piece) in enumerate(zip(opcodes, pieces, strict=True)))  # fmt: skip


def in_pieces(payload: bytes, count: int) -> list[bytes]:
    """Return payload in this many pieces of about the same size."""
    places = [len(payload) * number // count for number in range(count + 1)]
    return [payload[start:stop] for start, stop in itertools.pairwise(places)]


# Which frames may be compressed


class Fact(NamedTuple):
    """What frames mean where compression is agreed on: section of RFC 7692, frames, the events they give."""

    section: str
    what: str
    wire: bytes
    events: list[Event]


A, B = zlib_payload(b"a"), zlib_payload(b"b")
CHARACTERS = "aü€𝄞" * 50
COMPRESSED_CHARACTERS = zlib_payload(CHARACTERS.encode())

FACTS = [
    *(Fact(section, "text", plain_frame(TEXT | RSV1, bytes.fromhex(payload)), [message.decode()])
      for section, payload, message in EXAMPLES),
    Fact("7.2.3.1", "binary", plain_frame(BINARY | RSV1, HELLO), [b"Hello"]),
    *(Fact("7.2.3.1", f"in {len(pieces)} fragments", fragments(TEXT | RSV1, pieces), ["Hello"])
      for pieces in pieces_of(HELLO)[::3]),
    Fact("6.1", "an empty fragment first, and last", fragments(TEXT | RSV1, [b"", HELLO, b""]), ["Hello"]),
    Fact("6.1", "control frames between fragments",
         plain_frame(0x41, HELLO[:3]) + plain_frame(0x89, b"p") + plain_frame(0x00, b"") + plain_frame(0x8A, b"q")
         + plain_frame(0x80, HELLO[3:]), [Ping(b"p"), Pong(b"q"), "Hello"]),
    Fact("6", "messages that are not compressed between some that are",
         plain_frame(0xC1, A) + plain_frame(0x81, b"c") + plain_frame(0xC2, B) + fragments(TEXT, [b"d", b"e"])
         + fragments(BINARY | RSV1, [A[:1], A[1:]]) + plain_frame(0x82, b"\xff"),
         ["a", "c", b"b", "de", b"a", b"\xff"]),
    Fact("7.2.2", "characters across fragments", fragments(TEXT | RSV1, in_pieces(COMPRESSED_CHARACTERS, 7)),
         [CHARACTERS]),
    Fact("7.2.2", "binary needs no UTF-8", plain_frame(0xC2, zlib_payload(b"\xff\xc0")), [b"\xff\xc0"]),
    Fact("7.2.2", "a message of 1000 bytes", plain_frame(0xC2, zlib_payload(NOISE[:1000])), [NOISE[:1000]]),
    Fact("7.2.2", "a Close between fragments", plain_frame(0x41, HELLO[:3]) + plain_frame(0x88, b"\x03\xe8"),
         [Close(1000, "")]),
]  # fmt: skip


@pytest.mark.parametrize("agreement", [KEEPS, FORGETS], ids=["takeover", "no takeover"])
@pytest.mark.parametrize("fact", FACTS, ids=[f"{fact.section} {fact.what}" for fact in FACTS])
def test_frames_give_these_events_however_they_are_cut(fact: Fact, agreement: Agreement) -> None:
    for chunks in feeds(fact.wire):
        assert receive(joined(agreement), chunks) == fact.events, chunks
        assert receive(joined(agreement), chunks, limit=1) == fact.events, chunks


def test_context_is_taken_over_from_compressed_messages_alone() -> None:
    wire = plain_frame(0xC1, HELLO) + plain_frame(0x81, b"other") + plain_frame(0x89, b"") + plain_frame(0xC1, AGAIN)
    for chunks in feeds(wire):
        assert receive(joined(KEEPS), chunks) == ["Hello", "other", Ping(b""), "Hello"]
        *_, failure = receive(joined(FORGETS), chunks)
        assert isinstance(failure, Failure) and failure.code == 1007


# Frames, of which the last is wrong at its first byte, and a word of the reason.
FAULTS = {
    "RSV1 on a ping": (b"", 0xC9, "reserved bits"),
    "RSV1 on a pong": (b"", 0xCA, "reserved bits"),
    "RSV1 on a close": (b"", 0xC8, "reserved bits"),
    "RSV2": (b"", 0xA1, "reserved bits"),
    "RSV3": (b"", 0x91, "reserved bits"),
    "RSV1 and RSV2": (b"", 0xE1, "reserved bits"),
    "RSV1 and RSV3": (b"", 0xD2, "reserved bits"),
    "RSV1 on a ping inside a message": (plain_frame(0x41, A), 0xC9, "reserved bits"),
    "RSV1 on a last fragment": (plain_frame(0x41, HELLO[:3]), 0xC0, "reserved bits"),
    "RSV1 on a fragment": (plain_frame(0x41, HELLO[:3]), 0x40, "reserved bits"),
    "RSV1 on a fragment of what is not compressed": (plain_frame(0x01, b"a"), 0xC0, "reserved bits"),
    "RSV1 on a continuation of nothing": (b"", 0xC0, ""),
    "reserved opcode with RSV1": (b"", 0xC3, ""),
    "compressed message inside a compressed one": (plain_frame(0x41, HELLO[:3]), 0xC1, "message"),
    "compressed message inside a plain one": (plain_frame(0x01, b"a"), 0xC1, "message"),
    "compressed fragment inside a plain message": (plain_frame(0x02, b"a"), 0x41, "message"),
    "plain message inside a compressed one": (plain_frame(0x41, HELLO[:3]), 0x81, "message"),
    "continuation of nothing": (plain_frame(0xC1, HELLO), 0x80, "continu"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_frame_out_of_place_is_1002_at_its_first_byte(fault: str) -> None:
    before, first, reason = FAULTS[fault]
    wire = before + plain_frame(first, A)
    for chunks in feeds(wire + plain_frame(0x81, b"never read")):
        *events, failure = receive(joined(FORGETS), chunks)
        assert isinstance(failure, Failure) and failure.code == 1002 and reason in failure.reason
        assert "never read" not in events
    connection = joined(FORGETS)
    connection.receive_data(before)
    assert [type(event) for event in connection.receive_data(bytes([first]))] == [Failure]


@pytest.mark.parametrize("first", [0xC1, 0xC2, 0x41, 0x42], ids=hex)
def test_compressed_message_is_1002_where_nothing_was_agreed(first: int) -> None:
    for chunks in feeds(plain_frame(first, HELLO)):
        (failure,) = receive(joined(None), chunks)
        assert isinstance(failure, Failure) and failure.code == 1002 and "reserved bits" in failure.reason


# Payloads that are wrong


BROKEN = {
    "no payload at all": b"",
    "reserved block type": b"\x07",
    "garbage": b"garbage",
    "truncated": HELLO[:-1],
    "garbage behind the message": HELLO + b"garbage",
    "the tail that must not travel": HELLO + TAIL,
    "17 streams": b"\x03\x00" * 16 + b"\x00",
    "BFINAL without an empty block behind": bytes.fromhex("f348cdc9c90700"),
    "looks back at nothing": AGAIN,
}


@pytest.mark.parametrize("agreement", [KEEPS, FORGETS], ids=["takeover", "no takeover"])
@pytest.mark.parametrize("broken", BROKEN)
def test_corrupt_message_is_1007_and_ends_the_connection(broken: str, agreement: Agreement) -> None:
    payload = BROKEN[broken]
    behind = plain_frame(0x81, b"never read")
    for count in (1, 2, 3):
        wire = fragments(BINARY | RSV1, in_pieces(payload, count))
        for chunks in feeds(plain_frame(0xC1, b"\x00") + wire + behind):
            connection = joined(agreement)
            empty, failure = receive(connection, chunks)
            assert empty == "" and isinstance(failure, Failure) and failure.code == 1007
            assert connection.receive_data(behind) == []
            assert connection.close()[2:4] == (1007).to_bytes(2, "big")


@pytest.mark.parametrize("cut", range(len(COMPRESSED_CHARACTERS)))
def test_message_truncated_anywhere_is_1007(cut: int) -> None:
    for agreement in (KEEPS, FORGETS):
        (failure,) = joined(agreement).receive_data(plain_frame(0xC1, COMPRESSED_CHARACTERS[:cut]))
        assert isinstance(failure, Failure) and failure.code == 1007


@pytest.mark.parametrize("text", ["80", "c0", "c241", "eda080", "f4908080", "ff"])
def test_text_that_is_not_utf_8_is_1007_before_the_message_is_whole(text: str) -> None:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    shows = flushed(compressor, "ä€".encode() + bytes.fromhex(text)) + TAIL
    wire = plain_frame(0x41, shows + flushed(compressor, NOISE))
    last = wire.index(shows[-5:]) + 5
    for chunks in ([wire], [bytes([octet]) for octet in wire[:last]]):
        (failure,) = receive(joined(FORGETS), chunks)
        assert failure == Failure(1007, "text is not UTF-8")


@pytest.mark.parametrize("text", ["e2", "e282", "f09d84", "61c3"])
def test_text_that_ends_inside_a_character_is_1007(text: str) -> None:
    for chunks in feeds(plain_frame(0xC1, zlib_payload(bytes.fromhex(text)))):
        assert receive(joined(FORGETS), chunks) == [Failure(1007, "text is not UTF-8")]


# The message limit


def compressions(data: bytes) -> dict[str, bytes]:
    """Return data as peers of every kind compress it: some add more than they take away."""
    found = {"in the end": zlib_payload(data)}
    for memory, (name, strategy) in itertools.product((1, 2, 8), [("", 0), ("huffman", 2), ("fixed codes", 4)]):
        compressor = zlib.compressobj(6, zlib.DEFLATED, -15, memory, strategy)
        found[f"memory level {memory} {name}"] = flushed(compressor, data)
    for name, level in (("stored", 0), ("level 1", 1)):
        found[name] = zlib_payload(data, level=level)
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    # As websockets does for each fragment.
    found["flushed every 100 bytes"] = b"".join(
        flushed(compressor, data[start : start + 100]) + TAIL for start in range(0, len(data), 100)
    )[: -len(TAIL)]
    return found


CONTENTS = {
    "zeros": bytes(70_000),
    "noise": (NOISE * 2)[:70_000],
    "high bytes": bytes(144 + octet % 112 for octet in (NOISE * 2)[:70_000]),  # 9 bits each in fixed codes
    "text": ("aü€𝄞 " * 7000).encode()[:70_000],
}


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("limit", [1, 125, 126, 1000, 65_536])
@pytest.mark.parametrize("content", CONTENTS)
def test_message_limit_counts_what_is_inflated_and_is_exact(content: str, limit: int, count: int) -> None:
    if count > limit:
        return
    at, past = CONTENTS[content][:limit], CONTENTS[content][: limit + 1]
    for name, payload in compressions(at).items():
        wire = fragments(BINARY | RSV1, in_pieces(payload, count))
        assert receive(joined(FORGETS, max_message_size=limit), [wire]) == [at], name
    for name, payload in compressions(past).items():
        wire = fragments(BINARY | RSV1, in_pieces(payload, count))
        (failure,) = receive(joined(FORGETS, max_message_size=limit), [wire])
        assert isinstance(failure, Failure) and failure.code == 1009, name
        assert str(limit) in failure.reason


def test_limit_is_for_each_message_and_not_for_their_sum() -> None:
    connection = joined(KEEPS, max_message_size=1000)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    for _ in range(5):
        assert connection.receive_data(plain_frame(0xC2, flushed(compressor, bytes(1000)))) == [bytes(1000)]


@pytest.mark.parametrize("limit", [1, 1000, MEBIBYTE])
def test_bomb_is_1009_before_it_has_arrived(limit: int) -> None:
    wire = plain_frame(0xC2, BOMB)
    (failure,) = joined(FORGETS, max_message_size=limit).receive_data(wire)
    assert isinstance(failure, Failure) and failure.code == 1009 and f"limit {limit}" in failure.reason
    connection = joined(FORGETS, max_message_size=limit)
    needed = next(index for index in range(0, len(wire), 16) if connection.receive_data(wire[index : index + 16]))
    assert needed < 200 + limit // 900


@pytest.mark.parametrize("size", [100, 700, 1500])
def test_bomb_is_inflated_to_the_first_byte_past_the_limit(size: int) -> None:
    connection = joined(FORGETS)
    wire = plain_frame(0xC2, BOMB)
    (failure,) = receive(connection, [wire[start : start + size] for start in range(0, len(wire), size)])
    assert isinstance(failure, Failure) and connection.inflated == MEBIBYTE + 1


# What a peer may go on with for ever without its message growing past the limit, each with what comes first.
ENDLESS = {
    "empty fragments": (plain_frame(0x42, b""), plain_frame(0x00, b"")),
    "empty blocks": (plain_frame(0x42, b""), plain_frame(0x00, (b"\x00" + TAIL) * 13_000)),
    "empty blocks, a fragment each": (plain_frame(0x42, b""), plain_frame(0x00, b"\x00" + TAIL)),
    "empty blocks in one frame": (bytes.fromhex("42ff7fffffffffffffff00000000"), (b"\x00" + TAIL) * 13_000),
    "zeros": (plain_frame(0x42, b""), plain_frame(0x00, BOMB)),
    "noise": (plain_frame(0x42, b""), plain_frame(0x00, b"\x00\x00\x80\xff\x7f" + NOISE[:32_768])),
}


@pytest.mark.parametrize("endless", ENDLESS)
def test_endless_compressed_message_is_1009_in_bounded_memory(endless: str) -> None:
    first, again = ENDLESS[endless]
    chunk = again * -(-16_384 // len(again))
    limit = 65_536
    connection = joined(FORGETS, max_message_size=limit)
    sent, events = len(first), connection.receive_data(first)
    tracemalloc.start()
    try:
        while not events:
            events = connection.receive_data(chunk)
            sent += len(chunk)
            assert sent < 4 * limit
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (failure,) = events
    assert isinstance(failure, Failure) and failure.code == 1009
    # The message, what was inflated last twice over while it is joined, the chunk and copies of it, zlib's window.
    assert peak < 4 * limit + 4 * 65_536


def test_message_that_is_inflated_takes_a_few_times_its_size_for_a_moment() -> None:
    wire = plain_frame(0xC2, zlib_payload(bytes(MEBIBYTE)))
    connection = joined(FORGETS)
    tracemalloc.start()
    try:
        (message,) = connection.receive_data(wire)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message == bytes(MEBIBYTE)
    assert held < MEBIBYTE + 10_000
    assert peak < 4 * MEBIBYTE


def test_failed_connection_gives_its_memory_back() -> None:
    """A peer that failed may stay for close_timeout: with many of them it counts what each still holds."""
    chunks = in_pieces(plain_frame(0xC2, BOMB), 3)
    tracemalloc.start()
    try:
        connection = joined(FORGETS)
        receive(connection, chunks)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert connection.state is FAILING
    assert held < 10_000


# How much is inflated at a time


def in_turns(connection: Connection, wire: bytes, most: int) -> list[Event]:
    """Return the events of a wire of which at most so much is inflated in each call."""
    events: list[Event] = []
    data = wire
    while True:
        before = connection.inflated
        events += connection.receive_data(data, most_inflated=most)
        inflated, data = connection.inflated - before, b""
        assert inflated <= most
        if not connection.limited:
            return events
        assert inflated == most


@pytest.mark.parametrize("most", [1, 7, 499, 1000, 1001, 10_000])
@pytest.mark.parametrize("size", [0, 1, 499, 1000])
@pytest.mark.parametrize("agreement", [FORGETS, KEEPS])
def test_burst_is_inflated_a_turn_at_a_time(agreement: Agreement, size: int, most: int) -> None:
    burst = plain_frame(0xC2, zlib_payload(bytes(size))) * 10
    assert in_turns(joined(agreement, max_message_size=1000), burst, most) == [bytes(size)] * 10


@pytest.mark.parametrize("most", [1, 100, 999, 1000, 1001])
def test_turns_end_in_any_fragment_and_any_deflate_stream(most: int) -> None:
    message = NOISE[:1500] + bytes(500)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    streams = compressor.compress(message[:900]) + compressor.flush() + zlib_payload(message[900:])
    wire = fragments(BINARY | RSV1, in_pieces(streams, 5)) + plain_frame(0x89, b"p") + plain_frame(0x81, b"text")
    assert in_turns(joined(FORGETS), wire, most) == [message, Ping(b"p"), "text"]


@pytest.mark.parametrize("most", [1, 300, 1000, 1001, 5000])
def test_limit_and_faults_are_found_in_any_turn(most: int) -> None:
    bomb = plain_frame(0xC2, zlib_payload(bytes(5000)))
    (failure,) = in_turns(joined(FORGETS, max_message_size=1000), bomb, most)
    assert isinstance(failure, Failure) and failure.code == 1009
    for payload in (zlib_payload(NOISE[:500])[:-40], zlib_payload("é".encode() * 400 + b"\xff" + bytes(90))):
        (failure,) = in_turns(joined(FORGETS), plain_frame(0xC1, payload), most)
        assert isinstance(failure, Failure) and failure.code == 1007


def test_connection_that_ends_within_a_turn_says_nothing_more() -> None:
    connection = joined(FORGETS)
    assert connection.receive_data(plain_frame(0xC2, zlib_payload(bytes(5000))), most_inflated=100) == []
    assert connection.limited
    connection.receive_eof()
    assert not connection.limited
    assert connection.receive_data() == []


def test_plain_messages_are_not_counted_as_inflated() -> None:
    connection = joined(FORGETS, max_message_size=1000)
    assert len(connection.receive_data(plain_frame(0x82, bytes(1000)) * 50)) == 50
    assert connection.inflated == 0 and not connection.limited


def test_frames_behind_a_bomb_wait_for_the_next_call() -> None:
    connection = joined(FORGETS, max_message_size=1000)
    wire = plain_frame(0xC2, zlib_payload(bytes(1000))) + plain_frame(0x89, b"p") + plain_frame(0x81, b"text")
    assert connection.receive_data(wire, most_inflated=1000) in ([], [bytes(1000)]) and connection.limited
    assert connection.take_pongs() == b""
    assert connection.receive_data()[-2:] == [Ping(b"p"), "text"] and not connection.limited


# One wire, any chunks


payloads = st.sampled_from([
    HELLO, A, AGAIN, b"", b"\x00", b"\x00" + TAIL, b"garbage", b"\x03\x00", NOISE[:40], "é€𝄞".encode(), b"\xff",
    zlib_payload("é€𝄞".encode() * 20), zlib_payload(b"\xff"), zlib_payload(bytes(200)), zlib_payload(bytes(201)),
    zlib_payload("é".encode() * 90 + b"\xff" + bytes(200)), zlib_payload(NOISE[:200]),
])  # fmt: skip
frames = st.builds(
    plain_frame,
    st.sampled_from([0x81, 0x82, 0xC1, 0xC2, 0xC1, 0xC2, 0x41, 0x42, 0x41, 0x01, 0x00, 0x80, 0x00, 0x80, 0xC0, 0x89]),
    payloads,
)
chunk_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=20)


def verdict(events: list[Event]) -> list[Event | str]:
    """Return events as they must be the same for any chunks.

    zlib does not tell what came before corrupt data: so of several faults in one compressed message the
    chunks decide which is found first.
    """
    return ["bad message" if isinstance(event, Failure) and event.code in (1007, 1009) else event for event in events]


@bounded
@given(st.lists(frames, max_size=6), st.booleans(), chunk_sizes, st.integers(1, 3))
@example([plain_frame(0xC1, zlib_payload(b"\xff" + bytes(500)))], False, [1], 1)
def test_any_chunks_give_the_same_events(wires: list[bytes], keeps: bool, sizes: list[int], limit: int) -> None:
    wire = b"".join(wires)
    ends = [0, *itertools.takewhile(lambda end: end < len(wire), itertools.accumulate(itertools.cycle(sizes)))]
    chunks = [wire[start:stop] for start, stop in itertools.pairwise([*ends, len(wire)])]
    agreement = KEEPS if keeps else FORGETS
    whole = joined(agreement, max_message_size=200)
    events = verdict(receive(whole, [wire]))
    for pieces in (chunks, [bytes([octet]) for octet in wire]):
        for most in (1 << 62, limit):
            connection = joined(agreement, max_message_size=200)
            assert verdict(receive(connection, pieces, most)) == events
            assert connection.state is whole.state
            if whole.state is not FAILING:
                assert connection.inflated == whole.inflated


# What is sent


def test_messages_are_compressed_from_the_threshold_on() -> None:
    connection = Connection(deflate=Deflate(FORGETS, Options(deflate_threshold=200)))
    messages: list[tuple[Any, int]] = [
        ("a" * 199, 0x81), ("a" * 200, 0xC1), (b"a" * 199, 0x82), (b"a" * 200, 0xC2), ("", 0x81), (b"", 0x82),
        ("é" * 99, 0x81), ("é" * 100, 0xC1), (bytearray(200), 0xC2), (memoryview(bytes(200)), 0xC2),
    ]  # fmt: skip
    for message, first in messages:
        assert connection.encode_message(message)[0] == first
    assert connection.encode_message("a" * 200, binary=True)[0] == 0xC2
    assert connection.encode_message(b"a" * 200, binary=False)[0] == 0xC1
    with pytest.raises(UnicodeDecodeError):
        connection.encode_message(b"\xff" * 200, binary=False)


@pytest.mark.parametrize("threshold", [1, 100, 125, 126, 1000])
@pytest.mark.parametrize("agreement", [KEEPS, FORGETS], ids=["takeover", "no takeover"])
def test_what_is_sent_around_the_threshold_arrives(threshold: int, agreement: Agreement) -> None:
    server = Connection(deflate=Deflate(agreement, Options(deflate_threshold=threshold)))
    client = joined(agreement, client=True)
    for size in (0, 1, 5, threshold - 1, threshold, threshold + 1, 125, 126, 5000):
        for message in ("x" * size, NOISE[:size], "é" * size):
            frame = server.encode_message(message)
            assert client.receive_data(frame) == [message]
            size_of = len(message.encode() if isinstance(message, str) else message)
            if size_of < threshold:
                assert not frame[0] & RSV1


def test_message_that_does_not_shrink_is_sent_plain_unless_the_context_needs_it() -> None:
    assert joined(FORGETS).encode_message(NOISE[:1000]) == plain_frame(0x82, NOISE[:1000], None)
    first, second = itertools.repeat(NOISE[:1000], 2)
    server, client = joined(KEEPS), joined(KEEPS, client=True)
    frames = [server.encode_message(first), server.encode_message(second)]
    assert [frame[0] for frame in frames] == [0xC2, 0xC2]
    assert len(frames[0]) > 1000 > 50 > len(frames[1])
    assert receive(client, frames) == [first, second]


def test_control_frames_are_never_compressed() -> None:
    server = Connection(deflate=Deflate(FORGETS, Options(deflate_threshold=1)))
    assert server.encode_ping(b"a" * 125) == plain_frame(0x89, b"a" * 125, None)
    server.receive_data(plain_frame(0x89, b"a" * 125))
    assert server.take_pongs() == plain_frame(0x8A, b"a" * 125, None)
    assert server.close(1000, "a" * 123)[0] == 0x88


def test_message_that_cannot_be_sent_does_not_enter_the_context() -> None:
    server, client = joined(KEEPS), joined(KEEPS, client=True)
    for wrong, binary in (("\ud800" * 500, None), (b"\xff" * 500, False)):
        with pytest.raises(ValueError):
            server.encode_message(wrong, binary)
    assert client.receive_data(server.encode_message(NOISE[:500] * 2)) == [NOISE[:500] * 2]


def test_connection_that_is_lost_inside_a_compressed_message_ends_with_1006() -> None:
    connection = joined(FORGETS)
    assert connection.receive_data(plain_frame(0x41, HELLO[:3])) == []
    connection.receive_eof("gone")
    assert (connection.close_code, connection.close_reason) == (1006, "gone")
    assert connection.receive_data(plain_frame(0x80, HELLO[3:])) == []


# Other libraries at the other end

MESSAGES: list[str | bytes] = [
    "",
    b"",
    "Hello",
    "Hello" * 100,
    NOISE[:3000],
    "aü€𝄞" * 2000,
    bytes(100_000),
    NOISE[:3000],
]


class Peer:
    """The client's end by another library: bytes in, messages out, and back."""

    def send(self, message: str | bytes, count: int) -> bytes:
        raise NotImplementedError

    def receive(self, data: bytes) -> list[str | bytes]:
        raise NotImplementedError


class WebsocketsPeer(Peer):
    def __init__(self, extension: Any) -> None:
        self._protocol = Protocol(Side.CLIENT, state=WEBSOCKETS_OPEN)
        self._protocol.extensions = [extension]

    def send(self, message: str | bytes, count: int) -> bytes:
        data = message.encode() if isinstance(message, str) else message
        (first, *middle), last = in_pieces(data, count)[:-1] or [b""], in_pieces(data, count)[-1]
        start = self._protocol.send_text if isinstance(message, str) else self._protocol.send_binary
        if count == 1:
            start(last)
        else:
            start(first, fin=False)
            for piece in middle:
                self._protocol.send_continuation(piece, fin=False)
            self._protocol.send_continuation(last, fin=True)
        return b"".join(self._protocol.data_to_send())

    def receive(self, data: bytes) -> list[str | bytes]:
        self._protocol.receive_data(data)
        frames = [event for event in self._protocol.events_received() if isinstance(event, Frame)]
        return [bytes(frame.data).decode() if frame.opcode == 1 else bytes(frame.data) for frame in frames]


class WsprotoPeer(Peer):
    def __init__(self, extension: PerMessageDeflate) -> None:
        self._protocol = FrameProtocol(client=True, extensions=[extension])

    def send(self, message: str | bytes, count: int) -> bytes:
        data = message.encode() if isinstance(message, str) else message
        opcode = Opcode.TEXT if isinstance(message, str) else Opcode.BINARY
        wire = b""
        for index, piece in enumerate(in_pieces(data, count)):
            opcode = Opcode.CONTINUATION if index else opcode
            wire += self._protocol._serialize_frame(opcode, piece, index == count - 1)
        return wire

    def receive(self, data: bytes) -> list[str | bytes]:
        self._protocol.receive_bytes(data)
        messages: list[str | bytes] = []
        whole: Any = None
        for frame in self._protocol.received_frames():
            payload = frame.payload if isinstance(frame.payload, str) else bytes(frame.payload)  # type: ignore[arg-type]
            whole = payload if whole is None else whole + payload
            if frame.message_finished:
                messages.append(whole)
                whole = None
        assert whole is None
        return messages


def exchange(server: Connection, peer: Peer) -> None:
    """Fail unless every message arrives as it was sent, both ways, whole and fragmented."""
    for message, count in itertools.product(MESSAGES, (1, 3)):
        assert receive(server, [peer.send(message, count)]) == [message]
        assert peer.receive(server.encode_message(message)) == [message]


def describe(options: Options) -> str:
    takeover = "takeover" if options.deflate_context_takeover else "no takeover"
    return f"{options.deflate_window_bits} bits {takeover}"


@pytest.mark.parametrize("server_bits", [None, 9, 12])
@pytest.mark.parametrize("client_bits", [None, True, 9, 12])
@pytest.mark.parametrize("options", ALL_OPTIONS[::5], ids=describe)
def test_websockets_and_we_understand_each_other(server_bits: int | None, client_bits: Any, options: Options) -> None:
    for server_forgets, client_forgets in TAKEOVERS:
        factory = ClientPerMessageDeflateFactory(server_forgets, client_forgets, server_bits, client_bits)
        agreement = negotiate([(P, factory.get_request_params())], options)
        assert agreement is not None
        ((_, parameters),) = parse_extensions(str(agreement))
        peer = WebsocketsPeer(factory.process_response_params(parameters, []))
        exchange(Connection(deflate=Deflate(agreement, options)), peer)


@pytest.mark.parametrize("server_bits", [9, 12, 15])
@pytest.mark.parametrize("client_bits", [9, 12, 15])
@pytest.mark.parametrize("options", ALL_OPTIONS[::5], ids=describe)
def test_wsproto_and_we_understand_each_other(server_bits: int, client_bits: int, options: Options) -> None:
    for server_forgets, client_forgets in TAKEOVERS:
        extension = PerMessageDeflate(client_forgets, client_bits, server_forgets, server_bits)
        agreement = negotiate(parse_extensions(f"{P}; {extension.offer()}"), options)
        assert agreement is not None
        extension.finalize(str(agreement))
        exchange(Connection(deflate=Deflate(agreement, options)), WsprotoPeer(extension))


@bounded
@given(
    st.builds(Agreement, st.booleans(), st.booleans(), st.sampled_from([None, *BITS]), st.sampled_from([None, *BITS])),
    st.integers(1, 300),
    st.lists(st.sampled_from(MESSAGES) | st.text(max_size=300) | st.binary(max_size=300), max_size=5),
    chunk_sizes,
)
def test_our_own_ends_understand_each_other(
    agreement: Agreement, threshold: int, messages: list[str | bytes], sizes: list[int]
) -> None:
    options = Options(deflate_threshold=threshold)
    ends = [Connection(client=client, deflate=Deflate(agreement, options, client=client)) for client in (False, True)]
    for sender, receiver in (ends, ends[::-1]):
        for message in messages:
            wire = sender.encode_message(message)
            size = sizes[0] if len(wire) < 2000 else len(wire)
            chunks = [wire[start : start + size] for start in range(0, len(wire), size)]
            assert receive(receiver, chunks) == [message]
