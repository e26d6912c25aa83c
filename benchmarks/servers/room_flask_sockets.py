"""A room of geventws: members hear what the speaker says, and an outsider is echoed."""

from flask import Flask

from geventws import Rooms, WebSocket
from geventws.flask import Sockets

app = Flask(__name__)
sockets = Sockets(app)
rooms = Rooms()


@sockets.route("/member")
def member(ws: WebSocket) -> None:
    with rooms["all"].join(ws):
        ws.send("welcome")
        for _ in ws:
            pass


@sockets.route("/speaker")
def speaker(ws: WebSocket) -> None:
    ws.send("welcome")
    for message in ws:
        rooms["all"].broadcast(message)


@sockets.route("/outsider")
def outsider(ws: WebSocket) -> None:
    ws.send("welcome")
    for message in ws:
        ws.send(message)
