"""One Connection fed with bytes, two joined in memory, and any cut, limit or garbage at all."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventws.connection import (
    CLOSE_RECEIVED,
    CLOSE_SENT,
    CLOSED,
    EOF,
    FAILING,
    FRAGMENT_WEIGHT,
    LOCAL_CLOSING,
    NEXT,
    OPEN,
    REMOTE_CLOSING,
    RULE_BROKEN,
    Close,
    Connection,
    Event,
    Failure,
    Ping,
    Pong,
    State,
    Step,
)
from geventws.errors import ConnectionClosed
from geventws.frames import BINARY, encode_frame

from .test_frames import KEY, bounded, plain_frame

Z = "00000000"  # a masking key that leaves the payload readable


class Fact(NamedTuple):
    """What bytes mean: section of RFC 6455, bytes in as hex, the events they give, bytes out as hex."""

    section: str
    what: str
    wire: str
    events: list[Event]
    reply: str = ""
    client: bool = False
    max_message_size: int = 1 << 20

    def connection(self) -> Connection:
        return Connection(client=self.client, max_message_size=self.max_message_size)


FACTS = [
    Fact("5.7", "masked text", "81 85 37fa213d 7f9f4d5158", ["Hello"]),
    Fact("5.7", "unmasked text", "81 05 48656c6c6f", ["Hello"], client=True),
    Fact("5.7", "unmasked fragments", "01 03 48656c 80 02 6c6f", ["Hello"], client=True),
    Fact("5.7", "unmasked ping", "89 05 48656c6c6f", [Ping(b"Hello")], client=True),
    Fact("5.7", "masked pong", "8a 85 37fa213d 7f9f4d5158", [Pong(b"Hello")]),
    Fact("5.7", "256 bytes", "82 7e 0100" + "aa" * 256, [b"\xaa" * 256], client=True),
    Fact("5.2", "masked 256 bytes", f"82 fe 0100 {Z}" + "aa" * 256, [b"\xaa" * 256]),
    Fact("5.2", "empty text", f"81 80 {Z}", [""]),
    Fact("5.2", "empty binary", f"82 80 {Z}", [b""]),
    Fact("5.2", "125 bytes", f"82 fd {Z}" + "01" * 125, [b"\x01" * 125]),
    Fact("5.2", "126 bytes", f"82 fe 007e {Z}" + "01" * 126, [b"\x01" * 126]),
    Fact("5.2", "two messages", f"81 81 {Z} 61 82 81 {Z} 62", ["a", b"b"]),
    Fact("5.4", "text fragments", f"01 81 {Z} 61 00 81 {Z} 62 80 81 {Z} 63", ["abc"]),
    Fact("5.4", "binary fragments", f"02 81 {Z} 61 80 81 {Z} 62", [b"ab"]),
    Fact("5.4", "empty fragments", f"01 80 {Z} 00 80 {Z} 80 80 {Z}", [""]),
    Fact("5.4", "each fragment has its own key", "01 81 37fa213d 56 80 81 3d21fa37 5f", ["ab"]),
    Fact("5.4", "control frames between fragments",
         f"01 81 {Z} 61 89 81 {Z} 70 00 80 {Z} 8a 81 {Z} 71 80 81 {Z} 62",
         [Ping(b"p"), Pong(b"q"), "ab"], "8a 01 70"),
    Fact("5.4", "close between fragments", f"01 81 {Z} 61 88 82 {Z} 03e8", [Close(1000, "")], "88 02 03e8"),
    Fact("5.5.1", "close", f"88 82 {Z} 03e8", [Close(1000, "")], "88 02 03e8"),
    Fact("5.5.1", "empty close", f"88 80 {Z}", [Close(1005, "")], "88 00"),
    Fact("5.5.1", "close with a reason", f"88 85 {Z} 03e9 627965", [Close(1001, "bye")], "88 02 03e9"),
    Fact("5.5.1", "what follows a close is thrown away",
         f"88 82 {Z} 03e8 81 81 {Z} 61 89 80 {Z} ffff", [Close(1000, "")], "88 02 03e8"),
    Fact("5.5.1", "no pong once a close is received", f"89 80 {Z} 88 80 {Z}", [Ping(b""), Close(1005, "")], "88 00"),
    Fact("5.5.2", "empty ping", f"89 80 {Z}", [Ping(b"")], "8a 00"),
    Fact("5.5.2", "ping of 125 bytes", f"89 fd {Z}" + "ff" * 125, [Ping(b"\xff" * 125)], "8a 7d" + "ff" * 125),
    Fact("5.5.3", "pings are answered in order", f"89 81 {Z} 61 89 81 {Z} 62", [Ping(b"a"), Ping(b"b")],
         "8a 01 61 8a 01 62"),
    Fact("5.5.3", "unsolicited pong", f"8a 80 {Z}", [Pong(b"")]),
    Fact("5.6", "text of 1, 2, 3 and 4 byte characters", f"81 8a {Z} 61 c3bc e282ac f09d849e", ["aü€𝄞"]),
    Fact("5.6", "a character across fragments", f"01 81 {Z} e2 00 81 {Z} 82 80 81 {Z} ac", ["€"]),
    Fact("5.6", "a character across an empty fragment", f"01 81 {Z} c3 00 80 {Z} 80 81 {Z} bc", ["ü"]),
    Fact("5.6", "a character around a ping", f"01 81 {Z} c3 89 80 {Z} 80 81 {Z} bc", [Ping(b""), "ü"], "8a 00"),
    Fact("5.6", "binary needs no UTF-8", f"82 82 {Z} ffc0", [b"\xff\xc0"]),
    Fact("5.6", "NUL and the last code point", f"81 85 {Z} 00 f48fbfbf", ["\0\U0010ffff"]),
    Fact("10.4", "message of the limit", f"82 90 {Z}" + "61" * 16, [b"a" * 16], max_message_size=16),
    Fact("10.4", "an empty message below any limit", f"82 80 {Z}", [b""], max_message_size=1),
    Fact("10.4", "fragments that weigh the limit", f"02 91 {Z}" + "61" * 17 + f"80 81 {Z} 62", [b"a" * 17 + b"b"],
         max_message_size=33),
    Fact("10.4", "each message has the whole limit", f"82 82 {Z} 6162 82 82 {Z} 6364", [b"ab", b"cd"],
         max_message_size=2),
    Fact("10.4", "control frames are not of the message", f"89 84 {Z} 61626364", [Ping(b"abcd")], "8a 04 61626364",
         max_message_size=1),
    *(Fact("7.4", f"close code {code}", f"88 82 {Z} {code:04x}", [Close(code, "")], f"88 02 {code:04x}")
      for code in (1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999)),
]  # fmt: skip

# The bytes end with the first one that shows the fault; Failure holds a word of its reason.
FAULTS = [
    *(Fact("5.2", f"reserved bits of {first}", first, [Failure(1002, "reserved bits")])
      for first in ("c1", "a1", "91", "f2", "c9", "c0", "41")),
    *(Fact("5.2", f"reserved opcode of {first}", first, [Failure(1002, "reserved opcode")])
      for first in ("83", "84", "85", "86", "87", "8b", "8c", "8d", "8e", "8f", "03", "0b")),
    Fact("5.2", "fault behind a message", f"81 81 {Z} 61 8f", ["a", Failure(1002, "opcode")]),
    Fact("5.1", "unmasked frame from a client", "81 05", [Failure(1002, "not masked")]),
    Fact("5.1", "unmasked empty frame from a client", "82 00", [Failure(1002, "not masked")]),
    Fact("5.1", "unmasked ping from a client", "89 00", [Failure(1002, "not masked")]),
    Fact("5.1", "masked frame from a server", "81 85", [Failure(1002, "masked")], client=True),
    Fact("5.2", "16 bit length of 0", "82 fe 0000", [Failure(1002, "length")]),
    Fact("5.2", "16 bit length of 125", "82 fe 007d", [Failure(1002, "length")]),
    Fact("5.2", "64 bit length below 65536", "82 ff 000000000000", [Failure(1002, "length")]),
    Fact("5.2", "length of 2^63", "82 ff 80", [Failure(1002, "length")]),
    Fact("5.2", "length of 2^64 - 1", "82 ff ff", [Failure(1002, "length")]),
    Fact("5.4", "continuation of nothing", "80", [Failure(1002, "continu")]),
    Fact("5.4", "open continuation of nothing", "00", [Failure(1002, "continu")]),
    Fact("5.4", "continuation behind a whole message", f"81 81 {Z} 61 80", ["a", Failure(1002, "continu")]),
    Fact("5.4", "text inside a message", f"01 81 {Z} 61 81", [Failure(1002, "message")]),
    Fact("5.4", "binary fragment inside a message", f"01 80 {Z} 02", [Failure(1002, "message")]),
    *(Fact("5.5", f"fragmented control frame {first}", first, [Failure(1002, "fragmented")])
      for first in ("08", "09", "0a")),
    *(Fact("5.5", f"control frame {wire} above 125 bytes", wire, [Failure(1002, "125")])
      for wire in ("88 fe", "89 fe", "8a fe", "89 ff")),
    Fact("5.5.1", "close of 1 byte", "88 81", [Failure(1002, "1 byte")]),
    *(Fact("7.4", f"close code {code}", f"88 82 {Z} {code:04x}", [Failure(1002, str(code))])
      for code in (999, 1004, 1005, 1006, 1015, 1016, 2999, 5000)),
    Fact("5.5.1", "close reason that is not UTF-8", f"88 84 {Z} 03e8 61 ff", [Failure(1007, "UTF-8")]),
    Fact("5.5.1", "close reason that ends inside a character", f"88 84 {Z} 03e8 e282", [Failure(1007, "UTF-8")]),
    *(Fact("8.1", f"text with {text}", f"81 fd {Z} 61 {text}", [Failure(1007, "UTF-8")])
      for text in ("80", "bf", "c0", "c1", "c241", "c2c0", "e080", "e09f", "e28241", "eda0", "edbf", "f080", "f08f",
                   "f09d41", "f09d8441", "f490", "f5", "f8", "fe", "ff", "cebae1bdb9cf83cebcceb5f490")),
    Fact("8.1", "masked text with ff", "81 fe 0100 37fa213d 7f9f4d51 c8", [Failure(1007, "UTF-8")]),
    Fact("8.1", "bad byte in a second fragment", f"01 81 {Z} 61 00 85 {Z} 62ff", [Failure(1007, "UTF-8")]),
    Fact("8.1", "character broken at a fragment", f"01 81 {Z} e2 00 85 {Z} 61", [Failure(1007, "UTF-8")]),
    Fact("8.1", "bad byte behind a ping", f"01 81 {Z} 61 89 80 {Z} 80 85 {Z} c0", [Ping(b""), Failure(1007, "UTF-8")]),
    Fact("8.1", "text that ends inside a character", f"81 82 {Z} e282", [Failure(1007, "")]),
    Fact("8.1", "fragments that end inside a character", f"01 82 {Z} e282 80 80 {Z}", [Failure(1007, "")]),
    Fact("10.4", "message past the limit", "82 91", [Failure(1009, "16")], max_message_size=16),
    Fact("10.4", "message far past the limit", "82 fe ffff", [Failure(1009, "65535")], max_message_size=300),
    Fact("10.4", "fragment past the limit", f"02 90 {Z}" + "61" * 16 + "80 99", [Failure(1009, "40")],
         max_message_size=40),
]  # fmt: skip

# A fault is followed by bytes that would mean something, were they read.
TRAIL = "0" * 400 + f"81 81 {Z} 61 88 82 {Z} 03e8"


def feeds(wire: bytes) -> Iterator[list[bytes]]:
    """Yield wire whole, in halves at every cut, and byte by byte."""
    yield [wire]
    yield from ([wire[:cut], wire[cut:]] for cut in range(len(wire) + 1))
    yield [wire[index : index + 1] for index in range(len(wire))]


def receive(connection: Connection, chunks: list[bytes], limit: int = 1 << 62) -> list[Event]:
    """Return the events of chunks, calling again after each as often as the limit cuts it short."""
    events: list[Event] = []
    for chunk in chunks:
        events += connection.receive_data(chunk, limit)
        while connection.limited:
            events += connection.receive_data(b"", limit)
    return events


def ids(facts: list[Fact]) -> list[str]:
    return [f"{fact.section} {fact.what}" for fact in facts]


@pytest.mark.parametrize("fact", FACTS, ids=ids(FACTS))
def test_bytes_give_these_events_however_they_are_cut(fact: Fact) -> None:
    for chunks in feeds(bytes.fromhex(fact.wire)):
        connection = fact.connection()
        assert receive(connection, chunks) == fact.events, chunks
        if not fact.client:
            reply = connection.take_pongs() + (connection.close() if connection.state is REMOTE_CLOSING else b"")
            assert reply.hex() == fact.reply.replace(" ", "")


@pytest.mark.parametrize("fact", FAULTS, ids=ids(FAULTS))
def test_fault_ends_the_events_and_is_told_to_the_peer(fact: Fact) -> None:
    for chunks in feeds(bytes.fromhex(fact.wire + TRAIL)):
        connection = fact.connection()
        *events, failure = receive(connection, chunks)
        *expected, wanted = fact.events
        assert isinstance(failure, Failure) and isinstance(wanted, Failure), chunks
        assert events == expected and failure.code == wanted.code and wanted.reason in failure.reason, chunks
        assert receive(Connection(client=not fact.client), [connection.close()]) == [Close(*failure)]
        assert (connection.state, connection.close_code, connection.close_reason) == (CLOSED, *failure)
        assert connection.receive_data(bytes.fromhex(TRAIL)) == [] and connection.close() == b""


@pytest.mark.parametrize("fact", FAULTS, ids=ids(FAULTS))
def test_fault_is_reported_at_the_first_byte_that_shows_it(fact: Fact) -> None:
    *before, last = (bytes([byte]) for byte in bytes.fromhex(fact.wire))
    connection = fact.connection()
    assert receive(connection, before) == fact.events[:-1]
    assert [type(event) for event in connection.receive_data(last)] == [Failure]


@pytest.mark.parametrize("fact", FAULTS, ids=ids(FAULTS))
def test_fault_gives_the_same_reason_at_every_cut(fact: Fact) -> None:
    wire = bytes.fromhex(fact.wire + TRAIL)
    assert len({tuple(receive(fact.connection(), chunks)) for chunks in feeds(wire)}) == 1


@pytest.mark.parametrize("first", [0x81, 0x82, 0x01, 0x02], ids=hex)
def test_whole_frame_of_a_new_message_is_refused_inside_another(first: int) -> None:
    (failure,) = Connection().receive_data(plain_frame(0x01, b"a") + plain_frame(first, b"b"))
    assert isinstance(failure, Failure) and failure.code == 1002


@pytest.mark.parametrize("first", [0x80, 0x00], ids=hex)
def test_whole_continuation_is_refused_outside_a_message(first: int) -> None:
    (event, failure) = Connection().receive_data(plain_frame(0x81, b"a") + plain_frame(first, b"b"))
    assert event == "a" and isinstance(failure, Failure) and failure.code == 1002


# The second bytes that RFC 3629 §4 lets follow a first one.
SECOND_BYTES = {
    **{first: range(0x80, 0xC0) for first in range(0xC2, 0xF5)},
    0xE0: range(0xA0, 0xC0),
    0xED: range(0x80, 0xA0),
    0xF0: range(0x90, 0xC0),
    0xF4: range(0x80, 0x90),
}


@pytest.mark.parametrize("header", [f"81 fd {Z}", f"01 80 {Z} 80 fd {Z}"], ids=["message", "fragment"])
def test_every_first_and_second_byte_of_a_character_is_judged_at_once(header: str) -> None:
    for first, second in itertools.product(range(0x80, 0x100), (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0)):
        connection = Connection()
        assert connection.receive_data(bytes.fromhex(header)) == []
        assert bool(connection.receive_data(bytes([first]))) == (first not in SECOND_BYTES)
        if first in SECOND_BYTES:
            assert bool(connection.receive_data(bytes([second]))) == (second not in SECOND_BYTES[first])


# The message limit


@pytest.mark.parametrize("limit", [1, 125, 126, 1000, 65535, 65536, 70_000])
def test_message_limit_is_exact(limit: int) -> None:
    at, past = plain_frame(0x82, bytes(limit)), plain_frame(0x82, bytes(limit + 1))
    assert Connection(max_message_size=limit).receive_data(at) == [bytes(limit)]
    (failure,) = Connection(max_message_size=limit).receive_data(past)
    assert isinstance(failure, Failure) and failure.code == 1009
    assert str(limit + 1) in failure.reason and str(limit) in failure.reason


@pytest.mark.parametrize("size", [0, 1, FRAGMENT_WEIGHT - 1, FRAGMENT_WEIGHT])
def test_small_fragment_weighs_as_much_as_one_of_16_bytes(size: int) -> None:
    connection = Connection(max_message_size=16 * 10)
    assert connection.receive_data(plain_frame(0x02, bytes(size)) + plain_frame(0x00, bytes(size)) * 8) == []
    (event,) = connection.receive_data(plain_frame(0x80, bytes(size)))
    assert event == bytes(size * 10)
    assert connection.receive_data(plain_frame(0x02, bytes(size)) + plain_frame(0x00, bytes(size)) * 9) == []
    (event,) = connection.receive_data(plain_frame(0x80, bytes(size)))
    assert isinstance(event, Failure) and event.code == 1009


def test_raised_limit_counts_from_the_next_frame_on() -> None:
    connection = Connection(max_message_size=20)
    assert connection.receive_data(plain_frame(0x02, bytes(20))) == []
    connection.max_message_size = 60
    assert connection.receive_data(plain_frame(0x80, bytes(40))) == [bytes(60)]


def test_fragments_below_the_weight_are_no_message_for_a_tiny_limit() -> None:
    connection = Connection(max_message_size=5)
    assert connection.receive_data(plain_frame(0x81, b"Hello")) == ["Hello"]
    (failure,) = connection.receive_data(plain_frame(0x01, b"Hel"))
    assert isinstance(failure, Failure) and failure.code == 1009


# (first bytes, those repeated for ever after, the code that ends it): §10.4
FLOODS = {
    "empty fragments": (plain_frame(0x02, b""), plain_frame(0x00, b""), 1009),
    "fragments of a byte": (plain_frame(0x01, b"a"), plain_frame(0x00, b"a"), 1009),
    "an endless frame": (bytes.fromhex(f"82 ff 7fffffffffffffff {Z}"), bytes(1000), 1009),
    "an endless fragment": (plain_frame(0x02, b""), bytes.fromhex(f"00 ff 0000000000010001 {Z}"), 1009),
    "messages": (b"", plain_frame(0x82, bytes(1000)), None),
    "pongs": (b"", plain_frame(0x8A, bytes(125)), None),
    "pings between fragments": (plain_frame(0x02, b""), plain_frame(0x89, b""), None),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_flood_takes_no_more_memory_than_the_limit(flood: str) -> None:
    first, again, code = FLOODS[flood]
    chunk = again * (65536 // len(again))
    connection = Connection(max_message_size=65536)
    tracemalloc.start()
    try:
        events = connection.receive_data(first)
        for _ in range(10):
            events = connection.receive_data(chunk) or events[-1:]
            connection.take_pongs()
        failure = next((event for event in events if isinstance(event, Failure)), None)
        del events
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (failure.code if failure else None) == code
    # One message in a buffer that grows in steps, the bytes of one read, and small change.
    assert held < 3 * 65536


@pytest.mark.parametrize("size", [7, 1000, 1 << 20])
def test_message_that_arrives_holds_no_more_than_itself(size: int) -> None:
    connection = Connection(max_message_size=1 << 20)
    wire = plain_frame(0x82, bytes((1 << 20) - 1))[:-1]
    chunks = [wire[start : start + size] for start in range(0, len(wire), size)]
    tracemalloc.start()
    try:
        for chunk in chunks:
            assert connection.receive_data(chunk) == []
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.25 * (1 << 20)


# The closing handshake and the states


def test_table_leads_from_each_state_by_each_step() -> None:
    closing = {
        (OPEN, CLOSE_SENT): LOCAL_CLOSING,
        (OPEN, CLOSE_RECEIVED): REMOTE_CLOSING,
        (OPEN, RULE_BROKEN): FAILING,
        (LOCAL_CLOSING, CLOSE_RECEIVED): CLOSED,
        (LOCAL_CLOSING, RULE_BROKEN): CLOSED,
        (REMOTE_CLOSING, CLOSE_SENT): CLOSED,
        (FAILING, CLOSE_SENT): CLOSED,
    }
    for state, step in itertools.product(State, Step):
        expected = CLOSED if step is EOF else closing.get((state, step))
        assert NEXT.get((state, step)) == expected


def in_state(state: State) -> Connection:
    """Return a server's Connection that real bytes led into this state, with code 1001 or 1006."""
    connection = Connection()
    if state is LOCAL_CLOSING:
        connection.close(1001, "away")
    elif state is REMOTE_CLOSING:
        connection.receive_data(plain_frame(0x88, b"\x03\xe9away"))
    elif state is FAILING:
        connection.receive_data(b"\xff")
    elif state is CLOSED:
        connection.receive_eof()
    assert connection.state is state
    return connection


