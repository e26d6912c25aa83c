"""Fuzz target: one Connection, fed with any bytes in any chunks, and used between them.

The wire of a plan is fed whole, in single bytes, in pieces, and with a limit on frames; each must lead to the same,
whatever that is. A Reference reads the wire too, and all that the Connection sends.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any

from geventws.connection import (
    CLOSE_RECEIVED,
    CLOSE_SENT,
    CLOSED,
    EOF,
    FAILING,
    LOCAL_CLOSING,
    NEXT,
    OPEN,
    REMOTE_CLOSING,
    RULE_BROKEN,
    Close,
    Connection,
    Event,
    Failure,
    Ping,
    Pong,
)
from geventws.errors import ConnectionClosed, may_travel
from geventws.permessage_deflate import Deflate

from .plan import Call, Plan, decode
from .plan import seeds as seeds
from .reference import Reference

LONGEST_HEAD = 2 + 4 + 125  # bytes that are kept until more come: a header, or a control frame
SLACK = 512  # bytes of reasons, keys and the like
NO_LIMIT = 1 << 62
# zlib tells of corrupt data but not what came before it: so of several faults in a compressed message, bad UTF-8,
# corrupt data and too many bytes, the chunks decide which is found first.
AMBIGUOUS = (1007, 1009)


class Counted(bytes):
    """Bytes that count what is copied of them."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        return Counted._count(part) if isinstance(part, bytes) else part

    def __add__(self, other: Any) -> Counted:
        return Counted._count(super().__add__(other))

    @classmethod
    def _count(cls, part: bytes) -> Counted:
        cls.copied += len(part)
        return cls(part)


def held(value: object) -> int:
    """Return the bytes of data that a value holds, Pongs that wait to be taken not counted."""
    if isinstance(value, (bytes, bytearray, str)):
        return len(value)
    if isinstance(value, (tuple, list)):
        return sum(map(held, value))
    if value is None or isinstance(value, (int, Enum)):
        return 0
    names = {*getattr(value, "__slots__", ()), *getattr(value, "__dict__", ()), "unconsumed_tail", "unused_data"}
    return sum(held(getattr(value, name, None)) for name in names - {"_pongs"})


CLOSES: tuple[tuple[int, str], ...] = (
    (1000, ""),
    (1001, "going away"),
    (4999, "é" * 70),
    (1011, "x" * 123),
    (1005, ""),
    (999, ""),
    (1000, "\ud800"),
)
MESSAGES: tuple[tuple[Any, bool | None], ...] = (
    ("Hello", None),
    ("", None),
    ("é" * 63, None),
    ("a" * 125, None),
    ("abc" * 100, None),
    ("Hello", True),
    ("\udfff", None),
    (b"", None),
    (b"\xff" * 126, None),
    (bytearray(65536), None),
    (memoryview(b"Hello"), False),
    (b"\xff" * 200, False),
    (random.Random(7692).randbytes(300), None),
    (None, None),
)


