"""Sockets: WebSocket routes for Flask apps and blueprints.

Knows Flask; needs one of this package's servers beneath it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from .errors import ConnectionClosed, MissingPackage
from .websocket import WebSocket

try:
    from flask import Blueprint, Flask, Request, Response, request
    from werkzeug.routing import MapAdapter
except ImportError as exc:
    raise MissingPackage(f"geventws.flask needs Flask ({exc}): pip install flask") from exc

View = TypeVar("View", bound=Callable[..., Any])


class Sockets:
    """WebSocket routes: sockets = Sockets(app), or Sockets() and sockets.init_app(app) later.

    A Blueprint serves as app too: Sockets(blueprint). From Sockets(app) on, an app's plain routes get WebSocket
    requests too, with the WebSocket in request.environ["wsgi.websocket"], where no route for WebSockets does.
    """

    def __init__(self, app: Flask | Blueprint | None = None) -> None:
        self._apps: list[Flask | Blueprint] = []
        self._routes: list[tuple[str, str, Callable[..., Any], dict[str, Any]]] = []
        self._wrapped: dict[Callable[..., Any], Callable[..., Any]] = {}
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask | Blueprint) -> None:
        """Add all routes to app: those declared so far, and later ones as they come."""
        self._apps.append(app)
        if isinstance(app, Flask):
            _open_plain_routes(app)
        for route in self._routes:
            _add(app, *route)

    def route(self, rule: str, *, endpoint: str | None = None, **rule_options: Any) -> Callable[[View], View]:
        """Declare a view that talks WebSocket: it gets the WebSocket first, then the URL's parameters.

        It returns nothing; when it ends, so does the connection, and ConnectionClosed of its own is an end
        like others. A plain GET is answered with 426. rule_options are those of Flask's own route().
        """
        if "methods" in rule_options or "websocket" in rule_options:
            raise TypeError("a Sockets route is always GET and websocket=True; leave methods and websocket out")

        def decorate(view: View) -> View:
            run = self._wrapped.setdefault(view, _wrap(view))
            route = (rule, endpoint or view.__name__, run, rule_options)
            self._routes.append(route)
            for app in self._apps:
                _add(app, *route)
            return view

        return decorate


def _add(
    app: Flask | Blueprint, rule: str, endpoint: str, run: Callable[..., Any], rule_options: dict[str, Any]
) -> None:
    app.add_url_rule(rule, endpoint, run, methods=["GET"], websocket=True, **rule_options)
    app.add_url_rule(rule, f"{endpoint}_needs_upgrade", _needs_upgrade, methods=["GET"], **rule_options)


def _open_plain_routes(app: Flask) -> None:
    """Have app route a WebSocket request as plain HTTP where no rule of websocket=True is for it.

    Werkzeug would answer 400, or for a rule of another method 405.
    """
    create = app.create_url_adapter

    def create_url_adapter(request: Request | None) -> MapAdapter | None:
        adapter = create(request)
        if adapter is not None and adapter.websocket and not adapter.test():
            adapter.websocket = False
        return adapter

    app.create_url_adapter = create_url_adapter  # type: ignore[method-assign]


def _wrap(view: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(view)
    def run(**parameters: Any) -> Any:
        ws = _websocket()
        ws.accept_soon()
        answer = None
        try:
            # Python 3.10 and 3.11 make a detour through C for **, which would be 368 bytes of each idle view's stack.
            answer = view(ws, **parameters) if parameters else view(ws)
        except ConnectionClosed as exc:
            if exc.websocket not in {None, ws}:
                raise
        if answer is not None and not ws.accepted:
            return answer  # a refusal, or any other answer in HTTP
        if not ws.accepted:
            ws.accept()
        return Response()  # which the gateway throws away: the WebSocket was the answer

    return run


def _websocket() -> WebSocket:
    ws = request.environ.get("wsgi.websocket")
    if ws is None:
        server = request.environ.get("SERVER_SOFTWARE", "this server")
        raise RuntimeError(
            f"{server} gives no WebSocket: run the app with `gunicorn -k geventws.Worker module:app` "
            "or `python -m geventws module:app`, and in tests with geventws.testing.connect(app, path)"
        )
    assert isinstance(ws, WebSocket)
    return ws


def _needs_upgrade(**parameters: Any) -> Response:
    """Tell a plain HTTP client what this URL is for. Source: RFC 9110 §15.5.22."""
    text = f"{request.path} is a WebSocket endpoint: connect with new WebSocket(...) or another client.\n"
    return Response(text, 426, {"Upgrade": "websocket", "Connection": "Upgrade"}, content_type="text/plain")
