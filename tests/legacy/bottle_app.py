"""An app of Bottle, in the way its documentation shows for gevent-websocket."""

from __future__ import annotations

from typing import Any

import bottle

from geventws import WebSocketError

app = bottle.Bottle()
left: list[Any] = []


@app.route("/")  # type: ignore[untyped-decorator]
def index() -> str:
    return "page"


@app.route("/echo")  # type: ignore[untyped-decorator]
def echo() -> None:
    ws = bottle.request.environ.get("wsgi.websocket")
    if not ws:
        bottle.abort(400, "a WebSocket is wanted")
    while True:
        try:
            ws.send(f"you said {ws.receive()}")
        except WebSocketError:
            print("echo ended by WebSocketError", flush=True)
            break


@app.route("/refused")  # type: ignore[untyped-decorator]
def refused() -> None:
    bottle.abort(403, "not you")
