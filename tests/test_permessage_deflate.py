"""permessage-deflate against RFC 7692, against zlib itself and against what other libraries make of our answers."""

from __future__ import annotations

import itertools
import random
import tracemalloc
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from wsproto.extensions import PerMessageDeflate

from geventws.errors import InvalidPayload
from geventws.handshake import Extension, Request, parse_extensions, response
from geventws.options import Options
from geventws.permessage_deflate import Agreement, Deflate, forgets_to_forget, negotiate

from .test_frames import bounded

P = "permessage-deflate"
S_NO, C_NO = "server_no_context_takeover", "client_no_context_takeover"
S_BITS, C_BITS = "server_max_window_bits", "client_max_window_bits"
PLAIN = f"{P}; {S_NO}; {C_NO}"  # what the defaults answer to an offer without limits

TAIL = bytes.fromhex("0000ffff")  # §7.2.1: removed from the end of what is sent
FINAL = bytes.fromhex("0300")  # RFC 1951 §3.2.6: an empty block, the last of its stream
MEBIBYTE = 1 << 20
BITS = range(9, 16)

KEEPS = Agreement(False, False)
FORGETS = Agreement(True, True)


# Negotiation


def answer(header: str, **options: Any) -> str | None:
    """Return our Sec-WebSocket-Extensions header for a client's, None for none."""
    agreement = negotiate(parse_extensions(header), Options(**options))
    return None if agreement is None else str(agreement)


ACCEPTED = [
    ("7.1", P, PLAIN),
    ("7.1.1.1", f"{P}; {S_NO}", PLAIN),
    ("7.1.1.2", f"{P}; {C_NO}", PLAIN),
    ("7.1.1", f"{P}; {C_NO}; {S_NO}", PLAIN),
    *(("7.1.2.1", f"{P}; {S_BITS}={bits}", f"{PLAIN}; {S_BITS}={bits}") for bits in BITS),
    *(("7.1.2.2", f"{P}; {C_BITS}={bits}", f"{PLAIN}; {C_BITS}={bits}") for bits in range(8, 15)),
    ("7.1.2.2", f"{P}; {C_BITS}=15", PLAIN),
    ("7.1.2.2", f"{P}; {C_BITS}", PLAIN),
    ("7.1.2", f"{P}; {C_BITS}=9; {S_BITS}=10", f"{PLAIN}; {S_BITS}=10; {C_BITS}=9"),
    ("7.1.2", f"{P}; {C_BITS}; {S_BITS}=15", f"{PLAIN}; {S_BITS}=15"),
    ("7.1.3", f"{P}; {C_BITS}; {S_BITS}=10; {S_NO}; {C_NO}", f"{PLAIN}; {S_BITS}=10"),
    ("5.1", f'{P}; {S_BITS}="10"', f"{PLAIN}; {S_BITS}=10"),
    ("5.1", rf'{P}; {C_BITS}="1\0"', f"{PLAIN}; {C_BITS}=10"),
    ("5.1", f"\t,, {P} ;\t{S_BITS} = 12 ,", f"{PLAIN}; {S_BITS}=12"),
]


@pytest.mark.parametrize(("section", "offer", "wanted"), ACCEPTED, ids=[row[1] for row in ACCEPTED])
def test_offer_is_answered_with_this_header(section: str, offer: str, wanted: str) -> None:
    assert answer(offer) == wanted


# What declines an offer: §7.1 "declines" each unknown name, invalid value and duplicate.
DECLINED = [
    *(f"{bits}={value}" for bits in (S_BITS, C_BITS) for value in ("0", "1", "7", "16", "99", "08", "010", "015")),
    *(f"{bits}={value}" for bits in (S_BITS, C_BITS) for value in ("+9", "-9", "9.0", "1e1", "0xA", "true", "1_0")),
    S_BITS,
    f"{S_BITS}=8",  # valid, but zlib cannot compress for it
    *(f"{flag}={value}" for flag in (S_NO, C_NO) for value in ("true", "1", "0", "15", '"true"')),
    *(f"{flag}; {flag}" for flag in (S_NO, C_NO, C_BITS)),
    *(f"{bits}=10; {bits}=10" for bits in (S_BITS, C_BITS)),
    f"{C_BITS}; {C_BITS}=10",
    f"{S_BITS}=10; {S_BITS}=11",
    "unknown",
    "unknown=1",
    S_NO.upper(),
    "Client_max_window_bits=10",
    "server_max_window_size=10",
    f"{S_NO}; {C_NO}; {S_BITS}=10; {C_BITS}; and_more",
]  # fmt: skip


