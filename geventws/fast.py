"""Fast: the fields that C and Python share of what a message passes, and C that does the plain cases of it.

The Python methods are the specification. Where _fast.c is compiled, it stands for some of them, and calls them for
whatever is unusual. Elsewhere, and with GEVENTWS_PURE=1, these are plain base classes, and Python does everything.
"""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

is_compiled = False  # and used
EDITION = 3  # of what C and Python expect of each other, in fields, methods and their order; _fast.c has the same


class TransportFields:
    """Of a Transport. _fd is -1 where Python is to read and write."""

    __slots__ = (
        "_corked",
        "_fd",
        "_finishing",
        "_outbox",
        "_owner",
        "_pipe",
        "blocked",
        "broken",
        "bytes_received",
        "bytes_sent",
        "congested",
        "last_received",
        "reading",
    )


class ConnectionFields:
    """Of a Connection."""

    __slots__ = ("_buffer", "_message", "_piece_size", "deflate", "inflated", "limited", "max_message_size", "state")


class SessionFields:
    """Of a Session."""

    __slots__ = (
        "_hub",
        "_turns",
        "connection",
        "debug",
        "messages_received",
        "most_frames",
        "queue",
        "reader",
        "transport",
    )


class WebSocketFields:
    """Of a WebSocket."""

    __slots__ = ("_end_told", "_hub", "_session", "_streak", "_turn_ends", "before_wait", "messages_sent")


class StreakFields:
    """Of a Streak."""

    __slots__ = ("target", "until")


class TurnsFields:
    """Of Turns."""

    __slots__ = ("_timer", "left")


class LaneFields:
    """Of a Lane."""

    __slots__ = ("_round", "_stop", "counts")


class PlaceFields:
    """Of a Place."""

    __slots__ = ("cursor", "id", "lane", "pace", "ws")


class BatchFields:
    """Of a Batch."""

    __slots__ = ("count", "excluded", "prepared", "size", "start", "stop")


class CountsFields:
    """Of Counts."""

    __slots__ = ("delivered",)


def take_over(
    websocket: type, transport: type, connection: type, session: type, streak: type, turns: type, is_open: object
) -> None:
    """Have C stand for methods of the first two, where each object is of exactly these types: the first such ones."""


def enter(hub: Any) -> object:
    """Note the hub of this thread; the caller keeps it and what this returns for as long as the thread lives."""
    return None


def watch(loop: Any, fd: int) -> Any:
    """Return what start(callback) has call back when fd can be read, until stop() or close()."""
    return loop.io(fd, 1)


def take_back(connection: object) -> bytes:
    """Return what C has of a frame that is not all here, as it came; Python is to take it in."""
    return b""


def let_go(connection: object) -> None:
    """Free what C has of a frame that is not all here, and will never be."""


def next_place(lane: Any, batch: Any, least: int, keeps_up: object, share: Any) -> Any:
    """Return the next place in a lane's round that Python is to serve; None behind the last, and once share is used up.

    C delivers the batch to the places before that one. Each takes the size of the batch from share, `least` at least.
    """
    return next(lane._round, None) if share.left > 0 else None


def _is_ours(compiled: Any) -> bool:
    """Whether a compiled module fits these classes. One that does not is left from another version."""
    fields = (
        *(ConnectionFields, SessionFields, StreakFields, TransportFields, TurnsFields, WebSocketFields),
        *(BatchFields, CountsFields, LaneFields, PlaceFields),
    )
    return compiled.EDITION == EDITION and all(
        set(kind.__slots__) <= vars(getattr(compiled, kind.__name__, object)).keys() for kind in fields
    )


if not TYPE_CHECKING and not os.environ.get("GEVENTWS_PURE"):
    with suppress(ImportError):
        from . import _fast

        if _is_ours(_fast):
            TransportFields, ConnectionFields = _fast.TransportFields, _fast.ConnectionFields
            SessionFields, WebSocketFields = _fast.SessionFields, _fast.WebSocketFields
            StreakFields, TurnsFields = _fast.StreakFields, _fast.TurnsFields
            LaneFields, PlaceFields = _fast.LaneFields, _fast.PlaceFields
            BatchFields, CountsFields = _fast.BatchFields, _fast.CountsFields
            take_over, take_back, let_go = _fast.take_over, _fast.take_back, _fast.let_go
            enter, watch, next_place = _fast.enter, _fast.watch, _fast.next_place
            is_compiled = True
        else:
            told = f"{_fast.__file__} was compiled for another version of geventws, and is not used; install it anew"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
