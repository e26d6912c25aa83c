"""Frameworks: what the gateway knows of Flask and Werkzeug. It imports neither.

Knows the shape of their objects; knows no server.
"""

from __future__ import annotations

import inspect
import logging
import sys
from functools import cache
from typing import Any
from weakref import WeakSet

import gevent

from . import loglines, signals
from .errors import ConnectionClosed, HandshakeError
from .handshake import REFUSED
from .loglines import about, path_of, printable
from .websocket import WebSocket

log = logging.getLogger("geventws")

# In a Flask app's extensions: its routes may allow origins of their own, see geventws.flask.
ROUTES_JUDGE_ORIGINS = "geventws_origins"

flask_apps: WeakSet[Any] = WeakSet()  # those of this process that have Sockets
_ERROR = "geventws.error"  # in the environ: what Flask has made a 500 of
_explained: list[str] = []  # the path whose mismatch the log has told


def flask_apps_in(app: Any) -> list[Any]:
    """Return the Flask apps that a WSGI app is made of. If it hides what it wraps, return all that have Sockets."""
    found: list[Any] = []
    todo = [(app, False)]  # and whether a Flask app has it around itself
    for _ in range(100):
        if not todo:
            break
        app, is_around = todo.pop()
        app = getattr(app, "__self__", app)
        if app in found:
            continue
        if hasattr(app, "register_error_handler"):
            found.append(app)
            if "wsgi_app" in vars(app):
                todo.append((app.wsgi_app, True))
            continue
        inner = getattr(app, "app", None) or getattr(app, "wsgi_app", None)
        if inner is not None:
            todo += [(each, is_around) for each in [*getattr(app, "mounts", {}).values(), inner]]
        elif not is_around:
            found += [known for known in flask_apps if known not in found]
    return found


def routes_judge_origins(app: Any) -> bool:
    """Whether a route of a WSGI app may allow origins that the server does not."""
    return any(ROUTES_JUDGE_ORIGINS in known.extensions for known in flask_apps_in(app))


def is_beside_view(greenlet: gevent.Greenlet) -> bool:
    """Whether Flask runs a hook or an error handler, and no view. These may refuse the request, or have done so."""
    in_flask = False
    frame = greenlet.gr_frame
    while frame is not None:
        if frame.f_globals.get("__name__") == "flask.app":
            if frame.f_code.co_name == "dispatch_request":
                return False
            in_flask = True
        frame = frame.f_back
    return in_flask


def why_no_app(app: Any, name: str) -> str | None:
    """Return what is wrong with an object that a server is to call as a WSGI app, which name names; None if nothing."""
    if not callable(app):
        return f"{name} is no WSGI app: it is {type(app).__name__}, which cannot be called"
    try:
        signature = inspect.signature(app, follow_wrapped=False)
    except (TypeError, ValueError):  # of one that is compiled
        return None
    leading = list(signature.parameters.values())[:1]
    if _takes(signature, None, None) and all(parameter.default is parameter.empty for parameter in leading):
        return None
    why = f"{name} is no WSGI app: it cannot be called with environ and start_response"
    return f"{why}; if it makes the app, write {name}()" if _takes(signature) and not name.endswith("()") else why


def _takes(signature: inspect.Signature, *arguments: Any) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def expect_disconnects(app: Any) -> None:
    """Have a Flask app take ConnectionClosed of a view's own WebSocket for a normal end, and its refusal for an answer.

    Flask logs what leaves a view as an error unless a handler is registered for it. The app may stand behind WSGI
    middleware that keeps it in the usual attribute. Any other app is left alone.
    """
    for _ in range(10):
        if hasattr(app, "register_error_handler"):
            # Not by that method, which an app refuses once it has served a request.
            specification = app.error_handler_spec
            try:
                handlers = specification[None][None]
            except KeyError:  # until Flask 2 it makes no dictionaries of itself
                handlers = specification.setdefault(None, {}).setdefault(None, {})
            handlers.setdefault(ConnectionClosed, _end_view)
            handlers.setdefault(HandshakeError, _refuse_view)
            _listen_to_errors()
            return
        app = getattr(app, "app", None) or getattr(app, "wsgi_app", None)


def expect_disconnects_here() -> None:
    """Do that for the Flask app whose view runs, whatever middleware stands before it."""
    flask = sys.modules.get("flask")
    if flask is not None and flask.current_app:
        expect_disconnects(flask.current_app._get_current_object())


def _end_view(exc: ConnectionClosed) -> str:
    """Answer Flask for a view that ends by ConnectionClosed. Raises it again where the request is for a page."""
    own = sys.modules["flask"].request.environ.get("wsgi.websocket")
    if not isinstance(own, WebSocket):
        raise exc  # the client is owed an answer
    if exc.websocket not in {None, own}:
        warn_of_foreign_end(own)
    return ""


def _refuse_view(exc: HandshakeError) -> tuple[str, int, tuple[tuple[str, str], ...]]:
    """Answer Flask for a view whose client has too many WebSockets. Raises any other refusal again."""
    own = sys.modules["flask"].request.environ.get("wsgi.websocket")
    if not isinstance(own, WebSocket) or own.refusal is not exc or exc.rule != "address":
        raise exc
    return f"{exc}\n", exc.status.value, ((REFUSED, exc.rule), *exc.headers)


@cache
def _listen_to_errors() -> None:
    if signals.HAS_BLINKER and "flask" in sys.modules:
        sys.modules["flask"].got_request_exception.connect(_keep_error)


def _keep_error(app: object, exception: BaseException, **unused: object) -> None:
    ws = sys.modules["flask"].request.environ.get("wsgi.websocket")
    if isinstance(ws, WebSocket) and ws.accepted:
        ws.environ[_ERROR] = exception


def kept_error(environ: dict[str, Any]) -> BaseException | None:
    """Return, once, the exception of a view that Flask has made a 500 of, None where there was none."""
    error: BaseException | None = environ.pop(_ERROR, None)
    return error


def warn_of_foreign_end(ws: WebSocket) -> None:
    """Say that a view has ended because another's WebSocket has. That is no failure of the server."""
    line = "%s %s view ended because another's WebSocket, to which it sent, had closed: catch ConnectionClosed there"
    loglines.say(log, logging.WARNING, line, ws.peer, printable(ws.path), fields=about(ws))


def explain_mismatch(status: str, environ: dict[str, Any]) -> None:
    """Say once why Werkzeug answers 400: its rules are for HTTP or for WebSocket, not for both."""
    if _explained or not status.startswith("400"):
        return
    error = getattr(environ.get("werkzeug.request"), "routing_exception", None)
    if type(error).__name__ == "WebsocketMismatch":
        _explained.append(environ["PATH_INFO"])
        log.warning(
            "%s answered a WebSocket request with 400 because its route is for HTTP only: give it "
            "@app.route(..., websocket=True), or the app geventws.flask.Sockets(app)",
            printable(path_of(environ)),
        )
