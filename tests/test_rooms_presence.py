"""Presence: who is in a room, and when somebody has come or gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from geventws import Rooms
from geventws.rooms import Member, Room
from geventws.websocket import WebSocket

from .pairs import Opener, Peer, close_frame, received, until

pytestmark = pytest.mark.usefixtures("errors")


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
