"""The names of gevent-websocket, for code that imports them: import geventws.compat, or GEVENTWS_COMPAT=1.

From then on `geventwebsocket` and its modules are those made here, of our own objects. The import also gives
every WebSocket what only gevent-websocket had: handler, send_frame and the OPCODE_ numbers. What is gone says so,
and what to write instead.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from importlib.machinery import ModuleSpec
from typing import Any, NoReturn
from weakref import ref

from gevent import pywsgi

from .errors import CloseCode, ConnectionClosed, MessageTooBig, ProtocolError, WebSocketError
from .frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from .gateway import Application, Gateway, StartResponse, gateways
from .options import Options
from .server import WebSocketHandler, WebSocketServer
from .threads import here
from .websocket import WebSocket

log = logging.getLogger("geventws")

NAME = "geventwebsocket"


class _ServerClient:
    """One of server.clients. Any attribute may be set on it."""

    def __init__(self, ws: WebSocket) -> None:
        self.address = _address(ws)
        self._ws = ref(ws)  # which holds this one

    @property
    def ws(self) -> WebSocket | None:
        """Its WebSocket, as long as there is one."""
        return self._ws()


class Server(WebSocketServer):
    """WebSocketServer with the arguments and attributes that gevent-websocket's had."""

    def __init__(self, *args: Any, debug: bool = False, pre_start_hook: object = None, **kwargs: Any) -> None:
        if pre_start_hook is not None:
            raise TypeError(f"geventws never calls pre_start_hook: {HOOKS['pre_start_hook']}")
        super().__init__(*args, **kwargs)
        if debug:
            log.setLevel(logging.DEBUG)


class _Clients:
    """server.clients: the open WebSockets of this process by address. A server may have its own of that name."""

    def __get__(self, server: object, owner: type) -> dict[Any, _ServerClient]:
        # Where the view may still refuse a WebSocket, nobody may use it.
        open_ones = [ws for gateway in gateways for ws in list(gateway.live) if ws.accepted and not ws.closed]
        return {_address(ws): _client(ws) for ws in open_ones}


class _Handler:
    """ws.handler: what chats ask it for is who else is connected."""

    clients = _Clients()

    def __init__(self, ws: WebSocket) -> None:
        self.websocket = ws
        self.environ = ws.environ
        self.client_address = _address(ws)

    @property
    def server(self) -> _Handler:
        return self

    @property
    def active_client(self) -> _ServerClient:
        return _client(self.websocket)

    def __getattr__(self, name: str) -> NoReturn:
        _no_attribute(self, name)


def _address(ws: WebSocket) -> Any:
    """Return what no other open WebSocket has: on a Unix socket peers have no address."""
    return ws.remote_address or id(ws)


def _client(ws: WebSocket) -> _ServerClient:
    client: _ServerClient = ws.__dict__.setdefault("_client", _ServerClient(ws))
    return client


class _Protocol:
    """app.protocol of a WebSocketApplication: its hooks, and the way from it to the server."""

    PROTOCOL_NAME = ""

    def __init__(self, app: WebSocketApplication) -> None:
        self.app = app
        self.on_open = app.on_open
        self.on_message = app.on_message

    def on_close(self, reason: object = None) -> None:
        self.app.on_close(reason)

    @property
    def handler(self) -> Any:
        return _Handler(self.app.ws)

    @property
    def server(self) -> Any:
        return self.handler.server


class WebSocketApplication:
    """Base of apps for Resource, one object for each connection."""

    protocol = cached_property(_Protocol)

    def __init__(self, ws: WebSocket) -> None:
        self.ws = ws

    def __init_subclass__(cls) -> None:
        _refuse_hooks(cls)

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


