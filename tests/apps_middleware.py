"""Flask apps behind middleware of every make: what hides an app, and what lets only some in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flask import Flask, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import geventws
from geventws.flask import Sockets

Application = Any


class Hiding:
    """Middleware that keeps the app where nobody looks."""

    def __init__(self, app: Application) -> None:
        self.inner = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer: Iterable[bytes] = self.inner(environ, start_response)
        return answer


class Guard(Hiding):
    """Lets in who knows the word."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["QUERY_STRING"] != "word=please":
            start_response("401 Unauthorized", [("Content-Length", "0")])
            return []
        return super().__call__(environ, start_response)


def make(name: str, *, with_sockets: bool = True) -> Flask:
    app = Flask(name)

    @app.route("/pushes", websocket=True)
    def pushes() -> str:
        ws: geventws.WebSocket = request.environ["wsgi.websocket"]
        while True:
            ws.send("x" * 1000)

    if with_sockets:
        sockets = Sockets(app)

        @sockets.route("/echo")
        def echo(ws: geventws.WebSocket) -> None:
            for message in ws:
                ws.send(message)

        @sockets.route("/partner", origins=["https://partner.example"])
        def partner(ws: geventws.WebSocket) -> None:
            ws.send("welcome")

    return app


def function(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    return _inner(environ, start_response)


_inner = make("inner")
app = make("app")
hidden = Hiding(make("hidden"))
mounted = DispatcherMiddleware(make("above"), {"/below": make("below", with_sockets=False)})
plain = Hiding(make("plain", with_sockets=False))
