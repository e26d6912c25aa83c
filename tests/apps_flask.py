"""Flask apps as they are lived: members that send to each other, middleware outside, handlers of the app's own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import gevent
from flask import Flask, Response, abort, request, stream_with_context
from werkzeug.middleware.proxy_fix import ProxyFix

from geventws import ConnectionClosed, WebSocket
from geventws.flask import Sockets

app = Flask(__name__)
sockets = Sockets(app)
dead: list[WebSocket] = []


@sockets.route("/leave")
def leave(ws: WebSocket) -> None:
    dead.append(ws)
    for _ in ws:
        pass


@sockets.route("/send-to-the-dead")
def send_to_the_dead(ws: WebSocket) -> None:
    for _ in ws:
        dead[0].send("anybody there?")


@app.route("/send-to-the-dead-by-http")
def send_to_the_dead_by_http() -> str:
    dead[0].send("anybody there?")
    return "sent"


@app.route("/plain", websocket=True)
def plain() -> str:
    ws = request.environ["wsgi.websocket"]
    while True:
        ws.send(ws.receive() or "none")


@sockets.route("/forbidden-too-late")
def forbidden_too_late(ws: WebSocket) -> None:
    ws.accept()
    abort(403)


@sockets.route("/broken-stream")
def broken_stream(ws: WebSocket) -> Response:
    def pieces() -> Iterator[str]:
        raise KeyError("before the first piece")
        yield ""

    response = Response(stream_with_context(pieces()))
    response.call_on_close(lambda: print("stream was closed", flush=True))
    return response


wrapped = ProxyFix(app)

own = Flask("own")


@own.errorhandler(ConnectionClosed)
def my_own(exc: ConnectionClosed) -> str:
    print("my own handler ran", flush=True)
    return ""


own.add_url_rule("/plain", view_func=plain, websocket=True)


users: set[WebSocket] = set()


@sockets.route("/room")
def room(ws: WebSocket) -> None:
    """A chat as people write them: a loop over a set, without try."""
    users.add(ws)
    for message in ws:
        for user in users:
            user.send(message)
    users.remove(ws)


@sockets.route("/slow-room/<float:seconds>")
def slow_room(ws: WebSocket, seconds: float) -> None:
    """A member that is away from its WebSocket for a while after each message."""
    users.add(ws)
    for _ in ws:
        gevent.sleep(seconds)
    users.remove(ws)


@sockets.route("/rows/<float:seconds>")
def rows(ws: WebSocket, seconds: float) -> None:
    """Streams rows that take so much processor time each."""
    while True:
        busy(seconds)
        ws.send("row")


@sockets.route("/jobs/<float:seconds>")
def jobs(ws: WebSocket, seconds: float) -> None:
    for message in ws:
        busy(seconds)
        ws.send(message)


@sockets.route("/announced/<float:seconds>")
def announced(ws: WebSocket, seconds: float) -> None:
    for _ in ws:
        ws.send("begin")
        busy(seconds)
        ws.send("end")


def busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
