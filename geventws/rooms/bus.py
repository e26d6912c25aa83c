"""Bus: what rooms need of a server that joins many processes. Another engine is another class with these methods.

Pure. A topic is the address of a room, a person or a process; each kept message of a topic has a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .envelope import Message

CONTROL = "{}"  # the topic that every process hears. No room has it, as a room has a name


class Away(Exception):
    """The bus cannot be reached, does not answer or is not ready: try again. Says why."""


class Refused(Exception):
    """The bus answers, and will not do it: to try again is of no use. Says why."""


class Parcel(NamedTuple):
    """A message on its way to the bus."""

    topic: str
    key: str
    content: bytes
    is_kept: bool


class Page(NamedTuple):
    """Messages that a topic has kept."""

    messages: list[Message]
    newest: str  # position of the topic
    is_proven: bool  # nothing is missing between `since` and the first of them


class Change(NamedTuple):
    """What is to become of a member in the list of who is in a room."""

    topic: str
    action: str  # enter, linger or leave; or forget the room
    id: str
    user: str | None
    value: bytes


class Feed(Protocol):
    """A connection on which the bus says what is new."""

    def add(self, topics: Sequence[str]) -> None:
        """Ask for topics."""

    def remove(self, topics: Sequence[str]) -> None:
        """Ask for topics no more."""

    def read(self) -> tuple[str, bytes | None] | None:
        """Return a topic and what is said there, or None that says it is heard from now on; None after a silence."""

    def close(self) -> None:
        """Let go of the connection."""


class Bus(Protocol):
    """A server. All that is asked of it raises Away or Refused; what is asked for many fails for each by itself."""

    shown: str

    def publish(self, parcels: Sequence[Parcel], since: str | None) -> list[str | Refused]:
        """Keep or just say messages, and return the position of each.

        since is None the first time. Else they may be there already, behind this position or, where it is empty,
        anywhere.
        """

    def feed(self, silence: float) -> Feed:
        """Return a new connection that brings what is said, and is silent for so many seconds at most."""

    def touch(self, topics: Sequence[str]) -> tuple[int, list[str | Refused]]:
        """Keep rooms from being forgotten, and return the time in milliseconds and their newest positions."""

    def history(self, topic: str, since: str | None = None, limit: int | None = None) -> Page:
        """Return what was kept: behind a position, or what is still history."""

    def whole(self, topic: str) -> Page:
        """Return all that is there."""

    def change(self, process: str, changes: Sequence[Change]) -> tuple[str, list[str | Refused]]:
        """Note who is in rooms, and return the newest positions of the control topic and of the rooms."""

    def listed(self, process: str) -> dict[str, list[str]]:
        """Return the ids of the members that a process has on the list of each room."""

    def members(self, topic: str) -> list[tuple[str, bytes]]:
        """Return id and value of all who are in a room."""

    def lease(self, process: str, seconds: float) -> bool:
        """Have a process count as alive for a while, and tell it so; return whether it counted as that before."""

    def reap(self) -> int:
        """Take out the members of processes that are alive no more, and return how many processes those were."""

    def close(self) -> None:
        """Let go of all connections."""