class Session:
    """A Connection, and what must be true of it."""

    def __init__(self, plan: Plan, limit: int = NO_LIMIT, turn: int = NO_LIMIT) -> None:
        deflate = Deflate(plan.agreement, plan.options, client=plan.client) if plan.agreement else None
        self.connection = Connection(client=plan.client, max_message_size=plan.max_message_size, deflate=deflate)
        self.peer = Reference(client=not plan.client, agreement=plan.agreement)
        self.limit = limit
        self.turn = turn
        self.events: list[Event] = []
        self.passes = 0  # calls of receive_data()
        self.lost = False  # receive_eof() was called
        self._state = OPEN
        self._close_code: int | None = None
        self._is_told = False  # the peer got our Close
        self._unanswered: list[bytes] = []  # payloads of Pings
        self._longest_chunk = 0

    @property
    def failure(self) -> Failure | None:
        return self.events[-1] if self.events and isinstance(self.events[-1], Failure) else None

    @property
    def _is_over(self) -> bool:
        return self.lost or isinstance(self.events[-1] if self.events else None, (Close, Failure))

    def check_state(self) -> None:
        assert self.connection.state is self._state
        assert self.connection.close_code == self._close_code
        assert self.connection.may_send is (self._state in (OPEN, REMOTE_CLOSING, FAILING))

    # What comes in

    def receive(self, chunk: bytes) -> None:
        self._longest_chunk = max(self._longest_chunk, len(chunk))
        inflated = self.connection.inflated
        self._pass(chunk)
        passes = 1
        while self.connection.limited:
            self._pass(b"")
            passes += 1
            turns = (self.connection.inflated - inflated) // self.turn
            assert passes <= LONGEST_HEAD + len(chunk) + turns, "no progress"
        self.passes += passes
        # Whatever is kept is copied at the next call: this bounds the work per byte as well.
        assert len(self.connection._buffer) <= LONGEST_HEAD

    def _pass(self, chunk: bytes) -> None:
        connection = self.connection
        inflated = connection.inflated
        if events := connection.receive_data(chunk, self.limit, self.turn):
            self._take(events)
        assert connection._message is None or connection._message.size <= connection.max_message_size
        assert connection.inflated - inflated <= self.turn, "inflated more than its turn"

    def _take(self, events: list[Event]) -> None:
        for event in events:
            assert not self._is_over, f"{event!r} after the end"
            self.events.append(event)
            most = self.connection.max_message_size
            if isinstance(event, str):
                assert type(event) is str and len(event.encode()) <= most
            elif isinstance(event, bytes):
                assert type(event) in {bytes, Counted} and len(event) <= most
            elif isinstance(event, Ping):
                self._unanswered.append(event.payload)
            elif isinstance(event, Close):
                assert event.code == 1005 or may_travel(event.code)
                self._state = NEXT[self._state, CLOSE_RECEIVED]
                self._settle(event.code)
                self._unanswered.clear()
            elif isinstance(event, Failure):
                assert event.code in (1002, 1007, 1009) and event.reason
                self._state = NEXT[self._state, RULE_BROKEN]
                if self._state is CLOSED:
                    self._unanswered.clear()
        self.check_state()

    def _settle(self, code: int) -> None:
        if self._close_code is None:
            self._close_code = code

    # What goes out

    def call(self, call: Call) -> object:
        """Return what a call leads to: what the peer reads, or the exception."""
        result = getattr(self, call.what)(call.argument)
        self.check_state()
        return result

    def _tell(self, wire: bytes) -> list[Event]:
        events = self.peer.receive(wire)
        assert not any(isinstance(event, Failure) for event in events), "the peer cannot read this"
        return events

    def close(self, argument: int) -> object:
        code, reason = CLOSES[argument % len(CLOSES)]
        connection, state, failure = self.connection, self._state, self.failure
        try:
            wire = connection.close(code, reason)
        except ValueError:
            assert not may_travel(code) or reason == "\ud800"
            return ValueError
        assert may_travel(code) and reason != "\ud800"
        if state is FAILING:
            assert failure is not None
            code, reason = failure
            self._unanswered.clear()
        elif state is REMOTE_CLOSING:
            code, reason = self._close_code or 0, ""
        if state in (OPEN, FAILING):
            self._settle(code)
        self._state = NEXT.get((state, CLOSE_SENT), state)
        cut = reason.encode()[:123].decode(errors="ignore")
        expected = [Close(code, cut)] if state in (OPEN, REMOTE_CLOSING, FAILING) else []
        assert bool(wire) is bool(expected) and self._tell(wire) == expected
        self._is_told = self._is_told or bool(wire)
        return expected

    def message(self, argument: int) -> object:
        message, binary = MESSAGES[argument % len(MESSAGES)]
        try:
            wire = self.connection.encode_message(message, binary)
        except ConnectionClosed as exc:
            assert self._state in (LOCAL_CLOSING, CLOSED) and exc.code == (self._close_code or 1006)
            return exc.code
        except (TypeError, ValueError) as exc:
            assert message in (None, "\udfff", b"\xff" * 200)
            return type(exc)
        assert self._state in (OPEN, REMOTE_CLOSING, FAILING)
        payload = message.encode() if isinstance(message, str) else bytes(message)
        is_text = isinstance(message, str) if binary is None else not binary
        expected = [payload.decode() if is_text else payload]
        assert self._tell(wire) == expected
        return expected

    def ping(self, argument: int) -> object:
        try:
            wire = self.connection.encode_ping(bytes(argument))
        except ValueError:
            assert argument > 125
            return ValueError
        expected = [] if self._is_told else [Ping(bytes(argument))]
        assert argument <= 125 and self._tell(wire) == expected
        return expected

    def pongs(self, argument: int) -> object:
        latest_only = bool(argument & 1)
        wire = self.connection.take_pongs(latest_only=latest_only)
        if latest_only:
            assert wire == b""
            del self._unanswered[:-1]
            return None
        expected = [] if self._is_told else [Pong(payload) for payload in self._unanswered]
        assert bool(wire) is bool(self._unanswered) and self._tell(wire) == expected
        self._unanswered.clear()
        return expected

    def eof(self, argument: int) -> object:
        most = LONGEST_HEAD + self._longest_chunk + SLACK
        message = held(self.connection._message)
        assert held(self.connection) - message <= most, "holds more than a message and what came last"
        self.connection.receive_eof()
        assert held(self.connection) <= most, "holds what came when all is over"
        self.lost = True
        self._state = NEXT[self._state, EOF]
        self._settle(1006)
        self._unanswered.clear()
        return None


