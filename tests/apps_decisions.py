"""Views that take longer than accept_after over a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import gevent
from flask import Flask, Response, abort, request

import geventws
from geventws.flask import Sockets

SLOW = 0.6  # seconds

app = Flask(__name__)
sockets = Sockets(app)


@app.after_request
def slow_end(response: Response) -> Response:
    if "slow-end" in request.path:
        gevent.sleep(SLOW)
    return response


@sockets.route("/slow-end/raised")
def raised(ws: geventws.WebSocket) -> None:
    abort(401)


@sockets.route("/slow-end/returned")
def returned(ws: geventws.WebSocket) -> Any:
    return "no", 401


@sockets.route("/slow-stream")
def slow_stream(ws: geventws.WebSocket) -> Response:
    def pieces() -> Iterator[str]:
        gevent.sleep(SLOW)
        yield "no"

    return Response(pieces(), 401)


@sockets.route("/slow-login")
def slow_login(ws: geventws.WebSocket) -> None:
    gevent.sleep(SLOW)
    abort(401)


def returns_nothing(environ: dict[str, Any], start_response: Any) -> None:
    """A WSGI app that has nothing to say behind its WebSocket."""
    environ["wsgi.websocket"].send("hello")


def writes(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """A WSGI app that answers by write() and then uses the WebSocket all the same."""
    start_response("403 Forbidden", [("Content-Length", "2")])(b"no")
    try:
        environ["wsgi.websocket"].send("hello")
    except geventws.WebSocketError as exc:
        print("view is told:", exc, flush=True)
    return []
