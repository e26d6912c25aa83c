"""Publisher: messages of one hub on their way to a bus, in batches, and whether the bus is there.

Knows a Bus and the hub; knows no room.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

import gevent
from gevent.event import Event

from .. import loglines
from ..errors import BusUnavailable
from .bus import Away, Bus, Parcel, Refused

log = logging.getLogger("geventws")

MOST = 200  # messages of a batch
LARGEST = 1 << 20  # bytes of a batch
MOST_AHEAD = 5 * MOST  # messages that wait before who says more waits as well
GRACE = 0.5  # seconds that a bus may be gone before it counts as away
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds between attempts


class Buffer(NamedTuple):
    """What may wait for a bus."""

    messages: int
    size: int  # bytes


class Health:
    """Whether a bus is away, by those who use it: one line in the log when it goes, one when it is back."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.since = 0.0  # by time.monotonic()
        self.caught_up = 0  # messages that were read later than they were said
        self.gaps = 0  # times that something may be missing in a room
        self.refused = 0  # messages
        self.reconnects = 0
        self.on_change: list[Callable[[], None]] = []
        self._missing: set[object] = set()
        self._counts = 0, 0
        self._last_refusal = -1e9

    @property
    def is_away(self) -> bool:
        """Whether anybody misses it."""
        return bool(self._missing)

    @property
    def seconds(self) -> float:
        """How long it has been away."""
        return monotonic() - self.since if self.is_away else 0.0

    def miss(self, who: object, why: Exception) -> None:
        """Note that somebody has tried in vain, and not for the first time."""
        was_away = self.is_away
        self._missing.add(who)
        if not was_away:
            self.since = monotonic()
            self._counts = self.caught_up, self.gaps
            line = "the bus of rooms is away, members hear only what is said in their own process: %s"
            loglines.write(log, logging.WARNING, line, self._tells(why))
            self._tell()

    def find(self, who: object) -> None:
        """Note that somebody has reached it."""
        if who not in self._missing:
            return
        seconds = self.seconds
        self._missing.discard(who)
        if not self.is_away:
            line = "the bus of rooms is back after %.1f s: %s, %d messages caught up, %d gaps"
            caught_up, gaps = self.caught_up - self._counts[0], self.gaps - self._counts[1]
            loglines.write(log, logging.WARNING, line, seconds, self.shown, caught_up, gaps)
            self._tell()

    def refuse(self, why: Exception) -> None:
        """Note that the bus refuses something, and log it once in 10 seconds."""
        self.refused += 1
        if monotonic() - self._last_refusal > 10:
            self._last_refusal = monotonic()
            line = "the bus of rooms refuses: %s"
            loglines.write(log, logging.ERROR, line, self._tells(why))

    def _tells(self, why: Exception) -> str:
        """Return what a line of the log says of an error: which bus, too, as Away says itself."""
        return loglines.printable(f"{self.shown}: {why}" if isinstance(why, Refused) else str(why))

    def _tell(self) -> None:
        for listener in self.on_change:
            listener()


class Attempts:
    """How often somebody has tried in vain to reach a bus, and how long they wait until they try again."""

    def __init__(self, health: Health, who: object) -> None:
        self._health = health
        self._who = who
        self._failures = 0
        self._first: float | None = None  # when what has failed began, by time.monotonic()

    @property
    def are_vain(self) -> bool:
        """Whether the last one was."""
        return self._failures > 0

    def begin(self) -> None:
        """Note that an attempt begins: one that takes long tells as much as many that fail at once."""
        if not self._failures:
            self._first = monotonic()

    def fail(self, why: Exception) -> None:
        """Wait until it is time for another attempt: at once after the first, as that may be one lost connection."""
        self._failures += 1
        if self._first is None:
            self._first = monotonic()
        if monotonic() - self._first > GRACE:
            self._health.miss(self._who, why)
        if self._failures == 1:
            return
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failures - 2))
        gevent.sleep(pause * random.uniform(0.5, 1.0))

    def succeed(self) -> None:
        """Begin anew."""
        self._failures = 0
        self._first = None
        self._health.find(self._who)


