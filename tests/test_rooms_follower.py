"""Follower: whether all that was said on a topic is here, each once and in order, whatever the bus has lost."""

from __future__ import annotations

import random

import pytest

from geventws.rooms.envelope import Message
from geventws.rooms.follower import Follower, Heard

PUBLISHERS = ["aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"]


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
