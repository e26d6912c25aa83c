"""What code on gevent-websocket does with a WebSocket, one view for each habit; nothing is imported of geventws."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from geventwebsocket import WebSocketError

clients: set[Any] = set()


def loop(ws: Any) -> None:
    while True:
        message = ws.receive()
        if message is None:
            break
        ws.send(message)
    for attempt in (ws.receive, lambda: ws.send("late"), lambda: ws.send_frame("", ws.OPCODE_PING)):
        try:
            attempt()
        except WebSocketError as exc:
            print(f"loop: {type(exc).__name__}", flush=True)
    ws.close()
    print(f"loop ended, closed {ws.closed}", flush=True)


def attributes(ws: Any) -> None:
    found = {name: getattr(ws, name) for name in ("origin", "protocol", "version", "path", "closed")}
    handler = ws.handler
    assert handler.environ is ws.environ and ws.environ["wsgi.websocket"] is ws
    assert handler.server.clients[handler.client_address] is handler.active_client
    assert handler.active_client.ws is ws and handler.active_client.address == handler.client_address
    ws.send(json.dumps(found))


def kinds(ws: Any) -> None:
    ws.send(bytearray(b"bytearray"))
    ws.send(memoryview(b"memoryview"))
    ws.send("text as binary", binary=True)
    ws.send(b"bytes as text", False)
    ws.send("")
    assert ws.receive() is None


def closes(ws: Any) -> None:
    how = json.loads(ws.receive())
    message = how["message"].encode() if how["bytes"] else how["message"]
    if how["named"]:
        ws.close(code=how["code"], message=message)
    else:
        ws.close(how["code"], message)


def chat(ws: Any) -> None:
    """Keeps who is there in a set, and forgets who cannot be sent to."""
    clients.add(ws)
    while not ws.closed:
        message = ws.receive()
        for client in list(clients) if message else []:
            try:
                client.send(message)
            except WebSocketError:
                print("chat: one is dead", flush=True)
                clients.discard(client)


def ticks(ws: Any) -> None:
    """Sends and never receives; the peer's end shows in send()."""
    try:
        while True:
            ws.send("tick")
            gevent.sleep(0.01)
    except WebSocketError:
        print("ticks ended", flush=True)


def gone(ws: Any) -> None:
    """Answers with the error for each name that is asked for."""
    while (name := ws.receive()) is not None:
        try:
            found = getattr(ws.handler if name == "rfile" else ws, name)
            ws.send(f"found {found!r}")
        except AttributeError as exc:
            ws.send(str(exc))
    ws.stream = ws.user = "set by the app"
    print(f"{ws.stream}, {ws.user}", flush=True)


VIEWS = {f"/{view.__name__}": view for view in (loop, attributes, kinds, closes, chat, ticks, gone)}


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if "wsgi.websocket" not in environ:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"page"]
    VIEWS[environ["PATH_INFO"]](environ["wsgi.websocket"])
    return []


app.app_protocol = {"/attributes": "graphql-ws"}.get  # type: ignore[attr-defined]  # which the handler asked


def exits(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    return app(environ, start_response)


exits.app_protocol = lambda path: sys.exit(3)  # type: ignore[attr-defined]
