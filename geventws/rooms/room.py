"""Room: its members, and what they hear.

Joins lane, log and presence. Knows that other threads call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Union

from ..errors import CloseCode
from ..frames import close_payload
from ..message import Prepared, Sendable, to_json
from ..threads import call, here
from ..websocket import WebSocket
from .envelope import check_info, check_keys, check_name, with_keys
from .home import Home, milliseconds
from .lane import TOO_SLOW, Place
from .log import NOWHERE, Entry, parse_position
from .presence import Attendance, Present

Excluded = Union[Iterable["WebSocket | Member | str"], WebSocket, "Member"]


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

    __slots__ = ("info", "position", "recovered", "room", "user")

    def __init__(self, room: Room, ws: WebSocket, user: str | None, info: Any, position: str, recovered: bool | None):
        super().__init__(ws, room.home.name())
        self.room = room
        self.user = user
        self.info = info
        self.position = position  # of the newest message before it joined, those of its catching up included
        self.recovered = recovered  # whether it gets all behind its `since`; None where it named none

    def __repr__(self) -> str:
        return f"<Member {self.id} of {self.room!r}>"

    def __enter__(self) -> Member:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def left(self) -> None:
        """Count no more, here and as one of a user's sockets."""
        room, home, user = self.room, self.room.home, self.user
        if user is not None:
            sockets = home.people[user]
            sockets.remove(self.ws)
            if not sockets:
                del home.people[user]
        present = Present(self.id, user, self.info)
        if room.attendance.leave(present):
            home.let_linger(room, present)
        home.move_out()

    def leave(self) -> None:
        """Leave the room. A WebSocket that has joined it twice leaves with the second call."""
        self.room.home.run(self.room.lane.leave, self)


