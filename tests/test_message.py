"""Messages before they are frames: one for many, whose frame is made once for each encoding."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

import geventws
from geventws.connection import Connection
from geventws.errors import ConnectionClosed
from geventws.message import Joined, Prepared, from_json, to_json
from geventws.options import Options
from geventws.permessage_deflate import Agreement, Deflate

KEEPS, FORGETS = Agreement(False, False), Agreement(True, True)
TALK = json.dumps([{"user": "ann", "text": "the quick brown fox jumps over the lazy dog"}] * 8)
NOISE = random.Random(6455).randbytes(300)

MESSAGES: list[tuple[Any, bool | None]] = [
    ("", None), ("a", None), ("é" * 125, None), (TALK, None), (TALK, True), ("€" * 70_000, None), (b"", None),
    (b"\xff", None), (b"text", False), (bytearray(b"abc"), None), (memoryview(bytes(70_000)), None), (NOISE, None),
]  # fmt: skip


def server(agreement: Agreement | None = None, **options: Any) -> Connection:
    deflate = None if agreement is None else Deflate(agreement, Options(**options))
    return Connection(deflate=deflate)


def client(agreement: Agreement | None = None) -> Connection:
    deflate = None if agreement is None else Deflate(agreement, Options(), client=True)
    return Connection(client=True, deflate=deflate)


def test_prepared_is_a_name_of_the_package() -> None:
    assert geventws.Prepared is Prepared


@pytest.mark.parametrize("agreement", [None, FORGETS, KEEPS], ids=["plain", "forgets", "keeps"])
@pytest.mark.parametrize(("message", "binary"), MESSAGES, ids=lambda value: repr(value).partition(" at ")[0][:16])
def test_prepared_message_arrives_as_one_that_is_sent(
    message: Any, binary: bool | None, agreement: Agreement | None
) -> None:
    sent = server(agreement).encode_message(message, binary)
    prepared = server(agreement).encode_message(Prepared(message, binary))
    assert client(agreement).receive_data(prepared) == client(agreement).receive_data(sent)
    assert client(agreement).receive_data(prepared) == [Prepared(message, binary).message]


def test_mutable_bytes_are_taken_as_they_were() -> None:
    data = bytearray(b"before")
    prepared = Prepared(data)
    data[:] = b"behind"
    assert server().encode_message(prepared) == b"\x82\x06before"


@pytest.mark.parametrize("agreement", [None, FORGETS, KEEPS], ids=["plain", "forgets", "keeps"])
def test_frame_is_made_once_for_all_connections_of_an_encoding(agreement: Agreement | None) -> None:
    prepared = Prepared(TALK)
    frames = [server(agreement).encode_message(prepared) for _ in range(100)]
    assert len({id(frame) for frame in frames}) == 1


def test_frame_that_was_forgotten_is_made_again() -> None:
    prepared = Prepared(TALK)
    frame = server(FORGETS).encode_message(prepared)
    prepared.forget_frames()
    again = server(FORGETS).encode_message(prepared)
    assert again is not frame
    assert again == frame


def test_each_level_window_and_memory_level_has_a_frame_of_its_own() -> None:
    prepared = Prepared(TALK)
    plain = server().encode_message(prepared)
    assert server(FORGETS, deflate_threshold=len(TALK) + 1).encode_message(prepared) is plain
    frames = {plain}
    for level, bits, memory_level in itertools.product((1, 9), (9, 15), (1, 8)):
        options: dict[str, Any] = {"deflate_level": level, "deflate_memory_level": memory_level}
        agreement = Agreement(True, True, bits, None)
        frame = server(agreement, **options).encode_message(prepared)
        assert server(agreement, **options).encode_message(prepared) is frame
        assert client(agreement).receive_data(frame) == [TALK]
        frames.add(frame)
    assert len(frames) > 2


def test_message_that_does_not_shrink_goes_plain_to_all() -> None:
    prepared = Prepared(NOISE)
    frames = [server(agreement).encode_message(prepared) for agreement in (None, FORGETS, KEEPS)]
    assert frames[0] is frames[1] is frames[2]
    assert client(KEEPS).receive_data(frames[0]) == [NOISE]


def rounds(ours: Connection, peer: Connection) -> bool:
    """Whether the peer gets 40 rounds of messages right, of which every other one is prepared."""
    for number in range(40):
        own, for_many = f"own {number} {TALK}", f"for many {number} {TALK}"
        for message in (own, Prepared(for_many), own, Prepared(NOISE)):
            wanted = message.message if isinstance(message, Prepared) else message
            if peer.receive_data(ours.encode_message(message)) != [wanted]:
                return False
    return True


def test_context_that_is_taken_over_survives_prepared_messages() -> None:
    assert rounds(server(KEEPS), client(KEEPS))


def test_compressor_that_is_kept_behind_a_prepared_message_corrupts_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deflate, "forget_sent", lambda self: None)
    assert not rounds(server(KEEPS), client(KEEPS))


def test_context_is_kept_behind_a_prepared_message_that_went_plain() -> None:
    ours, peer = server(KEEPS), client(KEEPS)
    first = ours.encode_message(TALK)
    plain = ours.encode_message(Prepared("short"))
    again = ours.encode_message(TALK)
    assert len(again) < len(first) / 2
    assert peer.receive_data(first + plain + again) == [TALK, "short", TALK]


def test_client_masks_each_prepared_frame_with_a_key_of_its_own() -> None:
    prepared, ours = Prepared("Hello"), client()
    frames = [ours.encode_message(prepared) for _ in range(2)]
    assert frames[0][2:6] != frames[1][2:6]
    assert server().receive_data(b"".join(frames)) == ["Hello", "Hello"]


@pytest.mark.parametrize("ours", [server, client])
def test_prepared_message_is_refused_where_any_is(ours: Any) -> None:
    connection = ours()
    connection.close(1001, "away")
    with pytest.raises(ConnectionClosed, match="1001: away"):
        connection.encode_message(Prepared("late"))


@pytest.mark.parametrize("message", [None, 5, ["a"], {"a": 1}])
def test_what_is_no_message_is_refused_when_it_is_prepared(message: Any) -> None:
    with pytest.raises(TypeError, match="a message is str or bytes"):
        Prepared(message)


@pytest.mark.parametrize(("message", "binary"), [("\ud800", None), (b"\xff", False)])
def test_text_that_utf_8_cannot_carry_is_refused_when_it_is_prepared(message: Any, binary: bool | None) -> None:
    with pytest.raises(UnicodeError):
        Prepared(message, binary)


@pytest.mark.parametrize("binary", [True, False])
def test_prepared_message_cannot_change_its_kind(binary: bool) -> None:
    with pytest.raises(TypeError, match="text or binary already"):
        server().encode_message(Prepared("a"), binary)


@pytest.mark.parametrize("agreement", [None, FORGETS, KEEPS], ids=["plain", "forgets", "keeps"])
def test_joined_messages_arrive_one_by_one(agreement: Agreement | None) -> None:
    joined = Joined([Prepared(message, binary) for message, binary in MESSAGES])
    wanted = [Prepared(message, binary).message for message, binary in MESSAGES]
    ours, peer = server(agreement), client(agreement)
    for _ in range(3):
        assert peer.receive_data(ours.encode_message(joined)) == wanted
        assert peer.receive_data(ours.encode_message(TALK)) == [TALK]


def test_joined_frames_are_joined_once_for_all_connections_of_an_encoding() -> None:
    joined = Joined([Prepared(TALK), Prepared("short")])
    assert server(FORGETS).encode_message(joined) is server(FORGETS).encode_message(joined)
    assert server(FORGETS).encode_message(joined) is not server().encode_message(joined)


def test_each_joined_message_is_compressed_as_the_threshold_of_its_connection_has_it() -> None:
    joined = Joined([Prepared(TALK), Prepared("short")])
    low, high = server(FORGETS, deflate_threshold=1), server(FORGETS, deflate_threshold=len(TALK) + 1)
    assert len(low.encode_message(joined)) < len(high.encode_message(joined)) == len(server().encode_message(joined))


def test_json_that_is_nested_too_deeply_is_refused_both_ways() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ValueError, match="JSON is nested too deeply"):
        to_json(nested)
    with pytest.raises(ValueError, match="JSON is nested too deeply"):
        from_json("[" * 100_000)
