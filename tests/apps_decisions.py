"""Views that take longer than accept_after over a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import gevent.event
from flask import Flask, Response, abort, request
from flask_sock import Sock

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


@sockets.route("/slow-start")
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


clients: list[geventws.WebSocket] = []


@app.route("/parked")
def parked() -> str:
    """A plain route whose view only waits, while others push to its client."""
    clients.append(request.environ["wsgi.websocket"])
    gevent.event.Event().wait()
    return ""


@app.route("/push")
def push() -> str:
    for client in clients:
        client.send("pushed")
    return "done"


@app.before_request
def slow_start() -> Any:
    if "slow-start" in request.path:
        gevent.sleep(SLOW)
        return "no", 401
    return None


@app.route("/plain-slow-start")
@app.route("/plain-slow-end")
def plain_slow_end() -> Any:
    return "no", 401


bare = Flask("bare")
bare.add_url_rule("/parked", view_func=parked, websocket=True)
bare.add_url_rule("/push", view_func=push)

sock_app = Flask("sock_app")
sock = Sock(sock_app)


@sock_app.before_request
def slow_check() -> None:
    if request.path == "/slow-sock":
        gevent.sleep(SLOW)


@sock.route("/slow-sock")  # type: ignore[untyped-decorator]
def slow_sock(ws: Any) -> None:
    ws.send("mine")


def takes_late(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """A WSGI app that uses the raw socket after its handshake was completed for it."""
    raw = environ["gunicorn.socket"] if "gunicorn.socket" in environ else environ["wsgi.input"]
    gevent.sleep(SLOW)
    try:
        (raw if hasattr(raw, "sendall") else raw.raw._sock).sendall(b"HTTP/1.1 101 mine\r\n\r\n")
    except geventws.WebSocketError as exc:
        print("app is told:", exc, flush=True)
    return []


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