@pytest.mark.parametrize("parameters", DECLINED)
def test_offer_with_this_is_declined_and_the_next_one_taken(parameters: str) -> None:
    assert answer(f"{P}; {parameters}") is None
    assert answer(f"{P}; {parameters}", deflate_context_takeover=True, deflate_window_bits=9) is None
    assert answer(f"{P}; {S_BITS}=11; {parameters}, {P}; {S_BITS}=12") == f"{PLAIN}; {S_BITS}=12"


OTHERS = ["permessage-bzip2", "Permessage-Deflate", "x-webkit-deflate-frame", "permessage-deflate-2", "permessage"]


@pytest.mark.parametrize("other", OTHERS)
def test_other_extensions_are_passed_over(other: str) -> None:
    assert answer(other) is None
    assert answer(f"{other}; {S_BITS}=7, {P}; {S_BITS}=9, {other}") == f"{PLAIN}; {S_BITS}=9"


def test_first_acceptable_offer_wins() -> None:
    assert answer(f"{P}; {S_BITS}=9, {P}; {S_BITS}=10, {P}") == f"{PLAIN}; {S_BITS}=9"
    assert answer(f"{P}; x, {P}; {S_BITS}=16, {P}; {C_BITS}=10, {P}") == f"{PLAIN}; {C_BITS}=10"
    assert answer(f"{P}; x, {P}; y") is None


# (offer, options, answer): what the options ask for beyond the offer, or the offer beyond them
OPTIONAL = [
    (P, {"deflate_context_takeover": True}, P),
    (f"{P}; {S_NO}", {"deflate_context_takeover": True}, f"{P}; {S_NO}"),
    (f"{P}; {C_NO}", {"deflate_context_takeover": True}, f"{P}; {C_NO}"),
    (f"{P}; {C_NO}; {S_NO}", {"deflate_context_takeover": True}, PLAIN),
    (f"{P}; {C_BITS}", {"deflate_context_takeover": True}, P),
    (P, {"deflate_window_bits": 10}, f"{PLAIN}; {S_BITS}=10"),
    (f"{P}; {S_BITS}=9", {"deflate_window_bits": 10}, f"{PLAIN}; {S_BITS}=9"),
    (f"{P}; {S_BITS}=10", {"deflate_window_bits": 10}, f"{PLAIN}; {S_BITS}=10"),
    (f"{P}; {S_BITS}=15", {"deflate_window_bits": 10}, f"{PLAIN}; {S_BITS}=10"),
    (f"{P}; {C_BITS}", {"deflate_window_bits": 10}, f"{PLAIN}; {S_BITS}=10; {C_BITS}=10"),
    (f"{P}; {C_BITS}=15", {"deflate_window_bits": 10}, f"{PLAIN}; {S_BITS}=10; {C_BITS}=10"),
    (f"{P}; {C_BITS}=8", {"deflate_window_bits": 10}, f"{PLAIN}; {S_BITS}=10; {C_BITS}=8"),
    (f"{P}; {C_BITS}=9; {S_BITS}=9", {"deflate_window_bits": 10}, f"{PLAIN}; {S_BITS}=9; {C_BITS}=9"),
    (P, {"deflate_window_bits": 9, "deflate_context_takeover": True}, f"{P}; {S_BITS}=9"),
    (P, {"deflate": False}, None),
    (f"{P}; {S_NO}, {P}", {"deflate": False, "deflate_context_takeover": True}, None),
]


@pytest.mark.parametrize(("offer", "options", "wanted"), OPTIONAL)
def test_options_decide_where_the_offer_leaves_the_choice(
    offer: str, options: dict[str, Any], wanted: str | None
) -> None:
    assert answer(offer, **options) == wanted


def test_answer_is_a_header_of_the_response() -> None:
    request = Request("dGhlIHNhbXBsZSBub25jZQ==", (), parse_extensions(f"{P}; {C_BITS}; {S_BITS}=12"))
    agreement = negotiate(request.extensions, Options())
    head = response(request, extensions=str(agreement))
    assert head.count(b"\r\nSec-WebSocket-Extensions: ") == 1
    assert f"\r\nSec-WebSocket-Extensions: {PLAIN}; {S_BITS}=12\r\n".encode() in head
    assert b"Extensions" not in response(request)