@pytest.mark.parametrize(
    ("state", "frame", "after"),
    [
        (OPEN, "88 05 0fa0 627965", LOCAL_CLOSING),
        (LOCAL_CLOSING, "", LOCAL_CLOSING),
        (REMOTE_CLOSING, "88 02 03e9", CLOSED),
        (FAILING, "88 38 03ea" + b"reserved bits 111 set, and no extension uses them here".hex(), CLOSED),
        (CLOSED, "", CLOSED),
    ],
)
def test_close_sends_one_close_frame_in_all(state: State, frame: str, after: State) -> None:
    connection = in_state(state)
    assert connection.close(4000, "bye") == bytes.fromhex(frame)
    assert connection.state is after
    assert connection.close(4000, "bye") == b""


@pytest.mark.parametrize("state", State)
def test_message_is_refused_once_our_close_is_sent(state: State) -> None:
    connection = in_state(state)
    if state in (OPEN, REMOTE_CLOSING, FAILING):
        assert connection.encode_message("a") == b"\x81\x01a"
    else:
        with pytest.raises(ConnectionClosed) as caught:
            connection.encode_message("a")
        assert caught.value.code == (1001 if state is LOCAL_CLOSING else 1006)
        assert caught.value.reason == ("away" if state is LOCAL_CLOSING else "")