class Outgoing:
    """A message that the bus does not have yet, as far as is known."""

    __slots__ = ("_done", "outcome", "parcel")

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel
        self.outcome: str | Refused | None = None  # its position, once the bus has it
        self._done: Event | None = None

    @property
    def number(self) -> int:
        """Its publisher's number for it."""
        return int(self.parcel.key.partition("-")[2])

    @property
    def size(self) -> int:
        """Bytes of it."""
        return len(self.parcel.content)

    def end(self, outcome: str | Refused) -> None:
        """Note what became of it."""
        self.outcome = outcome
        if self._done is not None:
            self._done.set()

    def wait(self, seconds: float) -> str | Refused | None:
        """Return what became of it within this time."""
        if self.outcome is None:
            self._done = Event()
            self._done.wait(seconds)
        return self.outcome


class Publisher:
    """Gives a bus the messages of one hub, in their order: one by one, or what has gathered while the bus was busy."""

    def __init__(self, bus: Bus, buffer: Buffer, health: Health) -> None:
        self.name = secrets.token_hex(6)
        self.waiting: deque[Outgoing] = deque()
        self.size = 0  # bytes that wait
        self._bus = bus
        self._buffer = buffer
        self._health = health
        self._number = 0
        self._newest = ""  # position that the bus gave last
        self._greenlet: Any = None

    def put(self, topic: str, content: bytes, is_kept: bool) -> Outgoing:
        """Take a message behind all others. Raises BusUnavailable where there is no room for it."""
        self._check_room(len(content))
        self._number += 1
        outgoing = Outgoing(Parcel(topic, f"{self.name}-{self._number}", content, is_kept))
        self.waiting.append(outgoing)
        self.size += outgoing.size
        if self._greenlet is None or self._greenlet.dead:
            self._greenlet = gevent.spawn_raw(self._run)
        return outgoing

    @property
    def is_full(self) -> bool:
        """Whether who can wait does so before saying more, while the bus takes what there is."""
        most = min(MOST_AHEAD, self._buffer.messages)
        return bool(self.waiting) and (len(self.waiting) >= most or self.size > min(LARGEST, self._buffer.size))

    def _check_room(self, size: int) -> None:
        buffer = self._buffer
        if len(self.waiting) < buffer.messages and self.size + size <= buffer.size:
            return
        if size > buffer.size:
            raise BusUnavailable(f"a message of {size} bytes is larger than buffer_bytes={buffer.size} of rooms")
        option = f"buffer={buffer.messages}" if len(self.waiting) >= buffer.messages else f"buffer_bytes={buffer.size}"
        state = f"has been away for {self._health.seconds:.1f} s" if self._health.is_away else "is behind"
        raise BusUnavailable(f"{self._health.shown} {state}, and no more than {option} of rooms may wait for it")

    def withdraw(self, outgoing: Outgoing) -> bool:
        """Take a message back, and return whether the bus cannot have it."""
        if outgoing not in self.waiting or outgoing in self._batch():
            return False
        self.waiting.remove(outgoing)
        self.size -= outgoing.size
        return True

    def _forget_passing(self) -> None:
        """Let go of what means nothing a moment later."""
        for outgoing in [each for each in self.waiting if not each.parcel.is_kept]:
            self.waiting.remove(outgoing)
            self.size -= outgoing.size
            outgoing.end(Refused("it is away, and what is not kept does not wait for it"))

    def _batch(self) -> list[Outgoing]:
        batch: list[Outgoing] = []
        size = 0
        for outgoing in self.waiting:
            size += outgoing.size
            if batch and (size > LARGEST or len(batch) == MOST):
                break
            batch.append(outgoing)
        return batch

    def _run(self) -> None:
        attempts = Attempts(self._health, self)
        since: str | None = None
        while self.waiting or attempts.are_vain:  # what went in vain may be let go of: who missed the bus finds it
            batch = self._batch()
            attempts.begin()
            try:
                outcomes = self._bus.publish([outgoing.parcel for outgoing in batch], since)
            except Away as exc:
                since = self._newest
                attempts.fail(exc)
                if self._health.is_away:
                    self._forget_passing()
                continue
            except Refused as exc:
                outcomes = [exc] * len(batch)
            except Exception as exc:
                log.exception("messages of rooms were lost")
                outcomes = [Refused(str(exc))] * len(batch)
            since = None
            attempts.succeed()
            for outgoing, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Refused):
                    self._health.refuse(outcome)
                else:
                    self._newest = outcome or self._newest
                self._take_out(outgoing)
                outgoing.end(outcome)

    def _take_out(self, outgoing: Outgoing) -> None:
        if self.waiting and self.waiting[0] is outgoing:  # else it was let go of meanwhile
            self.waiting.popleft()
            self.size -= outgoing.size
