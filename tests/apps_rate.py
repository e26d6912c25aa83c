"""What the tests of rates need: views whose clients may send so much, and one whose clients may send all."""

from __future__ import annotations

from flask import Flask

import geventws
from geventws import rate
from geventws.flask import Sockets

rate.PATIENCE = 1.0

app = Flask(__name__)
sockets = Sockets(app)


def echo(ws: geventws.WebSocket) -> None:
    for message in ws:
        ws.send(message)


@sockets.route("/accepted")
def accepted(ws: geventws.WebSocket) -> None:
    ws.accept(max_message_rate=20)
    echo(ws)


sockets.add_url_rule("/server", "server", echo)
sockets.add_url_rule("/route", "route", lambda ws: echo(ws), max_message_rate=20)
sockets.add_url_rule("/off", "off", lambda ws: echo(ws), max_message_rate=None)
