"""Rooms that a real Redis joins: each Rooms here is a process of its own to the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from flask import Flask
from gevent import get_hub

from geventws import Rooms
from geventws.connection import Close
from geventws.rooms import Room

from .pairs import Opener, Peer, until, watched_hub
from .redis_servers import RedisServer
from .servers import ROOT
from .test_rooms_log import STRANGE
from .test_rooms_presence import events_of

pytestmark = pytest.mark.slow  # it starts servers

WITHIN = 20.0


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def errors() -> Iterator[Any]:
    with watched_hub(120.0) as errors:
        yield errors


Make = Callable[..., Rooms]


@pytest.fixture
def make(redis_server: RedisServer) -> Iterator[Make]:
    """Makes what is one process of an app."""
    with redis_server.client() as client:
        client.flushall()
    made: list[Rooms] = []

    def make(url: str | None = None, **options: Any) -> Rooms:
        made.append(Rooms(url or redis_server.url, **{"linger": 0, "lease": 1.0, **options}))
        return made[-1]

    yield make
    for rooms in made:
        rooms.close()


def received(peer: Peer, count: int) -> list[Any]:
    peer.sock.settimeout(WITHIN)
    return [peer.receive() for _ in range(count)]


def join(rooms: Rooms, opened: Opener, name: str = "lobby", **options: Any) -> tuple[Any, Peer]:
    ws, peer = opened()
    peer.sock.settimeout(WITHIN)
    return rooms[name].join(ws, **options), peer


# Messages


def test_members_of_all_processes_hear_a_broadcast(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    (ann, hers), (bob, his) = join(one, opened), join(other, opened)
    ann.room.broadcast("text")
    bob.room.broadcast(b"bytes")
    ann.room.broadcast_json({"a": 1}, keep=False)
    for peer in (hers, his):
        assert sorted(map(str, received(peer, 3))) == sorted(["text", "b'bytes'", '{"a":1}'])


def test_all_members_hear_all_in_one_order(make: Make, opened: Opener) -> None:
    processes = [make(), make(), make()]
    members = [join(rooms, opened) for rooms in processes]

    def talk(me: Any, name: str) -> None:
        for number in range(100):
            me.room.broadcast(f"{name} {number}")
            if not number % 7:
                gevent.sleep(0)

    gevent.joinall([gevent.spawn(talk, me, name) for (me, _), name in zip(members, "abc", strict=True)])
    heard = [received(peer, 300) for _, peer in members]
    assert heard[0] == heard[1] == heard[2]
    for name in "abc":
        assert [text for text in heard[0] if text.startswith(name)] == [f"{name} {number}" for number in range(100)]
    kept = processes[0]["lobby"].history()
    assert list(kept) == heard[0][-100:]


def test_kept_objects_arrive_with_the_same_id_and_position_everywhere(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    (ann, hers), (_, his) = join(one, opened), join(other, opened)
    at = ann.room.broadcast_json({"text": "hé"}, confirm=5)
    first, second = hers.receive(), his.receive()
    assert first == second == one["lobby"].history()[0]
    obj = json.loads(str(first))
    assert (obj["text"], obj["at"]) == ("hé", at)
    assert obj["id"]


def test_a_member_gets_only_what_was_said_after_it_joined(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    (ann, _), _ = join(one, opened), join(other, opened)
    for number in range(20):
        ann.room.broadcast(f"before {number}")
        (late, its) = join(one, opened)
        ann.room.broadcast(f"after {number}")
        assert its.receive() == f"after {number}"
        late.leave()


def test_who_is_excluded_is_excluded_everywhere(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    (ann, hers), (bob, his) = join(one, opened), join(other, opened)
    ann.room.broadcast("not for bob", exclude=[bob.id])
    ann.room.broadcast("not for ann", exclude=[ann, "no id\n", "*"])
    ann.room.broadcast("for all")
    assert received(hers, 2) == ["not for bob", "for all"]
    assert received(his, 2) == ["not for ann", "for all"]


def test_local_members_are_those_of_the_process(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    (ann, hers), (_, his) = join(one, opened), join(other, opened)
    ann.room.local.broadcast("here")
    ann.room.broadcast("everywhere")
    assert received(hers, 2) == ["here", "everywhere"]
    assert his.receive() == "everywhere"


NAMES = ["a b", "{a}:b*?[c]", "}{", "\x00\r\n", "😀" * 50, "x" * 200, "lobby:log", "@ann", "#", "lobby"]


def test_names_are_kept_apart_whatever_they_are(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    peers = [join(one, opened, name, user=name)[1] for name in NAMES]
    for name in NAMES:
        other[name].broadcast(f"room {name}")
        other.user(name).broadcast(f"user {name}")
    for name, peer in zip(NAMES, peers, strict=True):
        assert sorted(map(str, received(peer, 2))) == sorted([f"room {name}", f"user {name}"])
        assert list(other[name].history()) == [f"room {name}"]
        assert other[name].users() == [name]


def test_namespaces_and_databases_are_apart(make: Make, opened: Opener, redis_server: RedisServer) -> None:
    mine = make()
    others = [make(namespace="other"), make(redis_server.url.replace("/0", "/1"))]
    _, peer = join(mine, opened)
    for rooms in others:
        rooms["lobby"].broadcast("not for you")
        rooms.user("ann").broadcast("not for you")
    mine["lobby"].broadcast("for you")
    assert peer.receive() == "for you"
    assert mine["lobby"].history() == ["for you"]


def test_a_burst_that_is_larger_than_the_buffer_waits_for_a_bus_that_is_there(make: Make, opened: Opener) -> None:
    # History holds all of it: a reader that is behind by more than that is told of a gap, as it may be here.
    (ann, hers) = join(make(buffer=100, history=10_000), opened)
    opened.spawn(lambda: [ann.room.broadcast(str(number)) for number in range(2000)])
    assert received(hers, 2000) == [str(number) for number in range(2000)]


def test_large_messages_arrive(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    (ann, _), (_, his) = join(one, opened), join(other, opened)
    ann.room.broadcast(b"x" * (1 << 20))
    assert his.receive() == b"x" * (1 << 20)


def test_a_stalled_member_is_closed_and_holds_nobody_up(make: Make, opened: Opener) -> None:
    one, other = make(history_bytes=1 << 20), make()
    stalled, _ = opened("tcp", buffer=4096)
    one["lobby"].join(stalled, user="stalled")
    _, peer = join(one, opened)
    heard = opened.spawn(received, peer, 301)
    for number in range(300):
        other["lobby"].broadcast(f"{number} ".ljust(16_384))
        gevent.sleep(0.001)
    other["lobby"].broadcast("last")
    heard.join()
    assert heard.value[-1] == "last"
    assert [text.split()[0] for text in heard.value[:-1]] == [str(number) for number in range(300)]
    assert stalled.close_code == 1013
    assert one.stats()["closed_slow"] == 1
    until(lambda: other["lobby"].users() == [], "leaving")


# Catching up


def test_a_client_catches_up_on_another_process(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    me, peer = join(one, opened)
    at = me.room.broadcast("heard", confirm=5)
    assert peer.receive() == "heard"
    for number in range(3):
        me.room.broadcast(f"missed {number}")
    back, its = join(other, opened, since=at)
    assert back.recovered is True
    me.room.broadcast("live")
    assert received(its, 4) == ["missed 0", "missed 1", "missed 2", "live"]


def test_a_position_that_just_arrived_elsewhere_is_known(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    me, _ = join(one, opened)
    join(other, opened)
    for number in range(30):
        at = me.room.broadcast(str(number), confirm=5)
        back, _ = join(other, opened, since=at)
        assert back.recovered is True


def test_the_position_of_a_room_where_nothing_was_said_holds(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    position = one["lobby"].history().position
    assert join(other, opened)[0].position == position
    one["lobby"].broadcast("first")
    back, its = join(other, opened, since=position)
    assert back.recovered is True
    assert its.receive() == "first"


def test_the_welcome_of_a_view_leaves_before_what_its_member_missed(make: Make, opened: Opener) -> None:
    rooms = make()
    me, _ = join(rooms, opened)
    at = me.room.history().position
    me.room.broadcast("missed", confirm=WITHIN)
    ws, peer = opened()

    def view() -> None:
        with rooms["lobby"].join(ws, user="ann", since=at) as member:
            ws.send(f"welcome {member.room.users()} {len(member.room.history())}")
            rooms["lobby"].broadcast("live")
            ws.receive()

    opened.spawn(view)
    assert received(peer, 3) == ["welcome ['ann'] 1", "missed", "live"]


def test_a_crowd_that_comes_back_costs_redis_few_reads(make: Make, opened: Opener, redis_server: RedisServer) -> None:
    rooms = make()
    me, _ = join(rooms, opened)
    at = me.room.broadcast("heard", confirm=WITHIN)
    me.room.broadcast("missed", confirm=WITHIN)
    pairs = [opened() for _ in range(200)]
    with redis_server.client() as client:
        client.config_resetstat()
        joining = [
            opened.spawn(rooms["lobby"].join, ws, f"user {number}", None, at) for number, (ws, _) in enumerate(pairs)
        ]
        gevent.joinall(joining)
        calls = {name: stats["calls"] for name, stats in client.info("commandstats").items()}
    assert all(greenlet.value.recovered for greenlet in joining)
    assert [peer.receive() for _, peer in pairs] == ["missed"] * 200
    # What a check of all rooms reads, that may fall into this time, has nothing to do with how many come.
    assert calls.get("cmdstat_xrange", 0) + calls.get("cmdstat_xrevrange", 0) <= 3
    assert calls.get("cmdstat_eval", 0) + calls.get("cmdstat_evalsha", 0) < 30
    assert len(rooms["lobby"].users()) == 200


@pytest.mark.parametrize("since", STRANGE, ids=lambda since: ascii(since)[:12])
def test_a_since_that_is_unknown_brings_nothing_and_says_so(make: Make, opened: Opener, since: str) -> None:
    rooms = make()
    rooms["lobby"].broadcast("old")
    me, peer = join(rooms, opened, since=since)
    assert me.recovered is False
    history = rooms["lobby"].history(since=since)
    assert (list(history), history.complete) == ([], False)
    me.room.broadcast("live")
    assert peer.receive() == "live"


def test_history_is_bounded_by_count_bytes_and_age(make: Make) -> None:
    room = make(history=5)["lobby"]
    positions = [room.broadcast(str(number)) for number in range(8)]
    assert list(room.history()) == ["3", "4", "5", "6", "7"]
    assert room.history(since=positions[4]) == ["5", "6", "7"]
    newest = room.history(since=positions[4], limit=2)
    assert (newest, newest.complete, newest.position) == (["6", "7"], False, positions[-1])
    assert (room.history(limit=2), room.history(limit=2).complete) == (["6", "7"], False)
    assert room.history(limit=5).complete
    large = make(history_bytes=1 << 20)["large"]
    for _ in range(40):
        large.broadcast(bytes(100_000))
    assert 10 <= len(large.history()) <= 12
    brief = make(history_seconds=0.2)["brief"]
    at = brief.broadcast("old")
    until(lambda: brief.history() == [], "end of history")
    assert brief.history(since=at).complete


def test_history_of_many_pages_is_read_whole(make: Make) -> None:
    rooms = make(history=2000, history_bytes=16 << 20)
    room = rooms["lobby"]
    start = room.history().position

    def talk() -> None:
        for number in range(1800):
            room.broadcast(str(number))
        room.broadcast("last", confirm=WITHIN)

    gevent.spawn(talk).join()
    assert len(room.history()) == 1801
    since = room.history(since=start)
    assert (len(since), since.complete, since[0], since[-1]) == (1801, True, "0", "last")
    assert room.history(limit=700)[0] == "1101"


# Where a broadcast comes from


SCRIPT = """
import sys
from geventws import Rooms
rooms = Rooms()
print(rooms["lobby"].broadcast("from a script"))
rooms.user("ann").broadcast("to ann")
import threading
def talk():
    for _ in range(20):
        rooms["lobby"].broadcast("from a thread")