@pytest.mark.parametrize("state", State)
def test_message_comes_until_the_peer_has_closed(state: State) -> None:
    events = in_state(state).receive_data(plain_frame(0x81, b"a"))
    assert events == (["a"] if state in (OPEN, LOCAL_CLOSING) else [])


@pytest.mark.parametrize("state", State)
def test_fault_tells_the_peer_in_one_close_frame_in_all(state: State) -> None:
    connection = in_state(state)
    events = connection.receive_data(b"\xff")
    assert [type(event) for event in events] == ([Failure] if state in (OPEN, LOCAL_CLOSING) else [])
    frame = connection.close()
    expected = {OPEN: b"\x03\xea", REMOTE_CLOSING: b"\x03\xe9", FAILING: b"\x03\xea"}.get(state, b"")
    assert frame[2:4] == expected
    assert connection.state is CLOSED


@pytest.mark.parametrize("state", State)
def test_eof_ends_every_state(state: State) -> None:
    connection = in_state(state)
    for _ in range(2):
        connection.receive_eof()
        assert connection.state is CLOSED
        assert connection.close_code == (1006 if state in (OPEN, FAILING, CLOSED) else 1001)
        assert connection.receive_data(plain_frame(0x81, b"a")) == []
        assert connection.close() == b""
    with pytest.raises(ConnectionClosed):
        connection.encode_message("a")


