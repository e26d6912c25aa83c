"""Rooms of one process, on real sockets joined in pairs: members here, clients driven by hand there."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import get_hub

import geventws
from geventws import Rooms
from geventws.connection import Close
from geventws.rooms import Member, Room
from geventws.rooms.log import ENTRY_WEIGHT
from geventws.websocket import WebSocket

from .pairs import (
    MEGABYTE,
    SMALL,
    Opener,
    Passes,
    Peer,
    RecordingSocket,
    close_frame,
    hold_hub,
    settle,
    until,
)

pytestmark = pytest.mark.usefixtures("errors")


@pytest.fixture
def rooms() -> Iterator[Rooms]:
    rooms = Rooms(linger=0)
    yield rooms
    rooms.close()


def received(peer: Peer, count: int) -> list[Any]:
    return [peer.receive() for _ in range(count)]


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


def test_a_hub_callback_and_a_thread_may_broadcast(rooms: Rooms, opened: Opener) -> None:
    ws, peer = opened()
    room = rooms["lobby"]
    room.join(ws)
    get_hub().loop.run_callback(room.broadcast, "callback")
    assert peer.receive() == "callback"
    positions: list[str | None] = []
    thread = threading.Thread(target=lambda: positions.append(room.broadcast("thread")))
    thread.start()
    assert peer.receive() == "thread"
    until(lambda: not thread.is_alive(), "end of the thread")
    assert positions == [room.history().position]


def test_the_frame_is_made_once_for_all(rooms: Rooms, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    make = geventws.Prepared._make

    def counted(prepared: geventws.Prepared, settings: Any) -> bytes:
        made.append(prepared)
        return make(prepared, settings)

    monkeypatch.setattr(geventws.Prepared, "_make", counted)
    pairs = [opened() for _ in range(20)]
    for ws, _ in pairs:
        rooms["lobby"].join(ws)
    rooms["lobby"].broadcast("text")
    assert [peer.receive() for _, peer in pairs] == ["text"] * 20
    assert len(made) == 1


def test_messages_that_wait_for_a_member_leave_in_one_write(rooms: Rooms, opened: Opener) -> None:
    sends: list[bytes] = []
    ws, peer = opened("tcp", wrap=lambda sock: RecordingSocket(sends, sock))
    rooms["lobby"].join(ws)
    before = ws.messages_sent
    sends.clear()
    for number in range(20):
        rooms["lobby"].broadcast(str(number))
    assert received(peer, 20) == [str(number) for number in range(20)]
    assert len(sends) == 1
    assert ws.messages_sent - before == 20


def test_one_pass_of_the_loop_serves_a_part_of_the_members(rooms: Rooms, opened: Opener) -> None:
    pairs = [opened() for _ in range(200)]
    for ws, _ in pairs:
        rooms["lobby"].join(ws)
    rooms["lobby"].broadcast("text")
    with Passes() as passes:
        until(lambda: rooms.stats()["delivered"] == 200, "delivery")
    assert passes.count >= 200 // 64


def test_who_broadcasts_without_end_waits_for_the_loop_not_for_a_member(rooms: Rooms, opened: Opener) -> None:
    (stalled, _), (ws, peer) = opened("tcp", buffer=SMALL), opened()
    for each in (stalled, ws):
        rooms["lobby"].join(each)
    opened.spawn(peer.read_all)
    for _ in range(1024):
        rooms["lobby"].broadcast(bytes(16_384))
        assert rooms["lobby"].lane.log.waiting < 2 * MEGABYTE


# Who does not get it


def test_members_are_excluded_by_their_websocket_themselves_or_their_id(rooms: Rooms, opened: Opener) -> None:
    pairs = [opened() for _ in range(4)]
    room = rooms["lobby"]
    members = [room.join(ws) for ws, _ in pairs]
    stranger, _ = opened()
    room.broadcast("not for three", exclude=[pairs[0][0], members[1], members[2].id, stranger])
    room.broadcast("not for one", exclude=pairs[3][0])
    room.broadcast("for all")
    heard = [received(peer, count) for (_, peer), count in zip(pairs, (2, 2, 2, 2), strict=True)]
    assert heard == [["not for one", "for all"]] * 3 + [["not for three", "for all"]]


def test_local_members_get_what_no_history_has(rooms: Rooms, opened: Opener) -> None:
    ws, peer = opened()
    room = rooms["lobby"]
    room.join(ws)
    room.local.broadcast("text")
    room.local.broadcast_json({"id": 1})
    room.broadcast("typing", keep=False)
    assert received(peer, 3) == ["text", '{"id":1}', "typing"]
    assert room.history() == []


# JSON


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


@pytest.mark.parametrize("message", [None, 5, ["a"], {"a": 1}])
def test_what_is_no_message_is_refused_before_anything_is_done(rooms: Rooms, message: Any) -> None:
    with pytest.raises(TypeError, match="a message is str or bytes"):
        rooms["lobby"].broadcast(message)
    assert rooms["lobby"].history() == []


# Slow members


def stall(rooms: Rooms, opened: Opener, size: int = 3 * MEGABYTE) -> tuple[WebSocket, Peer, list[str]]:
    """Return a member whose peer has not read what was said, and that."""
    ws, peer = opened("tcp", buffer=SMALL)
    rooms["lobby"].join(ws)
    said = []
    for number in range(size // 16_384):
        said.append(f"{number} ".ljust(16_384))
        rooms["lobby"].broadcast(said[-1])
        gevent.sleep(0.001)
    return ws, peer, said


def test_a_member_that_is_too_slow_is_closed_with_1013_and_counted(rooms: Rooms, opened: Opener) -> None:
    other, its = opened()
    rooms["lobby"].join(other)
    heard = opened.spawn(received, its, 3 * MEGABYTE // 16_384)
    ws, peer, said = stall(rooms, opened)
    until(lambda: len(rooms["lobby"]) == 1, "leaving of the slow member")
    assert rooms.stats()["closed_slow"] == 1
    assert ws.close_code == 1013
    events = peer.read_all()
    assert events[-1] == Close(1013, "too slow for what is said here")
    assert events[:-1] == said[: len(events) - 1]
    heard.join()
    assert heard.value == said


def test_a_slow_member_may_skip_to_the_newest_message_instead(opened: Opener) -> None:
    rooms = Rooms(slow="skip", linger=0)
    _, peer, said = stall(rooms, opened)
    heard = [peer.receive()]
    while heard[-1] != said[-1]:
        heard.append(peer.receive())
    numbers = [said.index(str(message)) for message in heard]
    assert numbers == sorted(set(numbers))
    stats = rooms.stats()
    assert stats["skipped"] == len(said) - len(heard) > 0
    assert stats["closed_slow"] == 0
    rooms["lobby"].broadcast("live")
    assert peer.receive() == "live"
    rooms.close()


def test_a_member_that_was_slow_for_a_while_misses_nothing(rooms: Rooms, opened: Opener) -> None:
    _, peer, said = stall(rooms, opened, MEGABYTE // 2)
    assert rooms.stats()["waiting"] == 1
    rooms["lobby"].broadcast("newest")
    assert received(peer, len(said)) == said
    assert peer.receive() == "newest"
    until(lambda: rooms.stats()["waiting"] == 0, "catching up")
    rooms["lobby"].broadcast("live")
    assert peer.receive() == "live"


def test_slow_members_share_one_log(rooms: Rooms, opened: Opener) -> None:
    members = [opened("tcp", buffer=SMALL)[0] for _ in range(20)]
    for ws in members:
        rooms["lobby"].join(ws)
    for _ in range(60):
        rooms["lobby"].broadcast(bytes(16_384))
        gevent.sleep(0.001)
    assert rooms.stats()["waiting"] == 20
    outboxes = [ws.session.transport.waiting for ws in members]
    assert max(outboxes) <= 16_384 + ENTRY_WEIGHT


def test_what_slow_members_left_is_let_go_when_they_have_caught_up_or_gone(rooms: Rooms, opened: Opener) -> None:
    (_, first, said), (second, _) = stall(rooms, opened, MEGABYTE // 4), opened("tcp", buffer=SMALL)
    rooms["lobby"].join(second)
    assert received(first, len(said)) == said
    until(lambda: rooms["lobby"].lane.log.first == rooms["lobby"].lane.log.end, "end of the lane")


# Catching up


def test_a_client_that_comes_back_gets_what_it_missed_and_then_what_is_said(rooms: Rooms, opened: Opener) -> None:
    room = rooms["lobby"]
    ws, peer = opened()
    with room.join(ws) as me:
        assert (me.recovered, me.position) == (None, room.history().position)
        at = room.broadcast("heard")
        assert peer.receive() == "heard"
    for number in range(3):
        room.broadcast(f"missed {number}")
        room.broadcast("typing", keep=False)
    ws, peer = opened()
    me = room.join(ws, since=at)
    assert me.recovered is True
    assert me.position == room.history().position
    ws.send("welcome")
    room.broadcast("live")
    assert received(peer, 5) == ["welcome", "missed 0", "missed 1", "missed 2", "live"]
    assert not peer.has_data()


def test_a_client_that_has_heard_all_misses_nothing(rooms: Rooms, opened: Opener) -> None:
    room = rooms["lobby"]
    ws, peer = opened()
    position = room.join(ws).position  # before anything was said
    room.leave(ws)
    assert room.join(ws, since=position).recovered is True
    room.leave(ws)
    at = room.broadcast("text")
    assert room.join(ws, since=at).recovered is True
    room.broadcast("live")
    assert peer.receive() == "live"


def test_a_position_of_a_quiet_room_holds_when_nobody_is_there(rooms: Rooms, opened: Opener) -> None:
    position = rooms["lobby"].history().position
    ws, _ = opened()
    assert rooms["lobby"].join(ws, since=position).recovered is True


STRANGE = [
    "", "null", "undefined", "0", "0-0", "-", "1-", "-1", "1-1\n", " 1-1", "\u0661-1", "1-1-1",
    "9" * 20 + "-" + "9" * 20, "9" * 5000 + "-1", "*", "{lobby}", "\x00", "\ud800", "+", "$", "1e3-0", "<script>",
]  # fmt: skip


@pytest.mark.parametrize("since", STRANGE, ids=lambda since: ascii(since)[:12])
def test_a_since_that_is_unknown_brings_nothing_and_says_so(rooms: Rooms, opened: Opener, since: str) -> None:
    room = rooms["lobby"]
    room.broadcast("old")
    ws, peer = opened()
    assert room.join(ws, since=since).recovered is False
    assert room.history(since=since) == []
    assert not room.history(since=since).complete
    room.broadcast("live")
    assert peer.receive() == "live"


def test_a_since_of_another_process_is_unknown(opened: Opener) -> None:
    rooms, others = Rooms(), Rooms()
    for position in (others["lobby"].history().position, others["lobby"].broadcast("text")):
        assert rooms["lobby"].join(opened()[0], since=position).recovered is False
    rooms.close()


def test_history_is_bounded_by_count_bytes_and_age(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Rooms(history=5)["lobby"]
    positions = [room.broadcast(str(number)) for number in range(8)]
    assert room.history() == ["3", "4", "5", "6", "7"]
    assert room.history(since=positions[2]) == ["3", "4", "5", "6", "7"]
    assert room.history(since=positions[2]).complete
    assert not room.history(since=positions[1]).complete
    assert room.history(since=positions[4]) == ["5", "6", "7"]
    newest = room.history(since=positions[4], limit=2)
    assert (newest, newest.complete, newest.position) == (["6", "7"], False, positions[-1])
    assert Rooms(history=0)["lobby"].broadcast("text")
    room = Rooms(history_bytes=3 * (1000 + ENTRY_WEIGHT))["lobby"]
    for _ in range(5):
        room.broadcast(bytes(1000))
    assert len(room.history()) == 3
    rooms = Rooms(history_seconds=60)
    room = rooms["lobby"]
    at = room.broadcast("old")
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 61 * 10**9)
    assert room.history() == []
    assert room.history(since=at).complete
    at = room.broadcast("new")
    assert room.history() == ["new"]


def test_positions_grow_though_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Rooms()["lobby"]
    now = time.time_ns()
    positions = [room.history().position, room.broadcast("a")]
    monkeypatch.setattr(time, "time_ns", lambda: now - 10**12)
    positions += [room.broadcast("b"), room.broadcast("c")]
    pairs = [tuple(map(int, str(position).split("-"))) for position in positions]
    assert pairs == sorted(set(pairs))


def test_a_client_that_stalls_while_it_catches_up_is_closed_as_any_other(rooms: Rooms, opened: Opener) -> None:
    room = rooms["lobby"]
    at = room.history().position
    for _ in range(100):
        room.broadcast(bytes(8000))
    ws, _peer = opened("tcp", buffer=SMALL)
    assert room.join(ws, since=at).recovered
    settle()
    for _ in range(100):
        room.broadcast(bytes(8000))
        gevent.sleep(0.001)
    until(lambda: not len(room), "leaving of the stalled member")
    assert ws.close_code == 1013


# Presence


def events_of(rooms: Rooms) -> list[tuple[str, str, str, Any]]:
    """Return a list of what the listeners of joining and leaving are told."""
    events: list[tuple[str, str, str, Any]] = []

    @rooms.on_join
    def joined(room: Room, user: str, info: Any) -> None:
        events.append(("joined", room.name, user, info))

    @rooms.on_leave
    def left(room: Room, user: str, info: Any) -> None:
        events.append(("left", room.name, user, info))

    return events


def test_a_person_is_there_from_the_first_socket_to_the_last(rooms: Rooms, opened: Opener) -> None:
    events, room = events_of(rooms), rooms["lobby"]
    (one, _), (two, _), (anonymous, _) = opened(), opened(), opened()
    with room.join(one, user="ann", info={"color": "red"}) as me, room.join(anonymous):
        with room.join(two, user="ann"):
            assert [(member.user, member.info) for member in room.members()] == [
                ("ann", {"color": "red"}), (None, None), ("ann", None),
            ]  # fmt: skip
            assert room.users() == ["ann"]
            assert list(room) == [one, anonymous, two]
        assert [member.id for member in room.members()] == [me.id, room.members()[1].id]
    until(lambda: len(events) == 2, "joining and leaving")
    assert events == [("joined", "lobby", "ann", {"color": "red"}), ("left", "lobby", "ann", {"color": "red"})]
    assert (room.members(), room.users(), list(room), len(room)) == ([], [], [], 0)


def test_a_reload_of_the_page_is_no_leaving(opened: Opener) -> None:
    rooms = Rooms(linger=0.3)
    events, room = events_of(rooms), rooms["lobby"]
    for _ in range(3):
        ws, peer = opened()
        room.join(ws, user="ann")
        peer.sock.close()
        until(lambda: not len(room), "leaving")
        assert room.users() == ["ann"]
        assert len(room.members()) == 1
    until(lambda: len(events) == 2, "leaving for good")
    assert [event[0] for event in events] == ["joined", "left"]
    assert (room.users(), room.members()) == ([], [])


ENDS: dict[str, Callable[[WebSocket, Peer, Member], object]] = {
    "its view leaves": lambda ws, peer, me: me.leave(),
    "the room is asked": lambda ws, peer, me: me.room.leave(ws),
    "our Close": lambda ws, peer, me: ws.close(),
    "their Close": lambda ws, peer, me: peer.sock.sendall(close_frame()),
    "end of the stream": lambda ws, peer, me: peer.sock.close(),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_member_leaves_however_it_ends(rooms: Rooms, opened: Opener, end: str) -> None:
    room = rooms["lobby"]
    ws, peer = opened()
    me = room.join(ws, user="ann")
    ENDS[end](ws, peer, me)
    until(lambda: not len(room), "leaving")
    assert room.members() == []
    assert rooms.stats()["members"] == 0
    me.leave()
    room.broadcast("nobody is here")
    assert rooms._home.people == {}


def test_joining_twice_is_being_there_once_until_both_have_left(rooms: Rooms, opened: Opener) -> None:
    room = rooms["lobby"]
    ws, peer = opened()
    with room.join(ws, user="ann") as me:
        with room.join(ws, user="ann") as again:
            assert again is me
            room.broadcast("once")
            rooms.user("ann").broadcast("also once")
            assert sorted(received(peer, 2)) == ["also once", "once"]
        assert list(room) == [ws]
        assert not peer.has_data()
    assert list(room) == []


def test_a_websocket_that_has_ended_joins_without_being_there(rooms: Rooms, opened: Opener) -> None:
    ws, peer = opened()
    peer.send("last words")
    peer.sock.close()
    until(lambda: ws.closed, "end of the stream")
    with rooms["lobby"].join(ws, user="ann") as me:
        assert list(me.room) == []
        assert ws.receive() == "last words"
        me.room.broadcast("heard by nobody")
    assert rooms["lobby"].history() == ["heard by nobody"]


def test_joining_completes_the_handshake(rooms: Rooms, opened: Opener) -> None:
    ws, peer = opened(accept=False)
    rooms["lobby"].join(ws)
    assert peer.open().startswith("HTTP/1.1 101")


def test_a_listener_that_fails_stops_no_other(rooms: Rooms, opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    @rooms.on_join
    def failing(room: Room, user: str, info: Any) -> None:
        raise LookupError("no such thing")

    events = events_of(rooms)
    ws, _peer = opened()
    rooms["lobby"].join(ws, user="ann")
    until(lambda: events, "call of the second listener")
    assert "LookupError: no such thing" in caplog.text


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


# People


def test_a_person_is_spoken_to_once_on_each_socket(rooms: Rooms, opened: Opener) -> None:
    (one, first), (two, second), (bob, his) = opened(), opened(), opened()
    rooms["a"].join(one, user="ann")
    rooms["b"].join(one, user="ann")
    rooms["b"].join(two, user="ann")
    rooms["b"].join(bob, user="bob")
    rooms.user("ann").broadcast_json({"id": 5})
    rooms["a"].leave(one)
    rooms.user("ann").broadcast(b"bytes")
    assert received(first, 2) == received(second, 2) == ['{"id":5}', b"bytes"]
    rooms.user("nobody").broadcast("heard by nobody")
    assert not his.has_data()


def test_a_person_is_disconnected_but_for_the_new_login(rooms: Rooms, opened: Opener) -> None:
    (old, hers), (new, _), (bob, _) = opened(), opened(), opened()
    for ws, user in ((old, "ann"), (new, "ann"), (bob, "bob")):
        rooms["lobby"].join(ws, user=user)
    rooms.user("ann").broadcast("bye")
    rooms.disconnect(user="ann", except_=new, code=4001, reason="logged in elsewhere")
    assert received(hers, 2) == ["bye", Close(4001, "logged in elsewhere")]
    assert not new.closed and not bob.closed
    rooms.disconnect("nobody")
    with pytest.raises(ValueError, match="close code 1006"):
        rooms.disconnect("ann", code=1006)
    rooms.disconnect("ann")
    assert new.close_code == 1008


def test_a_stalled_person_is_disconnected_too(rooms: Rooms, opened: Opener) -> None:
    ws, _ = opened("tcp", buffer=SMALL)
    rooms["lobby"].join(ws, user="ann")
    for _ in range(40):
        rooms["lobby"].broadcast(bytes(16_384))
        gevent.sleep(0.001)
    rooms.disconnect("ann", code=4001)
    assert ws.close_code == 4001
    until(lambda: not len(rooms["lobby"]), "leaving")


def test_closing_a_room_closes_who_is_in_it_behind_what_was_said(rooms: Rooms, opened: Opener) -> None:
    pairs = [opened() for _ in range(100)]
    room = rooms["lobby"]
    for ws, _ in pairs:
        room.join(ws)
    room.broadcast("closing time")
    room.close(4000, "home")
    late, _its = opened()
    room.join(late)
    for _, peer in pairs:
        assert received(peer, 2) == ["closing time", Close(4000, "home")]
    assert list(room) == [late]
    with pytest.raises(ValueError, match="close code 5"):
        room.close(5)


# What it costs, and where it lives


def test_rooms_without_members_and_history_cost_nothing(rooms: Rooms, opened: Opener) -> None:
    for number in range(100):
        assert rooms[f"stranger {number}"].members() == []
    assert len(rooms._home.rooms) == 0
    ws, peer = opened()
    rooms["left"].join(ws, user="ann")
    rooms["left"].broadcast("typing", keep=False)
    assert peer.receive() == "typing"
    rooms["left"].leave(ws)
    until(lambda: len(rooms._home.rooms) == 0, "end of the room")


def test_history_of_a_room_that_nobody_is_in_ends_by_itself(opened: Opener) -> None:
    rooms = Rooms(history_seconds=0.2, linger=0)
    ws, _ = opened()
    at = rooms["a"].broadcast("before any member")
    rooms["b"].join(ws)
    rooms["c"].broadcast("text")
    rooms["b"].leave(ws)
    assert len(rooms._home.rooms) >= 2
    until(lambda: len(rooms._home.rooms) == 0, "end of the rooms")
    other, _ = opened()
    assert rooms["a"].join(other, since=at).recovered is False
    rooms.close()


def test_a_member_takes_less_than_1500_bytes(rooms: Rooms, opened: Opener) -> None:
    sockets = [opened()[0] for _ in range(100)]
    room = rooms["lobby"]
    room.join(opened()[0], user="first")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number, ws in enumerate(sockets):
            room.join(ws, user=f"user {number}", info={"color": "red"})
        assert (tracemalloc.get_traced_memory()[0] - before) / len(sockets) < 1500
    finally:
        tracemalloc.stop()


def test_closed_rooms_begin_anew_with_the_same_room_objects(rooms: Rooms, opened: Opener) -> None:
    room = rooms["lobby"]
    (old, hers), (new, his) = opened(), opened()
    room.join(old, user="ann")
    at = room.broadcast("before")
    assert hers.receive() == "before"
    rooms.close()
    assert (list(room), room.members(), room.history(), rooms.stats()["members"]) == ([], [], [], 0)
    assert rooms["lobby"] is room
    assert room.join(new, since=at).recovered is False
    room.broadcast("after")
    assert his.receive() == "after"
    assert not hers.has_data() and not old.closed


def test_a_websocket_of_another_hub_is_refused_while_there_are_members(rooms: Rooms, opened: Opener) -> None:
    rooms["lobby"].join(opened()[0])
    raised: list[BaseException] = []

    def other_thread() -> None:
        ws, peer = Opener(("", "", None))()
        try:
            rooms["lobby"].join(ws)
        except RuntimeError as exc:
            raised.append(exc.with_traceback(None))
        finally:
            ws.abandon()
            peer.sock.close()
            get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=other_thread)
    thread.start()
    until(lambda: not thread.is_alive(), "end of the thread")
    assert re.search("live on one hub", str(raised[0]))


def test_rooms_outlive_the_hub_of_their_members(rooms: Rooms, opened: Opener) -> None:
    def other_thread() -> None:
        ws, peer = Opener(("", "", None))()
        rooms["lobby"].join(ws, user="ann")
        peer.sock.close()
        ws.abandon()  # its socket closes, and nobody is told
        get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=other_thread)
    thread.start()
    until(lambda: not thread.is_alive(), "end of the thread")
    ws, peer = opened()
    rooms["lobby"].broadcast("nobody is here")
    assert rooms["lobby"].join(ws).room.members()[0].user is None
    rooms["lobby"].broadcast("text")
    assert peer.receive() == "text"


def test_threads_broadcast_where_there_is_no_hub() -> None:
    rooms = Rooms(history=10_000)

    def talk() -> None:
        for _ in range(500):
            rooms["lobby"].broadcast("text")

    threads = [threading.Thread(target=talk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rooms["lobby"].history()) == 2000
    log = rooms["lobby"].lane.log
    assert [entry.number for entry in log.history()] == list(range(2000))


FORK = """
import os, sys
from geventws import Rooms

