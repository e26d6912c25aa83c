"""A Flask app without Sockets, whose routes are for pages or for WebSockets; and one whose route has origins."""

from __future__ import annotations

from flask import Flask, Response, request

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


@app.route("/flood", websocket=True)
def flood() -> str:
    ws = request.environ["wsgi.websocket"]
    while not ws.closed:
        ws.send("x" * 10_000)
    return ""


@app.route("/cookies", websocket=True)
def cookies() -> Response | str:
    if request.cookies.to_dict() != {"a": "1", "b": "2"}:
        return Response("two cookies are wanted", 401)
    return echo()


own_origins = Flask(__name__)
sockets = Sockets(own_origins)


@sockets.route("/partners", origins=["https://partner.example"])
def partners(ws: WebSocket) -> None:
    for message in ws:
        ws.send(message)
