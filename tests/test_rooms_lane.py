"""Lane: how what is said reaches the members of a room, of whom some are slow."""

from __future__ import annotations

import io
import logging
import tracemalloc
from typing import Any

import gevent
import pytest

import geventws
from geventws import Rooms
from geventws.connection import Close
from geventws.rooms import lane
from geventws.rooms.log import ENTRY_WEIGHT
from geventws.websocket import WebSocket

from .differential import kind
from .pairs import MEGABYTE, SMALL, Opener, Passes, Peer, RecordingSocket, hold_hub, received, settle, until

pytestmark = pytest.mark.usefixtures("errors")


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


def test_the_log_shows_what_left_in_one_write(rooms: Rooms, opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "geventws")
    ws, peer = opened()
    rooms["lobby"].join(ws)
    rooms["lobby"].broadcast("one")
    rooms["lobby"].broadcast("two")
    assert received(peer, 2) == ["one", "two"]
    settle()
    assert rf"{ws.peer} > binary b'\x81\x03one\x81\x03two'" in caplog.messages


def test_one_pass_of_the_loop_serves_a_part_of_the_members(rooms: Rooms, opened: Opener) -> None:
    pairs = [opened() for _ in range(200)]
    for ws, _ in pairs:
        rooms["lobby"].join(ws)
    rooms["lobby"].broadcast("text")
    with Passes() as passes:
        until(lambda: rooms.stats()["delivered"] == 200, "delivery")
    assert passes.count >= 200 // 16


def test_who_is_no_member_is_served_before_the_members_of_a_pass(rooms: Rooms, opened: Opener) -> None:
    for _ in range(100):
        rooms["lobby"].join(opened()[0])
    outsider, peer = opened()
    view = gevent.spawn(lambda: outsider.receive() and rooms.stats()["delivered"])
    settle()
    rooms["lobby"].broadcast("text")
    peer.send("well?")
    assert view.get() == 0


