"""Rooms of one process, on real sockets joined in pairs: members here, clients driven by hand there."""

from __future__ import annotations

import math
import random
from typing import Any

import gevent
import pytest

from geventws import Rooms
from geventws.rooms import Member

from .pairs import MEGABYTE, SMALL, Opener, Peer, received, settle, until

pytestmark = pytest.mark.usefixtures("errors")


# What a broadcast does


@pytest.mark.parametrize("message", ["text", b"bytes", "", "€" * 70_000, bytearray(b"abc"), memoryview(b"abc")])
def test_broadcast_reaches_every_member(rooms: Rooms, opened: Opener, message: Any) -> None:
    pairs = [opened() for _ in range(3)]
    for ws, _ in pairs:
        rooms["lobby"].join(ws)
    rooms["lobby"].broadcast(message)
    for _, peer in pairs:
        assert peer.receive() == message
    assert rooms.stats()["delivered"] == 3


def test_each_room_is_of_its_own(rooms: Rooms, opened: Opener) -> None:
    (ann, hers), (bob, his) = opened(), opened()
    rooms["a"].join(ann)
    rooms["b"].join(bob)
    for name in ("a", "b", "c"):
        rooms[name].broadcast(name)
    assert (hers.receive(), his.receive()) == ("a", "b")
    settle()
    assert not hers.has_data() and not his.has_data()


def test_a_member_gets_only_what_was_said_after_it_joined(rooms: Rooms, opened: Opener) -> None:
    (ann, hers), (bob, his) = opened(), opened()
    rooms["lobby"].join(ann)
    rooms["lobby"].broadcast("before")  # on its way when bob joins
    rooms["lobby"].join(bob)
    rooms["lobby"].broadcast("after")
    assert received(hers, 2) == ["before", "after"]
    assert his.receive() == "after"


def test_who_leaves_gets_nothing_of_what_is_on_its_way(rooms: Rooms, opened: Opener) -> None:
    (ann, hers), (bob, his) = opened(), opened()
    for ws in (ann, bob):
        rooms["lobby"].join(ws)
    rooms["lobby"].broadcast("text")
    rooms["lobby"].leave(bob)
    assert hers.receive() == "text"
    settle()
    assert not his.has_data()


def test_all_members_hear_all_in_the_order_of_the_broadcasts(rooms: Rooms, opened: Opener) -> None:
    pairs = [opened() for _ in range(10)]
    for ws, _ in pairs:
        rooms["lobby"].join(ws)

    def talk(name: str) -> None:
        for number in range(50):
            rooms["lobby"].broadcast(f"{name} {number}")
            gevent.sleep(0)

    gevent.joinall([gevent.spawn(talk, name) for name in "abc"])
    heard = [received(peer, 150) for _, peer in pairs]
    assert all(messages == heard[0] for messages in heard)
    for name in "abc":
        assert [text for text in heard[0] if text.startswith(name)] == [f"{name} {number}" for number in range(50)]


def test_a_broadcast_returns_before_anything_is_sent(rooms: Rooms, opened: Opener) -> None:
    ws, peer = opened()
    rooms["lobby"].join(ws)
    rooms["lobby"].broadcast("text")
    assert not peer.has_data()
    assert peer.receive() == "text"


# Options


@pytest.mark.parametrize(
    "option",
    [
        {"history": -1}, {"history": 10**13},
        {"history_seconds": 0}, {"history_seconds": -1.0}, {"history_seconds": math.inf}, {"history_seconds": math.nan},
        {"history_bytes": 0}, {"history_bytes": -1},
        {"buffer": 0}, {"buffer": -1}, {"buffer_bytes": 0}, {"buffer_bytes": -1},
        {"lease": 0}, {"lease": 0.5}, {"lease": -1}, {"lease": math.inf}, {"lease": math.nan},
        {"linger": -1}, {"linger": math.inf}, {"linger": math.nan},
        {"slow": "drop"}, {"slow": None}, {"namespace": ""}, {"namespace": "a\nb"}, {"namespace": "x" * 101},
    ],
    ids=str,
)  # fmt: skip
def test_an_option_out_of_range_is_refused_by_its_name(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(option))} must be"):
        Rooms(**option)


