"""The envelope: names, what is told of a person, and what is added to JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from geventws import Rooms
from geventws.rooms.envelope import Message, content, member_value, parse_member, parse_message

from .pairs import Opener, received

pytestmark = pytest.mark.usefixtures("errors")


@pytest.mark.parametrize("info", [object(), "x" * 4095, float("nan")])
def test_info_is_a_little_json(rooms: Rooms, opened: Opener, info: Any) -> None:
    ws, _ = opened()
    with pytest.raises((TypeError, ValueError)):
        rooms["lobby"].join(ws, user="ann", info=info)
    assert list(rooms["lobby"]) == []


NAMES = ["a", " ", "a b", "{a}:b*?[c]", "../../etc", "\x00\r\n", "😀" * 50, "x" * 200]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:12])
def test_any_name_of_1_to_200_bytes_is_a_room_and_a_user(rooms: Rooms, opened: Opener, name: str) -> None:
    ws, peer = opened()
    rooms[name].join(ws, user=name)
    rooms[name].broadcast("room")
    rooms.user(name).broadcast("user")
    assert sorted(received(peer, 2)) == ["room", "user"]
    assert rooms[name] is rooms[name]


@pytest.mark.parametrize("name", ["", "x" * 201, "😀" * 51, "\ud800", 5, None, b"a"])
def test_what_is_no_name_is_refused(rooms: Rooms, opened: Opener, name: Any) -> None:
    ws, _ = opened()
    calls: list[Callable[[], object]] = [lambda: rooms[name], lambda: rooms.user(name)]
    if name is not None:
        calls.append(lambda: rooms["lobby"].join(ws, user=name))
    for call in calls:
        with pytest.raises((TypeError, ValueError)):
            call()


def test_kept_objects_arrive_with_their_id_and_position(rooms: Rooms, opened: Opener) -> None:
    ws, peer = opened()
    room = rooms["lobby"]
    room.join(ws)
    positions = [room.broadcast_json(obj) for obj in ({"text": "hé"}, {})]
    first, second = (json.loads(str(text)) for text in received(peer, 2))
    assert first.pop("text") == "hé"
    assert [first.pop("at"), second.pop("at")] == positions
    assert first.pop("id") != second.pop("id")
    assert first == second == {}


def test_objects_that_are_not_kept_and_what_is_no_object_arrive_as_they_are(rooms: Rooms, opened: Opener) -> None:
    ws, peer = opened()
    room = rooms["lobby"]
    room.join(ws)
    assert room.broadcast_json({"id": 1, "at": 2}, keep=False) is None
    room.broadcast_json([1, "{}"])
    room.broadcast_json("{}")
    assert received(peer, 3) == ['{"id":1,"at":2}', '[1,"{}"]', '"{}"']


@pytest.mark.parametrize("key", ["id", "at"])
def test_an_object_that_has_a_key_which_is_added_is_refused(rooms: Rooms, key: str) -> None:
    with pytest.raises(ValueError, match=f'gets the key "{key}" added'):
        rooms["lobby"].broadcast_json({key: 1})
    assert rooms["lobby"].history() == []


# Over a bus


@pytest.mark.parametrize("kind", "tbjkc+-*")
def test_a_message_is_what_was_packed(kind: str) -> None:
    data = content(kind, "é\n {}".encode(), ["abcdefabcdef-1", "no id", "abcdefabcdef-2", "a\nb-1"])
    message = parse_message(b"5-1 4-0 abcdefabcdef-7 99 " + data)
    assert message == Message(
        "5-1", "4-0", "abcdefabcdef", 7, kind, frozenset({"abcdefabcdef-1", "abcdefabcdef-2"}), "é\n {}".encode()
    )
    assert message.key == "abcdefabcdef-7"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n", b"1-1", b"- - abcdefabcdef-1 0 x\n", b"1-1 0-0 abc-1 0 t\n", b"1-1 0-0 abcdefabcdef-1 0 t \n",
        b"1 0 abcdefabcdef-1 0 t\n", b"1-1 0-0 abcdefabcdef-1 -5 t\n", b"- - abcdefabcdef-1 0 t\n\xff",
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_message(data)


def test_any_bytes_are_a_message_or_refused() -> None:
    chance = random.Random(3)
    good = b"5-1 4-0 abcdefabcdef-7 99 tabcdefabcdef-1\ntext"
    for _ in range(20_000):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with suppress(ValueError):
            parse_message(bytes(data[: chance.randrange(len(data) + 1)]))


@pytest.mark.parametrize("user", [None, "ann", "5 ", "é\n\x00", "h3 ann"])
@pytest.mark.parametrize("lingers", [True, False])
def test_a_member_is_what_was_packed(user: str | None, lingers: bool) -> None:
    info = {"name": "é 1 "}
    assert parse_member(member_value(user, info, lingers=lingers)) == (user, info, lingers)
