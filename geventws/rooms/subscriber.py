"""Subscriber: what a bus says, heard on one connection for all topics of a process.

Knows a Bus and the hub; knows no room.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

from .bus import Away, Bus, Feed, Refused
from .publisher import Attempts, Health

log = logging.getLogger("geventws")

LOST_BEATS, LATE_BEATS = 2, 10  # after which a feed is given up
SILENCES = 2  # after which a feed is taken for dead: the process's own heartbeat should have come


class Subscriber:
    """Hears topics, and connects anew whenever that ends."""

    def __init__(
        self,
        bus: Bus,
        own: str,
        silence: float,
        health: Health,
        hear: Callable[[str, bytes], None],
        check: Callable[[], None],
    ) -> None:
        """own is a topic on which something is said every silence seconds; check is called after each connection."""
        self._bus = bus
        self._own = own
        self._silence = silence
        self._health = health
        self._hear = hear
        self._check = check
        self._feed: Feed | None = None
        self._topics: dict[str, Event] = {own: Event()}  # each set once it is heard
        self._unconfirmed: set[str] = set()
        self._changed: dict[str, None] = {}  # topics that the feed is still to be told of
        self._asker: Any = None
        self._beats = 0  # of the own topic that have not come yet
        self._is_quiet = True  # nothing has come since the last of them
        self._attempts = Attempts(health, self)
        self._greenlet: Any = gevent.spawn(self._run)

    def add(self, topic: str) -> Event:
        """Hear a topic, and return an event that is set while it is heard."""
        event = self._topics.get(topic)
        if event is None:
            event = self._topics[topic] = Event()
            self._ask(topic)
        return event

    def remove(self, topic: str) -> None:
        """Hear a topic no more."""
        if self._topics.pop(topic, None) is not None:
            self._ask(topic)

    def beat(self) -> None:
        """Note that the own topic was spoken to: what does not come back is not on the server that others speak to.

        A feed that brings much may bring it late.
        """
        if self._beats >= (LOST_BEATS if self._is_quiet else LATE_BEATS):
            self.renew()
        self._beats += 1
        self._is_quiet = True

    def _ask(self, topic: str) -> None:
        """Have a greenlet tell the feed, as a hub callback must not wait for it."""
        self._changed[topic] = None
        if self._feed is not None and self._asker is None:
            self._asker = gevent.spawn_raw(self._tell_feed, self._feed)

    def _tell_feed(self, feed: Feed) -> None:
        try:
            while self._changed and feed is self._feed:
                topics, self._changed = list(self._changed), {}
                for function, chosen in ((feed.add, True), (feed.remove, False)):
                    if some := [topic for topic in topics if (topic in self._topics) is chosen]:
                        function(some)
        except (Away, Refused):
            self.renew()
        finally:
            self._asker = None

    def renew(self) -> None:
        """Connect anew."""
        self._greenlet.kill(block=False)
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        """Hear nothing more."""
        self._greenlet.kill(block=False)

    def _run(self) -> None:
        while True:
            try:
                self._listen()
            except (Away, Refused) as exc:
                self._health.reconnects += 1
                self._attempts.fail(exc)
            except Exception:
                log.exception("rooms hear nothing for a moment")
                gevent.sleep(1)

    def _listen(self) -> None:
        feed = self._bus.feed(self._silence)
        try:
            for event in self._topics.values():
                event.clear()
            self._unconfirmed = set(self._topics)
            self._changed = {}
            self._feed = feed
            feed.add(list(self._unconfirmed))
            self._beats = silences = 0
            while silences < SILENCES:
                said = feed.read()
                silences = silences + 1 if said is None else 0
                if said is not None:
                    self._take(*said)
            raise Away(f"{self._bus.shown} has been silent for {SILENCES * self._silence:g} s")
        finally:
            self._feed = None
            feed.close()

    def _take(self, topic: str, data: bytes | None) -> None:
        if data is None:
            if event := self._topics.get(topic):
                event.set()
            if self._unconfirmed:
                self._unconfirmed.discard(topic)
                if self._unconfirmed.isdisjoint(self._topics):
                    self._unconfirmed.clear()
                    self._attempts.succeed()
                    self._check()
        elif topic == self._own:
            self._beats = 0
        else:
            self._is_quiet = False
            self._hear(topic, data)