threads = [threading.Thread(target=talk) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(rooms["lobby"].history()), rooms["lobby"].users())
"""


def test_a_plain_process_broadcasts_and_returns_when_redis_has_it(
    make: Make, opened: Opener, redis_server: RedisServer
) -> None:
    _, peer = join(make(), opened, user="ann")
    done = gevent.get_hub().threadpool.apply(
        lambda: subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT],
            env={**os.environ, "GEVENTWS_BUS": redis_server.url},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.partition("\n")[2] == "81 ['ann']\n"
    heard = received(peer, 82)
    assert sorted(heard) == ["from a script"] + ["from a thread"] * 80 + ["to ann"]


def test_a_hub_callback_and_a_thread_may_broadcast(make: Make, opened: Opener) -> None:
    me, peer = join(make(), opened)
    get_hub().loop.run_callback(me.room.broadcast, "callback")
    assert peer.receive() == "callback"
    thread = threading.Thread(target=me.room.broadcast, args=("thread",))
    thread.start()
    assert peer.receive() == "thread"
    until(lambda: not thread.is_alive(), "end of the thread")


# Who is there


def test_who_is_there_is_known_everywhere(make: Make, opened: Opener) -> None:
    one, other, third = make(), make(), make()
    (ann, _), (nobody, _) = join(one, opened, user="ann", info={"color": "red"}), join(one, opened)
    bob, _ = join(other, opened, user="bob")
    for rooms in (one, other, third):
        assert [(member.id, member.user, member.info) for member in rooms["lobby"].members()] == [
            (ann.id, "ann", {"color": "red"}), (nobody.id, None, None), (bob.id, "bob", None),
        ]  # fmt: skip
        assert rooms["lobby"].users() == ["ann", "bob"]
    assert (len(one["lobby"]), len(other["lobby"]), len(third["lobby"])) == (2, 1, 0)
    ann.leave()
    until(lambda: third["lobby"].users() == ["bob"], "leaving")


def test_a_person_comes_once_and_leaves_once_wherever_their_sockets_are(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    watchers = [join(rooms, opened)[0] for rooms in (one, other)]
    events = [events_of(rooms) for rooms in (one, other)]
    first, second = join(one, opened, user="ann", info=1)[0], join(other, opened, user="ann", info=2)[0]
    assert one["lobby"].users() == ["ann"]
    first.leave()
    until(lambda: len(one["lobby"].members()) == 3, "leaving of one socket")
    second.leave()
    for told in events:
        until(partial(told.__getitem__, slice(1, 2)), "joining and leaving")
        assert told == [("joined", "lobby", "ann", 1), ("left", "lobby", "ann", 2)]
    assert len(watchers) == len(one["lobby"].members()) == 2


def test_the_own_joining_is_told_when_one_can_hear_of_it(make: Make, opened: Opener) -> None:
    rooms = make()

    @rooms.on_join
    def joined(room: Room, user: str, info: Any) -> None:
        room.local.broadcast(f"{user} joined")

    for number in range(20):
        _, peer = join(rooms, opened, f"room {number}", user="ann")
        assert peer.receive() == "ann joined"


@pytest.mark.parametrize("is_same", [True, False], ids=["the same process", "another process"])
def test_a_reload_of_the_page_is_no_leaving(make: Make, opened: Opener, is_same: bool) -> None:
    one, other = make(linger=0.5), make(linger=0.5)
    join(one, opened)
    events = events_of(one)
    for rooms in (one, one if is_same else other, one):
        ws, peer = opened()
        rooms["lobby"].join(ws, user="ann")
        assert [member.user for member in one["lobby"].members()].count("ann") == 1
        peer.sock.close()
        until(lambda: ws.closed, "end of the socket")  # noqa: B023
        until(lambda: [each.user for each in one["lobby"].members()].count("ann") == 1, "one ann")
    until(lambda: len(events) == 2, "leaving for good")
    assert [event[0] for event in events] == ["joined", "left"]
    assert one["lobby"].users() == []


def test_a_person_is_spoken_to_wherever_they_are(make: Make, opened: Opener) -> None:
    one, other, third = make(), make(), make()
    peers = [join(one, opened, "a", user="ann")[1], join(other, opened, "b", user="ann")[1]]
    _, his = join(other, opened, "b", user="bob")
    third.user("ann").broadcast_json({"id": 5})
    one.user("ann").broadcast(b"bytes")
    for peer in peers:
        assert sorted(map(str, received(peer, 2))) == sorted(['{"id":5}', "b'bytes'"])
    one.user("bob").broadcast("for bob")
    assert his.receive() == "for bob"


# Kicks


def test_a_person_is_disconnected_wherever_they_are_but_for_the_new_login(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    old = [join(rooms, opened, user="ann") for rooms in (one, other)]
    new, _ = join(one, opened, user="ann")
    bob, _ = join(other, opened, user="bob")
    one.disconnect(user="ann", except_=new.ws, code=4001, reason="logged in elsewhere")
    late, its = join(other, opened, user="ann")
    for _, peer in old:
        assert peer.receive() == Close(4001, "logged in elsewhere")
    make().disconnect("nobody")
    assert not new.ws.closed and not bob.ws.closed and not late.ws.closed
    other.disconnect("ann")
    assert its.receive() == Close(1008, "")
    until(lambda: new.ws.close_code == 1008, "kick")


def test_a_kick_never_hits_the_login_behind_it(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    join(other, opened)
    for _ in range(30):
        one.disconnect("ann", code=4001)
        me, peer = join(other, opened, user="ann")
        me.room.broadcast("still here")
        assert peer.receive() == "still here"
        one.disconnect("ann", code=4001)
        assert peer.receive() == Close(4001, "")


def test_closing_a_room_closes_who_is_in_it_everywhere(make: Make, opened: Opener) -> None:
    one, other = make(), make()
    peers = [join(rooms, opened)[1] for rooms in (one, other) for _ in range(70)]
    other["lobby"].broadcast("closing time")
    other["lobby"].close(4000, "home")
    late, its = join(one, opened)
    for peer in peers:
        assert received(peer, 2) == ["closing time", Close(4000, "home")]
    late.room.broadcast("still here")
    assert its.receive() == "still here"


# What is left


def test_what_is_left_in_redis_ends_by_itself(make: Make, opened: Opener, redis_server: RedisServer) -> None:
    rooms = make()
    me, _ = join(rooms, opened, "room", user="ann")
    me.room.broadcast("text", confirm=5)
    me.leave()
    del me
    with redis_server.client() as client:
        until(lambda: not client.exists("geventws:0:{room}:who"), "leaving")
        until(lambda: not client.smembers(f"geventws:0:rooms:{rooms._home.process}"), "leaving of the room")
        until(lambda: client.pubsub_channels("geventws:0:{room}") == [], "end of the subscription")
        immortal = {key for key in client.keys("*") if client.pttl(key) == -1}
    assert immortal <= {b"geventws:0:processes"}
    assert len(rooms._home.rooms) == 0


def test_nothing_is_connected_to_before_the_first_use(make: Make, redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        before = int(client.info("stats")["total_connections_received"])
        rooms = make()
        rooms.on_join(print)
        rooms["lobby"].local  # noqa: B018
        assert int(client.info("stats")["total_connections_received"]) == before


FORK = """
import os
from geventws import Rooms

