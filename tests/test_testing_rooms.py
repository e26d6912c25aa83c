"""join() of geventws.testing: a client in a room, without an app."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from geventws import ConnectionClosed, Rooms
from geventws.testing import join


@pytest.fixture
def rooms() -> Iterator[Rooms]:
    rooms = Rooms(linger=0)
    yield rooms
    rooms.close()


@pytest.mark.parametrize("name", ["lobby", "a/b?c#d e%20", "R\u00e4ume \N{SMILING FACE WITH OPEN MOUTH}", "\x00"])
def test_it_hears_what_is_said_under_any_name(rooms: Rooms, name: str) -> None:
    with join(rooms[name]) as ws:
        rooms[name].broadcast("text")
        rooms[name].broadcast(b"bytes")
        rooms[name].broadcast_json({"number": 1}, keep=False)
        assert [ws.receive(), ws.receive(), ws.receive_json()] == ["text", b"bytes", {"number": 1}]


def test_it_is_a_member_until_it_leaves(rooms: Rooms) -> None:
    room = rooms["lobby"]
    with join(room, user="ann", info={"color": "red"}) as ws:
        assert ws.member is not None
        assert [(present.id, present.user, present.info) for present in room.members()] == [
            (ws.member.id, "ann", {"color": "red"})
        ]
        rooms.user("ann").broadcast("for you")
        assert ws.receive() == "for you"
    assert len(room) == 0


def test_it_goes_on_from_since(rooms: Rooms) -> None:
    room = rooms["lobby"]
    room.broadcast("before")
    since = room.broadcast("seen")
    room.broadcast("missed")
    with join(room, since=since) as ws:
        assert ws.member and ws.member.recovered is True
        assert ws.receive() == "missed"


@pytest.mark.parametrize(("since", "recovered"), [(None, None), ("1-1", False), ("nonsense", False)])
def test_it_says_whether_it_missed_something(rooms: Rooms, since: str | None, recovered: bool | None) -> None:
    rooms["lobby"].broadcast("old")
    with join(rooms["lobby"], since=since) as ws:
        assert ws.member and ws.member.recovered is recovered
        rooms["lobby"].broadcast("new")
        assert ws.receive() == "new"


def test_its_end_is_what_the_room_makes_of_it(rooms: Rooms) -> None:
    with join(rooms["lobby"], user="ann") as ws:
        rooms.disconnect("ann", code=4001, reason="elsewhere")
        with pytest.raises(ConnectionClosed):
            ws.receive()
        assert (ws.close_code, ws.close_reason) == (4001, "elsewhere")


def test_it_waits_no_longer_than_it_is_told(rooms: Rooms) -> None:
    with (
        join(rooms["lobby"], timeout=0.1) as ws,
        pytest.raises(TimeoutError, match=r"^no message on /lobby within 0.1 s$"),
    ):
        ws.receive()


@pytest.mark.parametrize("arguments", [{"user": ""}, {"info": "x" * 5000}])
def test_errors_of_joining_come_out(rooms: Rooms, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"bytes of UTF-8|characters of JSON"):
        join(rooms["lobby"], **arguments)
    assert len(rooms["lobby"]) == 0


class Slow:
    """A room that is reached through a bus which is away."""

    name = "slow"

    def __repr__(self) -> str:
        return "<Room 'slow'>"

    def join(self, ws: Any, **unused: Any) -> Any:
        ws.accept()
        gevent.sleep(60)


def test_a_room_that_cannot_be_reached_is_not_waited_for() -> None:
    room: Any = Slow()
    with pytest.raises(TimeoutError, match=r"^<Room 'slow'> could not be joined within 0.1 s$"):
        join(room, timeout=0.1)


def test_it_leaves_nothing_behind(rooms: Rooms) -> None:
    with join(rooms["lobby"]) as ws:
        pass
    gone = weakref.ref(ws)
    del ws
    gc.collect()
    assert gone() is None
