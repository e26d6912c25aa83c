"""Presence: who is in a room of this process, and when somebody counts as come or gone.

Pure. A person is there with the first of their sockets, and until nobody has come back for a while after the last.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Present(NamedTuple):
    """A member of a room."""

    id: str
    user: str | None
    info: Any


class Attendance:
    """The members of one room. Users whose last socket has left linger: they are there until they are let go."""

    __slots__ = ("_lingering", "_present", "_sockets")

    def __init__(self) -> None:
        self._present: dict[str, Present] = {}  # by the members' ids
        self._sockets: dict[str, int] = {}  # of each user who is there, lingering or not
        self._lingering: dict[str, str] = {}  # users to the ids of their last sockets

    def enter(self, present: Present) -> bool:
        """Add a member, and return whether a user has come with it."""
        self._present[present.id] = present
        user = present.user
        if user is None:
            return False
        last = self._lingering.pop(user, None)
        if last is not None:
            del self._present[last]
        came = user not in self._sockets
        self._sockets[user] = self._sockets.get(user, 0) + 1
        return came

    def leave(self, present: Present) -> bool:
        """Take a member out, and return whether its user begins to linger."""
        user = present.user
        if user is not None:
            self._sockets[user] -= 1
            if not self._sockets[user]:
                self._lingering[user] = present.id
                return True
        del self._present[present.id]
        return False

    def lingering(self, user: str | None) -> str | None:
        """Return the id of the member as which a user lingers."""
        return None if user is None else self._lingering.get(user)

    def let_go(self, present: Present) -> bool:
        """Take out the user that lingers since this member left, and return whether it still did."""
        user = present.user
        if user is None or self._lingering.get(user) != present.id:
            return False
        del self._lingering[user], self._sockets[user], self._present[present.id]
        return True

    def members(self) -> list[Present]:
        """Return who is there, in the order of coming."""
        return list(self._present.values())

    def users(self) -> list[str]:
        """Return the users who are there, each once, in the order of coming."""
        return list(self._sockets)