Parameters = Sequence[tuple[str, str | None]]


def is_acceptable(parameters: Parameters) -> bool:
    """Whether an offer is valid by §7.1, and one that zlib can serve."""
    names = [name for name, _ in parameters]
    valid: dict[str, set[str | None]] = {
        S_NO: {None},
        C_NO: {None},
        S_BITS: {"9", "10", "11", "12", "13", "14", "15"},
        C_BITS: {None, "8", "9", "10", "11", "12", "13", "14", "15"},
    }
    return len(names) == len(set(names)) and all(value in valid.get(name, set()) for name, value in parameters)


def check_answer(offer: Parameters, header: str) -> None:
    """Fail unless header is an answer to an acceptable offer that §7.1 allows."""
    asked = dict(offer)
    ((name, parameters),) = parse_extensions(header)
    told = dict(parameters)
    assert name == P and len(told) == len(parameters) and told.keys() <= {S_NO, C_NO, S_BITS, C_BITS}
    assert told.get(S_NO) is None and told.get(C_NO) is None
    if S_NO in asked:
        assert S_NO in told  # §7.1.1.1
    if S_BITS in told:
        assert int(told[S_BITS] or "") in BITS
    if S_BITS in asked:
        assert int(told[S_BITS] or "") <= int(asked[S_BITS] or "")  # §7.1.2.1: "the same or smaller"
    if C_BITS in told:
        assert C_BITS in asked  # §7.1.2.2: "MUST NOT include" it otherwise
        assert int(told[C_BITS] or "") in range(8, 16)
        assert int(told[C_BITS] or "") <= int(asked[C_BITS] or "15")


VALUES = [None, *map(str, range(7, 17)), "08", "x"]
good_parameters = st.lists(
    st.sampled_from([(S_NO, None), (C_NO, None)])
    | st.tuples(st.just(S_BITS), st.sampled_from([str(bits) for bits in BITS]))
    | st.tuples(st.just(C_BITS), st.sampled_from([None, *map(str, range(8, 16))])),
    max_size=4,
    unique_by=lambda parameter: parameter[0],
)
any_parameters = st.lists(
    st.tuples(st.sampled_from([S_NO, C_NO, S_BITS, C_BITS, "unknown"]), st.sampled_from(VALUES)), max_size=4
)
settings_of_negotiation = st.builds(
    Options, deflate_context_takeover=st.booleans(), deflate_window_bits=st.sampled_from(BITS)
)


@bounded
@given(
    st.lists(st.tuples(st.sampled_from([P, P, P, "other"]), good_parameters | any_parameters), max_size=4),
    settings_of_negotiation,
)
def test_answer_is_one_that_the_first_acceptable_offer_allows(
    offers: list[tuple[str, list[tuple[str, str | None]]]], options: Options
) -> None:
    agreement = negotiate([Extension(name, tuple(parameters)) for name, parameters in offers], options)
    first = next((parameters for name, parameters in offers if name == P and is_acceptable(parameters)), None)
    assert (agreement is None) == (first is None)
    if first is not None:
        check_answer(first, str(agreement))
        assert agreement == negotiate([(P, first)], options)


TAKEOVERS = list(itertools.product((False, True), repeat=2))
ALL_OPTIONS = [
    Options(deflate_context_takeover=takes_over, deflate_window_bits=bits)
    for takes_over in (False, True)
    for bits in BITS
]


@pytest.mark.parametrize("server_bits", [None, *range(8, 16)])
@pytest.mark.parametrize("client_bits", [None, True, *BITS])
def test_websockets_takes_every_answer_to_its_own_offer(server_bits: int | None, client_bits: Any) -> None:
    for (server_forgets, client_forgets), options in itertools.product(TAKEOVERS, ALL_OPTIONS):
        factory = ClientPerMessageDeflateFactory(server_forgets, client_forgets, server_bits, client_bits)
        agreement = negotiate([(P, factory.get_request_params())], options)
        if server_bits == 8:
            assert agreement is None
            continue
        assert agreement is not None
        ((_, parameters),) = parse_extensions(str(agreement))
        theirs: Any = factory.process_response_params(parameters, [])
        assert theirs.remote_no_context_takeover is agreement.server_no_context_takeover
        assert theirs.local_no_context_takeover or not agreement.client_no_context_takeover
        assert theirs.remote_max_window_bits == (agreement.server_max_window_bits or 15)
        assert theirs.local_max_window_bits <= (agreement.client_max_window_bits or 15)


