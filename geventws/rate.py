"""Rate: a Session whose peer may send only so many messages a second, for the option max_message_rate.

Past it the session stops reading for a while, and TCP holds the peer back. A peer that goes on is closed. Knows Session
and the clock; knows no view. A connection without the option has a plain Session, and pays nothing.
"""

from __future__ import annotations

import logging
import math
from time import monotonic
from typing import Any

from .connection import OPEN, Event
from .deadlines import Deadline
from .errors import CloseCode
from .loglines import printable
from .session import Session

BURST = 5.0  # seconds of silence whose messages may come at once
PAUSE = 0.25  # seconds at least for which a peer is held back: a flood costs four wake-ups a second, whatever its rate
PATIENCE = 10.0  # seconds for which a peer may be held back, less those in which it was not


class RatedSession(Session):
    """A Session with a token bucket. A message takes a token, in however many fragments, and so does a control frame.

    Only the pong that answers a ping of ours is free.
    """

    __slots__ = (
        "_controls",
        "_earned_at",
        "_held_seconds",
        "_hold",
        "_is_held",
        "_paid",
        "_rate",
        "_released_at",
        "_tokens",
    )

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._rate = self._options.max_message_rate or math.inf
        self._tokens = BURST * self._rate
        self._earned_at = self._released_at = monotonic()
        self._controls = 0  # control frames that count
        self._paid = 0  # messages and control frames for which tokens were taken
        self._held_seconds = 0.0  # see PATIENCE
        self._is_held = False
        self._hold = Deadline(self._release)

    def data_received(self, data: bytes, inflated: int = 0, size: int = 0) -> None:
        """Take in bytes, as many frames as there are tokens and one more. That one shows that the peer is too fast."""
        if self.connection.state is not OPEN:
            super().data_received(data, inflated, size)
            return
        now = monotonic()
        self._tokens = min(self._tokens + (now - self._earned_at) * self._rate, BURST * self._rate)
        self._earned_at = now
        self.most_frames = max(min(int(self._tokens) + 1, self._options.max_queue), 1)
        super().data_received(data, inflated, size)
        seen = self.messages_received + self._controls
        self._tokens -= seen - self._paid
        self._paid = seen
        if self._tokens < 0 and self.connection.state is OPEN:
            self._hold_back()

    def _answer(self, events: list[Event]) -> None:
        awaited = self.keepalive.unanswered
        super()._answer(events)
        self._controls += len(events) - (awaited - self.keepalive.unanswered)

    def _hold_back(self) -> None:
        """Read nothing until tokens are earned for what came, and for a pause more. Close if it goes on like this."""
        now = monotonic()
        self._held_seconds = max(self._held_seconds - (now - self._released_at), 0.0)
        if self._held_seconds > PATIENCE:
            line = "%s closes: the peer goes on past max_message_rate, %d messages a second"
            assert self._owner is not None
            self.log(logging.WARNING, line, printable(self._owner.path), self._rate)
            self.close(CloseCode.POLICY_VIOLATION, f"more than {self._rate} messages a second", "message_rate")
            self.transport.finish()  # its answer stands behind a flood, which nobody is to parse
            return
        pause = max(PAUSE, 1 / self._rate) - self._tokens / self._rate
        self._held_seconds += pause
        self._is_held = True
        self.transport.pause_reading()
        self._hold.set(now + pause)

    def _release(self) -> None:
        self._is_held = False
        self._released_at = monotonic()
        if not self._is_full():
            self.go_on_reading()

    def go_on_reading(self) -> None:
        """Read on, unless the peer is held back."""
        if not self._is_held:
            super().go_on_reading()

    def _read_left(self) -> None:
        if self._is_held:
            self._resuming = False  # _release() looks at what is left
        else:
            super()._read_left()

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "", cause: str = "server") -> None:
        """Start the closing handshake, or answer the peer's; hold the peer's Close back no longer."""
        self._is_held = False
        self._hold.set(math.inf)
        super().close(code, reason, cause)

    def _cancel_deadlines(self) -> None:
        super()._cancel_deadlines()
        self._hold.cancel()