class Room:
    """All who have joined under one name."""

    __slots__ = ("__weakref__", "attendance", "home", "lane", "name")

    def __init__(self, home: Home, name: str) -> None:
        """Apps get theirs from Rooms."""
        self.home = home
        self.name = name
        self.begin()

    def begin(self) -> None:
        """Be empty."""
        self.lane = self.home.lane()
        self.attendance = Attendance()

    def __repr__(self) -> str:
        return f"<Room {self.name!r}>"

    # Members

    def join(self, ws: WebSocket, user: str | None = None, info: Any = None, since: str | None = None) -> Member:
        """Let a WebSocket hear what is said here from now on, until it ends or leaves.

        user is the name of the person, and info up to 4 KiB of JSON about them that others may see. since is the
        position that a client has reached, as it says: if nothing is missing, it gets all behind that before the rest,
        and else nothing of it: `recovered` of the member tells. A WebSocket is a member once: joining again gives the
        same one. Completes the handshake. Raises ValueError for a name or info that is too long.
        """
        if here.hub is not ws.hub:
            return call(ws.hub, self.join, ws, user, info, since)
        if user is not None:
            check_name(user, "user")
        info = check_info(info)
        is_closed = ws.closed
        member: Member | None = self.lane.places.get(ws)
        if member is not None:
            member.uses += 1
            return member
        line = self.lane.log
        line.expire(milliseconds())
        start = parse_position(since)
        cursor = None if start is None else line.after(start)
        recovered = None if since is None else cursor is not None
        member = Member(self, ws, user, info, str(line.position), recovered)
        if not is_closed:  # else its view may still have messages to work on, but it hears no more
            self.home.move_in(ws)
            self.lane.enter(member, line.end if cursor is None else cursor)
            if user is not None:
                self.home.people.setdefault(user, []).append(ws)
            present = Present(member.id, user, info)
            if self.attendance.enter(present):
                self.home.tell(self.home.on_join, self, present)
        return member

    def leave(self, ws: WebSocket) -> None:
        """Take a WebSocket out, if it is in here."""
        self.home.run(self._leave, ws)

    def _leave(self, ws: WebSocket) -> None:
        member = self.lane.places.get(ws)
        if member is not None:
            self.lane.leave(member, wholly=True)

    def members(self) -> list[Present]:
        """Return who is here. A user who has just left is, until on_leave is told."""
        return self.attendance.members()

    def users(self) -> list[str]:
        """Return the names of the users who are here, each once."""
        return self.attendance.users()

    def __len__(self) -> int:
        """Return how many WebSockets of this process are here."""
        return len(self.lane.places)

    def __iter__(self) -> Iterator[WebSocket]:
        """Give the WebSockets of this process that are here."""
        return iter(tuple(self.lane.places))

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Close the WebSockets that are here. Raises ValueError for a code that may not be sent."""
        close_payload(code, reason)
        self.home.run(self.lane.close, code, reason)

    # Messages

    def broadcast(
        self,
        message: Sendable,
        exclude: Excluded = (),
        keep: bool = True,
        confirm: float | None = None,
    ) -> str | None:
        """Have all members get a message, but for those of exclude; return its position.

        Never waits for a member. keep=False is for what means nothing a moment later, as that somebody is typing: it is
        no part of history, and has no position. confirm is seconds to wait until a bus has the message; without one it
        has arrived. Members are excluded by their WebSocket, themselves or their id.
        """
        return self.home.run(self._say, message, _listed(exclude), keep)

    def broadcast_json(
        self,
        obj: Any,
        exclude: Excluded = (),
        keep: bool = True,
        confirm: float | None = None,
    ) -> str | None:
        """Have all members get an object as JSON, as broadcast(); one that is kept arrives with "id" and "at" added.

        "id" is the message's own, by which a client knows one that it has got already; "at" is its position, which the
        client says as `since` when it comes back. Raises ValueError for an object that has one of them.
        """
        text = to_json(obj)
        if keep:
            check_keys(obj)
        return self.home.run(self._say, text, _listed(exclude), keep, keep)

    def _say(
        self, message: Sendable, exclude: tuple[WebSocket | Member | str, ...], keep: bool, adds_keys: bool = False
    ) -> str | None:
        self.lane.hold_back()
        position = self.home.position_behind(self.lane.log.position) if keep else NOWHERE
        if adds_keys and isinstance(message, str):
            message = with_keys(message, self.home.name(), str(position))
        self.lane.push(Entry(message, position, frozenset(self._ids(exclude))))
        if not keep:
            return None
        self.home.keep(self)
        return str(position)

    def _ids(self, exclude: tuple[WebSocket | Member | str, ...]) -> Iterator[str]:
        for item in exclude:
            if isinstance(item, str):
                yield item
            elif isinstance(item, Member):
                yield item.id
            elif (member := self.lane.places.get(item)) is not None:
                yield member.id

    @property
    def local(self) -> Local:
        """The members of this process."""
        return Local(self)

    def history(self, since: str | None = None, limit: int | None = None) -> History:
        """Return what was kept: behind the position `since` if given, and of that the newest `limit` messages."""
        return self.home.run(self._history, since, limit)

    def _history(self, since: str | None, limit: int | None) -> History:
        line = self.lane.log
        line.expire(milliseconds())
        position = None if since is None else parse_position(since)
        start = 0 if since is None else line.after(position) if position is not None else None
        entries = [] if start is None else line.history(start)
        taken = entries if limit is None else entries[max(len(entries) - limit, 0) :]
        messages = (entry.prepared.message for entry in taken)
        return History(messages, str(line.position), start is not None and len(taken) == len(entries))


class Local:
    """The members of a room that are on this process."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def broadcast(self, message: Sendable, exclude: Excluded = ()) -> None:
        """Have them get a message that is no part of history."""
        self._room.home.run(self._room._say, message, _listed(exclude), False)

    def broadcast_json(self, obj: Any, exclude: Excluded = ()) -> None:
        """Have them get an object as JSON that is no part of history."""
        self.broadcast(to_json(obj), exclude)


class User:
    """All sockets with which one person has joined rooms. One that takes no message of theirs is too slow for rooms."""

    def __init__(self, home: Home, name: str) -> None:
        """Apps get theirs from Rooms."""
        self._home = home
        self.name = name

    def broadcast(self, message: Sendable) -> None:
        """Have each of them get a message once, which is no part of history."""
        self._home.run(self._say, message)

    def broadcast_json(self, obj: Any) -> None:
        """Have each of them get an object as JSON once, which is no part of history."""
        self.broadcast(to_json(obj))

    def _sockets(self) -> Iterable[WebSocket]:
        return dict.fromkeys(self._home.people.get(self.name, ()))

    def _say(self, message: Sendable) -> None:
        prepared, counts = Prepared(message), self._home.counts
        counts.broadcasts += 1
        for ws in self._sockets():
            if ws.post(prepared):
                counts.delivered += 1
            elif ws.closed:
                pass
            elif self._home.slow == "skip":
                counts.skipped += 1
            else:
                counts.closed_slow += 1
                ws.close(CloseCode.TRY_AGAIN_LATER, TOO_SLOW)

    def disconnect(self, spared: WebSocket | None, code: int, reason: str) -> None:
        """Close all but one."""
        for ws in self._sockets():
            if ws is not spared:
                ws.close(code, reason)


def _listed(exclude: Excluded) -> tuple[WebSocket | Member | str, ...]:
    # One alone is an iterable too: of characters, or of the messages that it would wait for.
    return (exclude,) if isinstance(exclude, (str, WebSocket, Member)) else tuple(exclude)
