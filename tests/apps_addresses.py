"""What the tests of addresses need: views of every kind, as they are and behind ProxyFix."""

from __future__ import annotations

from typing import Any

import gevent
from flask import Flask, request
from werkzeug.middleware.proxy_fix import ProxyFix

import geventws
from geventws.flask import Sockets

app = Flask(__name__)
sockets = Sockets(app)


@sockets.route("/echo")
def echo(ws: geventws.WebSocket) -> None:
    for message in ws:
        ws.send(message)


@app.route("/plain", websocket=True)
def plain() -> str:
    ws: geventws.WebSocket = request.environ["wsgi.websocket"]
    while ws.receive() is not None:
        pass
    return ""


@sockets.route("/silent")
def silent(ws: geventws.WebSocket) -> None:
    while not (ws.accepted and ws.closed):  # to look at it would be a use of it
        gevent.sleep(0.01)


fixed: Any = ProxyFix(app)
