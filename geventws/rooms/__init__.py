"""Rooms: what is said in one reaches all who are in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import CloseCode
from ..frames import close_payload
from ..websocket import WebSocket
from .address import VARIABLE, Address, parse
from .envelope import KICK, check_name
from .home import Home
from .link import Link
from .log import Limits
from .member import History, Member
from .presence import Present
from .publisher import Buffer
from .room import Local, Room, User

if TYPE_CHECKING:
    from .bus import Bus

__all__ = ["History", "Local", "Member", "Present", "Room", "Rooms", "User"]

Listener = TypeVar("Listener", bound=Callable[[Room, str, Any], object])
SHORTEST_LEASE = 1.0  # seconds; a third of it must do for a round trip
SHORTEST_HISTORY = 0.001  # seconds, as positions have milliseconds
LARGEST = 1e12  # of what is counted: Redis takes no infinity, and milliseconds must be whole numbers there
GapListener = TypeVar("GapListener", bound=Callable[[Room], object])


class Rooms:
    """All rooms of an app, by their names: rooms["lobby"].

    A room needs no making: one that nobody is in, and where nothing is kept, costs nothing.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "geventws",
        history: int = 100,
        history_seconds: float = 300.0,
        history_bytes: int = 1 << 20,
        slow: Literal["close", "skip"] = "close",
        buffer: int = 10_000,
        buffer_bytes: int = 16 << 20,
        lease: float = 10.0,
        linger: float = 5.0,
    ) -> None:
        """Set what joins processes, what each room keeps and how long, and how far a member may be behind.

        url names a Redis server, as GEVENTWS_BUS does where it is None; several, with blanks between, share the rooms.
        Without one rooms are of this process alone. Nothing is connected to before the first use in each process.
        Apps with other namespaces have other rooms. A member that is more than history_bytes behind is closed with
        1013, or with slow="skip" goes on with the newest message. Up to buffer messages wait for a bus that is away.
        A process that ends without a word counts as dead after lease seconds. A user counts as gone linger seconds
        after the last socket: a reload of the page is no leaving. Raises ValueError for a value out of range, TypeError
        for one that is no number where one is wanted.
        """
        _check_number("history", history, 0)
        _check_number("history_seconds", history_seconds, SHORTEST_HISTORY, hint=": history=0 keeps nothing")
        _check_number("history_bytes", history_bytes, 1, hint=": history=0 keeps nothing")
        _check_number("buffer", buffer, 1)
        _check_number("buffer_bytes", buffer_bytes, 1)
        _check_number("lease", lease, SHORTEST_LEASE)
        _check_number("linger", linger, 0.0)
        if slow not in ("close", "skip"):
            raise ValueError(f'slow must be "close" or "skip", not {slow!r}')
        if not namespace.isprintable() or not 1 <= len(namespace) <= 100:
            raise ValueError(f"namespace must be 1 to 100 printable characters, not {namespace!r}")
        limits = Limits(history, history_seconds, history_bytes)
        self._home = Home(limits, slow, linger)
        self._url = url
        self._connect_to = partial(_links, self._home, namespace, Buffer(buffer, buffer_bytes), lease)
        self._use(os.environ.get(VARIABLE) if url is None else url)

    def init_app(self, app: Any) -> None:
        """Use GEVENTWS_BUS of a Flask app's config, unless a url was given to Rooms itself."""
        if self._url is None and VARIABLE in app.config:
            self._use(app.config[VARIABLE])

    def _use(self, url: str | None) -> None:
        links = self._connect_to(parse(url)) if url and url.strip() else []
        if self._home.links or links:
            self._home.run(self._home.close)
        self._home.links = links

    def __getitem__(self, name: str) -> Room:
        """Return the room of this name. Raises ValueError unless that has 1 to 200 bytes of UTF-8."""
        room: Room | None = self._home.rooms.get(name)
        if room is None:
            made = Room(self._home, check_name(name, "room"))
            room = self._home.rooms.setdefault(name, made)
        return room

    def user(self, name: str) -> User:
        """Return all the sockets with which a person has joined rooms."""
        return User(self._home, check_name(name, "user"))

    def disconnect(
        self,
        user: str,
        except_: WebSocket | Member | None = None,
        code: int = CloseCode.POLICY_VIOLATION,
        reason: str = "",
    ) -> None:
        """Close all sockets with which a person has joined rooms, but for one. A login that comes later is not touched.

        Raises ValueError for a code that may not be sent.
        """
        close_payload(code, reason)
        spared = except_.ws if isinstance(except_, Member) else except_
        if self._home.links:
            self._home.reach(self._order_kick, check_name(user, "user"), spared, code, reason)
        else:
            self._home.run(self.user(user).disconnect, spared, code, reason)

    def _order_kick(self, user: str, spared: WebSocket | None, code: int, reason: str) -> None:
        ids = [member.id for member in self._home.people.get(user, ()) if member.ws is spared]
        for _, link in self._home.links:
            link.order(KICK, [user, ids, code, reason])

    def on_join(self, listener: Listener) -> Listener:
        """Have listener(room, user, info) called when a person has come into a room."""
        self._home.on_join.append(listener)
        return listener

    def on_leave(self, listener: Listener) -> Listener:
        """Have listener(room, user, info) called when a person has left a room, and has not come back at once."""
        self._home.on_leave.append(listener)
        return listener

    def on_gap(self, listener: GapListener) -> GapListener:
        """Have listener(room) called where messages may be missing, instead of closing the room's members with 1012."""
        self._home.on_gap.append(listener)
        return listener

    def stats(self) -> dict[str, int]:
        """Return what rooms have, and have done, in this process."""
        links = [link for _, link in self._home.links]
        counts = self._home.counts
        lanes = [room.lane for room in list(self._home.rooms.values())]
        return {
            "rooms": sum(bool(lane.places) for lane in lanes),
            "members": counts.members,
            "waiting": sum(len(lane.behind) for lane in lanes),
            "broadcasts": counts.broadcasts,
            "delivered": counts.delivered,
            "skipped": counts.skipped,
            "closed_slow": counts.closed_slow,
            "bus_up": int(bool(links) and not any(link.health.is_away for link in links)),
            "buffered": sum(link.waiting for link in links),
            "reconnects": sum(link.health.reconnects for link in links),
            "caught_up": sum(link.health.caught_up for link in links),
            "gaps": sum(link.health.gaps for link in links),
            "refused": sum(link.health.refused for link in links),
        }

    def close(self) -> None:
        """Forget members, and what is kept in this process, and close no socket. The next use begins anew."""
        self._home.run(self._home.close)


def _check_number(name: str, value: Any, least: float, hint: str = "") -> None:
    """Raise ValueError or TypeError for what is no value of an option: a whole number where least is one."""
    is_whole = isinstance(least, int)
    if isinstance(value, bool) or not isinstance(value, int if is_whole else (int, float)):
        raise TypeError(f"{name} must be a {'whole number' if is_whole else 'number of seconds'}, not {value!r}")
    unit = "" if is_whole else " seconds"
    if value > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST:g}{unit}, not {value!r}")
    if not value >= least:  # as NaN is not
        raise ValueError(f"{name} must be at least {least:g}{unit}, not {value!r}{hint}")


def _links(
    home: Home, namespace: str, buffer: Buffer, lease: float, addresses: list[Address]
) -> list[tuple[str, Link]]:
    from .engine import Redis  # not before it is asked for: the package is an extra
    from .span import Span

    def link(address: Address) -> Link:
        def make() -> Bus:
            return Redis(address, namespace, home.limits)

        return Link(make, lambda link: Span(home, link, lease), buffer)

    return [(address.shown, link(address)) for address in addresses]
