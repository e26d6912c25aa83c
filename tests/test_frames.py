"""The frame codec against the bytes of RFC 6455 and against an encoder as plain as its §5.2."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geventws.errors import InvalidPayload, ProtocolError
from geventws.frames import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Header,
    close_payload,
    encode_frame,
    parse_close,
    parse_header,
)

bounded = settings(max_examples=100, deadline=None, derandomize=os.environ.get("CI") == "true")

KEY = bytes.fromhex("37fa213d")  # the masking key of §5.7
ALLOWED_CODES = [*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)]
REFUSED_CODES = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]


def plain_mask(payload: bytes, key: bytes) -> bytes:
    """Mask as §5.3 defines it: octet i of the payload XOR octet i modulo 4 of the key."""
    return bytes(octet ^ key[index % 4] for index, octet in enumerate(payload))


def plain_frame(first: int, payload: bytes, key: bytes | None = bytes(4)) -> bytes:
    """Encode a frame as §5.2 draws it; with no key it is a server's."""
    size = len(payload)
    if size < 126:
        length = bytes([size])
    elif size < 65536:
        length = bytes([126]) + size.to_bytes(2, "big")
    else:
        length = bytes([127]) + size.to_bytes(8, "big")
    if key is None:
        return bytes([first]) + length + payload
    return bytes([first, length[0] | 0x80]) + length[1:] + key + plain_mask(payload, key)


def masked_header(length: str) -> bytes:
    """Return the header of a client's binary frame, up to its key, whose length is this hex."""
    first, *rest = bytes.fromhex(length)
    return bytes([0x82, first | 0x80, *rest])


# (what, frame as hex, fin, opcode, masking key, payload): §5.7
RFC_EXAMPLES = [
    ("unmasked text", "81 05 48656c6c6f", True, TEXT, b"", b"Hello"),
    ("masked text", "81 85 37fa213d 7f9f4d5158", True, TEXT, KEY, b"Hello"),
    ("first fragment", "01 03 48656c", False, TEXT, b"", b"Hel"),
    ("last fragment", "80 02 6c6f", True, CONTINUATION, b"", b"lo"),
    ("unmasked ping", "89 05 48656c6c6f", True, PING, b"", b"Hello"),
    ("masked pong", "8a 85 37fa213d 7f9f4d5158", True, PONG, KEY, b"Hello"),
    ("256 bytes", "82 7e 0100" + "55" * 256, True, BINARY, b"", b"\x55" * 256),
    ("64 KiB", "82 7f 0000000000010000" + "55" * 65536, True, BINARY, b"", b"\x55" * 65536),
]


@pytest.mark.parametrize(
    ("wire", "fin", "opcode", "key", "payload"), [row[1:] for row in RFC_EXAMPLES], ids=[row[0] for row in RFC_EXAMPLES]
)
def test_rfc_example_is_what_we_encode_and_parse(wire: str, fin: bool, opcode: int, key: bytes, payload: bytes) -> None:
    frame = bytes.fromhex(wire)
    assert encode_frame(opcode, payload, fin=fin, masking_key=key) == frame
    stop = len(frame) - len(payload)
    assert parse_header(frame, 0, masked=bool(key)) == Header(fin, opcode, key, len(payload), stop)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 65537])
@pytest.mark.parametrize("key", [None, KEY], ids=["server", "client"])
def test_length_takes_the_fewest_bytes(size: int, key: bytes | None) -> None:
    payload = bytes(size)
    assert encode_frame(BINARY, payload, masking_key=key or b"") == plain_frame(0x82, payload, key)


# (payload size, length as hex): both ends of each of the three encodings, §5.2
LENGTHS = [
    (0, "00"),
    (125, "7d"),
    (126, "7e 007e"),
    (65535, "7e ffff"),
    (65536, "7f 0000000000010000"),
    ((1 << 63) - 1, "7f 7fffffffffffffff"),
]


@pytest.mark.parametrize(("size", "length"), LENGTHS)
@pytest.mark.parametrize("start", [0, 3])
def test_header_is_known_once_its_length_is(size: int, length: str, start: int) -> None:
    for head, key in [(bytes.fromhex(f"82 {length}"), b""), (masked_header(length), KEY)]:
        data = bytes(start) + head
        for stop in range(start, len(data)):
            assert parse_header(data[:stop], start, masked=bool(key)) is None
        for have in range(len(key) + 1):
            expected = Header(True, BINARY, key[:have], size, len(data) + len(key))
            assert parse_header(data + key[:have], start, masked=bool(key)) == expected
        assert parse_header(data + key + b"\xff" * 20, start, masked=bool(key)) == expected


@pytest.mark.parametrize("first", range(256))
def test_first_byte_decides_on_reserved_bits_and_opcodes(first: int) -> None:
    opcode = first & 0x0F
    control_fragment = opcode >= 8 and first < 0x80
    if first & 0x70 or opcode not in {0, 1, 2, 8, 9, 10} or control_fragment:
        with pytest.raises(ProtocolError) as caught:
            parse_header(bytes([first]), 0, masked=True)
        assert caught.value.close_code == 1002
    else:
        assert parse_header(bytes([first]), 0, masked=True) is None


@pytest.mark.parametrize("first", [0x81, 0x89], ids=["text", "ping"])
@pytest.mark.parametrize("masked", [False, True])
def test_second_byte_decides_on_mask_and_control_size(first: int, masked: bool) -> None:
    for second in range(256):
        head, size, stop = bytes([first, second]), second & 0x7F, 6 if masked else 2
        if (second >= 0x80) is not masked or (first == 0x89 and size > 125):
            with pytest.raises(ProtocolError):
                parse_header(head, 0, masked=masked)
        else:
            known = Header(True, first & 0x0F, b"", size, stop) if size < 126 else None
            assert parse_header(head, 0, masked=masked) == known


