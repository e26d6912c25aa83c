"""A room of Flask-SocketIO: members hear what the speaker says, and an outsider is echoed."""

from flask import Flask, request
from flask_socketio import SocketIO, join_room, send

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent", ping_interval=3600)


@socketio.on("connect")  # type: ignore[untyped-decorator, unused-ignore]
def connect() -> None:
    if request.args["role"] == "member":
        join_room("all")


@socketio.on("message")  # type: ignore[untyped-decorator, unused-ignore]
def message(text: str) -> None:
    if request.args["role"] == "speaker":
        send(text, to="all")
    else:
        send(text)
