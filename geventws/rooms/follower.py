"""Follower: whether a process has all that a topic of a bus keeps, and each of it once.

Pure. Positions give the order, and tell that something is missing; keys tell what was here before.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import NamedTuple

from .envelope import Message

MOST_PENDING = 10_000  # messages that wait for the ones before them; more are read again


class Heard(NamedTuple):
    """A message in its place, and whether it is the first time."""

    message: Message
    is_new: bool


class Follower:
    """The messages of one topic, in the order of the bus.

    A message names the position before it. Where that is another than the newest one here, something is missing: from
    there on messages wait until mend() gets what the bus has.
    """

    def __init__(self, kept: int) -> None:
        """kept is how many messages the topic keeps at least."""
        self.position = ""  # of the newest message in its place; empty before the first mend()
        self._kept = kept
        self._seen: OrderedDict[str, int] = OrderedDict()  # publishers to the highest number of theirs
        self._pending: deque[Message] | None = deque()  # while something is missing
        self._stuck = ""  # key of the message that a mend was for already
        self.lost = 0  # messages that the bus said and has lost since

    @property
    def is_whole(self) -> bool:
        """Whether nothing is known to be missing."""
        return self._pending is None

    def see(self, publisher: str, number: int) -> bool:
        """Note that a message is here, and return whether it is the first time."""
        if number <= self._seen.get(publisher, -1):
            return False
        self._seen[publisher] = number
        self._seen.move_to_end(publisher)
        if len(self._seen) > self._kept + 128:  # who said nothing in so many messages has none that could come again
            self._seen.popitem(last=False)
        return True

    def take(self, message: Message) -> list[Heard] | None:
        """Return what is to be heard now; None where this is the first to show that something is missing."""
        if self._pending is not None:
            if len(self._pending) >= MOST_PENDING:
                self._pending.clear()
            self._pending.append(message)
            return []
        if not message.position:
            return [Heard(message, True)]
        if message.before == self.position:
            return [self._advance(message)]
        if message.number <= self._seen.get(message.publisher, -1):
            return []  # a mend has brought it
        self._pending = deque([message])
        return None

    def doubt(self) -> None:
        """Have all messages wait for a mend."""
        if self._pending is None:
            self._pending = deque()

    def mend(self, messages: Iterable[Message], newest: str) -> tuple[list[Heard], bool]:
        """Take what the bus has behind `position`, or all that it has where it cannot tell.

        Returns what is to be heard now, and whether nothing is missing any more.
        """
        heard = [self._advance(message) for message in messages]
        self.position = newest
        pending, self._pending = self._pending or deque(), None
        while pending:
            more = self.take(pending[0])
            if more is None:
                self._pending = pending
                return heard, self._force(heard)
            heard += more
            pending.popleft()
        return heard, True

    def _force(self, heard: list[Heard]) -> bool:
        """Hear a message that the bus has lost after it had said it; False for one that may still be read."""
        assert self._pending is not None
        first = self._pending[0]
        if self._stuck != first.key:
            self._stuck = first.key
        else:
            self.lost += 1
            heard.append(Heard(self._pending.popleft(), self.see(first.publisher, first.number)))
        return False

    def _advance(self, message: Message) -> Heard:
        self.position = message.position
        return Heard(message, self.see(message.publisher, message.number))