@pytest.mark.parametrize(
    "option",
    [{"history": 1.5}, {"history": True}, {"history": None}, {"buffer": "100"}, {"lease": "10"}, {"linger": None}],
    ids=str,
)
def test_an_option_that_is_no_number_is_refused_by_its_name(option: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(option))} must be a (whole )?number"):
        Rooms(**option)


def test_the_smallest_options_are_taken(opened: Opener) -> None:
    rooms = Rooms(history=0, history_seconds=0.001, history_bytes=1, buffer=1, buffer_bytes=1, lease=1, linger=0)
    ws, peer = opened("tcp")
    rooms["lobby"].join(ws, user="ann")
    for text in ("one", "two", "three"):
        rooms["lobby"].broadcast(text)
    assert [peer.receive() for _ in range(3)] == ["one", "two", "three"]
    assert list(rooms["lobby"].history()) == []


# All at once


class Heard:
    """What one member is to hear, by the rules, and what its peer has heard."""

    def __init__(self, me: Member, peer: Peer, wanted: list[Any]) -> None:
        self.me = me
        self.peer = peer
        self.wanted = wanted
        self.heard: list[Any] = []


@pytest.mark.parametrize("seed", range(12))
def test_members_hear_by_the_rules_whatever_happens(opened: Opener, seed: int) -> None:
    chance = random.Random(seed)
    rooms = Rooms(history=10_000, history_bytes=64 * MEGABYTE, linger=0)
    room = rooms["lobby"]
    kept: list[tuple[str | None, Any]] = [(room.history().position, None)]
    here: list[Heard] = []
    gone: list[Heard] = []
    for step in range(400):
        what = chance.random()
        if what < 0.1 and len(here) < 12:
            ws, peer = opened("tcp", buffer=chance.choice([None, SMALL]))
            start = chance.randrange(len(kept)) if chance.random() < 0.5 else None
            me = room.join(ws, since=None if start is None else kept[start][0])
            assert me.recovered is (None if start is None else True)
            here.append(Heard(me, peer, [] if start is None else [message for _, message in kept[start + 1 :]]))
        elif what < 0.13 and here:
            member = here.pop(chance.randrange(len(here)))
            member.peer.sock.close()
            gone.append(member)
        elif what < 0.6:
            excluded = chance.sample(here, chance.randrange(len(here) + 1)) if chance.random() < 0.2 else []
            text = f"{step} " * chance.choice([1, 1, 10, 3000])
            message = text if chance.random() < 0.5 else text.encode()
            keep = chance.random() < 0.7
            position = room.broadcast(message, exclude=[member.me for member in excluded], keep=keep)
            if keep:
                kept.append((position, message))
            for member in here:
                if member not in excluded:
                    member.wanted.append(message)
        elif what < 0.8 and here:
            member = chance.choice(here)
            while len(member.heard) < len(member.wanted) and chance.random() < 0.9:
                member.heard.append(member.peer.receive())
        else:
            gevent.sleep(chance.choice([0, 0, 0.001]))
    for member in here:
        while len(member.heard) < len(member.wanted):
            member.heard.append(member.peer.receive())
        assert member.heard == member.wanted
    until(lambda: rooms.stats()["waiting"] == 0, "catching up")
    assert not any(member.peer.has_data() for member in here)
    until(lambda: len(room) == len(here), "leaving of all who are gone")
    assert room.lane.log.first == room.lane.log.end
    assert room.lane.log.waiting == room.lane.log._lane_size == 0
    assert rooms.stats()["closed_slow"] == 0
    rooms.close()