def test_eof_inside_a_message_gives_no_event() -> None:
    connection = Connection()
    assert connection.receive_data(plain_frame(0x81, b"Hello")[:-1]) == []
    connection.receive_eof()
    assert connection.receive_data(b"o") == []
    assert connection.close_code == 1006


def test_close_code_is_the_first_close_either_way() -> None:
    connection = Connection()
    connection.close(1000, "ours")
    assert connection.receive_data(plain_frame(0x88, b"\x0f\xa0theirs")) == [Close(4000, "theirs")]
    assert (connection.state, connection.close_code, connection.close_reason) == (CLOSED, 1000, "ours")


def test_peers_close_without_a_code_is_answered_without_one() -> None:
    connection = Connection()
    assert connection.receive_data(plain_frame(0x88, b"")) == [Close(1005, "")]
    assert connection.close_code == 1005
    assert connection.close(1000, "bye") == b"\x88\x00"


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("code", [999, 1005, 1006, 1015, 2000, 5000])
def test_close_refuses_a_code_that_may_not_travel(state: State, code: int) -> None:
    connection = in_state(state)
    with pytest.raises(ValueError, match=str(code)):
        connection.close(code)
    assert connection.state is state


# Sending


@pytest.mark.parametrize(
    ("message", "binary", "frame"),
    [
        ("ü", None, "81 02 c3bc"),
        ("ü", False, "81 02 c3bc"),
        ("ü", True, "82 02 c3bc"),
        (b"\xff", None, "82 01 ff"),
        (b"\xff", True, "82 01 ff"),
        (b"\xc3\xbc", False, "81 02 c3bc"),
        (bytearray(b"ab"), None, "82 02 6162"),
        (memoryview(b"abcdef")[::2], None, "82 03 616365"),
        ("", None, "81 00"),
        (b"", None, "82 00"),
    ],
)
def test_message_type_and_binary_choose_the_opcode(
    message: str | bytes | bytearray | memoryview, binary: bool | None, frame: str
) -> None:
    assert Connection().encode_message(message, binary) == bytes.fromhex(frame)