@pytest.mark.parametrize("server_bits", BITS)
@pytest.mark.parametrize("client_bits", BITS)
def test_wsproto_takes_every_answer_to_its_own_offer(server_bits: int, client_bits: int) -> None:
    for (server_forgets, client_forgets), options in itertools.product(TAKEOVERS, ALL_OPTIONS):
        theirs = PerMessageDeflate(client_forgets, client_bits, server_forgets, server_bits)
        agreement = negotiate(parse_extensions(f"{P}; {theirs.offer()}"), options)
        assert agreement is not None
        theirs.finalize(str(agreement))
        assert theirs.server_no_context_takeover is agreement.server_no_context_takeover
        assert theirs.client_no_context_takeover is agreement.client_no_context_takeover
        assert theirs.server_max_window_bits == agreement.server_max_window_bits
        assert theirs.client_max_window_bits <= (agreement.client_max_window_bits or 15)


# The examples of the RFC

# (section, payload as hex, message)
EXAMPLES = [
    ("7.2.3.1", "f2 48 cd c9 c9 07 00", b"Hello"),
    ("7.2.3.3 without compression", "00 05 00 fa ff 48 65 6c 6c 6f 00", b"Hello"),
    ("7.2.3.4 BFINAL is set", "f3 48 cd c9 c9 07 00 00", b"Hello"),
    ("7.2.3.5 two blocks", "f2 48 05 00 00 00 ff ff ca c9 c9 07 00", b"Hello"),
    ("7.2.3.6 empty", "00", b""),
]
HELLO, AGAIN = bytes.fromhex(EXAMPLES[0][1]), bytes.fromhex("f200110000")  # §7.2.3.2: "Hello" once more


def pieces_of(payload: bytes) -> list[list[bytes]]:
    """Return a payload whole, in two at every cut, and byte by byte."""
    halves = [[payload[:cut], payload[cut:]] for cut in range(len(payload) + 1)]
    return [[payload], *halves, [bytes([octet]) for octet in payload]]


def inflate(deflate: Deflate, pieces: Sequence[bytes], most: int = 1 << 30) -> bytes:
    """Return what the pieces of one message inflate to together."""
    data = b""
    for piece in pieces[:-1]:
        data += deflate.inflate(piece, most - len(data), last=False)
    return data + deflate.inflate(pieces[-1], most - len(data), last=True)


@pytest.mark.parametrize("agreement", [KEEPS, FORGETS], ids=["context takeover", "no context takeover"])
@pytest.mark.parametrize(("section", "payload", "message"), EXAMPLES, ids=[row[0] for row in EXAMPLES])
def test_rfc_example_is_inflated_at_every_cut(section: str, payload: str, message: bytes, agreement: Agreement) -> None:
    for client in (False, True):
        deflate = Deflate(agreement, Options(), client=client)
        for pieces in pieces_of(bytes.fromhex(payload)):
            assert inflate(deflate, pieces) == message


def test_rfc_example_of_takeover_needs_the_message_before() -> None:
    for pieces in pieces_of(AGAIN):
        deflate = Deflate(KEEPS, Options())
        assert inflate(deflate, [HELLO]) == b"Hello"
        assert inflate(deflate, pieces) == b"Hello"
        forgetful = Deflate(FORGETS, Options())
        assert inflate(forgetful, [HELLO]) == b"Hello"
        with pytest.raises(InvalidPayload):
            inflate(forgetful, pieces)


def test_rfc_examples_are_what_we_send() -> None:
    deflate = Deflate(KEEPS, Options())
    assert [deflate.compress(b"Hello"), deflate.compress(b"Hello")] == [HELLO, AGAIN]  # §7.2.3.1, §7.2.3.2


