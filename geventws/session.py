"""Session: one open connection on the hub, from the 101 to the end of its socket.

Joins a Connection (bytes) and a Transport (the hub): answers control frames, queues messages, bounds the end, and
wakes who waits. Knows no view, server or framework.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from sys import getsizeof
from time import time
from typing import Any

import gevent
from gevent import getcurrent
from gevent.hub import Waiter

from . import loglines, permessage_deflate
from .closing import Closing
from .connection import CLOSED, FAILING, OPEN, REMOTE_CLOSING, Close, Connection, Event, Ping, Pong
from .ending import Owner, tell_end
from .errors import CloseCode
from .fast import SessionFields
from .keepalive import Keepalive
from .lifetime import Lifetime
from .loglines import about, describe, printable, route_of
from .message import Prepared, Sendable
from .options import Options
from .transport import Transport
from .turns import TURN, Turns, streak_of_hub, turns

log = logging.getLogger("geventws")

# Message size, in characters or bytes, from which header and payload go to the kernel without being joined before.
LARGE = 16_384
# What a peer may have inflated at a time, before others have their turn.
SHARE = 65_536  # bytes
# The same once the pass of the loop has done its work. A message of this size or more takes two turns, and reading
# stops between them. So it is not 4096: with that, echoes of 4 KiB to 64 peers take 9 to 16 % more processor time.
SMALL_SHARE = 8192  # bytes


# Called with the route, "received" or "sent", bytes of each message and their number; for connections opened from then.
message_watchers: list[Callable[[str | None, str, int, int], object]] = []


class Session(SessionFields):
    """What a WebSocket has once its handshake is complete. Only the hub's thread may touch it."""

    __slots__ = (
        "_closing",
        "_lifetime",
        "_options",
        "_owner",
        "_resuming",
        "_watchers",
        "cause",
        "keepalive",
        "route",
    )

    def __init__(
        self,
        sock: Any,
        hub: Any,
        owner: Owner,
        options: Options,
        agreement: permessage_deflate.Agreement | None,
    ) -> None:
        """Take a socket over; nothing is sent or read before open()."""
        deflate = None if agreement is None else permessage_deflate.Deflate(agreement, options)
        self.connection = Connection(max_message_size=options.max_message_size, deflate=deflate)
        self.debug = log.isEnabledFor(logging.DEBUG) or bool(message_watchers)
        self.queue: list[
            str | bytes
        ] = []  # messages for the view; an empty deque weighs 700 bytes more, and it is short
        self.reader: Any = None  # the greenlet that waits for a message
        self.messages_received = 0
        self.most_frames = options.max_queue  # to parse at a time
        self.route = route_of(owner.environ)  # of which Flask lets go once the view has ended
        self.cause = ""  # of the end: what began it
        self.transport = transport = Transport(
            sock, self, max_outbox=options.max_outbox, send_timeout=options.send_timeout
        )
        self.keepalive = Keepalive(self.connection, transport, options.ping_interval, options.ping_timeout)
        self._hub = hub
        self._owner: Owner | None = owner  # until the end: it holds this
        self._options = options
        self._turns: Turns | None = None if agreement is None else turns()  # where messages may be compressed
        self._resuming = False  # _read_left() will be called
        self._watchers: tuple[Callable[[None], object], ...] = ()
        self._closing: Closing | None = None  # once a Close is due
        self._lifetime = None if options.max_lifetime is None else Lifetime(options, self.close)

    def open(self, response: bytes, leftover: bytes, subprotocol: str | None = None) -> None:
        """Send the 101 response, and begin to read: what came behind the request first."""
        transport = self.transport
        if self.debug and self._owner is not None:
            chose = f", subprotocol {subprotocol}" if subprotocol else ""
            self.log(logging.DEBUG, "%s open%s", printable(self._owner.path), chose)
        transport.write(response)
        transport.start()
        # Only now: a Pong for an early Ping must come behind the 101.
        if leftover:
            transport.bytes_received += len(leftover)
            self.data_received(leftover)

    @property
    def takes_messages(self) -> bool:
        """Whether a message sent now would neither wait for the peer nor be too late."""
        transport = self.transport
        return not transport.congested and not transport.broken and self.connection.may_send

    @property
    def is_clear(self) -> bool:
        """Whether the peer has all that it was sent, and neither end has begun to close."""
        transport = self.transport
        return not transport.blocked and not transport.broken and self.connection.state is OPEN

    def send(self, message: Sendable | Prepared, binary: bool | None, *, more: bool) -> bool:
        """Have a message's frame leave, or gather where more is true; return whether the peer still takes data."""
        connection, transport = self.connection, self.transport
        if (type(message) is str or type(message) is bytes) and len(message) >= LARGE:
            header, frame = connection.encode_parts(message, binary)
            transport.write(frame, header=header, more=more)
        else:
            frame = connection.encode_message(message, binary)
            transport.write(frame, more=more)
        if transport.broken:
            return False
        if self.debug:
            self.note("sent", message)
        return True

    # The end

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "", cause: str = "server") -> None:
        """Start the closing handshake, or answer the peer's; never wait for the peer."""
        connection, transport = self.connection, self.transport
        if transport.broken or not connection.may_send:
            return
        frame = connection.close(code, reason)
        self.cause = self.cause or cause
        if self.debug:
            self.log(logging.DEBUG, "> close %s %s", connection.close_code, printable(connection.close_reason))
        self._end().send(frame)
        if connection.state is CLOSED:
            transport.finish()
        else:
            self.go_on_reading()
        self._wake_all()

    def expire_at(self, when: float) -> None:
        """Close with expiry_code at this moment, seconds since the epoch; math.inf is never."""
        if not self.transport.closed:
            self._lifetime = self._lifetime or Lifetime(self._options, self.close)
            self._lifetime.expire_at(when)

    def abandon(self) -> None:
        """Leave the connection to the process that this one was forked from."""
        self.transport.abandon()
        self._cancel_deadlines()

    def _end(self) -> Closing:
        """Return what bounds the end from now on."""
        if self._closing is None:
            self._closing = Closing(self.connection, self.transport, self._options, self.close)
        return self._closing

    def _cancel_deadlines(self) -> None:
        self.keepalive.cancel()
        if self._lifetime is not None:
            self._lifetime.cancel()
            self._lifetime = None  # which holds this
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None  # which holds this

    # Owner of the transport: in hub callbacks

    def data_received(self, data: bytes, inflated: int = 0, size: int = 0) -> None:
        """Take in bytes: answer control frames, queue messages, wake the reader.

        inflated and size are of messages that came before them in the same read: the bytes that were inflated for
        them, and their length.
        """
        connection, transport, queue = self.connection, self.transport, self.queue
        waiting = len(queue)
        limit = self.most_frames
        if waiting:
            limit = max(limit - waiting, 1)
        is_open = connection.state is OPEN
        others = []
        try:
            if self._turns is None:
                events = connection.receive_data(data, limit)
            else:
                events = self._inflate(data, limit, inflated, size)
        except MemoryError:
            transport.give_up()  # the bytes that it was in the middle of are lost
            return
        for event in events:
            if self.debug:
                self.note("received", event)
            if type(event) is not str and type(event) is not bytes:
                others.append(event)
            elif is_open:
                queue.append(event)
        self.messages_received += len(queue) - waiting
        if others:
            self._answer(others)
        try:
            if queue and self.reader is not None:
                self._wake_reader()
        finally:  # what a raw greenlet raises comes up here, and may be another view's, to which this one switched
            self.pause_if_full()

    def pause_if_full(self) -> None:
        """Read no more for now, if what has come is as much as may wait; a reader that was woken mostly took all."""
        if self.connection.limited or (self.queue and self._is_full()):
            self.transport.pause_reading()
            if not self._is_full():
                self.go_on_reading()

    def _answer(self, events: list[Event]) -> None:
        """Answer control frames, and what ends the connection."""
        transport = self.transport
        for event in events:
            if isinstance(event, Pong):
                self.keepalive.take_pong(event.payload)
                self._wake_watchers()
        if pongs := self.connection.take_pongs(latest_only=transport.blocked):
            transport.write(pongs, more=True)
        if not isinstance(events[-1], (Ping, Pong)):
            self.cause = self.cause or ("client" if isinstance(events[-1], Close) else "protocol")
            self._answer_end()

    def _answer_end(self) -> None:
        """Answer the peer's Close, or tell it which rule it broke: at once, or when the view had its say."""
        if self.connection.state is CLOSED:
            self.transport.finish()
            self._wake_all()
        elif self.queue:
            self._end().wait_for_view()
        else:
            self.close()

    def _inflate(self, data: bytes, limit: int, inflated: int, size: int) -> list[Event]:
        """Return the events of data, where what may be compressed is inflated in turns with others."""
        connection, turns = self.connection, self._turns
        assert turns is not None
        # A floor, or a peer that leaves a few bytes of room has a megabyte inflated in steps of so many.
        room = max(self._options.max_message_size - self._queue_size(), SMALL_SHARE)
        before = connection.inflated - inflated
        # A few bytes may inflate to a megabyte, from each of many peers: others are not to wait for all of them.
        share = min(room, SHARE if turns.left > 0 else SMALL_SHARE)
        events = connection.receive_data(data, limit, share - inflated)
        if connection.inflated > before:
            # What the view does with a message costs at least as much again. What is no message has a length of 2.
            turns.spend(connection.inflated - before + size + sum(map(len, events)))
        return events

    def _is_full(self) -> bool:
        if not self.queue or self.connection.state is not OPEN:
            return False
        options = self._options
        return len(self.queue) >= options.max_queue or self._queue_size() >= options.max_message_size

    def _queue_size(self) -> int:
        """Return the bytes of memory that the messages in the queue take."""
        return sum(map(getsizeof, self.queue))

    def go_on_reading(self) -> None:
        """Take in the bytes that were left for later, once others had their turn, or read on."""
        if not self.connection.limited:
            self.transport.resume_reading()
        elif not self._resuming:
            self._resuming = True
            loop = self._hub.loop
            is_fair = self._turns is None and time() - loop.now() < TURN
            later = loop.run_callback if is_fair else (self._turns or turns()).wait
            later(self._read_left)

    def _read_left(self) -> None:
        self._resuming = False
        self.data_received(b"")
        if not self._is_full():
            self.go_on_reading()

    def eof_received(self) -> None:
        """The peer ended the byte stream; that is fine only behind a Close."""
        if self.connection.state not in (REMOTE_CLOSING, FAILING):  # the answer to which may still reach it
            self.transport.close()

    def drained(self) -> None:
        """The peer takes data again."""
        if pongs := self.connection.take_pongs():
            self.transport.write(pongs, more=True)
        self._wake_watchers()

    def connection_lost(self, cause: str, reason: str) -> None:
        """The socket is closed."""
        self.connection.receive_eof(reason)
        self.cause = self.cause or cause
        self._cancel_deadlines()
        streak = streak_of_hub()
        if streak.target is self:
            streak.target = None
        self._wake_all()
        assert self._owner is not None
        tell_end(self._owner, self.connection, self.transport, self.cause, self.messages_received)
        self._owner = None

    # Waiting and waking

    def ping(self, timeout: float | None) -> float | None:
        """Return the seconds that a ping took, None where the end began before. Raises TimeoutError."""
        connection, keepalive = self.connection, self.keepalive
        if connection.state is not OPEN:
            return None
        ping = keepalive.send_ping()
        limit = _limited(timeout, "no pong")
        try:
            with limit:
                self.wait_while(lambda: ping.round_trip is None and connection.state is OPEN)
        except TimeoutError as exc:
            if exc is not limit.exception:
                raise
            self.transport.read_now()  # the hub may have been busy all the while
            if ping.round_trip is None:
                raise
        finally:
            keepalive.forget(ping.payload)
        return ping.round_trip

    def wait(self, timeout: float | None) -> None:
        """Wait for a message: return when there may be one, or the end has begun.

        Raises TimeoutError when this takes more than timeout seconds.
        """
        if not self.transport.reading:
            self.go_on_reading()
        self.reader = getcurrent()
        try:
            if timeout is None:
                self._hub.switch()  # a Waiter would weigh 232 bytes more; _wake_reader() finds only who waits
            else:
                self._wait_within(timeout)
        finally:
            self.reader = None

    def _wait_within(self, timeout: float) -> None:
        limit = _limited(timeout, "no message")
        try:
            with limit:
                self._hub.switch()
        except TimeoutError as exc:
            if exc is not limit.exception:
                raise
            self.transport.read_now()  # the hub may have been busy all the while
            if not self.queue:
                raise

    def wait_while(self, condition: Callable[[], bool]) -> None:
        """Wait, and look again at all that watchers are told."""
        while condition():
            waiter = Waiter(self._hub)
            self.watch(waiter.switch)
            try:
                waiter.get()
            finally:
                self.unwatch(waiter.switch)

    def watch(self, watcher: Callable[[None], object]) -> None:
        """Have the hub call watcher(None) when the peer takes data again, a Pong comes, or the end comes or begins."""
        self._watchers = (*self._watchers, watcher)

    def unwatch(self, watcher: Callable[[None], object]) -> None:
        """Call watcher no more, but for what is under way."""
        self._watchers = tuple(other for other in self._watchers if other != watcher)

    def _wake_reader(self) -> None:
        if getcurrent() is not self._hub:
            self._hub.loop.run_callback(self._wake_reader)
        elif self.reader is not None:
            self.reader.switch()

    def _wake_watchers(self) -> None:
        for watcher in self._watchers:
            self._hub.loop.run_callback(watcher, None)

    def _wake_all(self) -> None:
        self._wake_watchers()
        self._hub.loop.run_callback(self._wake_reader)

    def note(self, direction: str, event: Event | Sendable | Prepared, count: int = 1) -> None:
        """Tell of an event, of a message, or of so many that are one write: in the log, and to those who watch."""
        if log.isEnabledFor(logging.DEBUG):
            self.log(logging.DEBUG, "%s %s", "<" if direction == "received" else ">", describe(event))
        if isinstance(event, (str, bytes, bytearray, memoryview, Prepared)):
            prepared = event if isinstance(event, Prepared) else Prepared(event)
            for watcher in message_watchers:
                watcher(self.route, direction, prepared.size // count, count)

    def log(self, level: int, line: str, *values: object) -> None:
        """Log behind the peer's name."""
        owner = self._owner
        assert owner is not None
        loglines.write(log, level, "%s " + line, owner.peer, *values, fields=about(owner))


def _limited(seconds: float | None, what: str) -> gevent.Timeout:
    """Return a context that raises TimeoutError after this time; None is no limit."""
    return gevent.Timeout(None if seconds is None else max(seconds, 0.0), TimeoutError(f"{what} within {seconds} s"))
