"""Redis as the bus of rooms: what is asked of it, by the scripts that it runs.

Knows keys and channels. A room's name is a part of them, and never a pattern.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from .address import Address
from .bus import CONTROL, Change, Feed, Page, Parcel, Refused
from .envelope import Message, parse_message
from .log import Limits, parse_position
from .redis import Server
from .scripts import CHANGE, DEAD, FORGET, LEASE, LISTED, MEMBERS, PUBLISH, REAP, TOUCH

SHORTEST_LIFE = 60.0  # seconds that keys live at least, so that a process can keep them from ending
PAGE = 500  # messages that are read at once
GROUP = 100  # topics of one script
CLOCKS_APART = 10_000  # milliseconds by which the clock of a server may be behind that of the one it follows


class Redis:
    """A Redis server, or Valkey, as the Bus of rooms."""

    def __init__(self, address: Address, namespace: str, limits: Limits) -> None:
        """Connect to nothing yet."""
        self.shown = address.shown
        # The database too, as channels know nothing of it.
        self._prefix = f"{namespace}:{address.database}:"
        self._server = Server(address, self._prefix)
        self._limits = limits
        self._life = int(max(limits.seconds, SHORTEST_LIFE) * 1000)  # milliseconds

    def feed(self, silence: float) -> Feed:
        """Return a new connection that brings what is said."""
        return self._server.feed(silence)

    def close(self) -> None:
        """Close the connections of this thread that nobody uses."""
        self._server.close()

    # Messages

    def publish(self, parcels: Sequence[Parcel], since: str | None) -> list[str | Refused]:
        """Keep or just say messages, in one piece, and return the position of each."""
        keys: list[str] = []
        # The server keeps some hundred of small messages anyway, and by them a reader finds what it missed.
        args: list[Any] = [_search_from(since), max(self._limits.messages, 100), max(self._limits.size, 1), self._life]
        for topic, key, content, is_kept in parcels:
            if is_kept:
                keys += self._keys(topic)[:2]
            args += [self._channel(topic), key, content, int(is_kept)]
        return [self._server.outcome(id) for id in self._server.run(PUBLISH, keys, *args)]

    def touch(self, topics: Sequence[str]) -> tuple[int, list[str | Refused]]:
        """Keep rooms from being forgotten, and return the time in milliseconds and their newest positions."""
        age, now = int(self._limits.seconds * 1000), 0
        newest: list[str | Refused] = []
        for i in range(0, len(topics), GROUP):
            keys = [key for topic in topics[i : i + GROUP] for key in self._keys(topic)]
            time, *ids = self._server.run(TOUCH, keys, self._life, age, secrets.randbelow(1 << 32))
            now = int(time)
            newest += map(self._server.outcome, ids)
        return now, newest

    def _newest_of(self, topic: str) -> tuple[int, str]:
        now, (newest,) = self.touch([topic])
        if isinstance(newest, Refused):
            raise newest
        return now, newest

    def history(self, topic: str, since: str | None = None, limit: int | None = None) -> Page:
        """Return what was kept: behind a position, or what is still history."""
        log = self._keys(topic)[0]
        now, newest = self._newest_of(topic)
        if since is None:
            most = self._limits.messages
            messages = self._newest(log, most if limit is None else min(limit, most))
            oldest = now - self._limits.seconds * 1000
            messages = [message for message in messages if int(message.position.split("-")[0]) >= oldest]
            return Page(messages, messages[-1].position if messages else newest, True)
        messages = self._read(log, since)
        if messages and messages[0].position == since:
            del messages[0]
            is_proven = True
        else:
            is_proven = messages[0].before == since if messages else newest == since
        return Page(messages, messages[-1].position if messages else newest, is_proven)

    def whole(self, topic: str) -> Page:
        """Return all that is there."""
        _, newest = self._newest_of(topic)
        messages = self._read(self._keys(topic)[0], "-")
        return Page(messages, messages[-1].position if messages else newest, False)

    def _read(self, log: str, start: str) -> list[Message]:
        messages: list[Message] = []
        while True:
            page = self._server.call("XRANGE", log, start, "+", "COUNT", PAGE)
            messages += map(_message, page)
            if len(page) < PAGE:
                return messages
            start = f"({page[-1][0].decode()}"

    def _newest(self, log: str, count: int) -> list[Message]:
        messages: list[Message] = []
        end = "+"
        while len(messages) < count:
            wanted = min(PAGE, count - len(messages))
            page = self._server.call("XREVRANGE", log, end, "-", "COUNT", wanted)
            messages += map(_message, page)
            if len(page) < wanted:
                break
            end = f"({page[-1][0].decode()}"
        return messages[::-1]

    # Who is there

    def change(self, process: str, changes: Sequence[Change]) -> tuple[str, list[str | Refused]]:
        """Note who is in rooms, and return the newest positions of the control topic and of the rooms."""
        keys = [f"{self._prefix}rooms:{process}", self._keys(CONTROL)[1]]
        args: list[Any] = [self._life]
        for topic, action, id, _, value in changes:
            keys += self._keys(topic)[1:]
            args += [action, id, value, topic, self._channel(topic)]
        outcomes = map(self._server.outcome, self._server.run(CHANGE, keys, *args))
        control, *newest = (each if isinstance(each, Refused) else each.split(" ")[0].strip("-") for each in outcomes)
        return str(control), newest

    def listed(self, process: str) -> dict[str, list[str]]:
        """Return the ids of the members that a process has on the list of each room."""
        topics = [topic.decode() for topic in self._server.call("SMEMBERS", f"{self._prefix}rooms:{process}")]
        found: dict[str, list[str]] = {}
        for i in range(0, len(topics), GROUP):
            some = topics[i : i + GROUP]
            ids = self._server.run(LISTED, [self._keys(topic)[2] for topic in some], process)
            found |= {topic: [id.decode() for id in mine] for topic, mine in zip(some, ids, strict=True)}
        return found

    def members(self, topic: str) -> list[tuple[str, bytes]]:
        """Return id and value of all who are in a room, on processes that are alive."""
        found = self._server.run(MEMBERS, [self._keys(topic)[2]], f"{self._prefix}lease:")
        return [(id.decode(), value) for id, value in zip(found[::2], found[1::2], strict=True)]

    def lease(self, process: str, seconds: float) -> bool:
        """Have a process count as alive for a while, and tell it so; return whether it counted as that before."""
        keys = [f"{self._prefix}lease:{process}", f"{self._prefix}processes"]
        return bool(self._server.run(LEASE, keys, process, int(seconds * 1000), self._channel(f"#{process}")))

    def reap(self) -> int:
        """Take out the members of processes that are alive no more, and return how many processes those were."""
        processes = f"{self._prefix}processes"
        dead = [process.decode() for process in self._server.run(DEAD, [processes])]
        for process in dead:
            lease, rooms = f"{self._prefix}lease:{process}", f"{self._prefix}rooms:{process}"
            for topic in self._server.call("SMEMBERS", rooms):
                name = topic.decode()
                self._server.run(REAP, [lease, rooms, *self._keys(name)[2:]], process, name, self._channel(name))
            self._server.run(FORGET, [lease, processes, rooms], process)
        return len(dead)

    # Names

    def _channel(self, topic: str) -> str:
        return self._prefix + topic

    def _keys(self, topic: str) -> list[str]:
        return [f"{self._prefix}{topic}:{part}" for part in ("log", "last", "who", "users")]


def _search_from(since: str | None) -> str:
    """Return where to look for messages that may be there: a little earlier, as a failover may set the clock back."""
    if since is None:
        return ""
    position = parse_position(since)
    return str(max(position.milliseconds - CLOCKS_APART, 0)) if position else "-"


def _message(entry: Any) -> Message:
    id, (_, data) = entry
    return parse_message(b"%s %s" % (id, data))
