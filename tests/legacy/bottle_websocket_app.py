"""An app of bottle-websocket: its plugin, and with run() its server."""

from __future__ import annotations

import sys
from typing import Any

from bottle import Bottle, run
from bottle_websocket import GeventWebSocketServer, websocket

app = Bottle()


@app.get("/")  # type: ignore[untyped-decorator]
def index() -> str:
    return "page"


@app.get("/echo/<greeting>", apply=[websocket])  # type: ignore[untyped-decorator]
def echo(ws: Any, greeting: str) -> None:
    ws.send(greeting)
    while (message := ws.receive()) is not None:
        ws.send(message)


if __name__ == "__main__":
    run(app, host="127.0.0.1", port=int(sys.argv[1]), server=GeventWebSocketServer)
