"""What the live suite needs beyond tests.apps: more routes, an app without a framework, one with flask-sock."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import gevent
from flask import Blueprint, Response, abort, request

import geventws
from geventws.command.arguments import version
from geventws.flask import Sockets

from .apps import app, sockets


class Odd(BaseException):
    """What no framework catches."""


def _ws() -> geventws.WebSocket:
    ws = request.environ["wsgi.websocket"]
    assert isinstance(ws, geventws.WebSocket)
    return ws


@app.route("/version")
def what_runs_in_c() -> str:
    return version()


@app.before_request
def deny() -> None:
    if "deny" in request.args:
        abort(403, "denied before the view")


@sockets.route("/unauthorized-cookie")
def unauthorized_with_cookie(ws: geventws.WebSocket) -> Any:
    return Response("log in first", 401, {"WWW-Authenticate": "Basic", "Set-Cookie": "seen=yes"})


@app.route("/answered", websocket=True)
def use_after_the_answer() -> Response:
    ws = _ws()

    def pieces() -> Iterator[str]:
        yield "answer; "
        try:
            ws.send("late")
        except geventws.WebSocketError as exc:
            yield str(exc)

    return Response(pieces())


@app.route("/asks-closed", websocket=True)
def closed_is_a_use() -> str:
    ws = _ws()
    while not ws.closed:
        gevent.sleep(0.01)
    return ""


@sockets.route("/injects")
def headers_that_would_inject(ws: geventws.WebSocket) -> None:
    refused = []
    for value in ("a\r\nSet-Cookie: b=c", "a\nb", "a\rb", "a\0b"):
        try:
            ws.accept(headers={"X-Value": value})
        except ValueError:
            refused.append(value)
    ws.send_json(refused)


@sockets.route("/accept-twice")
def accept_twice(ws: geventws.WebSocket) -> None:
    ws.accept()
    try:
        ws.accept()
    except geventws.WebSocketError as exc:
        ws.send(str(exc))


@app.route("/raise-odd", websocket=True)
def raise_odd() -> str:
    _ws().receive()
    raise Odd("in a plain view")


@app.route("/raise-early", websocket=True)
def raise_before_use() -> str:
    raise KeyError("before any use")


@app.route("/raise-middle", websocket=True)
def raise_behind_much_data() -> str:
    ws = _ws()
    for _ in range(100):
        ws.send(b"x" * 10_000)
    raise KeyError("behind much data")


@app.route("/says-end", websocket=True)
def print_how_it_ended() -> str:
    ws = _ws()
    for message in ws:
        ws.send(message)
    print("view saw", request.args["id"], ws.close_code, repr(ws.close_reason), flush=True)
    return ""


@sockets.route("/nap")
def nap(ws: geventws.WebSocket) -> None:
    ws.accept()
    gevent.sleep(0.5)
    ws.send("awake")


@app.route("/flood", websocket=True)
def flood() -> str:
    ws = _ws()
    ws.accept(send_timeout=0.3, max_outbox=65536)
    try:
        while True:
            ws.send(b"x" * 65536)
    except geventws.ConnectionClosed as exc:
        print("view saw", request.args["id"], exc.code, repr(exc.reason), flush=True)
        raise


@sockets.route("/dawdle")
def dawdle(ws: geventws.WebSocket) -> None:
    print("view began", request.args.get("id"), flush=True)
    while not ws.accepted:
        gevent.sleep(0.01)
    ws.send("accepted by the clock")


@app.route("/dawdle-plain", websocket=True)
def dawdle_without_sockets() -> str:
    gevent.sleep(0.8)
    return f"accepted: {_ws().accepted}"


@sockets.route("/attributes")
def attributes(ws: geventws.WebSocket) -> None:
    ws.user = "ann"
    before = [ws.opened_at, ws.close_code, ws.bytes_sent, ws.messages_received]
    first = ws.receive(timeout=10)
    ws.send_json(
        {
            "before": before,
            "first": first,
            "path": ws.path,
            "origin": ws.origin,
            "version": ws.version,
            "subprotocol": ws.subprotocol,
            "protocol": ws.protocol,
            "scheme": request.scheme,
            "remote": ws.remote_address is not None,
            "user": ws.user,
            "true": bool(ws),
            "same": ws.environ["wsgi.websocket"] is ws and len({ws, ws}) == 1,
            "opened": ws.opened_at is not None,
            "closed": ws.closed,
            "messages": [ws.messages_received, ws.messages_sent],
            "bytes": [ws.bytes_received, ws.bytes_sent],
        }
    )
    try:
        ws.receive(timeout=0.01)
    except TimeoutError as exc:
        ws.send(f"timeout: {exc}")
    ws.send_json({"echo": ws.receive_json(timeout=10)})


@app.route("/late-use", websocket=True)
def first_use_when_the_peer_is_gone() -> str:
    ws = _ws()
    print("view began", request.args["id"], flush=True)
    gevent.sleep(0.2)
    print("view saw", request.args["id"], ws.receive(), ws.close_code, flush=True)
    return ""


rooms = Blueprint("rooms", __name__, url_prefix="/rooms")
room_sockets = Sockets()


@room_sockets.route("/<name>/<int:seat>")
def seat(ws: geventws.WebSocket, name: str, seat: int) -> None:
    ws.send(f"{name} {seat!r}")


room_sockets.init_app(rooms)
app.register_blueprint(rooms)


def bare(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """A WSGI app without a framework: PATH_INFO says what becomes of it."""
    ws = environ.get("wsgi.websocket")
    path = environ["PATH_INFO"]
    if ws is None:
        start_response("200 OK", [("Content-Length", "5")])
        return [b"hello"]
    if path == "/generator":
        return _generator(ws, start_response)
    message = ws.receive()
    if path == "/raise":
        raise KeyError("in a bare app")
    if path == "/raise-odd":
        raise Odd("in a bare app")
    if path == "/raise-disconnect":
        raise geventws.ConnectionClosed(1000)
    if path == "/raise-os-error":
        raise BrokenPipeError("of something else")
    if path == "/answers-late":
        start_response("200 OK", [("Content-Length", "4")])
        return [b"late"]
    if path == "/closes-badly":
        return _ClosesBadly()
    if path == "/exit":
        sys.exit(3)
    ws.send(message)
    return []


def _generator(ws: geventws.WebSocket, start_response: Any) -> Iterator[bytes]:
    """The view's code runs only when the server iterates over it."""
    for message in ws:
        ws.send(message)
    start_response("200 OK", [])
    yield b"never sent"


class _ClosesBadly:
    def __iter__(self) -> Iterator[bytes]:
        return iter([b"never sent"])

    def close(self) -> None:
        raise KeyError("in close()")
