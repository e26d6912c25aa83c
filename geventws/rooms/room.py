"""Room: its members, and what they hear.

Joins lane, log and presence. Knows that other threads call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Union

from gevent import getcurrent

from ..errors import CloseCode
from ..frames import close_payload
from ..message import Sendable, to_json
from ..threads import call, here
from ..websocket import WebSocket
from .bus import Away
from .envelope import CLOSE, JSON, Message, body_of, check_info, check_keys, check_name, with_keys
from .home import Home
from .link import Link
from .log import NOWHERE, Entry, Position, parse_position
from .member import History, Member
from .presence import Attendance, Present

Excluded = Union[Iterable["WebSocket | Member | str"], WebSocket, "Member"]
Items = tuple["WebSocket | Member | str", ...]


class Room:
    """All who have joined under one name."""

    __slots__ = ("__weakref__", "attendance", "home", "lane", "name", "topic")

    def __init__(self, home: Home, name: str) -> None:
        """Apps get theirs from Rooms."""
        self.home = home
        self.name = name
        self.topic = f"{{{name}}}"  # in braces, by which a cluster would keep together what is of one room
        self.begin()

    @property
    def link(self) -> Link | None:
        """What joins the room with its members on other processes."""
        return self.home.link(self.topic)

    def begin(self) -> None:
        """Be empty."""
        self.lane = self.home.lane(self.name)
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
        member: Member | None = self.lane.places.get(ws)
        if member is not None:
            member.uses += 1
            return member
        member = Member(self, ws, user, info)
        if self.link is None or ws.closed:
            self._enter(member, since)
        else:
            self.home.settle(ws)
            self.link.join(self, member, lambda: self._enter(member, since))
        return member

    def _enter(self, member: Member, since: str | None) -> bool:
        """Let a member hear from now on, and return whether it is there."""
        ws, home, line = member.ws, self.home, self.lane.log
        line.expire(self._now())
        start = parse_position(since)
        is_ahead = self.link is not None and self.link.span is not None and self.link.span.is_ahead(self)
        cursor = None if start is None or is_ahead else line.after(start)
        member.position = str(line.position)
        member.recovered = None if since is None else cursor is not None
        if ws.closed:
            return False  # its view may still have messages to work on, but it hears no more
        home.move_in(ws)
        home.views[getcurrent()] = member
        self.lane.enter(member, line.end if cursor is None else cursor)
        if member.user is not None:
            home.people.setdefault(member.user, []).append(member)
        present = Present(member.id, member.user, member.info)
        if self.link is not None and (before := self.attendance.lingering(member.user)):
            self.link.span.register.leave(before)
        if self.attendance.enter(present) and self.link is None:
            home.tell(home.on_join, self, present)
        return True

    def gone(self, present: Present) -> None:
        """Take note that a user has not come back."""
        if self.link is None:
            self.home.tell(self.home.on_leave, self, present)
        else:
            self.link.span.register.leave(present.id)
            self.link.span.leave_room(self)

    def _now(self) -> int:
        link = self.link
        return self.home.now() + (link.span.skew if link is not None and link.span is not None else 0)

    def leave(self, ws: WebSocket) -> None:
        """Take a WebSocket out, if it is in here."""
        self.home.run(self._leave, ws)

    def _leave(self, ws: WebSocket) -> None:
        member = self.lane.places.get(ws)
        if member is not None:
            self.lane.leave(member, wholly=True)

    def members(self) -> list[Present]:
        """Return who is here. A user who has just left is, until on_leave is told.

        While the bus is away that is who is here in this process.
        """
        if self.link is None:
            return self.attendance.members()
        with self.home.holding():
            found = self.link.members(self.topic)
        return self.attendance.members() if found is None else found

    def users(self) -> list[str]:
        """Return the names of the users who are here, each once, as members() does."""
        return list(dict.fromkeys(present.user for present in self.members() if present.user is not None))

    def __len__(self) -> int:
        """Return how many WebSockets of this process are here."""
        return len(self.lane.places)

    def __iter__(self) -> Iterator[WebSocket]:
        """Give the WebSockets of this process that are here."""
        return iter(tuple(self.lane.places))

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Close the WebSockets that are here. Raises ValueError for a code that may not be sent."""
        close_payload(code, reason)
        if self.link is None:
            self.home.run(self.lane.close, code, reason)
        else:
            self.home.reach(self.link.order, CLOSE, [self.name, code, reason])

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
        return self._say(message, exclude, keep, False, confirm)

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
        return self._say(text, exclude, keep, keep, confirm)

    def _say(
        self, message: Sendable, exclude: Excluded, keep: bool, adds_keys: bool, confirm: float | None
    ) -> str | None:
        items = _listed(exclude)
        if self.link is None:
            return self.home.run(self._say_here, message, items, keep, adds_keys)
        return self.home.reach(self._say_anywhere, self.link, message, items, keep, adds_keys, confirm)

    def _say_anywhere(
        self, link: Link, message: Sendable, exclude: Items, keep: bool, adds_keys: bool, confirm: float | None
    ) -> str | None:
        kind, body = body_of(message)
        return link.say(self.topic, JSON if adds_keys else kind, body, self._ids(exclude), keep, confirm)

    def _say_here(self, message: Sendable, exclude: Items, keep: bool, adds_keys: bool = False) -> str | None:
        self.lane.hold_back()
        position = self.home.position_behind(self.lane.log.position) if keep else NOWHERE
        if adds_keys and isinstance(message, str):
            message = with_keys(message, self.home.name(), str(position))
        self.lane.push(Entry(message, position, frozenset(self._ids(exclude))))
        if not keep:
            return None
        self.home.keep(self)
        return str(position)

    def hear(self, message: Message, position: Position, *, is_new: bool) -> None:
        """Have the members here get what the bus brings; where they have it already, have only history get it."""
        text = message.for_members
        if text is not None:
            self.lane.push(Entry(text, position, message.excluded, is_silent=not is_new))

    def _ids(self, exclude: Items) -> Iterator[str]:
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
        if self.link is None:
            return self.home.run(self._history, since, limit)
        try:
            with self.home.holding():
                return self._kept_history(self.link, since, limit)
        except Away:
            history = self.home.reach(self._history, since, limit)
            history.complete = False
            return history

    def _kept_history(self, link: Link, since: str | None, limit: int | None) -> History:
        start = parse_position(since)
        if since is None:
            page = link.history(self.topic, None, None if limit is None else limit + 1)
        else:
            page = link.history(self.topic, str(start), None) if start else link.history(self.topic, None, 0)
        is_known = since is None or (start is not None and page.is_proven)
        kept = page.messages if is_known else []
        taken = kept if limit is None else kept[max(len(kept) - limit, 0) :]
        messages = [text for message in taken if (text := message.for_members) is not None]
        return History(messages, page.newest, is_known and len(taken) == len(kept))

    def _history(self, since: str | None, limit: int | None) -> History:
        line = self.lane.log
        line.expire(self._now())
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
        room = self._room
        room.home.run(room._say_here, message, _listed(exclude), False)

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
        home, topic = self._home, f"@{self.name}"
        link = home.link(topic)
        if link is None:
            home.run(home.post, self.name, message)
        else:
            home.reach(link.say, topic, *body_of(message), (), False)

    def broadcast_json(self, obj: Any) -> None:
        """Have each of them get an object as JSON once, which is no part of history."""
        self.broadcast(to_json(obj))

    def disconnect(self, spared: WebSocket | None, code: int, reason: str) -> None:
        """Close all but one."""
        for ws in self._home.sockets(self.name):
            if ws is not spared:
                ws.close(code, reason)


def _listed(exclude: Excluded) -> Items:
    # One alone is an iterable too: of characters, or of the messages that it would wait for.
    return (exclude,) if isinstance(exclude, (str, WebSocket, Member)) else tuple(exclude)