def test_window_ends_with_a_stream_inside_a_message() -> None:
    """Behind BFINAL (§7.2.3.4) a new stream begins, and what it refers to must be its own."""
    deflate = Deflate(KEEPS, Options())
    assert inflate(deflate, [bytes.fromhex("f348cdc9c9070000")]) == b"Hello"
    with pytest.raises(InvalidPayload):
        inflate(deflate, [AGAIN])


# Round trips


def zlib_payload(data: bytes, *, level: int = 9, bits: int = 15, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """Return the payload of a peer that compresses one message as it likes."""
    return flushed(zlib.compressobj(level, zlib.DEFLATED, -bits, 9, strategy), data)


def flushed(compressor: Any, data: bytes) -> bytes:
    """Return a payload as §7.2.1 makes it."""
    payload: bytes = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return payload[: -len(TAIL)]


agreements = st.builds(
    Agreement,
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, *BITS]),
    st.sampled_from([None, *BITS]),
)
settings_of_zlib = st.builds(
    Options, deflate_level=st.integers(1, 9), deflate_memory_level=st.integers(1, 9), deflate_threshold=st.just(1)
)
NOISE = random.Random(7692).randbytes(50_000)
# Words that repeat within and across messages, near and far.
words = st.sampled_from([b"", b"a", b"hello ", NOISE[:50], NOISE[:600], NOISE[1000:3100], NOISE, b"\0" * 5000])
payloads = st.binary(max_size=200) | st.lists(words, max_size=6).map(b"".join)