AT_THE_END = (("pongs", 0), ("close", 0), ("message", 0), ("eof", 0))


def follow(plan: Plan, session: Session, cut: Callable[[bytes], Iterable[bytes]]) -> list[object]:
    """Run a plan with its wire cut up; return what it led to, in order."""
    results: list[object] = []
    fed = 0
    for offset, what, argument in (*plan.calls, *(Call(len(plan.wire), *end) for end in AT_THE_END)):
        stop = max(fed, min(offset, len(plan.wire)))
        known = len(session.events)
        for chunk in cut(plan.wire[fed:stop]):
            session.receive(chunk)
        fed = stop
        results += session.events[known:]
        result = session.call(Call(offset, what, argument))
        failure = session.failure
        if plan.agreement and failure and failure.code in AMBIGUOUS:
            results = [event for event in results if event != failure]
            result = type(failure)
        results.append(result)
    assert session.connection.state is CLOSED
    return results


def whole(wire: bytes) -> Iterator[bytes]:
    yield wire


def single_bytes(wire: bytes) -> Iterator[bytes]:
    step = 1 + len(wire) // 512  # bytes: a long wire comes in larger steps
    return (wire[start : start + step] for start in range(0, len(wire), step))


def pieces(wire: bytes) -> Iterator[bytes]:
    choose = random.Random(zlib.crc32(wire))
    start = 0
    while start < len(wire):
        stop = start + choose.randrange(1, 2 << choose.randrange(12))
        yield wire[start:stop]
        start = stop


def counted_pieces(wire: bytes) -> Iterator[bytes]:
    return map(Counted, pieces(wire))


def run(data: bytes) -> None:
    """Raise whatever an input proves to be wrong."""
    plan = decode(data)
    session = Session(plan)
    results = follow(plan, session, whole)
    for cut in (single_bytes, pieces):
        assert follow(plan, Session(plan), cut) == results, cut.__name__
    limited = Session(plan, plan.limit, 1 + plan.max_message_size // (2 * plan.limit))
    Counted.copied = 0
    assert follow(plan, limited, counted_pieces) == results, "limit"
    assert Counted.copied <= 6 * len(plan.wire) + 4 * LONGEST_HEAD * (limited.passes + 1), "copied more and more"
    if not any(call.what == "eof" for call in plan.calls):
        _compare(plan, session, Reference(client=plan.client, agreement=plan.agreement).receive(plan.wire))


def _compare(plan: Plan, session: Session, theirs: list[Event]) -> None:
    """Check a session against what the reference makes of the same wire."""
    ours, failure = session.events, session.failure
    if failure is None:
        assert theirs == ours, "read otherwise"
        return
    ours = ours[:-1]
    rest = theirs[len(ours) :]
    assert theirs[: len(ours)] == ours, "read otherwise"
    if plan.agreement is not None:
        # The reference judges a compressed message at its end, behind the control frames in its midst.
        rest = [event for event in rest if isinstance(event, (str, bytes))]
    if failure.code != 1009:
        # wsproto may wait for more of a frame before it judges.
        assert rest in ([], [Failure(failure.code, "")]), "refused otherwise"
