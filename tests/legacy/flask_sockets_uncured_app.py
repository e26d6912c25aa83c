"""An app of Flask-Sockets without the line that today's Werkzeug asks for."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_sockets import Sockets

app = Flask(__name__)
sockets = Sockets(app)


@app.route("/")
def index() -> str:
    return "page"


@sockets.route("/echo")  # type: ignore[untyped-decorator]
def echo(ws: Any) -> None:
    ws.send("never reached")
