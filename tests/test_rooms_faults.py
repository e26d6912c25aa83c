"""What may happen to Redis, and to the way there: nothing is lost or doubled, and what cannot be proven is said.

Each Rooms is a process of its own to the others.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest

from geventws import BusUnavailable, Rooms
from geventws.connection import Close
from geventws.rooms import Room

from .pairs import Certificate, Opener, hold_hub, until, watched_hub
from .redis_servers import Proxy, RedisServer, free_port
from .servers import missing
from .soak_rooms import Soak

pytestmark = pytest.mark.slow  # it starts servers

WITHIN = 30.0


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def errors() -> Iterator[Any]:
    with watched_hub(180.0) as errors:
        yield errors


Make = Callable[..., Rooms]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes what is one process of an app."""
    made: list[Rooms] = []

    def make(url: str, **options: Any) -> Rooms:
        made.append(Rooms(url, **{"linger": 0, "lease": 1.0, "history": 1000, **options}))
        return made[-1]

    yield make
    for rooms in made:
        rooms.close()


@pytest.fixture
def proxies() -> Iterator[Callable[[int], Proxy]]:
    made: list[Proxy] = []

    def make(port: int) -> Proxy:
        made.append(Proxy(port))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


class Listener:
    """A member of a room, and all that its peer hears."""

    def __init__(self, rooms: Rooms, opened: Opener, name: str = "lobby", *, user: str | None = None, **options: Any):
        self.rooms = rooms
        self.ws, self.peer = opened("tcp")
        self.peer.sock.settimeout(None)
        self.heard: list[Any] = []
        self.me = rooms[name].join(self.ws, user=user, **options)
        self.room = self.me.room
        opened.spawn(self._listen)

    def _listen(self) -> None:
        for event in iter(self.peer.receive, None):
            if isinstance(event, (str, bytes, Close)):
                self.heard.append(event)

    def has(self, *messages: Any) -> bool:
        """Whether it has heard these."""
        return set(messages) <= set(self.heard)


def up(*processes: Rooms) -> bool:
    """Whether all of them have their bus."""
    return all(rooms.stats()["bus_up"] for rooms in processes)


def away(*processes: Rooms) -> bool:
    """Whether none of them has."""
    return not any(rooms.stats()["bus_up"] for rooms in processes)


def back(*processes: Rooms) -> None:
    """Wait until all are connected, and have caught up."""
    until(lambda: up(*processes), "return of the bus", WITHIN)


class Talk:
    """Members of several processes who talk in several rooms, and what each of them hears."""

    def __init__(self, processes: list[Rooms], opened: Opener, names: list[str]) -> None:
        self.processes = processes
        self.names = names
        self.said: dict[str, list[str]] = {name: [] for name in names}
        self.listeners = {name: [Listener(rooms, opened, name) for rooms in processes] for name in names}
        self.is_over = False
        self._talkers = [opened.spawn(self._talk, number) for number in range(len(processes))]

    def _talk(self, speaker: int) -> None:
        number = 0
        while not self.is_over:
            for name in self.names:
                number += 1
                text = f"{speaker} {number}"
                self.said[name].append(text)
                self.processes[speaker][name].broadcast(text)
            gevent.sleep(0.002)

    def end(self) -> None:
        """Stop talking, and wait until everything has been heard."""
        self.is_over = True
        gevent.joinall(self._talkers)
        for talker in self._talkers:
            assert talker.value is None, talker.value
        for name in self.names:
            for listener in self.listeners[name]:
                wanted = len(self.said[name])
                until(lambda: len(listener.heard) >= wanted, f"hearing of {wanted} messages", WITHIN)  # noqa: B023

    def check(self, *, one_order: bool = True) -> None:
        """Check that each has heard all, once, and each speaker in order; and all in one order."""
        for name in self.names:
            for listener in self.listeners[name]:
                assert sorted(listener.heard) == sorted(self.said[name])
                for speaker in range(len(self.processes)):
                    mine = [text for text in listener.heard if text.startswith(f"{speaker} ")]
                    assert mine == [text for text in self.said[name] if text.startswith(f"{speaker} ")]
            if one_order:
                assert all(listener.heard == self.listeners[name][0].heard for listener in self.listeners[name])
        assert sum(rooms.stats()["gaps"] for rooms in self.processes) == 0


# Lost connections