def _ask_app_protocol(self: Gateway, app: Application, environ: dict[str, Any]) -> Options:
    """Return options whose subprotocol is the one that the app's own app_protocol(path) names, where there is one."""
    inner: Any = app
    for _ in range(10):
        inner = getattr(inner, "__self__", inner)  # a server may call its method
        if hasattr(inner, "app_protocol"):
            try:
                name = inner.app_protocol(environ["PATH_INFO"])
            except SystemExit as exc:  # which would end the whole program
                raise RuntimeError(f"app_protocol({environ['PATH_INFO']!r}) called sys.exit({exc.code!r})") from exc
            return self.options.replace(subprotocols=[name]) if name else self.options
        inner = getattr(inner, "app", None) or getattr(inner, "wsgi_app", None)  # in middleware
    return self.options


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
    if here.hub is not ws.hub:
        ws.on_hub(_send_ping, payload)
        return
    if ws.closed:
        raise ws.closed_error()
    session = ws.session
    session.transport.write(session.connection.encode_ping(payload))


_websocket_close = WebSocket.close


def _close(
    self: WebSocket, code: int = CloseCode.NORMAL_CLOSURE, reason: str | bytes = "", *, message: str | bytes = ""
) -> None:
    """Close as WebSocket.close() does; the reason may be bytes, and be called message."""
    text = message or reason
    _websocket_close(self, code, text.decode(errors="replace") if isinstance(text, bytes) else text)


def _no_attribute(self: object, name: str) -> NoReturn:
    advice = f": {GONE[name]}" if name in GONE else ""
    raise AttributeError(f"{type(self).__name__.strip('_')!r} object has no attribute {name!r}{advice}")


def _refuse_hooks(cls: type) -> None:
    """Raise TypeError for a class that overrides what is never called: it may be what let only some in."""
    for name in HOOKS.keys() & vars(cls).keys():
        raise TypeError(f"geventws never calls {cls.__name__}.{name}: {HOOKS[name]}")


def _get_version(version: tuple[Any, ...] | None = None) -> str:
    major, minor, patch, stage, number = version or VERSION
    letter = {"alpha": "a", "beta": "b", "rc": "c"}.get(stage)
    return f"{major}.{minor}" + (f".{patch}" if patch else "") + (f"{letter}{number}" if letter else "")


def _create_logger(name: str, debug: bool = False, format: str | None = None) -> logging.Logger:
    return logging.getLogger(name)


def _late(module: str, name: str) -> Any:
    """Return the worker, as only who asks for it needs gunicorn. Raises ImportError for names that are gone."""
    if (module, name) == (f"{NAME}.gunicorn.workers", "GeventWebSocketWorker"):
        from .worker import Worker

        vars(sys.modules[module])[name] = Worker
        _on(Worker, __init_subclass__=classmethod(_refuse_hooks))
        return Worker
    if name.startswith("_"):  # asked by tools that look whether it is there
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    raise ImportError(_gone(f"{module}.{name}"), name=module)


