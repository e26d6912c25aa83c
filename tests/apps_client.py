"""Rooms and ends of all kinds for pages that use geventws.js, under a strict content security policy."""

from __future__ import annotations

import gevent
from flask import Flask, Response, request, url_for

import geventws
import geventws.rooms
from geventws.flask import Sockets

app = Flask(__name__)
sockets = Sockets(app, client=True)
rooms = geventws.Rooms(history=20_000, history_bytes=1 << 24)
POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'"
seen: list[str] = []  # queries and messages that came from pages


@app.get("/")
@app.get("/elsewhere")
def page() -> Response:
    response = Response(f'<!doctype html><title>Page</title><script type=module src="{url_for("script")}"></script>')
    response.headers["Content-Security-Policy"] = POLICY
    response.content_type = "text/html"
    return response


@app.get("/page.js")
def script() -> Response:
    text = f'import * as geventws from "{url_for("geventws.client")}";\nObject.assign(self, geventws);\n'
    return Response(text, content_type="text/javascript")


@app.get("/worker.js")
def worker() -> Response:
    text = f"""import {{ ReconnectingWebSocket }} from "{url_for("geventws.client")}";
    const ws = new ReconnectingWebSocket("/echo");
    ws.onmessage = ({{ data }}) => postMessage(data);
    ws.send("from a worker");
    """
    response = Response(text, content_type="text/javascript")
    response.headers["Content-Security-Policy"] = POLICY
    return response


@app.get("/favicon.ico")
def icon() -> tuple[str, int]:
    return "", 204


@sockets.route("/room/<name>")
def room(ws: geventws.WebSocket, name: str) -> None:
    seen.append(request.query_string.decode())
    with rooms[name].join(ws, since=request.args.get("since")) as me:
        ws.send_json({"type": "welcome", "at": me.position, "recovered": me.recovered})
        for message in ws:
            seen.append(repr(message))


@sockets.route("/replay/<name>")
def replay(ws: geventws.WebSocket, name: str) -> None:
    """Send all that the room has, again and again, as a client may get it that was between two servers."""
    for message in rooms[name].history():
        ws.send(message)
    rooms[name].join(ws)
    ws.receive()


@sockets.route("/end/<int:code>")
def end(ws: geventws.WebSocket, code: int) -> None:
    seen.append(request.path)
    ws.receive()
    ws.close(code, "so it goes")


@sockets.route("/refused")
def refused(ws: geventws.WebSocket) -> tuple[str, int]:
    seen.append(request.path)
    return "not you", 401


@app.get("/mine/<answer>")
def mine(answer: str) -> tuple[str, int, dict[str, str]]:
    """Answer as a page behind a login may: with a status."""
    seen.append(request.path)
    return "", int(answer), {"Location": "/"}


@sockets.route("/echo", subprotocols=["v2"])
def echo(ws: geventws.WebSocket) -> None:
    for message in ws:
        ws.send(message)


@app.post("/say/<name>/<text>")
def say(name: str, text: str) -> str:
    return rooms[name].broadcast_json({"text": text}) or ""


@app.post("/count/<name>/<int:count>")
def count(name: str, count: int) -> str:
    """Begin to say the numbers in a room."""

    def run() -> None:
        for number in range(count):
            rooms[name].broadcast_json({"number": number})
            gevent.sleep(0.002)

    gevent.spawn(run)
    return "begun"


@app.get("/seen")
def what_was_seen() -> list[str]:
    return seen
