"""Link: one bus, and what a process has to say to it and to ask it, from any thread.

Knows a Bus and hubs; knows of rooms only their topics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from typing import Any
from weakref import WeakKeyDictionary

from gevent import get_hub, getcurrent

from ..errors import BusUnavailable
from ..message import to_json
from ..turns import pause
from .bus import CONTROL, Away, Bus, Refused
from .envelope import content, parse_member
from .presence import Present
from .publisher import Buffer, Health, Outgoing, Publisher

CONFIRM = 10.0  # seconds that who waits for the bus anyway waits at most


class Link:
    """One bus as the rooms of this process use it."""

    def __init__(self, make: Callable[[], Bus], make_span: Callable[[Link], Any], buffer: Buffer) -> None:
        """Connect to nothing yet."""
        self._make = make
        self._make_span = make_span
        self._buffer = buffer
        self.begin()

    def begin(self) -> None:
        """Begin anew, as in a process that was forked."""
        self.bus = self._make()
        self.health = Health(self.bus.shown)
        self.span: Any = None  # what members of this process hear from it
        self._publishers: WeakKeyDictionary[Any, Publisher] = WeakKeyDictionary()  # by hubs

    def close(self) -> None:
        """Let go of all connections of this thread."""
        if self.span is not None:
            self.span.close()
        self.bus.close()

    def join(self, room: Any, member: Any, enter: Callable[[], bool]) -> None:
        """Have a member join its room everywhere, and call enter where it has all that was said before."""
        if self.span is None:
            self.span = self._make_span(self)
        span = self.span
        span.arrive(room, member)
        if enter():
            span.arrived(room, member)
        else:
            span.depart(room, member)

    @property
    def publisher(self) -> Publisher:
        """The one of this thread's hub."""
        hub = get_hub()
        publisher = self._publishers.get(hub)
        if publisher is None:
            publisher = self._publishers[hub] = Publisher(self.bus, self._buffer, self.health)
        return publisher

    @property
    def is_used(self) -> bool:
        """Whether anything was said in this process."""
        return bool(self._publishers)

    @property
    def waiting(self) -> int:
        """How many messages wait for the bus."""
        return sum(len(publisher.waiting) for publisher in list(self._publishers.values()))

    # To the bus

    def say(
        self, topic: str, kind: str, body: bytes, excluded: Iterable[str], keep: bool, confirm: float | None = None
    ) -> str | None:
        """Give the bus a message; return its position where that is waited for.

        confirm is seconds to wait. Where no hub would go on behind the caller, as in a script or a Celery task, it
        waits anyway. Raises BusUnavailable where the message cannot wait for the bus, or has waited so long.
        """
        publisher = self.publisher
        self._hold_back(publisher)
        if confirm is None and self.span is None and getcurrent().parent is None:
            confirm = CONFIRM
        outgoing = publisher.put(topic, content(kind, body, excluded), keep)
        if self.span is not None:
            self.span.said(outgoing)
        return None if confirm is None else self._wait(publisher, outgoing, confirm)

    def _hold_back(self, publisher: Publisher) -> None:
        while publisher.is_full and not self.health.is_away and getcurrent() is not get_hub():
            pause()

    def _wait(self, publisher: Publisher, outgoing: Outgoing, seconds: float) -> str | None:
        outcome = outgoing.wait(seconds)
        if isinstance(outcome, Refused):
            raise BusUnavailable(f"{self.bus.shown} refuses a message of rooms: {outcome}") from outcome
        if outcome is None:
            state = "it may still arrive"
            if self.span is None and publisher.withdraw(outgoing):
                state = "it was not sent"
            raise BusUnavailable(f"{self.bus.shown} did not take a message of rooms within {seconds:g} s: {state}")
        return outcome or None

    def order(self, kind: str, order: list[Any]) -> None:
        """Have all processes do something, and return when the bus has it; while that is away, at once."""
        waits = not self.health.is_away and getcurrent() is not get_hub()
        with suppress(BusUnavailable) if self.span is not None else nullcontext():  # they will get it
            self.say(CONTROL, kind, to_json(order).encode(), (), True, CONFIRM if waits else None)

    # From the bus

    def members(self, topic: str) -> list[Present] | None:
        """Return who is in a room, on any process; None where the bus cannot tell."""
        try:
            found = self._ask(self.bus.members, topic)
        except Away:
            return None
        here: list[Present] = []
        lingering: dict[str | None, Present] = {}
        for id, value in found:
            user, info, lingers = parse_member(value)
            if lingers:
                lingering[user] = Present(id, user, info)
            else:
                here.append(Present(id, user, info))
        users = {present.user for present in here}
        return here + [present for user, present in lingering.items() if user not in users]

    def _ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return what a function of the bus does. Raises Away, or BusUnavailable where the bus refuses it."""
        if self.span is not None and self.health.is_away:
            raise Away("the heartbeat finds it again")
        try:
            try:
                return function(*args)
            except Away:  # the connection that it took may have ended unseen
                return function(*args)
        except Refused as exc:
            raise BusUnavailable(f"{self.bus.shown} refuses what rooms ask: {exc}") from exc

    def history(self, topic: str, since: str | None, limit: int | None) -> Any:
        """Return a page of what a room has kept. Raises Away."""
        return self._ask(self.bus.history, topic, since, limit)