rooms = Rooms()
room = rooms["lobby"]  # as an app does that is loaded before the fork
at = room.broadcast("parent's")
pid = os.fork()
if not pid:
    same = room is rooms["lobby"] and room.history() == [] and not room.history(since=at).complete
    os._exit(0 if same and room.broadcast("child's") != at else 1)
assert os.waitpid(pid, 0)[1] == 0
assert room.history() == ["parent's"]
"""


def test_a_forked_child_begins_anew() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], env={**os.environ, "PYTHONWARNINGS": "ignore"}, timeout=60)
    assert done.returncode == 0


def test_several_workers_without_a_bus_are_warned_of_once(
    rooms: Rooms, opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        ws, _ = opened()
        ws.environ["wsgi.multiprocess"] = True
        rooms["lobby"].join(ws)
    settle()
    assert caplog.text.count("its rooms reach only the members on the same worker") == 1


@pytest.mark.parametrize(
    "option",
    [{"history": -1}, {"history_seconds": 0}, {"history_bytes": -1}, {"slow": "drop"}, {"linger": -1}],
    ids=lambda option: next(iter(option)),
)
def test_an_option_out_of_range_is_refused_by_its_name(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(option))} must be"):
        Rooms(**option)


def test_a_hub_that_was_held_up_loses_nothing(rooms: Rooms, opened: Opener) -> None:
    (ws, peer), (other, its) = opened(), opened()
    for each in (ws, other):
        rooms["lobby"].join(each)
    for number in range(5):
        rooms["lobby"].broadcast(str(number))
        hold_hub(0.02)
    assert received(peer, 5) == received(its, 5) == list("01234")


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
