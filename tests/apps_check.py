"""A Flask app without Sockets, whose routes are for pages or for WebSockets; and one whose route has origins."""

from __future__ import annotations

from flask import Flask, request

from geventws import WebSocket
from geventws.flask import Sockets

app = Flask(__name__)


@app.route("/page")
def page() -> str:
    return "a page"


@app.route("/echo", websocket=True)
def echo() -> str:
    ws = request.environ["wsgi.websocket"]
    for message in ws:
        ws.send(message)
    return ""


own_origins = Flask(__name__)
sockets = Sockets(own_origins)


@sockets.route("/partners", origins=["https://partner.example"])
def partners(ws: WebSocket) -> None:
    for message in ws:
        ws.send(message)
