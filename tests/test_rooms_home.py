"""Home: what rooms cost, who cleans up behind them, and what they do beside threads, forks and other hubs."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
from typing import Any

import pytest
from gevent import get_hub

from geventws import Rooms
from geventws.rooms import Room, home

from .pairs import Opener, settle, until
from .test_rooms_presence import events_of

pytestmark = pytest.mark.usefixtures("errors")


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
    assert rooms["a"].join(other, since=at).recovered is True  # nothing was said there since
    rooms.close()


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


FORK_IN_A_ROUND = """
import os
import gevent.os
from geventws import Rooms
from tests.pairs import Opener, settle

rooms = Rooms()
ws, peer = Opener(("", "", None))()
rooms["lobby"].join(ws, user="ann")
rooms["lobby"].broadcast("text")
pid = gevent.os.fork()
if not pid:
    gevent.sleep(0.05)
    os._exit(rooms.stats()["delivered"])
assert os.waitpid(pid, 0)[1] == 0
assert peer.receive() == "text"
settle()
assert not peer.has_data()
"""


def test_a_child_that_is_forked_in_a_round_sends_nothing_of_it() -> None:
    environ = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FORK_IN_A_ROUND]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_several_workers_without_a_bus_are_warned_of_once(
    rooms: Rooms, opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        ws, _ = opened()
        ws.environ["wsgi.multiprocess"] = True
        rooms["lobby"].join(ws)
    settle()
    assert caplog.text.count("its rooms reach only the members on the same worker") == 1


def test_a_listener_that_fails_stops_no_other(rooms: Rooms, opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    @rooms.on_join
    def failing(room: Room, user: str, info: Any) -> None:
        raise LookupError("no such thing")

    events = events_of(rooms)
    ws, _peer = opened()
    rooms["lobby"].join(ws, user="ann")
    until(lambda: events, "call of the second listener")
    assert "LookupError: no such thing" in caplog.text


def expire(rooms: Rooms, name: str) -> None:
    """Let a room's history be over."""
    rooms[name].broadcast("old")
    until(lambda: not rooms._home._kept, "end of the history")


def test_history_is_over_in_the_millisecond_in_which_its_room_is_let_go(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = home.milliseconds()
    monkeypatch.setattr(home, "milliseconds", lambda: now)
    rooms = Rooms(linger=0, history_seconds=60)
    room = rooms["lobby"]
    before = room.broadcast("old")
    now += 59_999
    rooms._home._expire()
    assert (len(rooms._home._kept), len(room.history())) == (1, 1)
    now += 1
    rooms._home._expire()
    assert (len(rooms._home._kept), len(room.history())) == (0, 0)
    assert room.join(opened()[0], since=before).recovered is True
    rooms.close()


@pytest.mark.parametrize("others", [1, 3])
def test_a_room_in_which_nothing_was_said_has_lost_nothing_whatever_others_have(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    monkeypatch.setattr(home, "MOST_LOSSES", 2)
    rooms = Rooms(linger=0, history_seconds=0.05)
    ws, _ = opened()
    at = rooms["quiet"].join(ws).position
    rooms["quiet"].leave(ws)
    gc.collect()
    assert "quiet" not in rooms._home.rooms
    for number in range(others):
        expire(rooms, f"room {number}")
    ws, _ = opened()
    assert rooms["quiet"].join(ws, since=at).recovered is (others <= 2)  # past the bound nobody can tell
    rooms.close()


def test_a_room_that_is_made_again_knows_what_it_has_lost(opened: Opener) -> None:
    rooms = Rooms(linger=0, history_seconds=0.05)
    with rooms["lobby"].join(opened()[0]) as me:
        at = me.position
    expire(rooms, "lobby")
    ws, _ = opened()
    assert rooms["lobby"].join(ws, since=at).recovered is False
    rooms.close()
