"""A room by its number, with members of many kinds, and what happens in it. With C and without, all is the same.

    python -m tests.broadcasts --seconds 60 --seed 1

Members compress or not, keep a compressor, are slow, are excluded, leave, close, vanish, are killed.
"""

from __future__ import annotations

import itertools
import random
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import gevent
import gevent.socket

from geventws import Rooms
from geventws.handshake import Request
from geventws.options import Options
from geventws.rooms import lane
from geventws.turns import pause
from geventws.websocket import WebSocket

from .differential import OFFERS, arguments, compare, kind
from .pairs import ENVIRON, KEY, SMALL, close_frame, settle, until

SIZES = [0, 1, 100, 125, 126, 200, 200, 3000, 16_000, 70_000]  # bytes of what is said


class Hearer:
    """A member, with its view and its peer."""

    def __init__(self, chance: random.Random, room: Any) -> None:
        server, self.peer = gevent.socket.socketpair()
        self.is_slow = chance.random() < 0.25
        if self.is_slow:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        options = Options(
            deflate_threshold=chance.choice([1, 192, 192]), deflate_context_takeover=chance.choice([False, False, True])
        )
        request = Request(KEY, (), chance.choice([(), (), OFFERS[1], OFFERS[3]]))
        leftovers = itertools.repeat(b"")
        self.ws = WebSocket(server, lambda: next(leftovers), dict(ENVIRON), lambda size: None, options, request)
        self.ws.accept()
        self.ws.session.debug = chance.random() < 0.1
        self.wire = bytearray()
        self.member = room.join(self.ws)
        self.view = gevent.spawn(self._hear)

    def _hear(self) -> None:
        with self.member:
            for message in self.ws:
                self.ws.send(message)

    def read(self) -> None:
        """Read what has come."""
        with suppress(OSError):
            while data := self.peer._sock.recv(1 << 20, socket.MSG_DONTWAIT):
                self.wire += data

    def state(self) -> tuple[Any, ...]:
        """Return what is known of it."""
        ws, member = self.ws, self.member
        transport = ws.session.transport
        told = ws.messages_sent, ws.bytes_sent, ws.close_code, ws.close_reason, transport.waiting, transport.broken
        return *told, member.cursor, member.pace.name, member.lane is None


class Run:
    """One run of a case, and what was seen of it."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)
        self.rooms = Rooms(linger=0, slow=self.random.choice(["close", "skip"]), history_bytes=200_000)
        self.room = self.rooms["room"]
        self.hearers = [Hearer(self.random, self.room) for _ in range(self.random.choice([3, 20, 40]))]
        self.seen: list[Any] = []

    def run(self) -> list[Any]:
        """Do all steps, and return what was seen."""
        for _ in range(self.random.randrange(5, 25)):
            for passes in range(self.random.choice([1, 1, 2, 4])):
                for _ in range(passes):  # of the loop, which is in the middle of a round then
                    pause()
                self._say()
            self._event(self.random.choice(self.hearers), self.random.random())
            self._rest()
            self.seen.append([self.rooms.stats(), *(hearer.state() for hearer in self.hearers)])
        self._end()
        return self.seen

    def _say(self) -> None:
        size = self.random.choice(SIZES)
        message: Any = self.random.choice([bytes(size), "x" * size, "é" * (size // 2)])
        some = self.random.choice([0, 0, 0, 1, 3])
        self.room.broadcast(message, exclude=[hearer.ws for hearer in self.random.sample(self.hearers, some)])

    def _event(self, hearer: Hearer, what: float) -> None:
        """Have one thing happen at one of the members, before or while all are served."""
        if what < 0.3:
            gevent.sleep(0)
        if what < 0.1:
            hearer.view.kill(block=False)
        elif what < 0.2:
            hearer.peer.close()
        elif what < 0.3:
            hearer.ws.close(4001, "enough")
        elif what < 0.4:
            hearer.member.leave()
        elif what < 0.5:
            with suppress(OSError):
                hearer.peer.sendall(close_frame(1001))
        elif what < 0.6:
            for each in self.hearers:
                each.ws.post("of its own, which a compressor remembers")
        else:
            for each in self.hearers:
                if not each.is_slow or what > 0.8:
                    each.read()

    def _rest(self) -> None:
        """Return when nothing is on its way but what waits for slow peers."""
        own = self.room.lane
        until(lambda: own.log.offered == own.log.end and not own._moves, "the end of a round")
        settle()

    def _end(self) -> None:
        """Have all members read all there is, and note what that was."""
        for _ in range(100):
            for hearer in self.hearers:
                hearer.read()
            settle()
        self.seen.append([self.rooms.stats(), *(hearer.state() for hearer in self.hearers)])
        self.seen.append([bytes(hearer.wire) for hearer in self.hearers])
        gevent.killall([hearer.view for hearer in self.hearers])
        for hearer in self.hearers:
            hearer.peer.close()
        settle()
        for hearer in self.hearers:
            hearer.ws.session.transport.abort()
        self.rooms.close()


def outcome(number: int, *, is_python: bool) -> list[Any]:
    """Return what is seen of a case."""
    before, lane.LONGEST_REST = lane.LONGEST_REST, 0.0  # how long a round took is nothing that both have alike
    try:
        with kind(is_python):
            return Run(number).run()
    finally:
        lane.LONGEST_REST = before


def difference(number: int) -> str:
    """Return the first difference between C and Python, an empty string where there is none.

    Two runs of the same kind may differ where a member ends in the middle of a round. So one equal pair is enough.
    """
    pairs: list[tuple[Sequence[Any], Sequence[Any]]] = []
    for _ in range(4):
        pairs.append((outcome(number, is_python=False), outcome(number, is_python=True)))
        if any(c == python for c, _ in pairs for _, python in pairs):
            return ""
    at, *parts = next((at, *both) for at, both in enumerate(zip(*pairs[0], strict=True)) if both[0] != both[1])
    index, *unlike = next((index, *both) for index, both in enumerate(zip(*parts, strict=True)) if both[0] != both[1])
    return f"case {number}, step {at}, {index}: C, Python {str(unlike)[:400]}"


def main() -> int:
    return compare(arguments("python -m tests.broadcasts", __doc__).parse_args(), difference)


if __name__ == "__main__":
    sys.exit(main())
