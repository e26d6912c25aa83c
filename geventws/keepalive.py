"""Keepalive: the pings of one connection, and what silence after them means.

Knows Connection, Transport and the clock; knows no view.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from time import monotonic

from .connection import OPEN, Connection
from .deadlines import Due
from .transport import Transport

MOMENTS = 100  # moments in an interval at which pings leave

pong_watchers: list[Callable[[float], object]] = []  # called by the hub with the seconds of each answered ping

_number = itertools.count(1)


class SentPing:
    """A ping on its way; round_trip is seconds once its pong is there."""

    __slots__ = ("payload", "round_trip", "sent_at")

    def __init__(self) -> None:
        self.payload = next(_number).to_bytes(8, "big")
        self.sent_at = monotonic()
        self.round_trip: float | None = None


class Keepalive(Due):
    """Sends a ping each interval, and gives up a peer that is silent for timeout seconds after one.

    Any byte received is a sign of life. Keepalive does not judge a peer that we do not read, or that takes no data:
    max_queue and send_timeout watch these. While a ping waits in the kernel behind other data, each byte
    that the peer acknowledges is a sign of life too.
    """

    __slots__ = (
        "_connection",
        "_dead_at",
        "_interval",
        "_own",
        "_ping_at",
        "_ping_end",
        "_pinged_at",
        "_sent",
        "_taken",
        "_timeout",
        "_transport",
        "latency",
    )

    def __init__(
        self, connection: Connection, transport: Transport, interval: float | None, timeout: float | None
    ) -> None:
        super().__init__()
        self.latency: float | None = None  # seconds, of the last ping that was answered
        self._connection = connection
        self._transport = transport
        self._interval = math.inf if interval is None else interval
        self._timeout = timeout
        self._sent: tuple[SentPing, ...] = ()  # those not answered yet
        self._own = b""  # payload of the last ping that no view asked for
        self._pinged_at = self._dead_at = math.inf
        self._ping_end = 0  # bytes sent once that ping was
        self._taken: int | None = None  # bytes that the peer took, while others are before the ping
        self._ping_at = monotonic() + self._interval
        if interval is not None:
            self._set_deadline()

    def send_ping(self) -> SentPing:
        """Send a ping and return it; forget() it when nobody waits for its pong any more."""
        ping = SentPing()
        self._sent = (*self._sent, ping)
        self._transport.write(self._connection.encode_ping(ping.payload))
        return ping

    @property
    def unanswered(self) -> int:
        """How many pings wait for their pong."""
        return len(self._sent)

    def forget(self, payload: bytes) -> None:
        """Take no interest in this ping's pong any more."""
        self._sent = tuple([ping for ping in self._sent if ping.payload != payload])

    def take_pong(self, payload: bytes) -> None:
        """Note a pong; one that answers no ping of ours means nothing (§5.5.3)."""
        for ping in self._sent:
            if ping.payload == payload:
                self.latency = ping.round_trip = monotonic() - ping.sent_at
                for watcher in pong_watchers:
                    watcher(ping.round_trip)
                self.forget(payload)

    def fall_due(self) -> None:
        """Send the ping that is due, or judge the peer's silence after the last one."""
        transport, now = self._transport, monotonic()
        if now >= self._dead_at:
            # Nearly all were heard by now: to read from none of these spares 12 % of a ping's instructions.
            if transport.last_received < self._pinged_at:
                # The hub may have been busy past the deadline: what the peer sent meanwhile counts.
                transport.read_now()
                if transport.closed:
                    return
            self._dead_at = math.inf
            if transport.last_received < self._pinged_at and transport.reading and not transport.blocked:
                if not self._is_taking():
                    transport.abort(f"no sign of life within {self._timeout:g} s of a ping", "ping_timeout")
                    return
                self._dead_at = now + (self._timeout or 0)
        if now >= self._ping_at:
            self._ping_at = now + self._interval
            # Behind unsent data a ping proves nothing.
            if self._connection.state is OPEN and not transport.blocked:
                sent = transport.bytes_sent
                # Nothing was sent since the last ping was answered: nothing can be on its way. Spares 11 % of a ping.
                is_idle = sent == self._ping_end and not self._sent
                taken = sent if is_idle else transport.acknowledged()
                if self._sent:
                    self.forget(self._own)
                self._own = self.send_ping().payload
                if self._dead_at == math.inf and self._timeout is not None:
                    self._pinged_at = now
                    self._ping_end = transport.bytes_sent
                    self._taken = taken if taken < sent else None
                    self._dead_at = now + self._timeout
        if not transport.closed:  # as it is where the ping could not be sent
            self._set_deadline()

    def _set_deadline(self) -> None:
        # Pings of many connections leave together, and their pongs come so: a third less work for each.
        grid = self._interval / MOMENTS
        self.set(math.ceil(min(self._ping_at, self._dead_at) / grid) * grid)

    def _is_taking(self) -> bool:
        """Whether the peer took some of what stood before the ping, since the last call or since the ping."""
        taken, before = self._transport.acknowledged(), self._taken
        self._taken = taken if taken < self._ping_end else None
        return before is not None and taken > before
