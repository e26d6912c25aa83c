"""WebSockets for Flask and any WSGI app, on gevent: gunicorn -k geventws.Worker app:app."""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    BusUnavailable,
    CloseCode,
    ConnectionClosed,
    HandshakeError,
    InvalidPayload,
    MessageTooBig,
    ProtocolError,
    WebSocketError,
)
from .options import SWITCH, Options

if TYPE_CHECKING:
    from .census import LiveConnection, close_all, connections
    from .message import Prepared
    from .rooms import Rooms
    from .server import WebSocketHandler, WebSocketServer
    from .websocket import WebSocket
    from .worker import Worker
else:
    # Imported when asked for: every run of pytest imports this package for its plugin, and may neither wait for
    # gevent nor have it before a conftest patches; and only the Worker needs gunicorn.
    _MODULES = {
        "LiveConnection": "census",
        "Prepared": "message",
        "Rooms": "rooms",
        "WebSocket": "websocket",
        "WebSocketHandler": "server",
        "WebSocketServer": "server",
        "Worker": "worker",
        "close_all": "census",
        "connections": "census",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        return value

    def __dir__():
        return sorted({*globals(), *_MODULES})


__version__ = "0.1.0"

__all__ = [
    "BusUnavailable",
    "CloseCode",
    "ConnectionClosed",
    "HandshakeError",
    "InvalidPayload",
    "LiveConnection",
    "MessageTooBig",
    "Options",
    "Prepared",
    "ProtocolError",
    "Rooms",
    "WebSocket",
    "WebSocketError",
    "WebSocketHandler",
    "WebSocketServer",
    "Worker",
    "close_all",
    "connections",
]


def after_patching(event: object) -> None:
    """Do nothing more than be imported: gevent calls this, an entry point, once it has patched.

    So a worker that was made of gevent-websocket itself, which imports nothing of ours, is refused where compat is on.
    """


# Here, because every way to run an app imports this before the app.
_wanted = os.environ.get("GEVENTWS_COMPAT", "").strip().lower() or "off"
if _wanted not in SWITCH:
    _why = f"GEVENTWS_COMPAT must be on or off, not {_wanted!r}"
    _program = sys.argv[0] if hasattr(sys, "argv") else ""
    _name = os.path.basename(_program.removesuffix(f"{os.sep}__main__.py"))
    # The command's own way to end at a mistake; gunicorn starts a worker anew that ends with another status than 3.
    _status = {"-m": 2, "flask": 2, "gunicorn": 3}.get(_name)  # -m while Python still looks for geventws.__main__
    if _status is not None:
        print(f"geventws: {_why}", file=sys.stderr)
        sys.exit(_status)
    raise ValueError(_why)
if SWITCH[_wanted]:
    from . import compat as compat
