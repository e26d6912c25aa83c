"""The Flask app that the live tests talk to: one route for each thing a view may do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import gevent
from flask import Flask, Response, abort, redirect, request

import geventws
from geventws.flask import Sockets

app = Flask(__name__)
sockets = Sockets(app)


def _ws() -> geventws.WebSocket:
    ws = request.environ["wsgi.websocket"]
    assert isinstance(ws, geventws.WebSocket)
    return ws


@app.route("/")
def index() -> str:
    return "hello"


@app.route("/environ", websocket=True)
def environ_view() -> str:
    ws = _ws()
    while True:
        message = ws.receive()
        if message is None:
            return ""
        ws.send(message)


@sockets.route("/echo")
def echo(ws: geventws.WebSocket) -> None:
    for message in ws:
        ws.send(message)


@sockets.route("/unauthorized")
def unauthorized(ws: geventws.WebSocket) -> None:
    abort(401)


@sockets.route("/login")
def login(ws: geventws.WebSocket) -> Any:
    answer = redirect("/login-page")
    answer.set_cookie("seen", "yes")
    return answer


@sockets.route("/cookie")
def cookie(ws: geventws.WebSocket) -> None:
    ws.accept(subprotocols=["chat.v2", "chat.v1"], headers={"Set-Cookie": "room=7; Path=/"})
    ws.send(str(ws.subprotocol))


@sockets.route("/return")
def return_at_once(ws: geventws.WebSocket) -> None:
    ws.send("bye")


@app.route("/raise", websocket=True)
def raise_in_flask() -> str:
    _ws().receive()
    raise KeyError("in a plain view")


@sockets.route("/raise-sockets")
def raise_in_sockets(ws: geventws.WebSocket) -> None:
    ws.receive()
    raise KeyError("in a Sockets view")


@app.route("/closed", websocket=True)
def send_after_the_end() -> str:
    ws = _ws()
    ws.receive()
    while True:
        ws.send("x" * 1000)


@sockets.route("/exit")
def exit_in_view(ws: geventws.WebSocket) -> None:
    ws.receive()
    sys.exit(3)


@sockets.route("/exit-early")
def exit_before_use(ws: geventws.WebSocket) -> None:
    sys.exit(3)


@sockets.route("/greenlet-exit")
def greenlet_exit_in_view(ws: geventws.WebSocket) -> None:
    ws.receive()
    raise gevent.GreenletExit


@sockets.route("/timeout")
def timeout_in_view(ws: geventws.WebSocket) -> None:
    with gevent.Timeout(0.05):
        ws.receive()


@sockets.route("/close/<int:code>")
def close_with(ws: geventws.WebSocket, code: int) -> None:
    ws.close(code, f"closed with {code}")


@sockets.route("/sleep")
def sleep(ws: geventws.WebSocket) -> None:
    ws.accept()
    gevent.sleep(600)


@sockets.route("/idle-unused")
def idle_unused(ws: geventws.WebSocket) -> None:
    gevent.sleep(600)


@sockets.route("/wait-closed")
def wait_closed(ws: geventws.WebSocket) -> None:
    while not ws.closed:
        gevent.sleep(0.01)
    print("view saw close", ws.close_code, ws.close_reason, flush=True)


@sockets.route("/two-uses")
def two_greenlets_use_it_at_once(ws: geventws.WebSocket) -> None:
    sender = gevent.spawn(ws.send, "from the other greenlet")
    message = ws.receive()
    sender.join()
    ws.send(f"got {message!r}")


@sockets.route("/accepted-by-another")
def accepted_by_another_greenlet(ws: geventws.WebSocket) -> None:
    gevent.spawn(ws.accept).join()
    for message in ws:
        ws.send(message)


@sockets.route("/about")
def about(ws: geventws.WebSocket) -> None:
    ws.accept()
    ws.send_json(
        {
            "path": ws.path,
            "origin": ws.origin,
            "version": ws.version,
            "remote_address": ws.remote_address,
            "scheme": request.scheme,
            "round_trip": ws.ping(timeout=5),
            "latency": ws.latency,
        }
    )


@app.route("/stream", websocket=True)
def http_answer_in_pieces() -> Response:
    def pieces() -> Iterator[str]:
        yield "one "
        yield "two"

    return Response(pieces(), 200)
