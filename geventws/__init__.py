"""WebSockets for Flask and any WSGI app, on gevent: gunicorn -k geventws.Worker app:app."""

import os
from typing import TYPE_CHECKING, Any

from .errors import (
    CloseCode,
    ConnectionClosed,
    HandshakeError,
    InvalidPayload,
    MessageTooBig,
    ProtocolError,
    WebSocketError,
)
from .options import SWITCH, Options
from .server import WebSocketHandler, WebSocketServer
from .websocket import WebSocket

if TYPE_CHECKING:
    from .worker import Worker as Worker

__version__ = "0.1.0"

__all__ = [
    "CloseCode",
    "ConnectionClosed",
    "HandshakeError",
    "InvalidPayload",
    "MessageTooBig",
    "Options",
    "ProtocolError",
    "WebSocket",
    "WebSocketError",
    "WebSocketHandler",
    "WebSocketServer",
    "Worker",
]


def __getattr__(name: str) -> Any:
    # Only who asks for the Worker needs gunicorn.
    if name == "Worker":
        from .worker import Worker

        return Worker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Here, because every way to run an app imports this before the app.
if SWITCH.get(os.environ.get("GEVENTWS_COMPAT", "off").strip().lower(), True):
    from . import compat as compat