def cut(payload: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Return payload in pieces; cuts are thousandths of it."""
    places = [0, *sorted(len(payload) * place // 1000 for place in cuts), len(payload)]
    return [payload[start:stop] for start, stop in itertools.pairwise(places)]


cuts = st.lists(st.integers(0, 1000), max_size=4)


@bounded
@given(agreements, settings_of_zlib, st.booleans(), st.lists(payloads, max_size=5), cuts)
def test_what_one_end_compresses_the_other_inflates(
    agreement: Agreement, options: Options, from_client: bool, messages: list[bytes], cuts: list[int]
) -> None:
    sender, receiver = (Deflate(agreement, options, client=client) for client in (from_client, not from_client))
    for message in messages:
        compressed = sender.compress(message)
        if compressed is not None:
            assert inflate(receiver, cut(compressed, cuts)) == message


@bounded
@given(agreements, settings_of_zlib, st.booleans(), st.lists(payloads, max_size=5))
def test_zlib_inflates_what_we_compress_within_the_window_agreed(
    agreement: Agreement, options: Options, client: bool, messages: list[bytes]
) -> None:
    forgets, _, bits, _ = agreement if not client else (agreement[1], None, agreement[3], None)
    deflate = Deflate(agreement, options, client=client)
    inflater = zlib.decompressobj(-(bits or 15))
    for message in messages:
        compressed = deflate.compress(message)
        if compressed is not None:
            inflater = zlib.decompressobj(-(bits or 15)) if forgets else inflater
            assert inflater.decompress(compressed + TAIL) == message
            assert not inflater.eof and not inflater.unused_data


def inflate_strictly(inflater: Any, payload: bytes) -> bytes:
    """Inflate in steps so small that zlib has nothing to look back at but its window."""
    data = b""
    for octet in payload + TAIL:
        rest = bytes([octet])
        while rest:
            data += inflater.decompress(rest, 16)
            rest = inflater.unconsumed_tail
    while piece := inflater.decompress(b"", 16):
        data += piece
    return data


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("keeps", [False, True], ids=["no context takeover", "context takeover"])
@pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
def test_window_is_used_and_never_passed(bits: int, keeps: bool, client: bool) -> None:
    near, far = NOISE[: 1 << bits - 2], NOISE[-(1 << bits) :]
    agreement = Agreement(not keeps, not keeps, *((None, bits) if client else (bits, None)))
    deflate = Deflate(agreement, Options(), client=client)
    inflater = zlib.decompressobj(-bits)
    for message in (near * 4, far + near + far, near):
        compressed = deflate.compress(message)
        if compressed is not None:
            inflater = inflater if keeps else zlib.decompressobj(-bits)
            assert inflate_strictly(inflater, compressed) == message
        used = compressed is not None and len(compressed) < 0.6 * len(message)
        assert used == (message == near * 4)


@pytest.mark.parametrize("bits", range(9, 15))
def test_window_kept_for_the_peer_is_the_one_agreed(bits: int) -> None:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflate = Deflate(Agreement(False, False, client_max_window_bits=bits), Options())
    for message in (NOISE[: 1 << bits], NOISE[-300:]):
        assert inflate(deflate, [flushed(compressor, message)]) == message
    with pytest.raises(InvalidPayload, match="corrupt"):
        inflate(deflate, [flushed(compressor, NOISE[:100])])


def test_window_of_8_bits_is_inflated_from_a_zlib_that_took_9() -> None:
    block = NOISE[:240]
    deflate = Deflate(Agreement(client_max_window_bits=8), Options())
    assert inflate(deflate, [zlib_payload(block * 4, bits=9)]) == block * 4


def test_message_that_would_not_shrink_is_not_compressed() -> None:
    deflate = Deflate(FORGETS, Options())
    assert deflate.compress(b"") is None
    assert deflate.compress(b"Hello") is None
    assert deflate.compress(NOISE) is None
    assert len(deflate.compress(NOISE + b"\0" * 300) or b"") < len(NOISE) + 300


def test_context_that_is_taken_over_holds_every_message_but_an_empty_one() -> None:
    deflate, inflater = Deflate(KEEPS, Options()), zlib.decompressobj(-15)
    assert deflate.compress(b"") is None
    for message in (NOISE, b"Hello", NOISE):
        compressed = deflate.compress(message)
        assert compressed is not None and inflater.decompress(compressed + TAIL) == message
    assert deflate.compress(b"") is None
    assert len(deflate.compress(NOISE[-5000:]) or b"") < 200


# Compressors are used again, by whichever connection comes next


@bounded
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([None, 9, 15]), st.sampled_from([1, 3]), payloads),
        min_size=2,
        max_size=12,
    )
)
def test_no_message_refers_to_one_of_another_connection(rows: list[tuple[int, int | None, int, bytes]]) -> None:
    connections: dict[Any, Deflate] = {}
    for number, bits, level, message in rows:
        key = number, bits, level
        if key not in connections:
            agreement = Agreement(server_max_window_bits=bits)
            connections[key] = Deflate(agreement, Options(deflate_level=level))
        compressed = connections[key].compress(message)
        if compressed is not None:
            assert zlib.decompressobj(-(bits or 15)).decompress(compressed + TAIL) == message


def test_secret_of_one_connection_does_not_shorten_the_message_of_another() -> None:
    secret = NOISE[:500]
    first, second = Deflate(FORGETS, Options()), Deflate(FORGETS, Options())
    alone = second.compress(secret + b"\0" * 500)
    assert first.compress(secret * 3) is not None
    assert second.compress(secret + b"\0" * 500) == alone


def test_connection_without_takeover_holds_no_zlib_state_between_messages() -> None:
    message = NOISE[:2000] * 2
    payload = zlib_payload(message)
    held = {}
    for agreement in (FORGETS, KEEPS):
        warm = Deflate(agreement, Options())
        assert warm.compress(message) and inflate(warm, [payload]) == message
        tracemalloc.start()
        try:
            connections = [Deflate(agreement, Options()) for _ in range(10)]
            for deflate in connections:
                assert deflate.compress(message) and inflate(deflate, [payload]) == message
            held[agreement], _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert held[FORGETS] < 10 * 500
    assert held[KEEPS] > 10 * 100_000


# What is inflated is bounded


BOMB = zlib_payload(bytes(64 * MEBIBYTE))  # 64 MiB in 64 KiB


def test_bomb_has_a_ratio_of_a_thousand() -> None:
    assert 1000 * len(BOMB) < 64 * MEBIBYTE


@pytest.mark.parametrize("agreement", [KEEPS, FORGETS], ids=["context takeover", "no context takeover"])
@pytest.mark.parametrize("most", [1, 2, 1000, 65_536, MEBIBYTE])
@pytest.mark.parametrize("size", [len(BOMB), 1000, 1], ids="in pieces of {}".format)
def test_bomb_is_cut_off_at_the_limit(agreement: Agreement, most: int, size: int) -> None:
    deflate = Deflate(agreement, Options())
    pieces = [BOMB[start : start + size] for start in range(0, len(BOMB), size)]
    received = 0
    tracemalloc.start()
    try:
        for piece in pieces:
            received += len(deflate.inflate(piece, most - received, last=piece is pieces[-1]))
            if received == most:
                break
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert received == most
    assert peak < 2 * most + 4 * 65_536  # zlib gives its output in blocks and joins them; its window; the rest of BOMB


def test_bomb_of_bombs_is_inflated_once() -> None:
    packed = zlib_payload(BOMB)
    assert len(packed) < 1000
    assert inflate(Deflate(FORGETS, Options()), [packed], MEBIBYTE) == BOMB


def test_bomb_of_streams_is_cut_off_at_the_limit() -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    final = stream.compress(bytes(MEBIBYTE)) + stream.flush(zlib.Z_FINISH)
    deflate = Deflate(FORGETS, Options())
    assert len(inflate(deflate, [final * 15 + b"\0"], 3 * MEBIBYTE + 5)) == 3 * MEBIBYTE + 5


@bounded
@given(payloads, cuts, st.integers(1, 70_000), st.booleans())
def test_never_more_than_asked_for_and_always_a_prefix(message: bytes, cuts: list[int], most: int, keeps: bool) -> None:
    deflate = Deflate(KEEPS if keeps else FORGETS, Options())
    received = b""
    *pieces, last = cut(zlib_payload(message), cuts)
    for piece in pieces:
        if len(received) < most:
            received += deflate.inflate(piece, most - len(received), last=False)
    if len(received) < most:
        received += deflate.inflate(last, most - len(received), last=True)
    assert received == message[:most]


@pytest.mark.parametrize("agreement", [KEEPS, FORGETS], ids=["context takeover", "no context takeover"])
def test_message_may_have_sixteen_streams(agreement: Agreement) -> None:
    deflate = Deflate(agreement, Options())
    for _ in range(3):  # each message for itself
        assert inflate(deflate, [FINAL * 15 + b"\0"]) == b""
        assert inflate(deflate, [FINAL] * 15 + [b"\0"]) == b""
    for pieces in ([FINAL * 16 + b"\0"], [FINAL] * 16 + [b"\0"], [FINAL * 5] * 5 + [b"\0"], [FINAL * 30_000]):
        with pytest.raises(InvalidPayload, match="16"):
            inflate(Deflate(agreement, Options()), pieces)


# What is no whole message


def reference(payload: bytes) -> bytes | None:
    """Return the message of a payload, None if it is none.

    A message is DEFLATE streams end to end; §7.2.2 gives it the four bytes that did not travel, and behind
    them an empty final block must end the last stream.
    """
    rest, data = payload + TAIL + FINAL, b""
    for _ in range(16):
        inflater = zlib.decompressobj(-15)
        try:
            data += inflater.decompress(rest)
        except zlib.error:
            return None
        if not inflater.eof:
            return None
        rest = inflater.unused_data
        if not rest:
            return data
    return None


def message_of(pieces: Sequence[bytes], agreement: Agreement) -> bytes | None:
    """Return what pieces inflate to, None where they are refused."""
    try:
        return inflate(Deflate(agreement, Options()), pieces)
    except InvalidPayload:
        return None


blocks = st.lists(
    st.sampled_from([
        HELLO,
        b"\0",
        TAIL,
        b"\0" + TAIL,
        FINAL,
        bytes.fromhex("f348cdc9c90700"),
        bytes.fromhex("000500faff48656c6c6f"),
        bytes.fromhex("010500faff48656c6c6f"),
        zlib_payload(NOISE[:300] * 3),
    ])
    | st.binary(max_size=4),
    max_size=8,
).map(b"".join)  # fmt: skip


@bounded
@given(blocks, cuts)
@example(b"", [])
@example(bytes.fromhex("000900f6ff48656c6c6f"), [])  # a block without its last 4 bytes
@example(bytes.fromhex("010900f6ff48656c6c6f"), [])  # the same with BFINAL
@example(bytes.fromhex("f248cdc9c90704"), [])  # the empty block at the end has BFINAL
@example(bytes.fromhex("f348cdc9c90700"), [500])  # BFINAL, and no empty block behind it
def test_any_bytes_are_the_message_they_stand_for_or_refused(payload: bytes, cuts: list[int]) -> None:
    wanted = reference(payload)
    assert message_of(cut(payload, cuts), FORGETS) == wanted
    assert message_of(cut(payload, cuts), KEEPS) == wanted


STORED = zlib_payload(NOISE[:60], level=0)
FIXED = zlib_payload(b"to be or not to be, that is", strategy=zlib.Z_FIXED)
DYNAMIC = zlib_payload("".join(chr(97 + octet % 7) for octet in NOISE[:400]).encode())
TWO_BLOCKS = bytes.fromhex(EXAMPLES[3][1])


@pytest.mark.parametrize(("payload", "accepted"), [
    (HELLO, {}),
    (FIXED, {}),
    (DYNAMIC, {}),
    # The first byte alone is the header of an empty block; and four bytes before its end, those that did not
    # travel are taken for what the block still lacks.
    (STORED, {1: b"", len(STORED) - 5: NOISE[:56] + TAIL}),
    # Cut in front of the four bytes of its inner empty block: the first block alone.
    (TWO_BLOCKS, {4: b"He"}),
], ids=["hello", "fixed codes", "dynamic codes", "stored", "two blocks"])  # fmt: skip
def test_truncated_message_is_refused_but_where_a_block_ends(payload: bytes, accepted: dict[int, bytes]) -> None:
    for agreement in (FORGETS, KEEPS):
        cuts = range(len(payload))
        messages = {stop: message_of([payload[:stop]], agreement) for stop in cuts}
        assert {stop: message for stop, message in messages.items() if message is not None} == accepted


@pytest.mark.parametrize("payload", [HELLO, STORED, FIXED, DYNAMIC, TWO_BLOCKS], ids=len)
def test_every_flipped_bit_gives_another_message_or_is_refused(payload: bytes) -> None:
    refused = 0
    for bit in range(8 * len(payload)):
        octets = bytearray(payload)
        octets[bit // 8] ^= 1 << bit % 8
        messages = {message_of(pieces, agreement)
                    for pieces in ([bytes(octets)], [bytes(octets[:5]), bytes(octets[5:])])
                    for agreement in (FORGETS, KEEPS)}  # fmt: skip
        assert messages == {reference(bytes(octets))}
        refused += messages == {None}
    assert refused


@pytest.mark.parametrize("garbage", [b"\xff", b"\x07", b"garbage", b"\x00\x01", TAIL, b"\x00" * 5])
def test_garbage_behind_the_message_is_refused(garbage: bytes) -> None:
    for agreement in (FORGETS, KEEPS):
        assert message_of([HELLO], agreement) == b"Hello"
        assert message_of([HELLO + garbage], agreement) is None
        assert message_of([HELLO, garbage], agreement) is None
        assert message_of([bytes.fromhex("f348cdc9c90700") + garbage], agreement) is None


@bounded
@given(st.binary(max_size=300), cuts, st.integers(1, 1000), st.booleans())
def test_any_bytes_raise_nothing_but_invalid_payload(data: bytes, cuts: list[int], most: int, keeps: bool) -> None:
    deflate = Deflate(KEEPS if keeps else FORGETS, Options())
    left = most
    try:
        for piece in cut(data, cuts):
            left -= len(deflate.inflate(piece, left, last=False))
            assert left >= 0
            if not left:
                break
    except InvalidPayload as exc:
        assert exc.close_code == 1007


MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit"
PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS %s like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"


@pytest.mark.parametrize(
    ("agent", "is_broken"),
    [
        (f"{MAC}/605.1.15 (KHTML, like Gecko) Version/15.1 Safari/605.1.15", True),
        (PHONE % "15_0" + " Version/15.0 Mobile/15E148 Safari/604.1", True),
        (PHONE % "15_4" + " CriOS/99.0 Mobile/15E148 Safari/604.1", True),
        (f"{MAC}/605.1.15 (KHTML, like Gecko) Version/14.1 Safari/605.1.15", False),
        (f"{MAC}/605.1.15 (KHTML, like Gecko) Version/16.0 Safari/605.1.15", False),
        (f"{MAC}/537.36 (KHTML, like Gecko) Chrome/115.0.0.0 Safari/537.36", False),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:115.0) Gecko/20100101 Firefox/115.0", False),
        ("", False),
    ],
)
def test_client_that_looks_back_against_its_word_is_told_by_its_name(agent: str, is_broken: bool) -> None:
    assert forgets_to_forget(agent) is is_broken
