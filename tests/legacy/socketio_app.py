"""An app of Flask-SocketIO: echo, a room, a reply by acknowledgement, binary data, and a thread of the server's."""

from __future__ import annotations

import sys
from typing import Any

import flask
from flask import Flask
from flask_socketio import SocketIO, emit, join_room

app = Flask(__name__)
app.config["SECRET_KEY"] = "of a test"
socketio = SocketIO(app, async_mode="gevent")


@app.route("/")
def index() -> str:
    return "page"


@app.route("/websockets-by")
def websockets_by() -> str:
    """What Engine.IO found when it was imported."""
    from engineio.async_drivers import gevent

    return "simple-websocket" if gevent.SimpleWebSocketWSGI else sys.modules["geventwebsocket"].__name__


@socketio.on("echo")  # type: ignore[untyped-decorator]
def echo(message: Any) -> Any:
    emit("echo", message)
    return "acknowledged"


@socketio.on("join")  # type: ignore[untyped-decorator]
def join(room: str) -> None:
    join_room(room)
    emit("joined", room)


@socketio.on("say")  # type: ignore[untyped-decorator]
def say(room: str, text: str) -> None:
    emit("said", text, to=room)


@socketio.on("count")  # type: ignore[untyped-decorator]
def count(number: int) -> None:
    sid = flask.request.sid  # type: ignore[attr-defined]

    def run() -> None:
        for index in range(number):
            socketio.sleep(0.01)
            socketio.emit("number", index, to=sid)

    socketio.start_background_task(run)


@socketio.on("disconnect")  # type: ignore[untyped-decorator]
def disconnect(reason: str) -> None:
    print(f"disconnected: {reason}", flush=True)
