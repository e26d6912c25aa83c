"""Sockets: WebSocket routes for Flask apps and blueprints.

Knows Flask; needs one of this package's servers beneath it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from .errors import ConnectionClosed, MissingPackage
from .websocket import WebSocket

try:
    from flask import Blueprint, Flask, Response, request
except ImportError as exc:
    raise MissingPackage(f"geventws.flask needs Flask ({exc}): pip install flask") from exc

View = TypeVar("View", bound=Callable[..., Any])


class Sockets:
    """WebSocket routes: sockets = Sockets(app), or Sockets() and sockets.init_app(app) later.

    A Blueprint serves as app too: Sockets(blueprint).
    """

    def __init__(self, app: Flask | Blueprint | None = None) -> None:
        self._app: Flask | Blueprint | None = None
        self._waiting: list[tuple[str, str, Callable[..., Any], dict[str, Any]]] = []
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask | Blueprint) -> None:
        """Add the routes declared so far, and later ones as they come, to app."""
        self._app = app
        for route in self._waiting:
            self._add(app, *route)
        self._waiting.clear()

    def route(self, rule: str, *, endpoint: str | None = None, **rule_options: Any) -> Callable[[View], View]:
        """Declare a view that talks WebSocket: it gets the WebSocket first, then the URL's parameters.

        It returns nothing; when it ends, so does the connection, and ConnectionClosed is an end like
        others. A plain GET is answered with 426. rule_options are those of Flask's own route().
        """

        def decorate(view: View) -> View:
            route = (rule, endpoint or view.__name__, view, rule_options)
            if self._app is None:
                self._waiting.append(route)
            else:
                self._add(self._app, *route)
            return view

        return decorate

    def _add(
        self, app: Flask | Blueprint, rule: str, endpoint: str, view: Callable[..., Any], rule_options: dict[str, Any]
    ) -> None:
        @functools.wraps(view)
        def run(**parameters: Any) -> Any:
            ws = _websocket()
            ws.accept_soon()
            answer = None
            with suppress(ConnectionClosed):
                answer = view(ws, **parameters)
            if answer is not None and not ws.accepted:
                return answer  # a refusal, or any other answer in HTTP
            if not ws.accepted:
                ws.accept()
            return Response()  # which the gateway throws away: the WebSocket was the answer

        app.add_url_rule(rule, endpoint, run, methods=["GET"], websocket=True, **rule_options)
        app.add_url_rule(rule, f"{endpoint}_needs_upgrade", _needs_upgrade, methods=["GET"], **rule_options)


def _websocket() -> WebSocket:
    ws = request.environ.get("wsgi.websocket")
    if ws is None:
        server = request.environ.get("SERVER_SOFTWARE", "this server")
        raise RuntimeError(
            f"{server} gives no WebSocket: run the app with `gunicorn -k geventws.Worker module:app` "
            "or `python -m geventws module:app`"
        )
    assert isinstance(ws, WebSocket)
    return ws


def _needs_upgrade(**parameters: Any) -> Response:
    """Tell a plain HTTP client what this URL is for. Source: RFC 9110 §15.5.22."""
    text = f"{request.path} is a WebSocket endpoint: connect with new WebSocket(...) or another client.\n"
    return Response(text, 426, {"Upgrade": "websocket", "Connection": "Upgrade"}, content_type="text/plain")
