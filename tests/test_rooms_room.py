"""Room: its members, what they hear, and the persons behind them."""

from __future__ import annotations

import threading
import tracemalloc
from typing import Any

import gevent
import pytest
from gevent import get_hub

from geventws import Rooms
from geventws.connection import Close
from geventws.rooms import Member

from .pairs import SMALL, Opener, received, until

pytestmark = pytest.mark.usefixtures("errors")


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


@pytest.mark.parametrize("message", [None, 5, ["a"], {"a": 1}])
def test_what_is_no_message_is_refused_before_anything_is_done(rooms: Rooms, message: Any) -> None:
    with pytest.raises(TypeError, match="a message is str or bytes"):
        rooms["lobby"].broadcast(message)
    assert rooms["lobby"].history() == []


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


# Joining and leaving


def test_a_thread_joins_on_the_hub_of_the_websocket(rooms: Rooms, opened: Opener) -> None:
    ws, peer = opened()
    room = rooms["lobby"]
    members: list[Member] = []
    thread = threading.Thread(target=lambda: members.append(room.join(ws, user="ann")))
    thread.start()
    until(lambda: not thread.is_alive(), "end of the thread")
    assert list(room) == [ws]
    room.broadcast("hello")
    assert peer.receive() == "hello"
    members[0].leave()
    assert list(room) == []


def test_who_is_not_in_a_room_may_leave_it(rooms: Rooms, opened: Opener) -> None:
    (ws, _), (stranger, _) = opened(), opened()
    rooms["lobby"].join(ws)
    rooms["lobby"].leave(stranger)
    assert list(rooms["lobby"]) == [ws]


def test_rooms_and_members_are_shown_by_their_names(rooms: Rooms, opened: Opener) -> None:
    me = rooms["lobby"].join(opened()[0])
    assert repr(me.room) == "<Room 'lobby'>"
    assert repr(me) == f"<Member {me.id} of <Room 'lobby'>>"


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


@pytest.mark.parametrize("slow", ["close", "skip"])
def test_a_person_whose_socket_takes_nothing_is_closed_or_misses_a_message(opened: Opener, slow: Any) -> None:
    rooms = Rooms(linger=0, slow=slow)
    (stalled, _), (gone, its) = opened(buffer=SMALL, max_outbox=10_000), opened()
    for ws in (stalled, gone):
        rooms["lobby"].join(ws, user="ann")
    its.sock.close()
    for _ in range(3):
        rooms.user("ann").broadcast(bytes(100_000))
    stats = rooms.stats()
    missed = 2 if slow == "skip" else 1  # of one that is closed nothing more is counted
    assert stats["skipped" if slow == "skip" else "closed_slow"] == missed
    assert stalled.close_code == (None if slow == "skip" else 1013)
    rooms.close()
