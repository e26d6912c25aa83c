"""A Flask view that echoes over flask-sock."""

from typing import Any

from flask import Flask
from flask_sock import Sock

app = Flask(__name__)
sock = Sock(app)


@sock.route("/")  # type: ignore[untyped-decorator, unused-ignore]
def echo(ws: Any) -> None:
    while True:
        ws.send(ws.receive())