rooms = Rooms()
rooms["lobby"].broadcast("parent's")
for _ in range(2):
    pid = os.fork()
    if not pid:
        rooms["lobby"].broadcast("child's")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    rooms["lobby"].broadcast("parent's")
print(rooms["lobby"].history())
"""


def test_a_forked_child_has_connections_of_its_own(make: Make, redis_server: RedisServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], env={**os.environ, "GEVENTWS_BUS": redis_server.url},
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == str(["parent's", "child's", "parent's", "child's", "parent's"]) + "\n", done.stderr


POOL = """
import multiprocessing
from geventws import Rooms

rooms = Rooms(history=1000)

def task(number):
    rooms["lobby"].broadcast(str(number))
    return str(number) in rooms["lobby"].history()

if __name__ == "__main__":
    rooms["lobby"].broadcast("parent's")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert all(pool.map(task, range(200), chunksize=1))
    rooms["lobby"].broadcast("parent's last")
    print(len(rooms["lobby"].history()))
"""


def test_a_pool_of_forked_processes_broadcasts_each_message_once(
    make: Make, opened: Opener, redis_server: RedisServer, tmp_path: Path
) -> None:
    _, peer = join(make(), opened)
    (tmp_path / "tasks.py").write_text(POOL)
    done = gevent.get_hub().threadpool.apply(
        lambda: subprocess.run(
            [sys.executable, tmp_path / "tasks.py"],
            env={**os.environ, "GEVENTWS_BUS": redis_server.url, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    )
    assert (done.stdout, done.stderr) == ("202\n", "")
    heard = received(peer, 202)
    assert (heard[0], heard[-1]) == ("parent's", "parent's last")
    assert sorted(heard[1:-1]) == sorted(map(str, range(200)))


def test_several_servers_share_the_rooms(make: Make, opened: Opener, redis_server: RedisServer, tmp_path: Path) -> None:
    second = RedisServer(tmp_path / "second")
    try:
        url = f"{redis_server.url} {second.url}"
        one, other = make(url), make(url)
        peers = [join(one, opened, str(number), user="ann")[1] for number in range(12)]
        for number in range(12):
            other[str(number)].broadcast(str(number))
        assert [peer.receive() for peer in peers] == [str(number) for number in range(12)]
        assert all(other[str(number)].users() == ["ann"] for number in range(12))
        for server in (redis_server, second):
            with server.client() as client:
                assert 0 < len([key for key in client.keys("*}:log") if key != b"geventws:0:{}:log"]) < 12
        other.user("ann").broadcast("ann")
        assert [peer.receive() for peer in peers] == ["ann"] * 12
        other.disconnect("ann", code=4001)
        assert [peer.receive() for peer in peers] == [Close(4001, "")] * 12
    finally:
        second.stop()


# What is said of mistakes


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost", "'http' is no scheme"),
        ("localhost:6379", "'localhost' is no scheme"),
        ("redis://:secret@localhost/zero", "a database is a number"),
        ("redis://localhost:port", "names no bus"),
        ("redis://localhost?max_connections=5", "'max_connections' is no parameter"),
        ("redis+sentinel://localhost", "sentinels are asked for a service"),
    ],
)
def test_a_mistake_in_the_url_is_named_and_no_password(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        Rooms(url)
    assert "redis://[user:password@]host" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_without_the_package_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    for name in ("redis", "engine"):
        monkeypatch.delitem(sys.modules, f"geventws.rooms.{name}", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'geventws\[redis\]'"):
        Rooms("redis://localhost")
    Rooms()


def test_the_bus_comes_from_the_url_the_config_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEVENTWS_BUS", "redis://from-environment")
    app = Flask(__name__)
    rooms, other = Rooms(), Rooms("redis://from-url")
    shown = [rooms._home.links[0][0]]
    app.config["GEVENTWS_BUS"] = "redis://:secret@from-config"
    for each in (rooms, other):
        each.init_app(app)
        shown.append(each._home.links[0][0])
    assert shown == ["redis://from-environment", "redis://from-config", "redis://from-url"]
    app.config["GEVENTWS_BUS"] = None
    rooms.init_app(app)
    assert rooms._home.links == []
