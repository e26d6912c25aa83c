"""Lifetime: the moments at which one connection is to be closed, whatever happens on it.

Knows the clocks; knows no connection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import uniform
from time import monotonic, time

from .deadlines import Deadline
from .options import Options

LOOK = 60.0  # seconds between two looks at the clock on the wall, which may be set, or go on while the machine sleeps
JITTER = 0.2  # of max_lifetime, by which some end earlier: those that came in one wave are not to leave in one


class Lifetime:
    """Two moments: the end of max_lifetime, and the one at which the client's right to be connected expires.

    close(code, reason) closes the connection.
    """

    __slots__ = ("_close", "_deadline", "_ends_at", "_expires_at", "_options")

    def __init__(self, options: Options, close: Callable[[int, str], object]) -> None:
        self._options = options
        self._close = close
        self._expires_at = math.inf  # seconds since the epoch, as tokens have it
        self._ends_at = math.inf  # by time.monotonic()
        if options.max_lifetime is not None:
            self._ends_at = monotonic() + options.max_lifetime * uniform(1 - JITTER, 1)
        self._deadline = Deadline(self._on_deadline)
        self._set_deadline()

    def expire_at(self, when: float) -> None:
        """Close at this moment, seconds since the epoch; math.inf is never."""
        self._expires_at = when
        self._set_deadline()

    def cancel(self) -> None:
        """Close no more."""
        self._deadline.cancel()

    def _set_deadline(self) -> None:
        left = self._expires_at - time()
        self._deadline.set(min(self._ends_at, monotonic() + (min(left, LOOK) if left < math.inf else left)))

    def _on_deadline(self) -> None:
        if time() >= self._expires_at:
            self._close(self._options.expiry_code, "expired")
        elif monotonic() >= self._ends_at:
            self._close(self._options.shutdown_code, "max_lifetime is over")
        else:
            self._set_deadline()


def moment(expires_at: float | None) -> float:
    """Return a moment in seconds since the epoch, math.inf for None. Raises TypeError or ValueError naming it."""
    if expires_at is None:
        return math.inf
    if isinstance(expires_at, bool) or not isinstance(expires_at, (int, float)):
        raise TypeError(f"expires_at must be seconds since the epoch or None, not {expires_at!r}")
    try:
        when = float(expires_at)
    except OverflowError:  # an int beyond all floats
        return math.inf if expires_at > 0 else -math.inf
    if math.isnan(when):
        raise ValueError("expires_at must be seconds since the epoch or None, not nan")
    return when