class _Finder:
    """The last of all finders, asked for modules that gevent-websocket had and this has not."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name.startswith(f"{NAME}."):
            raise ModuleNotFoundError(_gone(name), name=name)


def _gone(name: str) -> str:
    parent = name.rpartition(".")[0]
    modules = [module.rpartition(".")[2] for module in MODULES if module.rpartition(".")[0] == parent]
    there = f"it has {', '.join(sorted([*MODULES[parent], *modules]))}"
    advice = next((GONE[part] for part in name.split(".") if part in GONE), there)
    return f"geventws.compat has no {name}: {advice}"


_NO_SOCKET = "its socket is read in the background; use ws.receive(timeout=...), ws.send() and ws.close()"
_NO_FRAMES = "use ws.receive() and ws.send()"
_NO_TEXTS = "catch WebSocketError, whose text is another"
GONE = {
    "MSG_ALREADY_CLOSED": _NO_TEXTS,
    "MSG_CLOSED": _NO_TEXTS,
    "MSG_SOCKET_DEAD": _NO_TEXTS,
    "Header": _NO_FRAMES,
    "Stream": _NO_FRAMES,
    "protocols": "put what a protocol does into the WebSocketApplication; WAMP never ran on Python 3",
    "current_app": "keep what connections share in a module or in the app",
    "logger": 'use logging.getLogger("geventws")',
    "handle_close": "ws.close_code and ws.close_reason tell how the connection ended",
    "handle_ping": "pings are answered by themselves",
    "handle_pong": "ws.ping() waits for a pong, ws.latency is the time that the last took",
    "read_frame": _NO_FRAMES,
    "read_message": _NO_FRAMES,
    "raw_read": _NO_SOCKET,
    "raw_write": _NO_SOCKET,
    "rfile": _NO_SOCKET,
    "socket": _NO_SOCKET,
    "stream": _NO_SOCKET,
}
_REFUSE = "refuse in the app, where before_request, WSGI middleware or the view answers 403 before any use of ws"
HOOKS = {
    "pre_start_hook": _REFUSE,
    "protocol_class": "put what it does into the WebSocketApplication",
    "prevent_wsgi_call": "leave the handshake to the first use of ws",
    "run_websocket": "wrap the app in WSGI middleware",
    "upgrade_connection": _REFUSE,
    "upgrade_websocket": _REFUSE,
    "wsgi_handler": "gunicorn has a parser of its own; wrap the app in WSGI middleware",
}
ERRORS = {
    "WebSocketError": WebSocketError,
    "ProtocolError": ProtocolError,
    "FrameTooLargeException": MessageTooBig,
}
VERSION = (0, 10, 1, "final", 0)  # of the gevent-websocket whose names these are
MODULES: dict[str, dict[str, Any]] = {
    NAME: {
        "VERSION": VERSION,
        "get_version": _get_version,
        "Resource": Resource,
        "WebSocketApplication": WebSocketApplication,
        "WebSocketError": WebSocketError,
        "WebSocketServer": Server,
    },
    f"{NAME}._compat": {
        "PY2": False,
        "PY3": True,
        "iteritems": lambda mapping: iter(mapping.items()),
        "range_type": range,
        "string_types": (str,),
        "text_type": str,
    },
    f"{NAME}.exceptions": ERRORS,
    f"{NAME}.handler": {"Client": _ServerClient, "WebSocketHandler": WebSocketHandler},
    f"{NAME}.logging": {"create_logger": _create_logger},
    f"{NAME}.resource": {"Resource": Resource, "WebSocketApplication": WebSocketApplication},
    f"{NAME}.server": {"WebSocketServer": Server},
    f"{NAME}.utils": {"get_version": _get_version},
    f"{NAME}.websocket": {"WebSocket": WebSocket, **ERRORS},
    f"{NAME}.gunicorn": {},
    f"{NAME}.gunicorn.workers": {},
}
ATTRIBUTES = {
    "__getattr__": _no_attribute,
    "OPCODE_CONTINUATION": CONTINUATION,
    "OPCODE_TEXT": TEXT,
    "OPCODE_BINARY": BINARY,
    "OPCODE_CLOSE": CLOSE,
    "OPCODE_PING": PING,
    "OPCODE_PONG": PONG,
    "close": _close,
    "handler": property(_Handler),
    "send_frame": _send_frame,
}


def _install() -> None:
    """Put the modules in place. Raises ImportError where gevent-websocket itself is in use already."""
    if NAME in sys.modules:
        raise ImportError(
            f"{NAME} is imported already, and not from here: import geventws.compat before it; for a worker class "
            "that is derived from gevent-websocket's, do that in gunicorn.conf.py"
        )
    if importlib.util.find_spec(NAME):
        log.warning("geventws.compat stands in for the installed gevent-websocket; pip uninstall gevent-websocket")
    for name, contents in MODULES.items():
        module = importlib.util.module_from_spec(ModuleSpec(name, None, is_package=True))
        vars(module).update(contents, __file__=__file__, __getattr__=partial(_late, name))
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    sys.meta_path.append(_Finder)
    # On the classes themselves: whichever server makes a WebSocket, legacy code finds them.
    _on(WebSocket, **ATTRIBUTES)
    _on(Gateway, options_for=_ask_app_protocol)
    _on(WebSocketHandler, __init_subclass__=classmethod(_refuse_hooks))
    _on(pywsgi.WSGIServer, clients=_Clients())


def _on(cls: type, **attributes: Any) -> None:
    for name, value in attributes.items():
        setattr(cls, name, value)


_install()
