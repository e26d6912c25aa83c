"""Log: what a room remembers, and what a client that comes back gets of it."""

from __future__ import annotations

import time
import tracemalloc

import gevent
import pytest

from geventws import Rooms
from geventws.rooms.log import ENTRY_WEIGHT

from .pairs import SMALL, Opener, received, settle, until

pytestmark = pytest.mark.usefixtures("errors")


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


def test_a_message_of_history_is_in_memory_once(rooms: Rooms, opened: Opener) -> None:
    room = rooms["lobby"]
    ws, peer = opened()
    room.join(ws)
    room.broadcast("first")
    assert peer.receive() == "first"
    tracemalloc.start()
    try:
        for number in range(80):
            room.broadcast(f"{number:1000}")
        assert received(peer, 80) == [f"{number:1000}" for number in range(80)]
        settle()
        taken = sum(
            trace.size
            for trace in tracemalloc.take_snapshot().traces
            if "/geventws/rooms/" in trace.traceback[0].filename or "/geventws/message" in trace.traceback[0].filename
        )
    finally:
        tracemalloc.stop()
    assert taken < 80 * 2 * 1000  # its frame would be as large again


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


def test_what_is_forgotten_while_a_client_catches_up_is_told_by_a_close(rooms: Rooms, opened: Opener) -> None:
    room = rooms["lobby"]
    with room.join(opened()[0]) as me:
        at = me.position
        room.broadcast("missed")
        ws, _ = opened()
        assert room.join(ws, since=at).recovered is True
        log = room.lane.log
        log.expire(2 * int(1000 * time.time()))  # before it had its first turn
        assert log.batch(log.end - 1, log.end) is None
        until(lambda: ws.close_code == 1013, "the close")
    assert rooms.stats()["closed_slow"] == 1
