"""A Flask app whose WebSockets have something to tell, for the tests of what is live."""

from __future__ import annotations

from flask import Flask, request

from geventws import WebSocket, close_all, connections
from geventws.flask import Sockets

app = Flask(__name__)
sockets = Sockets(app)


@sockets.route("/chat/<room>")
def chat(ws: WebSocket, room: str) -> None:
    ws.user = request.args["user"]
    ws._secret = "not to be shown"
    ws.send(ws.id)
    for message in ws:
        ws.send(message)


@app.route("/count")
def count() -> str:
    return str(len(connections()))


@app.route("/logout/<user>")
def logout(user: str) -> str:
    return str(close_all(lambda ws: getattr(ws, "user", None) == user, 4001, "logged out"))
