"""An app of flask-sock: one view for each way a connection of its own may end, and a server that pings."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_sock import Sock
from simple_websocket import ConnectionClosed

app = Flask(__name__)
sock = Sock(app)


@app.route("/")
def index() -> str:
    return "page"


@sock.route("/echo/<greeting>")  # type: ignore[untyped-decorator]
def echo(ws: Any, greeting: str) -> None:
    ws.send(greeting)
    while True:
        ws.send(ws.receive())


@sock.route("/closes")  # type: ignore[untyped-decorator]
def closes(ws: Any) -> None:
    ws.receive()
    ws.close(4001, "enough")


def catches(ws: Any) -> None:
    try:
        while True:
            ws.receive()
    except ConnectionClosed as exc:
        print(f"caught {exc.reason} {exc.message}", flush=True)
        raise


sock.route("/catches")(catches)


@sock.route("/fails")  # type: ignore[untyped-decorator]
def fails(ws: Any) -> None:
    ws.receive()
    raise KeyError("in the view")


@sock.route("/sends-without-end")  # type: ignore[untyped-decorator]
def sends_without_end(ws: Any) -> None:
    while ws.receive(timeout=0.05) is None:
        ws.send("tick")


pinging = Flask("pinging")
pinging.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 0.2}
pinging_sock = Sock(pinging)
pinging_sock.route("/catches")(catches)


@pinging_sock.route("/echo")  # type: ignore[untyped-decorator]
def pinging_echo(ws: Any) -> None:
    while True:
        ws.send(ws.receive())
