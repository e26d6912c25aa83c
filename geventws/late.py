"""Late sends: what is said to a connection that has ended, before its view can know of it.

Knows the clock; knows no connection.
"""

from __future__ import annotations

from time import monotonic

# How long the sends of others than the view are dropped, as they were a moment before. A view learns of the end when it
# next waits; who only ever sends has to learn of it some time, too.
NEWS_TAKES = 10.0  # seconds
# How many sends of the view's own are, for each message that it has received: it may be in a loop over all members, in
# which it says several things to each. One that streams has to learn of the end by a send.
OWN_DROPS = 16


class LateSends:
    """Judges the sends to one connection since its end."""

    __slots__ = ("_others_until", "_own", "_waiting")

    def __init__(self) -> None:
        self._others_until = monotonic() + NEWS_TAKES
        self._own = 0  # sends of the view's since it received a message
        self._waiting = -1  # messages that the view had not received then

    def may_drop_own(self, waiting: int) -> bool:
        """Whether to drop a send of the view's own, for which so many messages wait."""
        self._own = self._own + 1 if waiting == self._waiting else 1
        self._waiting = waiting
        return self._own <= OWN_DROPS

    def may_drop_others(self) -> bool:
        """Whether to drop a send of others."""
        return monotonic() < self._others_until
