"""Ending: what is told of a connection once its socket is closed: one line of the log, one signal.

Knows Connection, Transport and the clock; knows no view.
"""

from __future__ import annotations

import logging
from time import time
from typing import Any, Protocol

from . import loglines, signals
from .connection import Connection
from .loglines import about, printable
from .transport import Transport

log = logging.getLogger("geventws")


class Owner(Protocol):
    """What a connection tells of its WebSocket."""

    environ: dict[str, Any]
    messages_sent: int
    opened_at: float | None

    @property
    def id(self) -> str:
        """Its name among those of this machine."""

    @property
    def path(self) -> str:
        """Path of the request, decoded."""

    @property
    def peer(self) -> str:
        """The peer as logs show it."""


def tell_end(owner: Owner, connection: Connection, transport: Transport, cause: str, messages_received: int) -> None:
    """Tell of an end: cause is what began it.

    Either end by a Close: client, server, view_failed, shutdown, protocol (a rule that the peer broke),
    message_rate. Or none came: eof, reset, ping_timeout, send_timeout.
    """
    if not log.isEnabledFor(logging.INFO) and not signals.closed.receivers:
        return
    seconds = max(time() - (owner.opened_at or 0.0), 0.0)  # the clock may have been set back
    received, sent = transport.bytes_received, transport.bytes_sent
    fields: dict[str, Any] = {
        **about(owner),
        "code": connection.close_code,
        "reason": connection.close_reason,
        "cause": cause,
        "seconds": seconds,
        "messages": {"received": messages_received, "sent": owner.messages_sent},
        "bytes": {"received": received, "sent": sent},
    }
    said = [printable(connection.close_reason)] if connection.close_reason else []
    if transport.undelivered:
        said.append(f"{transport.undelivered} bytes before it were not taken")
    loglines.write(
        log,
        logging.INFO,
        "%s %s close %s %s(%s, %.1f s, %d messages and %d bytes in, %d and %d out)",
        owner.peer,
        printable(owner.path),
        connection.close_code,
        "; ".join(said) + " " if said else "",
        cause,
        seconds,
        messages_received,
        received,
        owner.messages_sent,
        sent,
        fields=fields,
    )
    signals.tell_soon(signals.closed, owner, **fields)
