"""Known: what is known of a WebSocket, of its request and of its connection. To ask changes nothing.

Knows WSGI's environ and Session; knows neither view nor server.
"""

from __future__ import annotations

import os
from typing import Any

from . import handshake
from .loglines import path_of, peer_of
from .session import Session


class Known:
    """The attributes of a WebSocket that only tell. Those of its connection have no value before its handshake."""

    __slots__ = ()

    environ: dict[str, Any]
    subprotocol: str | None
    _number: int
    _session: Session | None

    @property
    def id(self) -> str:
        """Its name among those of this machine: the process's id and a number, such as 4711-17."""
        return f"{os.getpid()}-{self._number}"

    @property
    def close_code(self) -> int | None:
        """Code of the first Close either way, 1006 where the connection ended without; None while open."""
        return self._session.connection.close_code if self._session else None

    @property
    def close_reason(self) -> str:
        """Reason of the first Close either way, or what was seen instead of one."""
        return self._session.connection.close_reason if self._session else ""

    @property
    def path(self) -> str:
        """Path of the request, decoded, without its query string."""
        return path_of(self.environ)

    @property
    def origin(self) -> str | None:
        """The Origin header, None if the client sent none (it is no browser)."""
        return self.environ.get("HTTP_ORIGIN")

    @property
    def version(self) -> str:
        """Version of the WebSocket protocol."""
        return handshake.VERSION

    @property
    def protocol(self) -> str | None:
        """The subprotocol, under the name that gevent-websocket gave it."""
        return self.subprotocol

    @property
    def remote_address(self) -> tuple[str, int] | None:
        """(host, port) of the peer as the server saw it, None on a Unix socket."""
        host = self.environ.get("REMOTE_ADDR")
        return (host, int(self.environ.get("REMOTE_PORT") or 0)) if host else None

    @property
    def latency(self) -> float | None:
        """Seconds that the last answered ping took, the keepalive's or ping()'s; None before the first."""
        return self._session.keepalive.latency if self._session else None

    @property
    def messages_received(self) -> int:
        """Messages received since the handshake, those that wait for the view included."""
        return self._session.messages_received if self._session else 0

    @property
    def bytes_received(self) -> int:
        """Bytes received since the handshake, frames and control frames included."""
        return self._session.transport.bytes_received if self._session else 0

    @property
    def bytes_sent(self) -> int:
        """Bytes handed to the kernel since the handshake began, the 101 response included."""
        return self._session.transport.bytes_sent if self._session else 0

    @property
    def accepted(self) -> bool:
        """Whether the handshake is complete."""
        return self._session is not None

    @property
    def has_ended(self) -> bool:
        """Whether its socket is closed."""
        return self._session is not None and self._session.transport.closed

    @property
    def peer(self) -> str:
        """The peer as logs show it."""
        return peer_of(self.environ)
