"""Rooms of Flask-SocketIO over the message queue of BUS: a speaker's message names its room, whose members hear it."""

import os

from flask import Flask, request
from flask_socketio import SocketIO, join_room, send

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent", ping_interval=3600, message_queue=os.environ["BUS"])


@socketio.on("connect")  # type: ignore[untyped-decorator, unused-ignore]
def connect() -> None:
    role, _, room = request.args["role"].partition("/")
    if role == "member":
        join_room(room)


@socketio.on("message")  # type: ignore[untyped-decorator, unused-ignore]
def message(text: str) -> None:
    send(text, to=text[1:7])