@pytest.mark.parametrize(("message", "binary"), [(b"\xff", False), ("\ud800", None), ("\ud800", True)])
def test_message_that_is_not_utf8_is_a_value_error(message: str | bytes, binary: bool | None) -> None:
    with pytest.raises(ValueError):
        Connection().encode_message(message, binary)


@pytest.mark.parametrize("message", [None, 1, ["a"], {"a": 1}])
def test_message_of_another_type_is_a_type_error(message: object) -> None:
    with pytest.raises(TypeError, match=type(message).__name__):
        Connection().encode_message(message)  # type: ignore[arg-type]


def test_ping_frame_holds_its_payload() -> None:
    assert Connection().encode_ping(b"Hello") == bytes.fromhex("89 05 48656c6c6f")


def test_ping_payload_of_126_bytes_is_a_value_error() -> None:
    assert len(Connection().encode_ping(bytes(125))) == 127
    with pytest.raises(ValueError):
        Connection().encode_ping(bytes(126))


def test_client_masks_each_frame_with_a_key_of_its_own() -> None:
    client = Connection(client=True)
    frames = [client.encode_message("Hello") for _ in range(8)]
    keys = {frame[2:6] for frame in frames}
    assert len(keys) == 8
    assert all(frame == plain_frame(0x81, b"Hello", frame[2:6]) for frame in frames)


