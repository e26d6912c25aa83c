"""A Flask view that echoes through geventws's own decorator, as its README writes it."""

from flask import Flask

from geventws import WebSocket
from geventws.flask import Sockets

app = Flask(__name__)
sockets = Sockets(app)


@sockets.route("/")
def echo(ws: WebSocket) -> None:
    for message in ws:
        ws.send(message)
