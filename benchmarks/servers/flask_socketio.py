"""A Flask app that echoes over Flask-SocketIO: each message event comes back as one."""

from flask import Flask
from flask_socketio import SocketIO, send

app = Flask(__name__)
# The default limit, a million bytes, is less than 1 MiB.
socketio = SocketIO(app, async_mode="gevent", max_http_buffer_size=2 << 20)


@socketio.on("message")  # type: ignore[untyped-decorator, unused-ignore]
def echo(message: str | bytes) -> None:
    send(message)
