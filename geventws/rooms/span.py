"""Span: how the rooms of this process are parts of rooms that span many.

Joins rooms with a Bus, on the members' hub. Knows rooms by what they do with messages.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from .. import loglines
from ..errors import CloseCode
from .attended import Attended, Mender
from .bus import CONTROL, Away, Refused
from .envelope import CAME, LEFT, Message, member_value, parse_member, parse_message
from .follower import Heard
from .link import Link
from .log import NOWHERE, UNKNOWN, parse_position
from .orders import close_all, close_in_turns, obey
from .presence import Present
from .publisher import Attempts, Outgoing
from .register import Register
from .subscriber import Subscriber

log = logging.getLogger("geventws")

PATIENCE = 5.0  # seconds that a member waits for its room at the bus, and joins without it then
LAG = 1.0  # seconds that a message may be on its way before it is looked for
CHECK = 20.0  # seconds between two looks whether a room has missed its last message
MOST_ORDERS = 10_000  # that are kept for members on their way in
BEATS = 0.3  # of a lease, between two that keep it
GAP = "messages may be missing"


class Span:
    """What joins the members of this process with those of others, over one bus."""

    def __init__(self, home: Any, link: Link, lease: float) -> None:
        """Begin to listen, and to be alive as a process."""
        self._home = home
        self._link = link
        self._bus = link.bus
        self._health = link.health
        self._lease = lease
        self._attended: dict[str, Attended] = {}
        self._arriving = 0  # members that join
        self._orders: deque[Message] = deque(maxlen=MOST_ORDERS)  # that came while they did
        self._users: dict[str, int] = {}  # topics of people to how many of their sockets are here
        self._mender = Mender(self._bus, self._health, self._deliver, self._report_gap)
        self._publisher = link.publisher
        self._alive_since = 0.0  # since when the lease was never lost, by time.monotonic()
        self._process = home.process
        self.skew = 0  # milliseconds by which the bus' clock is ahead
        self._health.on_change.append(self._change_health)
        self.register = Register(self._bus, self._process, self._health)
        self._checker = gevent.Greenlet()
        own = f"#{self._process}"
        self._subscriber = Subscriber(self._bus, own, lease * BEATS, self._health, self._hear, self._check_soon)
        self._control = self._attend(CONTROL, None)
        self._heart = gevent.spawn(self._beat)

    def close(self) -> None:
        """Be no process any more."""
        self.stop()
        self.pass_away(0)

    def stop(self) -> None:
        """Hear and tell nothing more."""
        self._heart.kill(block=False)
        self._checker.kill(block=False)
        self._subscriber.close()
        self.register.close()
        for attended in self._attended.values():
            attended.deadline.cancel()
            attended.is_heard = False
        self._attended.clear()

    def pass_away(self, linger: float) -> None:
        """Leave the members of this process to the others, who take them out unless they come back elsewhere."""
        if self.register.rows and not self._health.is_away:
            with suppress(Away, Refused):  # then they find out by themselves
                self._bus.lease(self._process, max(linger, 0.001))

    # Members

    def arrive(self, room: Any, member: Any) -> None:
        """Have a member listed, and wait until its room here has all that was said before."""
        attended = self._attended.get(room.topic) or self._attend(room.topic, room)
        own = next(reversed(attended.unheard), None)
        attended.arriving[member.id] = []
        self._arriving += 1
        self._add_user(member.user)
        try:
            for event in [attended.ready, self._control.ready, *self._user_events(member.user)]:
                self._wait(event)
            row = self.register.enter(room.topic, member.id, member.user, member_value(member.user, member.info))
            if self._wait(row.done):
                member.control = row.control
                self._catch_up(attended, row.newest, own)
        except BaseException:
            self.depart(room, member)
            raise

    def _wait(self, event: Event) -> bool:
        """Wait for what the bus does; not while it is away."""
        end = monotonic() + PATIENCE
        while not event.is_set() and not self._health.is_away and monotonic() < end:
            event.wait(0.1)
        return bool(event.is_set())

    def _catch_up(self, attended: Attended, newest: str, own: int | None) -> None:
        """Wait until all is here that was said before: up to a position, and of this process up to a number."""
        until = parse_position(newest) or UNKNOWN
        end = monotonic() + LAG
        while (parse_position(attended.follower.position) or NOWHERE) < until or own in attended.unheard:
            if self._health.is_away or monotonic() > end:
                attended.follower.doubt()
                self._mender.soon(attended)
                return
            attended.moved.wait(LAG)

    def arrived(self, room: Any, member: Any) -> None:
        """Have a member obey what was ordered, and tell what was told of it, since Redis listed it."""
        attended = self._attended.get(room.topic)
        if attended is None or member.id not in attended.arriving:
            return
        for order in self._orders:
            obey(self._home, self._link, order)
        self._arriving -= 1
        if not self._arriving:
            self._orders.clear()
        for message in attended.arriving.pop(member.id):
            self._tell(attended, message)

    def depart(self, room: Any, member: Any, *, lingers: bool = False) -> None:
        """Have a member listed no more, or as one that may come back."""
        if lingers:
            self.register.linger(member.id, member_value(member.user, member.info, lingers=True))
        else:
            self.register.leave(member.id)
        self._remove_user(member.user)
        self.arrived(room, member)
        self.leave_room(room)

    def _user_events(self, name: str | None) -> list[Event]:
        return [] if name is None else [self._subscriber.add(f"@{name}")]

    def _add_user(self, name: str | None) -> None:
        if name is not None:
            self._users[name] = self._users.get(name, 0) + 1

    def _remove_user(self, name: str | None) -> None:
        if name is None:
            return
        self._users[name] -= 1
        if not self._users[name]:
            del self._users[name]
            self._subscriber.remove(f"@{name}")

    def leave_room(self, room: Any) -> None:
        """Attend a room no more, unless somebody comes soon."""
        attended = self._attended.get(room.topic)
        if attended is not None and not attended.is_needed:
            attended.deadline.set(monotonic() + self._home.linger)

    def is_ahead(self, room: Any) -> bool:
        """Whether members here have heard what who comes now cannot get."""
        attended = self._attended.get(room.topic)
        return attended is not None and attended.is_ahead

    def _leave_room(self, attended: Attended) -> None:
        if attended.is_needed or attended.is_mending or self._attended.get(attended.topic) is not attended:
            return
        del self._attended[attended.topic]
        attended.is_heard = False
        self._subscriber.remove(attended.topic)
        self.register.forget(attended.topic)
        attended.deadline.cancel()
        attended.room.begin()

    # What is said here

    def said(self, outgoing: Outgoing) -> None:
        """Take note of a message that this process gives the bus; while that is away it is heard here at once."""
        parcel = outgoing.parcel
        if parcel.topic.startswith("@"):
            if self._health.is_away:
                self._home.say_to(parcel.topic[1:], self._message(outgoing))
        elif attended := self._attended.get(parcel.topic):
            if self._health.is_away:
                self._hear_here(attended, outgoing)
            elif parcel.is_kept:
                attended.note(outgoing)

    def _change_health(self) -> None:
        if self._health.is_away:
            for attended in self._attended.values():
                self._hear_unheard(attended)

    def _hear_unheard(self, attended: Attended) -> None:
        unheard, attended.unheard = attended.unheard, {}
        for outgoing in unheard.values():
            if not isinstance(outgoing.outcome, Refused):
                self._hear_here(attended, outgoing)

    def _hear_here(self, attended: Attended, outgoing: Outgoing) -> None:
        message = self._message(outgoing)
        if outgoing.parcel.is_kept:
            if not attended.follower.see(message.publisher, message.number):
                return
            attended.ahead[message.number] = outgoing
        self._deliver(attended, [Heard(message, True)])

    def _message(self, outgoing: Outgoing) -> Message:
        key, data = outgoing.parcel.key, outgoing.parcel.content
        return parse_message(b"- - %s 0 %s" % (key.encode(), data))

    # What the bus says

    def _hear(self, topic: str, data: bytes) -> None:
        try:
            message = parse_message(data)
        except ValueError as exc:
            loglines.write(log, logging.ERROR, "a message of rooms was dropped: %s", loglines.printable(str(exc)))
            return
        if topic.startswith("@"):
            self._home.say_to(topic[1:], message)
        elif attended := self._attended.get(topic):
            heard = attended.follower.take(message)
            if heard is None:
                self._mender.soon(attended)
            else:
                self._deliver(attended, heard)
            if attended.room is not None:
                attended.room.lane.hold_back()

    def _deliver(self, attended: Attended, heard: Iterable[Heard]) -> None:
        for message, is_new in heard:
            if message.publisher == self._publisher.name:
                attended.unheard.pop(message.number, None)
                if message.position:
                    attended.ahead.pop(message.number, None)
            if message.kind in (CAME, LEFT):
                waiting = attended.arriving.get(message.key)
                if waiting is None:
                    self._tell(attended, message)
                else:
                    waiting.append(message)
            elif attended.room is None:
                if is_new:
                    if self._arriving:
                        self._orders.append(message)
                    obey(self._home, self._link, message)
            else:
                position = parse_position(message.position) or NOWHERE
                attended.room.hear(message, position, is_new=is_new)
        if attended.arriving:
            moved, attended.moved = attended.moved, Event()
            moved.set()

    def _tell(self, attended: Attended, message: Message) -> None:
        user, info, _ = parse_member(message.body)
        listeners = self._home.on_join if message.kind == CAME else self._home.on_leave
        self._home.tell(listeners, attended.room, Present(message.key, user, info))

    # What is missing

    def _attend(self, topic: str, room: Any) -> Attended:
        has_members = partial(bool, self.register.rows if room is None else room.lane.places)
        attended = Attended(topic, room, self._home.limits.messages, self._leave_room, has_members)
        self._attended[topic] = attended
        self._mender.soon(attended, self._subscriber.add(topic))
        return attended

    def _report_gap(self, attended: Attended) -> None:
        self._health.gaps += 1
        self._hear_unheard(attended)
        if attended.room is None:
            # A kick may be what is missing.
            people = [member for members in self._home.people.values() for member in members]
            close_all((each for each in people if each.room.link is self._link), CloseCode.SERVICE_RESTART, GAP)
        elif self._home.on_gap:
            self._home.tell_gap(attended.room)
        else:  # before they hear what is behind the gap: by its position they would come back, and not be told
            while members := list(attended.room.lane.places.values()):
                close_in_turns(members, CloseCode.SERVICE_RESTART, GAP)

    def _check_soon(self) -> None:
        self.register.doubt()
        self._checker.kill(block=False)
        self._checker = gevent.spawn(self._check_until_done)

    def _check_until_done(self) -> None:
        attempts = Attempts(self._health, "check")
        while True:
            try:
                self._check()
                attempts.succeed()
                return
            except (Away, Refused) as exc:
                attempts.fail(exc)

    def _check(self) -> None:
        """Look whether any room has missed its newest messages, which no later one would show."""
        rooms = list(self._attended.values())
        now, newest = self._bus.touch([attended.topic for attended in rooms])
        self.skew = now - self._home.now()
        for attended, position in zip(rooms, newest, strict=True):
            if isinstance(position, Refused):
                self._health.refuse(position)
            elif attended.follower.position != position:
                attended.follower.doubt()
            if not attended.follower.is_whole:
                self._mender.soon(attended)

    # Alive

    def _beat(self) -> None:
        attempts = Attempts(self._health, "heart")
        checked = reaped = monotonic()
        is_sure = True
        while True:
            attempts.begin()
            try:
                was_alive = self._bus.lease(self._process, self._lease)
            except Exception as exc:
                if not isinstance(exc, (Away, Refused)):
                    log.exception("a heartbeat of rooms failed")
                is_sure = False  # an answer that was lost may have told that the lease had ended
                attempts.fail(exc)
                continue
            attempts.succeed()
            self._subscriber.beat()
            now = monotonic()
            if not (was_alive and is_sure):
                is_sure = True
                self._alive_since = now
                self.register.doubt()
            if now - checked > CHECK:
                checked = now
                self._check_soon()
            # After an outage the leases of all have ended, and others may come a little later.
            if now - reaped > self._lease / 2 and now - self._alive_since > self._lease:
                reaped = now
                self._reap()
            gevent.sleep(self._lease * BEATS)

    def _reap(self) -> None:
        try:
            self._bus.reap()
        except Away:
            pass  # the next heartbeat tries it too
        except Refused as exc:
            self._health.refuse(exc)