# 16 bit lengths below 126, 64 bit ones below 65536 or from 2^63 on (§5.2)
WRONG_LENGTHS = [
    "7e 0000",
    "7e 007d",
    "7f 0000000000000000",
    "7f 000000000000007e",
    "7f 000000000000ffff",
    "7f 8000000000000000",
    "7f ffffffffffffffff",
]


@pytest.mark.parametrize("length", WRONG_LENGTHS)
def test_wrong_length_is_refused(length: str) -> None:
    for header, masked in [(bytes.fromhex(f"82 {length}"), False), (masked_header(length), True)]:
        with pytest.raises(ProtocolError, match="length") as caught:
            parse_header(header, 0, masked=masked)
        assert caught.value.close_code == 1002


@pytest.mark.parametrize("length", ["7e 007d", "7f 000000000000", "7f 80", "7f ff"])
def test_wrong_length_is_refused_at_the_byte_that_shows_it(length: str) -> None:
    header = masked_header(length)
    assert parse_header(header[:-1], 0, masked=True) is None
    with pytest.raises(ProtocolError, match="length"):
        parse_header(header, 0, masked=True)


@bounded
@given(st.binary(max_size=70_000), st.none() | st.binary(min_size=4, max_size=4), st.sampled_from([0x01, 0x80, 0x82]))
def test_frame_equals_the_plain_encoding(payload: bytes, key: bytes | None, first: int) -> None:
    frame = encode_frame(first & 0x0F, payload, fin=first >= 0x80, masking_key=key or b"")
    assert frame == plain_frame(first, payload, key)


# (code, reason, payload as hex): §5.5.1, §7.4
CLOSE_PAYLOADS = [
    (1000, "", "03e8"),
    (1001, "bye", "03e9 627965"),
    (1012, "Grüße", "03f4 4772c3bcc39f65"),
    (3000, "", "0bb8"),
    (4999, "€", "1387 e282ac"),
]


@pytest.mark.parametrize(("code", "reason", "wire"), CLOSE_PAYLOADS)
def test_close_payload_is_code_then_reason(code: int, reason: str, wire: str) -> None:
    assert close_payload(code, reason) == bytes.fromhex(wire)
    assert parse_close(bytes.fromhex(wire)) == (code, reason)


@pytest.mark.parametrize("code", [*ALLOWED_CODES[:14], 3999, 4000, 4999])
def test_code_that_may_travel_goes_and_comes(code: int) -> None:
    assert parse_close(close_payload(code)) == (code, "")


@pytest.mark.parametrize("code", REFUSED_CODES)
def test_code_that_may_not_travel_neither_goes_nor_comes(code: int) -> None:
    with pytest.raises(ValueError, match=str(code)):
        close_payload(code)
    with pytest.raises(ProtocolError, match=str(code)) as caught:
        parse_close(code.to_bytes(2, "big"))
    assert caught.value.close_code == 1002


@pytest.mark.parametrize("code", [-1, 65536, 10**9])
def test_code_that_two_bytes_cannot_hold_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match=str(code)):
        close_payload(code)


# The cut falls between characters: 123 bytes hold 61 of two bytes, 41 of three, 30 of four.
@pytest.mark.parametrize(
    ("reason", "kept"), [("a" * 123, 123), ("a" * 124, 123), ("ü" * 62, 61), ("€" * 42, 41), ("𝄞" * 31, 30)]
)
def test_long_reason_is_cut_between_characters(reason: str, kept: int) -> None:
    payload = close_payload(1000, reason)
    assert parse_close(payload) == (1000, reason[:kept])
    assert len(payload) <= 125


def test_empty_close_payload_reads_as_1005() -> None:
    assert parse_close(b"") == (1005, "")


@pytest.mark.parametrize("head", ["88 01", "88 81"])
def test_close_payload_of_one_byte_is_refused_in_the_header(head: str) -> None:
    with pytest.raises(ProtocolError, match="1 byte") as caught:
        parse_header(bytes.fromhex(head), 0, masked=head == "88 81")
    assert caught.value.close_code == 1002


@pytest.mark.parametrize("reason", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"ok\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"])
def test_close_reason_that_is_not_utf8_is_an_invalid_payload(reason: bytes) -> None:
    with pytest.raises(InvalidPayload) as caught:
        parse_close(b"\x03\xe8" + reason)
    assert caught.value.close_code == 1007


@bounded
@given(st.sampled_from(ALLOWED_CODES), st.text(st.characters(exclude_categories=["Cs"]), max_size=150))
def test_close_payload_round_trips_up_to_its_cut(code: int, reason: str) -> None:
    payload = close_payload(code, reason)
    parsed_code, parsed_reason = parse_close(payload)
    assert parsed_code == code
    assert reason.startswith(parsed_reason)
    assert len(payload) <= 125
    assert parsed_reason == reason or len(payload) + len(reason[len(parsed_reason)].encode()) > 125


@bounded
@given(st.binary(max_size=125))
def test_any_close_payload_parses_or_raises_a_protocol_error(payload: bytes) -> None:
    try:
        code, reason = parse_close(payload)
    except ProtocolError as exc:
        assert exc.close_code in (1002, 1007)
    else:
        assert payload == (b"" if code == 1005 else close_payload(code, reason))


@pytest.mark.parametrize(("code", "reason"), [("1000", ""), (None, ""), (1000, b"bytes"), (1000, None)])
def test_close_of_another_type_is_refused_in_words(code: Any, reason: Any) -> None:
    with pytest.raises(TypeError, match="a Close has a number and a string"):
        close_payload(code, reason)
