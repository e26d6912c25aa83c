"""Member: one WebSocket in one room. History: messages as members got them."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from gevent import getcurrent

from ..websocket import WebSocket
from .lane import WAITS, Place
from .presence import Present


class History(list["str | bytes"]):
    """Messages as members got them.

    complete tells whether nothing is missing from them, and position how far they go: it is a `since` for join().
    """

    def __init__(self, messages: Iterable[str | bytes], position: str, complete: bool) -> None:
        super().__init__(messages)
        self.position = position
        self.complete = complete


class Member(Place):
    """One WebSocket in one room; a context manager that leaves it at the end of the block."""

    __slots__ = ("control", "info", "position", "recovered", "room", "user")

    def __init__(self, room: Any, ws: WebSocket, user: str | None, info: Any) -> None:
        super().__init__(ws, room.home.name())
        self.room = room
        self.user = user
        self.info = info
        self.position = ""  # of the newest message before it joined, those of its catching up included
        self.recovered: bool | None = None  # whether it gets all behind its `since`; None where it named none
        self.control = ""  # the position of the bus' orders when it joined: older ones are not for it

    def __repr__(self) -> str:
        return f"<Member {self.id} of {self.room!r}>"

    def __enter__(self) -> Member:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def hold(self) -> None:
        """Hear nothing for now."""
        if self.lane is not None:
            self.pace = WAITS
            self.lane.behind.add(self)

    def left(self) -> None:
        """Count no more, here and as one of a user's sockets."""
        room, home, user = self.room, self.room.home, self.user
        if home.views.get(getcurrent()) is self:
            del home.views[getcurrent()]
        if user is not None:
            members = home.people[user]
            members.remove(self)
            if not members:
                del home.people[user]
        present = Present(self.id, user, self.info)
        lingers = room.attendance.leave(present)
        if room.link is not None:
            room.link.span.depart(room, self, lingers=lingers)
        if lingers:
            home.let_linger(room, present)
        home.move_out()

    def leave(self) -> None:
        """Leave the room. A WebSocket that has joined it twice leaves with the second call."""
        self.room.home.run(self.room.lane.leave, self)
