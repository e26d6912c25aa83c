"""An app of Flask-Sockets as its users wrote them, the chat with an inbox and an outbox among its views.

The one line that today's Werkzeug asks for is the second below the imports.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flask_sockets
import gevent
from flask import Flask, current_app, request
from flask_sockets import Sockets
from werkzeug.routing import Rule

app = Flask(__name__)
flask_sockets.Rule = partial(Rule, websocket=True)
sockets = Sockets(app)
outboxes: list[Any] = []


@app.route("/")
def index() -> str:
    return "page"


@sockets.route("/echo/<greeting>")  # type: ignore[untyped-decorator]
def echo(ws: Any, greeting: str) -> None:
    ws.send(f"{greeting} {request.path} {current_app.name}")
    while not ws.closed:
        ws.send(ws.receive())


@sockets.route("/submit")  # type: ignore[untyped-decorator]
def inbox(ws: Any) -> None:
    while not ws.closed:
        gevent.sleep(0.01)
        if message := ws.receive():
            for outbox in list(outboxes):
                gevent.spawn(pass_on, outbox, message)


def pass_on(outbox: Any, message: str) -> None:
    try:
        outbox.send(message)
    except Exception:
        outboxes.remove(outbox)


@sockets.route("/receive")  # type: ignore[untyped-decorator]
def outbox(ws: Any) -> None:
    outboxes.append(ws)
    while not ws.closed:
        gevent.sleep(0.01)
    print("outbox ended", flush=True)


@app.route("/outboxes")
def count() -> str:
    return str(len(outboxes))