def test_pongs_are_taken_once() -> None:
    connection = Connection()
    connection.receive_data(plain_frame(0x89, b"a", KEY))
    assert connection.take_pongs() == b"\x8a\x01a"
    assert connection.take_pongs() == b""


def test_latest_only_keeps_the_newest_pong_for_later() -> None:
    connection = Connection()
    for payload in (b"a", b"b", b"c"):
        connection.receive_data(plain_frame(0x89, payload))
        assert connection.take_pongs(latest_only=True) == b""
    assert connection.take_pongs() == b"\x8a\x01c"
    assert connection.take_pongs(latest_only=True) == b""


@pytest.mark.parametrize("end", ["eof", "fault"])
def test_no_pong_is_left_once_the_connection_is_closed(end: str) -> None:
    connection = Connection()
    connection.receive_data(plain_frame(0x89, b"a"))
    if end == "eof":
        connection.receive_eof()
    else:
        connection.receive_data(b"\xff")
        connection.close()
    assert connection.state is CLOSED
    assert connection.take_pongs() == b""


# Two Connections joined in memory


SIZES = [0, 1, 124, 125, 126, 127, 1023, 1024, 65534, 65535, 65536, 65537, 1 << 20]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("message", ["a", b"\xff"], ids=["text", "binary"])
@pytest.mark.parametrize("sender_is_client", [True, False], ids=["to server", "to client"])
def test_message_of_any_size_crosses_and_both_sides_close(
    size: int, message: str | bytes, sender_is_client: bool
) -> None:
    sender, receiver = Connection(client=sender_is_client), Connection(client=not sender_is_client)
    assert receiver.receive_data(sender.encode_message(message * size)) == [message * size]
    assert receiver.receive_data(sender.encode_ping(b"there?")) == [Ping(b"there?")]
    assert sender.receive_data(receiver.take_pongs()) == [Pong(b"there?")]
    assert receiver.receive_data(sender.close(4000, "done")) == [Close(4000, "done")]
    assert sender.receive_data(receiver.close()) == [Close(4000, "")]
    for connection in (sender, receiver):
        assert (connection.state, connection.close_code, connection.close_reason) == (CLOSED, 4000, "done")


