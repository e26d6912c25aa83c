"""Lane: messages on their way to the sockets of one room in this process.

Knows that deliver() never waits, and that a session tells when its peer takes data again. Knows no Redis.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from time import monotonic
from typing import Any, Literal

from gevent import get_hub, getcurrent

from ..errors import CloseCode
from ..fast import CountsFields, LaneFields, PlaceFields, next_place
from ..turns import Turns, pause, turns
from ..websocket import WebSocket
from .log import BATCH, Batch, Entry, Limits, Log, Position

# What a write to a member counts at least, of the 256 KiB that one pass of the loop does: 16 members have their turn.
# Measured with 1000: of 64, a write costs 0.2 µs less of 6, and others wait four times as long.
WRITE = 16_384  # bytes
# A room rests for as long as its last round took: what is said meanwhile leaves joined, and others have their time.
LONGEST_REST = 0.05  # seconds, for where other work held the round up

TOO_SLOW = "too slow for what is said here"


class Counts(CountsFields):
    """What the lanes of one Rooms have done."""

    __slots__ = ("broadcasts", "closed_slow", "members", "skipped")

    def __init__(self) -> None:
        self.members = 0
        self.broadcasts = 0
        self.delivered = 0  # messages that a member's WebSocket took
        self.skipped = 0  # messages that slow members did not get
        self.closed_slow = 0  # members


class Pace(Enum):
    """How a member gets on with its lane, and so who goes on with it."""

    KEEPS_UP = "the next round has its turn for it"
    WAITS = "its peer has not taken all, and will be heard of"
    CATCHES_UP = "it has turns of its own"


KEEPS_UP, WAITS, CATCHES_UP = Pace


class Place(PlaceFields):
    """Where one WebSocket stands in a lane: a number of the log, not copies of messages."""

    __slots__ = ("live", "uses")

    def __init__(self, ws: WebSocket, id: str) -> None:
        self.ws = ws
        self.id = id
        self.lane: Lane | None = None
        self.cursor = self.live = 0  # numbers: what is next, and until where that is history
        self.pace = KEEPS_UP
        self.uses = 0  # how often it was entered, and not left

    def go_on(self, stop: int) -> None:
        """Post what stands before this number, as far as the peer takes it."""
        while self.lane is not None and self.cursor < stop and self._post(self.lane):
            pass

    def _post(self, lane: Lane) -> bool:
        """Post a batch, and return whether there may be another."""
        if self.ws.session.transport.blocked:
            self.pace = WAITS
            lane.behind.add(self)
            return False
        batch = lane.log.batch(self.cursor, self.live)
        if batch is None:
            lane.fall_behind(self)
            return self.lane is not None
        if batch.excluded:
            batch = batch.without(self.id)
        if batch.count:
            if not self.ws.deliver(batch.prepared, batch.count):
                lane.leave(self, wholly=True)
                return False
            turns().spend(max(batch.size, WRITE))
            lane.counts.delivered += batch.count
        self.cursor = batch.stop
        return True

    def wake(self, _: None = None) -> None:
        """Go on if the peer takes data again. Leave if the connection has ended or begins to."""
        if self.lane is None:
            return
        if self.ws.closed:
            self.lane.leave(self, wholly=True)
        elif self.pace is WAITS and not self.ws.session.transport.blocked:
            self.catch_up()

    def catch_up(self) -> None:
        """Take turns of its own until it has all that there is."""
        assert self.lane is not None
        self.lane.behind.add(self)
        self.pace = CATCHES_UP
        turns().wait(self._take_turn)

    def _take_turn(self) -> None:
        lane = self.lane
        if lane is None or self.pace is not CATCHES_UP:
            return
        if self.cursor < lane.log.end and not self._post(lane):
            return
        if self.cursor < lane.log.end:
            turns().wait(self._take_turn)
        else:
            self.pace = KEEPS_UP
            lane.forget_behind(self)

    def left(self) -> None:
        """Called once it has been left, by whatever."""

    def close(self, code: int, reason: str) -> None:
        """Leave, and close behind what the peer takes at once of all that was said before."""
        lane = self.lane
        if lane is None:
            return
        self.go_on(lane.log.end)
        lane.leave(self, wholly=True)
        self.ws.close(code, reason)


class Lane(LaneFields):
    """The places of one room, and the log they stand in. All of it runs on the hub's thread.

    Rounds bring what is pushed to members who keep up. Each pass of the loop does a part of a round. So a broadcast
    returns at once, and others are served while it is delivered.
    """

    __slots__ = (
        "_batch",
        "_began",
        "_limits",
        "_lost",
        "_moves",
        "_rest",
        "_rests_until",
        "_slow",
        "_turns",
        "behind",
        "log",
        "places",
    )

    def __init__(
        self,
        limits: Limits,
        start: Position,
        counts: Counts,
        *,
        slow: Literal["close", "skip"],
    ) -> None:
        self.log = Log(limits, start)
        self.counts = counts
        self.places: dict[WebSocket, Any] = {}
        self.behind: set[Place] = set()
        self._limits = limits
        self._slow = slow
        self._lost = 0, 0  # numbers behind what the log had lost when members behind were looked at last
        self._moves = False  # a round is under way
        self._round: Iterator[Place] = iter(())
        self._stop = 0  # number before which the round delivers
        self._batch: Batch | None = None  # the last one of the round
        self._turns: Any = None  # of the hub, from the first round on
        self._began = 0.0  # when the round did, by time.monotonic()
        self._rests_until = 0.0  # by time.monotonic()
        self._rest: Any = None  # timer of who waits for its end

    # Places

    def enter(self, place: Place, cursor: int) -> None:
        """Let a place have what comes from now on, and before that what history has from number `cursor` on."""
        self.places[place.ws] = place
        place.lane = self
        place.uses = 1
        place.cursor, place.live = cursor, self.log.end
        place.ws.session.watch(place.wake)
        if cursor < place.live:
            place.catch_up()

    def leave(self, place: Place, *, wholly: bool = False) -> None:
        """Take back one enter(), or all of them."""
        if place.lane is not self:
            return
        place.uses -= 1
        if place.uses and not wholly:
            return
        place.lane = None
        place.ws.session.unwatch(place.wake)
        del self.places[place.ws]
        self.forget_behind(place)
        place.left()

    def clear(self) -> None:
        """Let go of all places, and tell nobody."""
        for place in self.places.values():
            place.lane = None
            place.ws.session.unwatch(place.wake)
        self.places.clear()
        self.behind.clear()
        self._end_rest()

    def close(self, code: int, reason: str) -> None:
        """Close the WebSockets that are here now, in turns with other work."""
        places = iter(tuple(self.places.values()))

        def go_on() -> None:
            share = turns()
            for place in places:
                place.close(code, reason)
                share.spend(WRITE)
                if share.left <= 0:
                    share.wait(go_on)
                    return

        turns().wait(go_on)

    # Messages

    def hold_back(self) -> None:
        """Wait while more is on its way to members who keep up than they may have before their next turn.

        That is for no socket, only for the loop. A hub callback cannot wait.
        """
        while self.log.waiting > self._limits.size and getcurrent() is not get_hub():
            pause()

    def push(self, entry: Entry) -> None:
        """Have an entry delivered behind all others."""
        self.counts.broadcasts += 1
        self.log.append(entry)
        if not self.places:
            self.log.offer(self.log.end)
            self.log.drop(keep=False)
        elif not self._moves:
            self._set_out()

    def _set_out(self) -> None:
        """Begin a round: now, or behind the rest. What fills a write does not wait, as nothing more would join it."""
        is_small = self.log.waiting < min(BATCH, self._limits.size)
        rest = self._rests_until - monotonic() if is_small else 0.0
        if rest <= 0:
            self._begin_round()
        elif self._rest is None:
            self._rest = get_hub().loop.timer(rest)
            self._rest.start(self._begin_round)

    def _begin_round(self) -> None:
        self._end_rest()
        self._moves = True
        self._began = monotonic()
        self._round = iter(tuple(self.places.values()))
        self._stop = self.log.end
        self._turns = turns()
        self._turns.wait(self._go_on)

    def _end_rest(self) -> None:
        if self._rest is not None:
            self._rest.close()
            self._rest = None

    def _go_on(self) -> None:
        share, is_over = self._turns, False
        try:
            is_over = self._serve(share)
        finally:  # a member for whom memory ran out stops no other
            if is_over:
                share.spend(0)  # what was done is taken from it, and wants a new pass
                self._end_round()
            else:
                share.wait(self._go_on)

    def _serve(self, share: Turns) -> bool:
        """Give members what they lack until this pass has done its part; return whether all have had their turn."""
        stop, batch = self._stop, self._batch
        if batch is not None:  # more may have been said since the last pass
            batch = self.log.batch(batch.start, batch.start)
        while (place := next_place(self, batch, WRITE, KEEPS_UP, share)) is not None:
            if place.lane is not self or place.pace is not KEEPS_UP or place.cursor >= stop:
                continue
            if batch is None or batch.start != place.cursor:  # nearly all lack the same
                batch = self._batch = self.log.batch(place.cursor, place.live)
            if batch is not None and place.id not in batch.excluded and place.ws.deliver(batch.prepared, batch.count):
                self.counts.delivered += batch.count
                place.cursor = batch.stop
                share.left -= max(batch.size, WRITE)
            if place.cursor < stop:
                place.go_on(stop)
        return share.left > 0

    def _end_round(self) -> None:
        self._batch = None
        self.log.offer(self._stop)
        self.log.drop(keep=bool(self.behind))
        now = monotonic()
        self._rests_until = now + min(now - self._began, LONGEST_REST)
        self._moves = False
        if self.log.end > self._stop:
            self._set_out()
        lost, self._lost = self._lost, (self.log.first, self.log.forgotten)
        if lost != self._lost:
            for place in tuple(self.behind):  # last: one whose Close finds no memory stops no round
                if not self.log.reaches(place.cursor, place.live):
                    self.fall_behind(place)

    def forget_behind(self, place: Place) -> None:
        """Note that a place keeps up, or is gone."""
        self.behind.discard(place)
        if not self.places:
            self.log.offer(self.log.end)
        if not self.behind:
            self.log.drop(keep=False)

    def fall_behind(self, place: Place) -> None:
        """Close a member that would need what is here no more, or have it go on with the newest message."""
        if self._slow == "close":
            self.counts.closed_slow += 1
            self.leave(place, wholly=True)
            place.ws.close(CloseCode.TRY_AGAIN_LATER, TOO_SLOW)
            return
        newest = max(self.log.end - 1, self.log.first)
        self.counts.skipped += newest - place.cursor
        place.cursor = place.live = newest