@pytest.mark.parametrize("kinds", [["normal"], ["pubsub"], ["normal", "pubsub"]], ids=" and ".join)
def test_connections_killed_under_load_lose_and_double_nothing(
    make: Make, opened: Opener, redis_server: RedisServer, kinds: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    processes = [make(redis_server.url, history=100_000, history_bytes=64 << 20) for _ in range(3)]
    talk = Talk(processes, opened, ["a", "b", "c"])
    killed = 0
    chance = random.Random(1)
    for _ in range(25):
        gevent.sleep(chance.uniform(0, 0.08))
        killed += sum(redis_server.kill_clients(kind) for kind in kinds)
    assert killed > 25
    talk.end()
    was_away = "the bus of rooms is away" in caplog.text  # on a machine that is busy for half a second
    talk.check(one_order=not was_away)
    for name in "abc":
        history = list(processes[0][name].history())
        assert was_away or history == talk.listeners[name][0].heard
        assert sorted(map(str, history)) == sorted(talk.said[name])


def test_a_reply_that_is_lost_behind_the_script_stores_nothing_twice(
    make: Make, opened: Opener, redis_server: RedisServer, proxies: Callable[[int], Proxy]
) -> None:
    proxy = proxies(redis_server.port)
    rooms, other = make(proxy.url), make(redis_server.url)
    listeners = [Listener(each, opened) for each in (rooms, other)]
    cuts: list[bool] = []

    def cut(asked: bytes, answer: bytes) -> bool:
        cuts.append(b"EVAL" in asked and b"hello" in asked and len(cuts) < 5)
        return cuts[-1]

    proxy.cut_reply = cut
    rooms["lobby"].broadcast("hello")
    until(lambda: sum(cuts) > 0, "cut")
    proxy.cut_reply = None
    rooms["lobby"].broadcast("afterwards", confirm=WITHIN)
    assert list(other["lobby"].history()) == ["hello", "afterwards"]
    for listener in listeners:
        until(lambda: listener.has("afterwards"), "afterwards")  # noqa: B023
        assert listener.heard == ["hello", "afterwards"]


# Redis is away


@pytest.mark.parametrize("keeps", [True, False], ids=["with AOF", "without persistence"])
def test_redis_that_is_stopped_and_started_again(
    make: Make, opened: Opener, redis_server: RedisServer, keeps: bool, tmp_path: Path
) -> None:
    if keeps:
        redis_server.stop()
        redis_server.options += ["--appendonly", "yes", "--appendfsync", "always"]
        redis_server.start()
    processes = [make(redis_server.url, lease=1.0) for _ in range(2)]
    gaps: list[str] = []
    for rooms in processes:
        rooms.on_gap(lambda room: gaps.append(room.name))
    ann, bob = (Listener(rooms, opened) for rooms in processes)
    ann.room.broadcast("before", confirm=WITHIN)
    redis_server.stop(signal.SIGKILL)
    for number in range(20):
        ann.room.broadcast(f"ann {number}")
        bob.room.broadcast(f"bob {number}")
    until(lambda: ann.has("ann 19") and bob.has("bob 19"), "hearing of one's own process", WITHIN)
    until(lambda: away(*processes), "notice", WITHIN)
    redis_server.start()
    back(*processes)
    everything = ["before", *(f"{name} {number}" for name in ("ann", "bob") for number in range(20))]
    for listener in (ann, bob):
        until(lambda: len(listener.heard) >= 41, "catching up", WITHIN)  # noqa: B023
        assert sorted(listener.heard) == sorted(everything)
        for name in ("ann", "bob"):
            assert [text for text in listener.heard if text.startswith(name)] == [f"{name} {n}" for n in range(20)]
    ann.room.broadcast("after")
    until(lambda: ann.has("after") and bob.has("after"), "the first message afterwards", WITHIN)
    if keeps:
        assert gaps == []
        assert sorted(ann.room.history()) == sorted([*everything, "after"])
    else:
        until(lambda: sorted(gaps) == ["lobby", "lobby"], "report of the gap", WITHIN)


def test_a_member_that_was_there_in_an_outage_catches_up_behind_it(
    make: Make, opened: Opener, redis_server: RedisServer
) -> None:
    redis_server.stop()
    redis_server.options += ["--appendonly", "yes", "--appendfsync", "always"]
    redis_server.start()
    rooms = make(redis_server.url)
    ann = Listener(rooms, opened)
    at = ann.room.broadcast_json({"text": "before"}, confirm=WITHIN)
    redis_server.stop()
    ann.room.broadcast_json({"text": "while it was away"})
    until(lambda: len(ann.heard) == 2, "hearing here", WITHIN)
    assert '"id"' in ann.heard[1]
    assert '"at"' not in ann.heard[1]
    redis_server.start()
    back(rooms)
    until(lambda: len(ann.room.history()) == 2, "sending of what waited", WITHIN)
    bob = Listener(rooms, opened, since=at)
    assert bob.me.recovered is True
    until(lambda: bob.heard, "catching up")
    assert '"at"' in bob.heard[0]
    assert bob.heard[0].startswith(ann.heard[1][:-1])


def test_more_than_the_buffer_takes_raises_and_names_the_option(
    make: Make, opened: Opener, redis_server: RedisServer
) -> None:
    rooms, large = make(redis_server.url, buffer=50), make(redis_server.url, buffer_bytes=100_000)
    ann = Listener(rooms, opened)
    Listener(large, opened)
    with pytest.raises(BusUnavailable, match=r"a message of 2000\d\d bytes is larger than buffer_bytes=100000"):
        large["lobby"].broadcast(bytes(200_000))
    redis_server.stop()
    until(lambda: away(rooms, large), "notice", WITHIN)
    for number in range(50):
        ann.room.broadcast(str(number))
    with pytest.raises(BusUnavailable, match=r"away for [0-9.]+ s, and no more than buffer=50 of rooms"):
        until(lambda: ann.room.broadcast("too much") or None, "end of the buffer", 0.1)
    assert rooms.stats()["buffered"] == 50
    large["lobby"].broadcast(bytes(60_000))
    with pytest.raises(BusUnavailable, match="buffer_bytes=100000"):
        large["lobby"].broadcast(bytes(60_000))
    redis_server.start()
    back(rooms, large)
    until(lambda: rooms.stats()["buffered"] == 0, "sending of what waited", WITHIN)
    assert len([text for text in ann.heard if isinstance(text, str)]) == 50


def test_who_waits_for_redis_is_told_that_it_did_not_come(
    make: Make, opened: Opener, redis_server: RedisServer
) -> None:
    rooms, nobody = make(redis_server.url), make(redis_server.url)
    ann = Listener(rooms, opened)
    redis_server.pause()
    with pytest.raises(BusUnavailable, match=r"did not take a message of rooms within 0.2 s: it may still arrive"):
        ann.room.broadcast("hello", confirm=0.2)
    redis_server.stop()
    with pytest.raises(BusUnavailable, match=r"within 0\.2 s"):
        nobody["lobby"].broadcast("hello", confirm=0.2)


def test_a_redis_that_hangs_is_noticed_and_members_are_served_here(
    make: Make, opened: Opener, redis_server: RedisServer
) -> None:
    processes = [make(redis_server.url) for _ in range(2)]
    ann, bob = (Listener(rooms, opened) for rooms in processes)
    ann.room.broadcast("before")
    until(lambda: ann.has("before") and bob.has("before"), "the first message")
    redis_server.pause()
    ann.room.broadcast("hello")
    until(lambda: away(*processes[:1]), "notice", WITHIN)
    until(lambda: ann.has("hello"), "hearing here", WITHIN)
    until(lambda: away(*processes[1:]), "notice by who says nothing", WITHIN)
    redis_server.go_on()
    back(*processes)
    until(lambda: bob.has("hello"), "hearing there", WITHIN)
    assert ann.heard == bob.heard == ["before", "hello"]


def test_a_stalled_way_to_redis_is_given_up(
    make: Make, opened: Opener, redis_server: RedisServer, proxies: Callable[[int], Proxy]
) -> None:
    proxy = proxies(redis_server.port)
    rooms, other = make(proxy.url), make(redis_server.url)
    ann, bob = Listener(rooms, opened), Listener(other, opened)
    proxy.stall(True)
    bob.room.broadcast("while it stalls")
    until(lambda: rooms.stats()["reconnects"] > 0, "giving up", WITHIN)
    proxy.stall(False)
    proxy.cut()
    back(rooms)
    until(lambda: ann.has("while it stalls"), "catching up", WITHIN)
    assert ann.heard == bob.heard == ["while it stalls"]


# What is missing


def test_a_reader_that_was_away_for_longer_than_history_is_told(
    make: Make, opened: Opener, redis_server: RedisServer, proxies: Callable[[int], Proxy]
) -> None:
    proxy = proxies(redis_server.port)
    rooms, other = make(proxy.url, history=10), make(redis_server.url, history=10)
    ann, bob = Listener(rooms, opened), Listener(other, opened)
    at = bob.room.broadcast("before", confirm=WITHIN)
    until(lambda: ann.has("before"), "the first message")
    proxy.refuses = True
    proxy.cut()
    until(lambda: away(rooms), "notice", WITHIN)
    for number in range(500):
        bob.room.broadcast(str(number))
    bob.room.broadcast("newest", confirm=WITHIN)
    proxy.refuses = False
    back(rooms)
    until(lambda: ann.heard[-1:] == [Close(1012, "messages may be missing")], "report of the gap", WITHIN)
    assert rooms.stats()["gaps"] == 1
    assert len(bob.heard) == 502
    late = Listener(rooms, opened, since=at)
    assert late.me.recovered is False
    bob.room.broadcast("live")
    until(lambda: late.heard == ["live"], "live messages")


@pytest.mark.parametrize("is_known", [True, False], ids=["noticed", "not noticed"])
def test_who_comes_back_in_an_outage_is_not_told_that_nothing_is_missing(
    make: Make, opened: Opener, redis_server: RedisServer, is_known: bool
) -> None:
    rooms = make(redis_server.url)
    ann, bob = Listener(rooms, opened), Listener(rooms, opened)
    at = ann.room.broadcast("before", confirm=WITHIN)
    until(lambda: bob.has("before"), "the first message")
    redis_server.pause()
    try:
        bob.me.leave()
        if is_known:
            until(lambda: away(rooms), "notice", WITHIN)
        ann.room.broadcast("missed")
        until(lambda: ann.has("missed"), "hearing here", WITHIN)
        again = Listener(rooms, opened, since=at)
        assert again.me.recovered is False
    finally:
        redis_server.go_on()
    back(rooms)
    ann.room.broadcast("after", confirm=WITHIN)
    until(lambda: again.has("after"), "the next message", WITHIN)
    assert Listener(rooms, opened, since=at).me.recovered is True


def test_who_was_closed_by_a_gap_is_told_of_it_when_it_comes_back(
    make: Make, opened: Opener, redis_server: RedisServer, proxies: Callable[[int], Proxy]
) -> None:
    proxy = proxies(redis_server.port)
    rooms, other = make(proxy.url, history=10), make(redis_server.url, history=10)
    ann, bob = Listener(rooms, opened), Listener(other, opened)
    bob.room.broadcast_json({"text": "before"}, confirm=WITHIN)
    until(lambda: ann.heard, "the first message")
    proxy.refuses = True
    proxy.cut()
    for number in range(300):
        bob.room.broadcast_json({"number": number})
    bob.room.broadcast_json({"text": "newest"}, confirm=WITHIN)
    proxy.refuses = False
    back(rooms)
    until(lambda: ann.heard[-1:] == [Close(1012, "messages may be missing")], "report of the gap", WITHIN)
    at = json.loads(ann.heard[-2])["at"]
    for each in (rooms, other):
        assert Listener(each, opened, since=at).me.recovered is False


def test_an_app_may_handle_a_gap_itself(make: Make, opened: Opener, redis_server: RedisServer) -> None:
    rooms = make(redis_server.url)
    told: list[Room] = []
    rooms.on_gap(told.append)
    ann = Listener(rooms, opened)
    ann.room.broadcast("before", confirm=WITHIN)
    with redis_server.client() as client:
        client.flushall()
    redis_server.kill_clients("pubsub")
    until(lambda: told == [ann.room], "report of the gap", WITHIN)
    ann.room.broadcast("after")
    until(lambda: ann.heard == ["before", "after"], "hearing on", WITHIN)


def test_a_room_that_is_left_before_it_was_read_is_heard_no_more(
    make: Make, opened: Opener, redis_server: RedisServer, proxies: Callable[[int], Proxy]
) -> None:
    proxy = proxies(redis_server.port)
    rooms = make(proxy.url)
    Listener(rooms, opened, "other")
    proxy.refuses = True
    proxy.cut()
    until(lambda: away(rooms), "notice", WITHIN)
    Listener(rooms, opened).me.leave()
    gevent.sleep(0.05)
    proxy.refuses = False
    back(rooms)
    Listener(rooms, opened, "another")
    with redis_server.client() as client:
        channels = partial(client.pubsub_channels, "*lobby*")
        until(lambda: not channels(), "end of hearing", WITHIN)


def test_a_lost_tail_is_found_though_nothing_comes_behind_it(
    make: Make, opened: Opener, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geventws.rooms.span.CHECK", 0.5)
    rooms = make(redis_server.url)
    ann = Listener(rooms, opened)
    ann.room.broadcast("before", confirm=WITHIN)
    with redis_server.client() as client:  # kept and not said, as by a server that ended in between
        before = client.get("geventws:0:{lobby}:last").split()[0].decode()
        id = client.xadd("geventws:0:{lobby}:log", {"m": f"{before} abcdefabcdef-1 12 t\nlost"})
        client.set("geventws:0:{lobby}:last", f"{id.decode()} 12")
    until(lambda: ann.has("lost"), "finding it", WITHIN)
    assert ann.heard == ["before", "lost"]
    assert rooms.stats()["gaps"] == 0


# Another Redis


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) { const char *by = getenv("SHIFT"); return by ? atol(by) : 0; }
int gettimeofday(struct timeval *tv, void *tz) {
  int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
  int result = real(tv, tz);
  tv->tv_sec += shift();
  return result;
}
int clock_gettime(clockid_t clock, struct timespec *ts) {
  int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, ts);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) ts->tv_sec += shift();
  return result;
}
"""


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that moves the clock of a process by SHIFT seconds."""
    if shutil.which("cc") is None:
        missing("no C compiler")
    directory = tmp_path_factory.mktemp("shim")
    (directory / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", directory / "shim.so", directory / "shim.c", "-ldl"], check=True)
    return directory / "shim.so"


@pytest.mark.parametrize("shift", [0, -2, 2], ids=["the same clock", "a clock behind", "a clock ahead"])
def test_a_failover_that_loses_writes_is_told_and_loses_nothing_to_who_is_there(
    make: Make, opened: Opener, redis_server: RedisServer, proxies: Callable[[int], Proxy], tmp_path: Path,
    shim: Path, shift: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    monkeypatch.setenv("SHIFT", str(shift))
    replica = RedisServer(tmp_path / "replica", "--replicaof", f"127.0.0.1 {redis_server.port}")
    monkeypatch.delenv("LD_PRELOAD")
    try:
        proxy = proxies(redis_server.port)
        processes = [make(proxy.url) for _ in range(2)]
        gaps: list[str] = []
        for rooms in processes:
            rooms.on_gap(lambda room: gaps.append(room.name))
        ann, bob = (Listener(rooms, opened) for rooms in processes)
        ann.room.broadcast("replicated", confirm=WITHIN)
        with redis_server.client() as client:
            assert client.wait(1, 10_000) == 1
        with replica.client() as client:
            client.replicaof("NO", "ONE")  # the old master does not know
        early = ann.room.history().position
        at = ann.room.broadcast("lost by Redis", confirm=WITHIN)
        until(lambda: ann.has("lost by Redis") and bob.has("lost by Redis"), "the second message")
        proxy.divert(replica.port)
        for number in range(20):
            ann.room.broadcast(f"ann {number}")
            bob.room.broadcast(f"bob {number}")
            gevent.sleep(0.01)
        back(*processes)
        for listener in (ann, bob):
            until(lambda: listener.has("ann 19", "bob 19"), "all messages", WITHIN)  # noqa: B023
            assert len(listener.heard) == len(set(listener.heard)) == 42
        until(lambda: sorted(gaps) == ["lobby", "lobby"], "report of the gap", WITHIN)
        for since in (early, at):
            assert Listener(processes[0], opened, since=since).me.recovered is False
        assert "lost by Redis" not in ann.room.history()
        assert ann.room.history()[0] == "replicated"
    finally:
        replica.stop()


def test_a_master_that_others_have_left_is_left_with_all_connections(
    make: Make, opened: Opener, redis_server: RedisServer, proxies: Callable[[int], Proxy], tmp_path: Path
) -> None:
    second = RedisServer(tmp_path / "second")
    try:
        proxy = proxies(redis_server.port)
        rooms, other = make(proxy.url), make(second.url)
        rooms.on_gap(lambda room: None)
        ann, bob = Listener(rooms, opened), Listener(other, opened)
        ann.room.broadcast("before", confirm=WITHIN)
        proxy.target = second.port  # the first one answers, and takes what it is told, on connections that are open
        redis_server.kill_clients("pubsub")
        with second.client() as client:
            until(lambda: client.exists(f"geventws:0:lease:{rooms._home.process}"), "leaving of the first", WITHIN)
        until(lambda: lists(second, rooms, other), "list of who is there", WITHIN)
        ann.room.broadcast("after", confirm=WITHIN)
        until(lambda: bob.heard == ["after"] and ann.heard == ["before", "after"], "hearing", WITHIN)
    finally:
        second.stop()


def test_a_master_that_was_demoted_is_left(
    make: Make, opened: Opener, redis_server: RedisServer, proxies: Callable[[int], Proxy], tmp_path: Path
) -> None:
    second = RedisServer(tmp_path / "second", "--replicaof", f"127.0.0.1 {redis_server.port}")
    try:
        proxy = proxies(redis_server.port)
        rooms = make(proxy.url)
        ann = Listener(rooms, opened)
        ann.room.broadcast("before", confirm=WITHIN)
        with redis_server.client() as client:
            assert client.wait(1, 10_000) == 1
        with second.client() as client:
            client.replicaof("NO", "ONE")
        with redis_server.client() as client:
            client.replicaof("127.0.0.1", 1)  # READONLY from now on, with all connections open
        proxy.target = second.port
        ann.room.broadcast("after", confirm=WITHIN)
        back(rooms)
        until(lambda: ann.heard == ["before", "after"], "hearing", WITHIN)
        with second.client() as client:
            until(lambda: b"geventws:0:{lobby}" in client.pubsub_channels(), "subscription to the new master", WITHIN)
    finally:
        second.stop()


# Presence


def test_hub_that_was_held_up_longer_than_its_lease_has_its_members_again(
    make: Make, opened: Opener, redis_server: RedisServer
) -> None:
    rooms, other = make(redis_server.url), make(redis_server.url)
    ann, _ = Listener(rooms, opened, user="ann"), Listener(other, opened)
    with redis_server.client() as client:  # as others do with a process that is silent for too long
        client.delete(f"geventws:0:lease:{rooms._home.process}")
        client.delete("geventws:0:{lobby}:who", "geventws:0:{lobby}:users")
    until(lambda: other["lobby"].users() == ["ann"], "return of the members", WITHIN)
    hold_hub(2.0)
    until(lambda: other["lobby"].users() == ["ann"], "return of the members", WITHIN)
    ann.me.leave()
    until(lambda: other["lobby"].users() == [], "leaving", WITHIN)


def lists(server: RedisServer, *processes: Rooms, name: str = "lobby") -> bool:
    """Whether Redis lists exactly the members that these processes have in a room, and counts their users right."""
    members = [member for rooms in processes for member in rooms[name].lane.places.values()]
    users = Counter(member.user for member in members if member.user is not None)
    with server.client() as client:
        who = client.hgetall(f"geventws:0:{{{name}}}:who")
        counted = client.hgetall(f"geventws:0:{{{name}}}:users")
    return {id.decode() for id in who} == {member.id for member in members} and {
        user.decode(): int(count) for user, count in counted.items()
    } == users


def test_a_lease_whose_renewal_lost_its_answer_may_have_ended_before(
    make: Make, opened: Opener, redis_server: RedisServer, proxies: Callable[[int], Proxy]
) -> None:
    proxy = proxies(redis_server.port)
    rooms, other = make(proxy.url), make(redis_server.url)
    Listener(rooms, opened, user="ann")
    lease, lost = f"geventws:0:lease:{rooms._home.process}", [0]

    def is_lease(asked: bytes, answer: bytes) -> bool:
        lost[0] += lease.encode() in asked
        return lease.encode() in asked

    proxy.cut_reply = is_lease
    until(lambda: lost[0], "loss of an answer", WITHIN)
    with redis_server.client() as client:  # as others do with a process that is silent for too long
        client.delete(lease, "geventws:0:{lobby}:who", "geventws:0:{lobby}:users")
        until(lambda: client.exists(lease), "renewal", WITHIN)
    before = lost[0]
    until(lambda: lost[0] > before, "loss of the answer that tells it", WITHIN)
    proxy.cut_reply = None
    until(lambda: other["lobby"].users() == ["ann"], "return of the members", WITHIN)
    assert lists(redis_server, rooms)


def test_who_is_taken_out_while_the_answer_to_joining_is_on_its_way_is_listed_again(
    make: Make, opened: Opener, redis_server: RedisServer, proxies: Callable[[int], Proxy]
) -> None:
    proxy = proxies(redis_server.port)
    rooms, other = make(proxy.url), make(redis_server.url)
    Listener(rooms, opened, user="ann")
    lease = f"geventws:0:lease:{rooms._home.process}"
    arrived, go_on, renewals = threading.Event(), threading.Event(), [0]

    def hold(asked: bytes, answer: bytes) -> bool:
        renewals[0] += lease.encode() in asked
        if b"enter" in asked and b"3 bobnull" in asked:
            arrived.set()
            go_on.wait(WITHIN)
        return False

    proxy.cut_reply = hold
    joining = opened.spawn(partial(Listener, rooms, opened, user="bob"))
    until(arrived.is_set, "answer to joining", WITHIN)
    with redis_server.client() as client:
        client.delete(lease, "geventws:0:{lobby}:who", "geventws:0:{lobby}:users")
    before = renewals[0]
    until(lambda: renewals[0] >= before + 3, "renewals, of which the process has read one that tells it", WITHIN)
    go_on.set()
    joining.join(WITHIN)
    until(lambda: set(other["lobby"].users()) == {"ann", "bob"}, "return of the members", WITHIN)
    assert lists(redis_server, rooms)


def test_what_redis_lost_of_who_is_there_is_mended_once_it_is_back(
    make: Make, opened: Opener, redis_server: RedisServer
) -> None:
    rooms, other = make(redis_server.url), make(redis_server.url)
    Listener(rooms, opened, user="ann")
    Listener(rooms, opened, user="bob")
    Listener(rooms, opened, "hall", user="bob")
    process = rooms._home.process
    with redis_server.client() as client:  # as after a failover that lost the last second
        client.hdel("geventws:0:{lobby}:who", rooms["lobby"].members()[0].id)
        client.hdel("geventws:0:{lobby}:users", "ann")
        client.hset("geventws:0:{lobby}:who", f"{process}-1", b"h4 carlnull")
        client.hset("geventws:0:{lobby}:users", "carl", 1)
        client.sadd(f"geventws:0:rooms:{process}", "{left}")  # nobody is there any more
        client.hset("geventws:0:{left}:who", f"{process}-2", b"h4 carlnull")
        client.hset("geventws:0:{left}:users", "carl", 1)
        assert set(other["lobby"].users()) == {"bob", "carl"}
    redis_server.kill_clients("pubsub")
    until(lambda: set(other["lobby"].users()) == {"ann", "bob"}, "comparison", WITHIN)
    for name in ("lobby", "hall", "left"):
        until(partial(lists, redis_server, rooms, name=name), "comparison", WITHIN)


def test_what_is_said_in_passing_while_the_bus_goes_keeps_nobody_waiting_for_it(
    make: Make, opened: Opener, redis_server: RedisServer, proxies: Callable[[int], Proxy]
) -> None:
    proxy = proxies(redis_server.port)
    rooms, other = make(proxy.url), make(redis_server.url)
    ann = Listener(rooms, opened, user="ann")
    Listener(other, opened, user="bob")
    proxy.refuses = True
    proxy.cut()
    ann.room.broadcast("typing", keep=False)
    until(lambda: away(rooms) and not rooms.stats()["buffered"], "notice", WITHIN)
    proxy.refuses = False
    back(rooms)
    assert set(ann.room.users()) == {"ann", "bob"}


def test_a_process_without_file_descriptors_comes_back_once_it_has_some(
    make: Make, opened: Opener, redis_server: RedisServer
) -> None:
    rooms, other = make(redis_server.url), make(redis_server.url)
    ann, bob = Listener(rooms, opened, user="ann"), Listener(other, opened, user="bob")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_connection(("127.0.0.1", redis_server.port)) as sock:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
            sock.sendall(b"CLIENT KILL TYPE normal SKIPME yes\r\nCLIENT KILL TYPE pubsub\r\n")
            until(lambda: away(rooms, other), "notice", WITHIN)
            ann.room.broadcast("said meanwhile")
            gevent.sleep(1.2)  # a lease
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    back(rooms, other)
    until(lambda: lists(redis_server, rooms, other), "return of the members", WITHIN)
    bob.room.broadcast("still here", confirm=WITHIN)
    until(lambda: ann.heard == bob.heard == ["said meanwhile", "still here"], "hearing", WITHIN)


def test_members_of_a_process_that_ended_are_gone_with_its_lease_and_left_is_told_once(
    make: Make, opened: Opener, redis_server: RedisServer
) -> None:
    dead, one, other = make(redis_server.url), make(redis_server.url), make(redis_server.url)
    told: list[tuple[int, str]] = []
    for number, rooms in enumerate((one, other)):
        Listener(rooms, opened)
        rooms.on_leave(lambda room, user, info, number=number: told.append((number, user)))
    Listener(dead, opened, user="ann")
    Listener(dead, opened, user="bob")
    Listener(one, opened, user="bob")
    assert set(one["lobby"].users()) == {"ann", "bob"}
    dead._home.links[0][1].span.stop()  # no word to anybody, as when a process is killed
    until(lambda: one["lobby"].users() == ["bob"], "end of the lease", WITHIN)
    until(lambda: len(told) == 2, "leaving", WITHIN)
    with redis_server.client() as client:
        until(lambda: client.zcard("geventws:0:processes") == 2, "end of the process", WITHIN)
        assert client.hgetall("geventws:0:{lobby}:users") == {b"bob": b"1"}
    assert sorted(told) == [(0, "ann"), (1, "ann")]


def test_a_reaper_that_ends_while_it_reaps_is_followed_by_another(
    make: Make, opened: Opener, redis_server: RedisServer
) -> None:
    rooms = make(redis_server.url)
    ann = Listener(rooms, opened)
    told: list[str] = []
    rooms.on_leave(lambda room, user, info: told.append(user))
    with redis_server.client() as client:  # bob is taken out, carl not yet
        client.zadd("geventws:0:processes", {"abcdefabcdef": 1})
        client.sadd("geventws:0:rooms:abcdefabcdef", "{lobby}", "{other}")
        client.hset("geventws:0:{lobby}:who", "abcdefabcdef-2", b"h4 carlnull")
        client.hset("geventws:0:{lobby}:users", "carl", 1)
        until(lambda: not client.exists("geventws:0:rooms:abcdefabcdef"), "reaping", WITHIN)
        until(lambda: client.zscore("geventws:0:processes", "abcdefabcdef") is None, "reaping", WITHIN)
    until(lambda: told == ["carl"], "leaving", WITHIN)
    assert ann.room.users() == []


def test_leases_that_ran_out_in_an_outage_make_nobody_leave(
    make: Make, opened: Opener, redis_server: RedisServer
) -> None:
    redis_server.stop()
    redis_server.options += ["--appendonly", "yes", "--appendfsync", "always"]
    redis_server.start()
    processes = [make(redis_server.url) for _ in range(2)]
    told: list[str] = []
    for rooms in processes:
        rooms.on_join(lambda room, user, info: told.append(f"{user} joined"))
        rooms.on_leave(lambda room, user, info: told.append(f"{user} left"))
    Listener(processes[0], opened, user="ann")
    bob = Listener(processes[1], opened, user="bob")
    until(lambda: len(told) == 3, "joining")
    redis_server.stop()
    until(lambda: away(*processes), "notice", WITHIN)
    assert bob.room.users() == ["bob"]
    gevent.sleep(1.2)  # a lease
    redis_server.start()
    back(*processes)
    until(lambda: set(bob.room.users()) == {"ann", "bob"}, "return of all", WITHIN)
    gevent.sleep(1.5)  # a lease and some: nobody reaps them
    assert set(bob.room.users()) == {"ann", "bob"}
    assert sorted(told) == ["ann joined", "bob joined", "bob joined"]


# Kicks


def test_a_kick_reaches_a_process_whose_way_to_redis_was_broken(
    make: Make, opened: Opener, redis_server: RedisServer, proxies: Callable[[int], Proxy]
) -> None:
    proxy = proxies(redis_server.port)
    rooms, other = make(proxy.url), make(redis_server.url)
    ann = Listener(rooms, opened, user="ann")
    proxy.refuses = True
    proxy.cut()
    until(lambda: away(rooms), "notice", WITHIN)
    other.disconnect("ann", code=4001)
    new = Listener(other, opened, user="ann")
    proxy.refuses = False
    until(lambda: ann.heard == [Close(4001, "")], "kick", WITHIN)
    back(rooms)
    again = Listener(rooms, opened, user="ann")
    other["lobby"].broadcast("still here")
    until(lambda: new.heard == again.heard == ["still here"], "hearing", WITHIN)


def test_a_kick_that_overtakes_the_answer_to_joining_is_for_who_joined(
    make: Make, opened: Opener, redis_server: RedisServer, proxies: Callable[[int], Proxy]
) -> None:
    proxy = proxies(redis_server.port)
    rooms, other = make(proxy.url), make(redis_server.url)
    Listener(rooms, opened)
    is_kicked = threading.Event()

    def hold(asked: bytes, answer: bytes) -> bool:
        if b"ann" in asked and b"enter" in asked:
            is_kicked.wait(WITHIN)
        return False

    proxy.cut_reply = hold
    joining = opened.spawn(partial(Listener, user="ann"), rooms, opened)
    until(lambda: "ann" in other["lobby"].users(), "joining at Redis", WITHIN)
    with redis_server.client() as client:
        before = client.xlen("geventws:0:{}:log")
        other.disconnect("ann", code=4001)
        until(lambda: client.xlen("geventws:0:{}:log") > before, "kick at Redis", WITHIN)
    until(lambda: rooms._home.links[0][1].span._orders, "kick at the process", WITHIN)
    is_kicked.set()
    joining.join()
    until(lambda: joining.value.heard == [Close(4001, "")], "kick", WITHIN)


def test_a_kick_in_an_outage_closes_here_at_once_and_there_afterwards(
    make: Make, opened: Opener, redis_server: RedisServer
) -> None:
    redis_server.stop()
    redis_server.options += ["--appendonly", "yes", "--appendfsync", "always"]
    redis_server.start()
    rooms, other = make(redis_server.url), make(redis_server.url)
    here, there = Listener(rooms, opened, user="ann"), Listener(other, opened, user="ann")
    redis_server.stop()
    until(lambda: away(rooms, other), "notice", WITHIN)
    rooms.disconnect("ann", code=4001)
    until(lambda: here.heard == [Close(4001, "")], "kick here", WITHIN)
    assert there.heard == []
    redis_server.start()
    until(lambda: there.heard == [Close(4001, "")], "kick there", WITHIN)


# What Redis refuses


def test_an_emptied_redis_is_filled_again(make: Make, opened: Opener, redis_server: RedisServer) -> None:
    rooms, other = make(redis_server.url), make(redis_server.url)
    for each in (rooms, other):
        each.on_gap(lambda room: None)
    # Who has a name may be closed: a kick may be what was lost.
    ann, bob = Listener(rooms, opened), Listener(other, opened)
    ann.room.broadcast("before", confirm=WITHIN)
    with redis_server.client() as client:
        client.flushall()
        client.script_flush()
    ann.room.broadcast("after")
    bob.room.broadcast("after too")
    until(lambda: ann.has("after", "after too") and bob.has("after", "after too"), "hearing", WITHIN)
    assert sorted(ann.heard) == sorted(bob.heard) == ["after", "after too", "before"]
    until(lambda: len(rooms["lobby"].members()) == 2, "return of all", WITHIN)


def test_a_key_of_another_type_breaks_its_own_room_alone(
    make: Make, opened: Opener, redis_server: RedisServer, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("geventws.rooms.span.CHECK", 0.5)
    rooms = make(redis_server.url)
    ann = Listener(rooms, opened, "good", user="ann")
    Listener(rooms, opened, "bad", user="ann")
    with redis_server.client() as client:
        for key in ("log", "last", "who", "users"):
            client.delete(f"geventws:0:{{bad}}:{key}")
            client.lpush(f"geventws:0:{{bad}}:{key}", "a list")
        client.zadd("geventws:0:processes", {"abcdefabcdef": 1})
        client.sadd("geventws:0:rooms:abcdefabcdef", "{bad}")
    with pytest.raises(BusUnavailable, match="refuses a message of rooms: WRONGTYPE"):
        rooms["bad"].broadcast("text", confirm=WITHIN)
    for number in range(10):
        rooms["bad"].broadcast("text")
        ann.room.broadcast(str(number))
    until(lambda: ann.heard == [str(number) for number in range(10)], "hearing", WITHIN)
    until(lambda: f"the bus of rooms refuses: {redis_server.url}: WRONGTYPE" in caplog.text, "line of the log")
    bob, dora = Listener(rooms, opened, "bad", user="bob"), Listener(rooms, opened, "good", user="dora")
    gevent.sleep(2.5)  # some heartbeats and checks, and a time to reap
    assert set(rooms["good"].users()) == {"ann", "dora"}
    ann.room.broadcast("still here")
    until(lambda: dora.heard == ["still here"], "hearing", WITHIN)
    assert up(rooms)
    with redis_server.client() as client:
        client.delete(*(f"geventws:0:{{bad}}:{key}" for key in ("log", "last", "who", "users")))
    rooms["bad"].broadcast("mended", confirm=WITHIN)
    until(lambda: bob.heard, "hearing, or being told", WITHIN)


def test_a_full_redis_is_named_and_lists_who_came_meanwhile_once_there_is_room(
    make: Make,
    opened: Opener,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("geventws.rooms.span.CHECK", 0.5)
    rooms, other = make(redis_server.url), make(redis_server.url)
    ann = Listener(rooms, opened, user="ann")
    with redis_server.client() as client:
        client.config_set("maxmemory", "1kb")
        with pytest.raises(BusUnavailable, match=f"{redis_server.url} refuses a message of rooms: OOM command not"):
            ann.room.broadcast("text", confirm=WITHIN)
        Listener(rooms, opened, user="bob")
        until(lambda: away(rooms), "notice", WITHIN)
        client.config_set("maxmemory", "0")
    back(rooms, other)
    ann.room.broadcast("afterwards", confirm=WITHIN)
    until(lambda: ann.heard[-1:] == ["afterwards"], "hearing", WITHIN)
    until(lambda: set(other["lobby"].users()) == {"ann", "bob"}, "list of who is there", WITHIN)
    lines = [line for line in caplog.messages if "the bus of rooms" in line]
    assert lines and all(redis_server.url in line for line in lines)


def test_missing_rights_are_named_with_the_rule_to_write(
    make: Make, opened: Opener, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~geventws:*", "resetchannels", "+@all")
        rooms = make(f"redis://app:secret@127.0.0.1:{redis_server.port}")
        joining = opened.spawn(Listener, rooms, opened)
        until(lambda: "&geventws:0:*" in caplog.text, "line of the log", WITHIN)
        rule = "~geventws:0:* &geventws:0:* +@read +@write +@pubsub +@scripting +@connection +time"
        assert rule in caplog.text
        client.execute_command("ACL", "SETUSER", "app", "reset", "resetchannels", "on", ">secret", *rule.split())
    joining.join()
    back(rooms)
    ann = Listener(rooms, opened)  # who came before may have missed something, and is told so
    rooms["lobby"].broadcast("text", confirm=WITHIN)
    until(lambda: ann.heard == ["text"], "hearing", WITHIN)


RIGHTS = ["~geventws:0:*", "&geventws:0:*", "+@read", "+@write", "+@pubsub", "+@scripting", "+@connection", "+time"]


@pytest.mark.parametrize("missing_right", [right for right in RIGHTS if right != "+@connection"])  # of SELECT alone
def test_each_right_that_is_missing_is_named_with_the_rule_to_write(
    make: Make, opened: Opener, redis_server: RedisServer, caplog: pytest.LogCaptureFixture, missing_right: str
) -> None:
    def is_named() -> bool:
        return " ".join(RIGHTS) in caplog.text

    with redis_server.client() as client:
        rules = ["reset", "resetchannels", "on", ">secret", *RIGHTS]
        client.execute_command("ACL", "SETUSER", "app", *(rule for rule in rules if rule != missing_right))
        rooms = make(f"redis://app:secret@127.0.0.1:{redis_server.port}")
        other = make(redis_server.url)
        Listener(other, opened, user="bob")
        joining = opened.spawn(partial(Listener, rooms, opened, user="ann"))
        joining.join(WITHIN)
        until(is_named, "line of the log", WITHIN)
        client.execute_command("ACL", "SETUSER", "app", *rules)
    back(rooms)
    until(lambda: lists(redis_server, other, rooms) and other["lobby"].users(), "list of who is there", WITHIN)
    carl = Listener(rooms, opened, user="carl")  # who came before may have missed something, and is told so
    rooms["lobby"].broadcast("afterwards", confirm=WITHIN)
    until(lambda: carl.heard[-1:] == ["afterwards"], "hearing", WITHIN)
    assert set(carl.room.users()) == set(other["lobby"].users())


def test_a_wrong_password_is_named_and_never_shown(
    make: Make, opened: Opener, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server.client() as client:
        client.config_set("requirepass", "right")
    redis_server.password = "right"
    rooms = make(f"redis://:wrong@127.0.0.1:{redis_server.port}")
    with pytest.raises(BusUnavailable):
        rooms["lobby"].broadcast("text", confirm=0.5)
    until(lambda: "refuses the user or password that its URL has" in caplog.text, "line of the log", WITHIN)
    assert caplog.text.count("refuses the user") == 1
    assert "wrong@" not in caplog.text
    assert make(f"redis://:right@127.0.0.1:{redis_server.port}")["lobby"].broadcast("text")


def test_a_push_that_is_none_is_dropped_and_told(
    make: Make, opened: Opener, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    rooms = make(redis_server.url)
    ann = Listener(rooms, opened)
    chance = random.Random(2)
    with redis_server.client() as client:
        for _ in range(300):
            client.publish("geventws:0:{lobby}", chance.randbytes(chance.randrange(40)))
        client.publish("geventws:0:{}", b"1-1 1-0 abcdefabcdef-1 5 k\nno JSON")
    ann.room.broadcast("text")
    until(lambda: ann.heard == ["text"], "hearing", WITHIN)
    until(lambda: "a message of rooms was dropped" in caplog.text, "line of the log")


def test_tls_and_its_names(
    make: Make, opened: Opener, tmp_path: Path, certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    authority = tmp_path / "ca.pem"
    certificates = certificate[2].get_ca_certs(binary_form=True)
    authority.write_text("".join(ssl.DER_cert_to_PEM_cert(each) for each in certificates))
    port = free_port()
    server = RedisServer(
        tmp_path / "tls", "--tls-port", str(port), "--tls-cert-file", certificate[0], "--tls-key-file", certificate[1],
        "--tls-ca-cert-file", str(authority), "--tls-auth-clients", "no",
    )  # fmt: skip
    try:
        ann = Listener(make(f"rediss://localhost:{port}?ssl_ca_certs={authority}"), opened)
        ann.room.broadcast("over TLS")
        until(lambda: ann.heard == ["over TLS"], "hearing", WITHIN)
        with pytest.raises(BusUnavailable):
            make(f"rediss://localhost:{port}")["lobby"].broadcast("text", confirm=3)
        until(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text, "line of the log", WITHIN)
    finally:
        server.stop()


def test_sentinels_tell_where_the_master_is(
    make: Make, opened: Opener, redis_server: RedisServer, tmp_path: Path
) -> None:
    replica = RedisServer(tmp_path / "replica", "--replicaof", f"127.0.0.1 {redis_server.port}")
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"sentinel monitor app 127.0.0.1 {redis_server.port} 1\n"
        "sentinel down-after-milliseconds app 1000\nsentinel failover-timeout app 5000\n"
    )
    sentinel = RedisServer(tmp_path / "sentinel", sentinel=configuration)
    try:
        with sentinel.client() as client:
            until(lambda: client.sentinel_slaves("app"), "discovery of the replica", WITHIN)
        rooms = make(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/app/0")
        ann = Listener(rooms, opened)
        ann.room.broadcast("before", confirm=WITHIN)
        with redis_server.client() as client:
            assert client.wait(1, 10_000) == 1
        redis_server.stop(signal.SIGKILL)
        ann.room.broadcast("while it changes")
        until(lambda: away(rooms), "notice", WITHIN)
        back(rooms)
        until(lambda: ann.heard == ["before", "while it changes"], "hearing", WITHIN)
        until(lambda: ann.room.history() == ["before", "while it changes"], "sending of what waited", WITHIN)
        with pytest.raises(BusUnavailable):
            make(f"redis+sentinel://127.0.0.1:{sentinel.port}/other")["lobby"].broadcast("text", confirm=1)
    finally:
        sentinel.stop()
        replica.stop()


# All at once


def test_a_short_soak_with_faults_at_random_loses_and_doubles_nothing(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    soak = Soak(tmp_path / "soak", seed)
    try:
        soak.run(20)
        print(soak)
    finally:
        soak.close()