def test_message_sent_before_the_answer_to_a_close_still_arrives() -> None:
    client, server = Connection(client=True), Connection()
    assert server.receive_data(client.close(1001)) == [Close(1001, "")]
    assert client.receive_data(server.encode_message("last") + server.close()) == ["last", Close(1001, "")]
    assert client.state is server.state is CLOSED


def test_closes_that_cross_end_both_sides() -> None:
    client, server = Connection(client=True), Connection()
    from_client, from_server = client.close(1000, "client"), server.close(1001, "server")
    assert client.receive_data(from_server) == [Close(1001, "server")]
    assert server.receive_data(from_client) == [Close(1000, "client")]
    assert client.state is server.state is CLOSED
    assert client.close() == server.close() == b""


# The limit on frames a call


def test_limits_of_every_split_give_the_same_events() -> None:
    wire = bytes.fromhex(f"81 81 {Z} 61 89 80 {Z} 01 81 {Z} 62 80 81 {Z} 63 8a 80 {Z} 82 81 {Z} 64 88 80 {Z}")
    expected = ["a", Ping(b""), "bc", Pong(b""), b"d", Close(1005, "")]
    for limits in itertools.product((1, 2, 3, 8), repeat=4):
        connection = Connection()
        events = connection.receive_data(wire, limits[0])
        for limit in itertools.chain(limits[1:], itertools.repeat(1, 7)):
            assert connection.limited or events == expected
            got = connection.receive_data(b"", limit)
            assert len(got) <= limit
            events += got
        assert events == expected
        assert not connection.limited


def test_limited_tells_whether_bytes_are_left_for_another_call() -> None:
    frame = plain_frame(0x81, b"a")
    connection = Connection()
    assert connection.receive_data(frame * 2, 1) == ["a"] and connection.limited
    assert connection.receive_data(b"", 1) == ["a"] and not connection.limited
    assert connection.receive_data(b"", 1) == [] and not connection.limited
    assert connection.receive_data(frame + frame[:3], 1) == ["a"] and connection.limited
    assert connection.receive_data(b"", 1) == [] and not connection.limited
    assert connection.receive_data(frame[3:], 1) == ["a"] and not connection.limited


@pytest.mark.parametrize("last", [plain_frame(0x88, b""), b"\xff"], ids=["close", "fault"])
def test_limited_is_over_when_the_peer_is_done(last: bytes) -> None:
    connection = Connection()
    assert len(connection.receive_data(last + plain_frame(0x81, b"a") * 3, 1)) == 1
    assert not connection.limited
    assert connection.receive_data(b"") == []


