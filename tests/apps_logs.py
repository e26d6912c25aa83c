"""A WSGI app without a framework, whose views fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import geventws


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Raise at once on /early, else after the first message."""
    if environ["PATH_INFO"] == "/early":
        raise KeyError("before any use")
    ws = environ["wsgi.websocket"]
    assert isinstance(ws, geventws.WebSocket)
    ws.receive()
    raise KeyError("after the first message")