class RoundOfAnHour:
    """A clock that lets a round last an hour, and stops behind it."""

    now = 1e9
    tick = 3600.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def test_a_room_rests_behind_a_round_and_what_is_said_meanwhile_leaves_joined(
    rooms: Rooms, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = RoundOfAnHour()
    monkeypatch.setattr(lane, "monotonic", clock)
    monkeypatch.setattr(lane, "LONGEST_REST", 3600.0)
    sends: list[bytes] = []
    ws, peer = opened("tcp", wrap=lambda sock: RecordingSocket(sends, sock))
    rooms["lobby"].join(ws)
    rooms["lobby"].broadcast("in a round of an hour")
    assert peer.receive() == "in a round of an hour"
    clock.tick = 0.0
    sends.clear()
    said = ["in the rest behind it", "also", "so much that no more would join it".ljust(16_384)]
    for message in said:
        settle()
        assert not sends
        rooms["lobby"].broadcast(message)
    assert received(peer, 3) == said
    assert len(sends) == 2


def test_a_rest_ends_by_itself(rooms: Rooms, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = RoundOfAnHour()
    monkeypatch.setattr(lane, "monotonic", clock)
    ws, peer = opened()
    rooms["lobby"].join(ws)
    rooms["lobby"].broadcast("in a round of an hour")
    assert peer.receive() == "in a round of an hour"
    clock.tick = 0.0
    for message in ("in the rest", "behind it"):
        rooms["lobby"].broadcast(message)
        assert peer.receive() == message


def test_who_broadcasts_without_end_waits_for_the_loop_not_for_a_member(rooms: Rooms, opened: Opener) -> None:
    (stalled, _), (ws, peer) = opened("tcp", buffer=SMALL), opened()
    for each in (stalled, ws):
        rooms["lobby"].join(each)
    opened.spawn(peer.read_all)
    for _ in range(1024):
        rooms["lobby"].broadcast(bytes(16_384))
        assert rooms["lobby"].lane.log.waiting < 2 * MEGABYTE


def test_a_hub_that_was_held_up_loses_nothing(rooms: Rooms, opened: Opener) -> None:
    (ws, peer), (other, its) = opened(), opened()
    for each in (ws, other):
        rooms["lobby"].join(each)
    for number in range(5):
        rooms["lobby"].broadcast(str(number))
        hold_hub(0.02)
    assert received(peer, 5) == received(its, 5) == list("01234")


@pytest.mark.parametrize("is_python", [False, True])
def test_member_for_whom_memory_runs_out_stops_no_other(
    rooms: Rooms, opened: Opener, errors: io.StringIO, monkeypatch: pytest.MonkeyPatch, is_python: bool
) -> None:
    with kind(is_python):
        pairs = [
            opened("tcp", wrap=OutOfMemory if number in (0, 20, 59) else lambda sock: sock) for number in range(60)
        ]
    for ws, _ in pairs:
        rooms["lobby"].join(ws)
    OutOfMemory.is_due = True
    try:
        rooms["lobby"].broadcast("text")
        heard = [peer.receive() for number, (_, peer) in enumerate(pairs) if number not in (0, 20, 59)]
    finally:
        OutOfMemory.is_due = False
    assert heard == ["text"] * 57
    until(lambda: len(rooms["lobby"]) == 57, "leaving of the others")
    assert [pairs[number][0].close_reason for number in (0, 20, 59)] == ["out of memory"] * 3
    assert rooms.stats()["delivered"] == 57
    assert errors.getvalue().count("MemoryError") >= 3
    errors.truncate(errors.seek(0))


class OutOfMemory(RecordingSocket):
    """A socket for which memory may run out."""

    is_due = False

    def __init__(self, sock: Any) -> None:
        super().__init__([], sock)

    def send(self, data: bytes) -> int:
        if self.is_due:
            raise MemoryError
        return super().send(data)


# Slow members


def stall(
    rooms: Rooms, opened: Opener, size: int = 3 * MEGABYTE, ends: tuple[WebSocket, Peer] | None = None
) -> tuple[WebSocket, Peer, list[str]]:
    """Return a member whose peer has not read what was said, and that."""
    ws, peer = ends or opened("tcp", buffer=SMALL)
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


def test_slow_member_for_whose_close_memory_runs_out_stops_no_round(
    rooms: Rooms, opened: Opener, errors: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, its = opened()
    rooms["lobby"].join(other)
    heard = opened.spawn(received, its, 3 * MEGABYTE // 16_384)
    ws, peer = opened("tcp", buffer=SMALL)
    monkeypatch.setattr(ws, "close", no_memory)
    _, _, said = stall(rooms, opened, ends=(ws, peer))
    heard.join()
    assert heard.value == said
    assert rooms.stats()["closed_slow"] == 1
    assert "MemoryError" in errors.getvalue()
    errors.truncate(errors.seek(0))


def no_memory(*_: object) -> None:
    raise MemoryError


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


def test_what_slow_members_have_not_taken_of_a_message_is_there_once(rooms: Rooms, opened: Opener) -> None:
    pairs = [opened("tcp", buffer=SMALL) for _ in range(20)]
    for ws, _ in pairs:
        rooms["lobby"].join(ws)
    message = bytes(MEGABYTE)
    tracemalloc.start()
    try:
        rooms["lobby"].broadcast(message)
        until(lambda: rooms.stats()["delivered"] == 20, "delivery")
        assert tracemalloc.get_traced_memory()[1] < 4 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert min(ws.session.transport.waiting for ws, _ in pairs) > MEGABYTE // 2
    assert all(peer.receive() == message for _, peer in pairs)


def test_what_slow_members_left_is_let_go_when_they_have_caught_up_or_gone(rooms: Rooms, opened: Opener) -> None:
    (_, first, said), (second, _) = stall(rooms, opened, MEGABYTE // 4), opened("tcp", buffer=SMALL)
    rooms["lobby"].join(second)
    assert received(first, len(said)) == said
    until(lambda: rooms["lobby"].lane.log.first == rooms["lobby"].lane.log.end, "end of the lane")
