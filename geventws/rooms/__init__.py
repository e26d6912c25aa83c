"""Rooms: what is said in one reaches all who are in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from ..errors import CloseCode
from ..frames import close_payload
from ..websocket import WebSocket
from .envelope import check_name
from .home import Home
from .log import Limits
from .presence import Present
from .room import History, Local, Member, Room, User

__all__ = ["History", "Local", "Member", "Present", "Room", "Rooms", "User"]

Listener = TypeVar("Listener", bound=Callable[[Room, str, Any], object])


class Rooms:
    """All rooms of an app, by their names: rooms["lobby"].

    A room needs no making: one that nobody is in, and where nothing is kept, costs nothing.
    """

    def __init__(
        self,
        *,
        history: int = 100,
        history_seconds: float = 300.0,
        history_bytes: int = 1 << 20,
        slow: Literal["close", "skip"] = "close",
        linger: float = 5.0,
    ) -> None:
        """Set what each room keeps, and how long; and how far a member may be behind.

        A member that is more than history_bytes behind is closed with 1013, or with slow="skip" goes on with the newest
        message. A user counts as gone linger seconds after the last socket: a reload of the page is no leaving.
        Raises ValueError for a value out of range.
        """
        for name, value in (("history", history), ("history_bytes", history_bytes), ("linger", linger)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, not {value!r}")
        if history_seconds <= 0:
            raise ValueError(f"history_seconds must be more than 0, not {history_seconds!r}")
        if slow not in ("close", "skip"):
            raise ValueError(f'slow must be "close" or "skip", not {slow!r}')
        self._home = Home(Limits(history, history_seconds, history_bytes), slow, linger)

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
        self._home.run(self.user(user).disconnect, spared, code, reason)

    def on_join(self, listener: Listener) -> Listener:
        """Have listener(room, user, info) called when a person has come into a room."""
        self._home.on_join.append(listener)
        return listener

    def on_leave(self, listener: Listener) -> Listener:
        """Have listener(room, user, info) called when a person has left a room, and has not come back at once."""
        self._home.on_leave.append(listener)
        return listener

    def stats(self) -> dict[str, int]:
        """Return what rooms have, and have done, in this process."""
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
        }

    def close(self) -> None:
        """Forget members, history and who is present, and close no socket. The next use begins anew."""
        self._home.run(self._home.close)
