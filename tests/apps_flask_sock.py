"""An app of flask-sock, as its own documentation has it: it knows nothing of geventws."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_sock import Sock

app = Flask(__name__)
sock = Sock(app)


@sock.route("/echo")  # type: ignore[untyped-decorator]
def echo(ws: Any) -> None:
    while True:
        ws.send(ws.receive())


@app.route("/")
def index() -> str:
    return "hello"