def test_limited_is_over_at_eof() -> None:
    connection = Connection()
    assert connection.receive_data(plain_frame(0x81, b"a") * 3, 1) == ["a"] and connection.limited
    connection.receive_eof()
    assert not connection.limited


def test_bytes_may_come_while_frames_still_wait() -> None:
    connection = Connection()
    events: list[Event] = []
    for number in range(10):
        events += connection.receive_data(plain_frame(0x81, b"%d" % number) * 2, 1)
    assert connection.limited
    assert events + receive(connection, [b""], 3) == [str(number) for number in range(10) for _ in range(2)]


# Any stream, any cut, any garbage


class Stream(NamedTuple):
    """Valid bytes of a client and what they mean."""

    wire: bytes
    events: list[Event]


KEYS = st.binary(min_size=4, max_size=4)
CONTROLS: st.SearchStrategy[tuple[int, bytes]] = st.tuples(
    st.sampled_from([0x89, 0x8A]), st.binary(max_size=125) | st.binary(max_size=3)
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
MESSAGES: st.SearchStrategy[str | bytes] = (
    TEXTS | st.binary(max_size=60) | st.sampled_from(["é" * 3000, b"\xfe" * 70_000])
)


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    """Messages in any fragments, control frames anywhere between, a Close or none at the end."""
    wire, events = b"", list[Event]()
    for message in draw(st.lists(MESSAGES, max_size=4)):
        payload = message.encode() if isinstance(message, str) else message
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        pieces = [payload[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(payload)])]
        for index, piece in enumerate(pieces):
            for first, control in draw(st.lists(CONTROLS, max_size=2)):
                wire += plain_frame(first, control, draw(KEYS))
                events.append(Ping(control) if first == 0x89 else Pong(control))
            opcode = 0x00 if index else 0x01 if isinstance(message, str) else 0x02
            fin = 0x80 if index == len(cuts) else 0x00
            wire += plain_frame(opcode | fin, piece, draw(KEYS))
        events.append(message)
    if draw(st.booleans()):
        wire += plain_frame(0x88, b"\x03\xe8bye", draw(KEYS))
        events.append(Close(1000, "bye"))
    return Stream(wire, events)


def cut(wire: bytes, data: st.DataObject) -> list[bytes]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=12)))
    return [wire[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(wire)])]


@bounded
@given(streams(), st.data())
def test_stream_gives_its_events_at_any_cuts_and_limits(stream: Stream, data: st.DataObject) -> None:
    connection = Connection()
    events: list[Event] = []
    for chunk in cut(stream.wire, data):
        events += connection.receive_data(chunk, data.draw(st.integers(1, 5)))
        while connection.limited and data.draw(st.booleans()):
            events += connection.receive_data(b"", data.draw(st.integers(1, 5)))
    assert events + receive(connection, [b""]) == stream.events


@st.composite
def garbage(draw: st.DrawFn) -> bytes:
    """Bytes at random, or a valid stream in which some were changed, lost or put in."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=300))
    wire = draw(streams()).wire[:2000]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(wire)))
        wire = wire[:place] + draw(st.binary(max_size=2)) + wire[place + draw(st.integers(0, 2)) :]
    return wire


@bounded
@given(garbage(), st.booleans(), st.sampled_from([1, 16, 64, 1 << 20]), st.data())
def test_garbage_gives_documented_events_at_any_cut(
    wire: bytes, client: bool, max_message_size: int, data: st.DataObject
) -> None:
    connection = Connection(client=client, max_message_size=max_message_size)
    events = receive(connection, cut(wire, data))
    for event in events:
        assert isinstance(event, str | bytes | Ping | Pong | Close | Failure)
        assert not isinstance(event, str | bytes) or len(event) <= max_message_size
    assert not any(isinstance(event, Close | Failure) for event in events[:-1])
    if events and isinstance(events[-1], Failure):
        assert events[-1].code in (1002, 1007, 1009)
    whole = Connection(client=client, max_message_size=max_message_size).receive_data(wire)
    assert [type(event) for event in events] == [type(event) for event in whole]
    assert events == whole


@pytest.mark.parametrize("cut", [6, 4095, 4096, 9001, 131_000])
def test_long_binary_message_survives_pieces_of_any_size(cut: int) -> None:
    payload = bytes(index * 7 & 0xFF for index in range(300_001))
    frame = encode_frame(BINARY, payload, masking_key=KEY)
    connection = Connection()
    pieces = [frame[start : start + cut] for start in range(0, len(frame), cut)]
    events = [event for piece in pieces for event in connection.receive_data(piece)]
    assert events == [payload]
    assert type(events[0]) is bytes
