"""Flask apps behind middleware of every make: what hides an app, and what lets only some in."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import Any
from wsgiref.validate import validator

from flask import Flask, Response, g, request
from werkzeug.debug import DebuggedApplication
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

    @app.before_request
    def begin() -> None:
        g.began = monotonic()

    @app.after_request
    def end(response: Response) -> Response:
        g.took = monotonic() - g.began  # as tracers have it, which fail where nothing began
        return response

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


class Recording(Hiding):
    """Keeps what loggers and tracers do: the status before the body, which it reads to its end, then closes."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        statuses: list[str] = []

        def note(status: str, headers: Any, exc_info: Any = None) -> Any:
            statuses.append(status)
            return start_response(status, headers, exc_info)

        body: Any = super().__call__(environ, note)
        try:
            yield from body
        finally:
            body.close()
            print("recorded", environ["PATH_INFO"], statuses[0], flush=True)


def make_recorded() -> Flask:
    app = make("recorded")

    @app.after_request
    def at_the_end(response: Response) -> Response:
        path = request.path
        response.call_on_close(lambda: print("closed", path, response.status_code, flush=True))
        return response

    @app.route("/plain", websocket=True)
    def plain() -> str:
        request.environ["wsgi.websocket"].receive()
        return "this goes nowhere"

    @app.route("/fails", websocket=True)
    def fails() -> str:
        request.environ["wsgi.websocket"].receive()
        raise KeyError("in a view behind a debugger")

    return app


_inner = make("inner")
recorded = Recording(make_recorded())
validated = validator(make_recorded())
debugged = make_recorded()
debugged.config["PROPAGATE_EXCEPTIONS"] = True
debugged.wsgi_app = DebuggedApplication(debugged.wsgi_app)  # type: ignore[method-assign]
app = make("app")
hidden = Hiding(make("hidden"))
mounted = DispatcherMiddleware(make("above"), {"/below": make("below", with_sockets=False)})
plain = Hiding(make("plain", with_sockets=False))
mounted_app = DispatcherMiddleware(make("bare", with_sockets=False), {"/below": make("partner")})
mounted_function = DispatcherMiddleware(make("bare", with_sockets=False), {"/below": function})
