"""Rooms of geventws over the bus of GEVENTWS_BUS: a speaker's message names its room, whose members hear it."""

from flask import Flask

from geventws import Rooms, WebSocket
from geventws.flask import Sockets

app = Flask(__name__)
sockets = Sockets(app)
rooms = Rooms()


@sockets.route("/member/<room>")
def member(ws: WebSocket, room: str) -> None:
    with rooms[room].join(ws):
        ws.send("welcome")
        for _ in ws:
            pass


@sockets.route("/speaker")
def speaker(ws: WebSocket) -> None:
    ws.send("welcome")
    for message in ws:
        rooms[str(message[1:7])].broadcast(message)
