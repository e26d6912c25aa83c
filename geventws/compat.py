"""The names of gevent-websocket, for code that imports them: import geventws.compat, or GEVENTWS_COMPAT=1.

From then on `geventwebsocket` and its modules are those made here, of our own objects. The import also gives
every WebSocket what only gevent-websocket had: handler, send_frame and the OPCODE_ numbers.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec
from typing import Any
from weakref import ref

from .errors import ConnectionClosed, MessageTooBig, ProtocolError, WebSocketError
from .frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from .gateway import StartResponse, gateways
from .server import WebSocketHandler, WebSocketServer
from .websocket import WebSocket

log = logging.getLogger("geventws")

NAME = "geventwebsocket"


class Client:
    """One of server.clients. Any attribute may be set on it."""

    def __init__(self, ws: WebSocket) -> None:
        self.address = ws.remote_address
        self._ws = ref(ws)  # which holds this one

    @property
    def ws(self) -> WebSocket | None:
        """Its WebSocket, as long as there is one."""
        return self._ws()


class Server(WebSocketServer):
    """WebSocketServer with the arguments and attributes that gevent-websocket's had."""

    def __init__(self, *args: Any, debug: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if debug:
            log.setLevel(logging.DEBUG)

    @property
    def clients(self) -> dict[Any, Client]:
        """The open WebSockets of this process."""
        return _clients()


class _Handler:
    """ws.handler: what chats ask it for is who else is connected."""

    def __init__(self, ws: WebSocket) -> None:
        self.websocket = ws
        self.environ = ws.environ
        self.client_address = ws.remote_address
        self.server = self

    @property
    def clients(self) -> dict[Any, Client]:
        return _clients()

    @property
    def active_client(self) -> Client:
        return _client(self.websocket)


def _clients() -> dict[Any, Client]:
    """Return the open WebSockets by address; none whose view may still refuse it is among them."""
    open_ones = [ws for gateway in gateways for ws in gateway.live if ws.accepted and not ws.closed]
    return {ws.remote_address or id(ws): _client(ws) for ws in open_ones}


def _client(ws: WebSocket) -> Client:
    client: Client = ws.__dict__.setdefault("_client", Client(ws))
    return client


class WebSocketApplication:
    """Base of apps for Resource, one object for each connection."""

    def __init__(self, ws: WebSocket) -> None:
        self.ws = ws

    def handle(self) -> None:
        """Talk until the connection ends."""
        self.on_open()
        try:
            for message in self.ws:
                self.on_message(message)
        except ConnectionClosed as exc:
            if exc.websocket is not self.ws:
                raise
        finally:
            self.on_close(self.ws.close_reason)

    def on_open(self, *args: Any, **kwargs: Any) -> None:
        """Called first."""

    def on_message(self, message: Any, *args: Any, **kwargs: Any) -> None:
        """Called with each message, str or bytes."""
        self.ws.send(message)

    def on_close(self, *args: Any, **kwargs: Any) -> None:
        """Called last, with the reason."""

    @classmethod
    def protocol_name(cls) -> str:
        """Return the subprotocol to choose if the client offers it, "" for none."""
        return ""


class Resource:
    """A WSGI app of apps by the pattern that their path begins with: WebSocketApplication classes, and WSGI apps."""

    def __init__(self, apps: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        self.apps = list(apps.items() if isinstance(apps, Mapping) else apps)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        ws = environ.get("wsgi.websocket")
        for pattern, app in self.apps:
            if not re.match(pattern, environ["PATH_INFO"]):
                continue
            if not (isinstance(app, type) and issubclass(app, WebSocketApplication)):
                if ws is None:
                    return app(environ, start_response)  # type: ignore[no-any-return]
            elif ws is not None:
                ws.accept(subprotocols=list(filter(None, [app.protocol_name()])))
                app(ws).handle()
                return []
        start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return []


def _send_frame(self: WebSocket, message: Any, opcode: int) -> None:
    """Send a message, a ping whose pong nobody awaits, or a Close."""
    if opcode in (TEXT, BINARY):
        self.send(message, binary=opcode == BINARY)
    elif opcode == PING:
        _send_ping(self, message.encode() if isinstance(message, str) else bytes(message))
    elif opcode == CLOSE:
        self.close()
    else:
        raise ValueError(f"opcode {opcode} is none that send_frame() sends: 1, 2, 8 or 9")


def _send_ping(ws: WebSocket, payload: bytes) -> None:
    if ws.closed:
        raise ws._closed_error()
    ws._open_transport().write(ws._connection.encode_ping(payload))


def _create_logger(name: str, debug: bool = False, format: str | None = None) -> logging.Logger:
    return logging.getLogger(name)


def _worker(name: str) -> Any:
    """Only who asks for the worker needs gunicorn."""
    if name == "GeventWebSocketWorker":
        from .worker import Worker

        return Worker
    raise AttributeError(f"module '{NAME}.gunicorn.workers' has no attribute {name!r}")


ERRORS = {
    "WebSocketError": WebSocketError,
    "ProtocolError": ProtocolError,
    "FrameTooLargeException": MessageTooBig,
}
MODULES: dict[str, dict[str, Any]] = {
    NAME: {
        "Resource": Resource,
        "WebSocketApplication": WebSocketApplication,
        "WebSocketError": WebSocketError,
        "WebSocketServer": Server,
    },
    f"{NAME}.exceptions": ERRORS,
    f"{NAME}.handler": {"Client": Client, "WebSocketHandler": WebSocketHandler},
    f"{NAME}.logging": {"create_logger": _create_logger},
    f"{NAME}.resource": {"Resource": Resource, "WebSocketApplication": WebSocketApplication},
    f"{NAME}.server": {"WebSocketServer": Server},
    f"{NAME}.websocket": {"WebSocket": WebSocket, **ERRORS},
    f"{NAME}.gunicorn": {},
    f"{NAME}.gunicorn.workers": {"__getattr__": _worker},
}
# On the class itself: whichever server makes a WebSocket, legacy code finds them.
ATTRIBUTES = {
    "OPCODE_CONTINUATION": CONTINUATION,
    "OPCODE_TEXT": TEXT,
    "OPCODE_BINARY": BINARY,
    "OPCODE_CLOSE": CLOSE,
    "OPCODE_PING": PING,
    "OPCODE_PONG": PONG,
    "handler": property(_Handler),
    "send_frame": _send_frame,
}


def _install() -> None:
    """Put the modules in place. Raises ImportError where gevent-websocket itself is in use already."""
    if NAME in sys.modules:
        raise ImportError(f"{NAME} is imported already, and not from here: import geventws.compat before it")
    if importlib.util.find_spec(NAME):
        log.warning("geventws.compat stands in for the installed gevent-websocket; pip uninstall gevent-websocket")
    for name, contents in MODULES.items():
        module = importlib.util.module_from_spec(ModuleSpec(name, None, is_package=True))
        vars(module).update(contents)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    for name, value in ATTRIBUTES.items():
        setattr(WebSocket, name, value)


_install()
