"""What needs no Redis of rooms over one: addresses, the bytes of messages, and whether all of a topic is here."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from geventws.rooms.address import choose, parse
from geventws.rooms.envelope import Message, content, member_value, parse_member, parse_message
from geventws.rooms.follower import Follower, Heard

PUBLISHERS = ["aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"]


# Addresses


@pytest.mark.parametrize(
    ("url", "shown", "hosts", "database", "user", "password", "service"),
    [
        ("redis://localhost", "redis://localhost", (("localhost", 6379),), 0, None, None, ""),
        ("redis://", "redis://", (("localhost", 6379),), 0, None, None, ""),
        ("redis://[::1]:7000/2", "redis://[::1]:7000/2", (("::1", 7000),), 2, None, None, ""),
        ("rediss://ann:p%40ss@a:1/3", "rediss://a:1/3", (("a", 1),), 3, "ann", "p@ss", ""),
        ("redis://:secret@a?db=4", "redis://a", (("a", 6379),), 4, None, "secret", ""),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock", (), 1, None, None, ""),
        (
            "redis+sentinel://:secret@a,b:5/main/2", "redis+sentinel://a,b:5/main/2", (("a", 26379), ("b", 5)), 2, None,
            "secret", "main",
        ),
    ],
)  # fmt: skip
def test_an_address_is_what_its_url_says(
    url: str, shown: str, hosts: object, database: int, user: str | None, password: str | None, service: str
) -> None:
    (address,) = parse(url)
    assert (address.shown, address.hosts, address.database) == (shown, hosts, database)
    assert (address.username, address.password, address.service) == (user, password, service)
    assert address.tls == url.startswith("rediss")
    if password:
        assert password not in repr(address)


def test_a_server_that_is_added_takes_rooms_and_moves_no_others() -> None:
    servers = [(name, name) for name in ("redis://a", "redis://b", "redis://c")]
    names = [f"{{room {number}}}" for number in range(300)]
    before = {name: choose(name, servers[:2]) for name in names}
    after = {name: choose(name, servers) for name in names}
    moved = [name for name in names if before[name] != after[name]]
    assert {after[name] for name in moved} == {"redis://c"}
    assert 50 < len(moved) < 150


# Bytes


@pytest.mark.parametrize("kind", "tbjkc+-*")
def test_a_message_is_what_was_packed(kind: str) -> None:
    data = content(kind, "é\n {}".encode(), ["abcdefabcdef-1", "no id", "abcdefabcdef-2", "a\nb-1"])
    message = parse_message(b"5-1 4-0 abcdefabcdef-7 99 " + data)
    assert message == Message(
        "5-1", "4-0", "abcdefabcdef", 7, kind, frozenset({"abcdefabcdef-1", "abcdefabcdef-2"}), "é\n {}".encode()
    )
    assert message.key == "abcdefabcdef-7"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n", b"1-1", b"- - abcdefabcdef-1 0 x\n", b"1-1 0-0 abc-1 0 t\n", b"1-1 0-0 abcdefabcdef-1 0 t \n",
        b"1 0 abcdefabcdef-1 0 t\n", b"1-1 0-0 abcdefabcdef-1 -5 t\n", b"- - abcdefabcdef-1 0 t\n\xff",
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_message(data)


def test_any_bytes_are_a_message_or_refused() -> None:
    chance = random.Random(3)
    good = b"5-1 4-0 abcdefabcdef-7 99 tabcdefabcdef-1\ntext"
    for _ in range(20_000):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with suppress(ValueError):
            parse_message(bytes(data[: chance.randrange(len(data) + 1)]))


@pytest.mark.parametrize("user", [None, "ann", "5 ", "é\n\x00", "h3 ann"])
@pytest.mark.parametrize("lingers", [True, False])
def test_a_member_is_what_was_packed(user: str | None, lingers: bool) -> None:
    info = {"name": "é 1 "}
    assert parse_member(member_value(user, info, lingers=lingers)) == (user, info, lingers)


# Whether all is here


class Topic:
    """A topic as a bus has it."""

    def __init__(self, clock: int = 1000) -> None:
        self.log: list[Message] = []
        self.clock = clock
        self.numbers = dict.fromkeys(PUBLISHERS, 0)

    @property
    def newest(self) -> str:
        return self.log[-1].position if self.log else f"{self.clock}-77"

    def say(self, publisher: str) -> Message:
        before = self.newest
        self.clock += 1
        self.numbers[publisher] += 1
        body = f"{publisher} {self.numbers[publisher]}".encode()
        message = Message(f"{self.clock}-0", before, publisher, self.numbers[publisher], "t", frozenset(), body)
        self.log.append(message)
        return message

    def mend(self, follower: Follower) -> tuple[list[Heard], bool]:
        """Do as a process does; return what it hears, and whether it has a gap."""
        heard: list[Heard] = []
        has_gap, lost = False, follower.lost
        while not follower.is_whole:
            positions = [message.position for message in self.log]
            if follower.position in positions:
                messages = self.log[positions.index(follower.position) + 1 :]
            elif (self.log and self.log[0].before == follower.position) or not self.log:
                messages = self.log[:]
            else:
                messages, has_gap = self.log[:], True
            heard += follower.mend(messages, self.newest)[0]
        return heard, has_gap or follower.lost > lost


def bodies(heard: list[Heard]) -> list[bytes]:
    return [message.body for message, is_new in heard if is_new]


@pytest.mark.parametrize("seed", range(200))
def test_each_message_is_heard_once_and_in_order_whatever_gets_lost(seed: int) -> None:
    chance = random.Random(seed)
    topic, follower = Topic(), Follower(10_000)
    follower.mend([], topic.newest)
    heard: list[bytes] = []
    said: list[bytes] = []
    for _ in range(chance.randrange(1, 200)):
        message = topic.say(chance.choice(PUBLISHERS))
        said.append(message.body)
        if chance.random() < 0.2:
            continue  # this push is lost
        for _ in range(chance.choice([1, 1, 1, 2])):
            taken = follower.take(message)
            heard += bodies(taken or [])
        if not follower.is_whole and chance.random() < 0.5:
            mended, has_gap = topic.mend(follower)
            heard += bodies(mended)
            assert not has_gap
    follower.doubt()
    heard += bodies(topic.mend(follower)[0])
    assert heard == said


@pytest.mark.parametrize("seed", range(200))
@pytest.mark.parametrize("shift", [-500, 0, 500], ids=["behind", "equal", "ahead"])
def test_who_was_there_misses_nothing_when_the_bus_goes_back(seed: int, shift: int) -> None:
    chance = random.Random(seed)
    topic, follower = Topic(), Follower(10_000)
    follower.mend([], topic.newest)
    heard: list[bytes] = []
    said: list[bytes] = []
    for _ in range(50):
        message = topic.say(chance.choice(PUBLISHERS))
        said.append(message.body)
        heard += bodies(follower.take(message) or [])
    kept = chance.randrange(51)
    topic.log = topic.log[:kept]
    topic.clock += shift
    for _ in range(50):
        message = topic.say(chance.choice(PUBLISHERS))
        said.append(message.body)
        if chance.random() < 0.7:
            heard += bodies(follower.take(message) or [])
    follower.doubt()
    mended, has_gap = topic.mend(follower)
    heard += bodies(mended)
    assert sorted(heard) == sorted(said)
    for publisher in PUBLISHERS:
        mine = [body for body in heard if body.startswith(publisher.encode())]
        assert mine == [body for body in said if body.startswith(publisher.encode())]
    assert has_gap or kept == 50


def test_a_message_that_the_bus_lost_behind_saying_it_is_heard_and_told() -> None:
    topic, follower = Topic(), Follower(100)
    follower.mend([], topic.newest)
    first, never_said, lost = (topic.say(publisher) for publisher in PUBLISHERS)
    assert follower.take(lost) is None
    topic.log = [first]
    heard, has_gap = topic.mend(follower)
    assert bodies(heard) == [first.body, lost.body]
    assert has_gap
    assert never_said.body not in bodies(heard)


def test_publishers_that_say_nothing_for_long_are_forgotten() -> None:
    follower = Follower(100)
    for number in range(1000):
        follower.see(f"{number:012x}", 1)
    assert len(follower._seen) <= 100 + 128
