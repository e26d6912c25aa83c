"""The same app for geventws, gevent-websocket and flask-sock: docs/comparison.md is measured on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flask import Flask, abort, request
from flask_sock import Sock

from geventws.flask import Sockets

ours, older, sock = Flask("ours"), Flask("older"), Flask("sock")
View = Callable[[Any], object]


def from_environ(view: View) -> Callable[[], str]:
    def run() -> str:
        view(request.environ["wsgi.websocket"])
        return ""

    return run


def echo(ws: Any) -> None:
    while (message := ws.receive()) is not None:
        ws.send(message)


def size(ws: Any) -> None:
    while (message := ws.receive()) is not None:
        ws.send(str(len(message)))


def refuse(ws: Any) -> None:
    abort(401)


def fail(ws: Any) -> None:
    ws.receive()
    raise ValueError("on purpose")


def busy(ws: Any) -> None:
    ws.receive()
    time.sleep(1)
    ws.send("woke")


def bye(ws: Any) -> None:
    ws.receive()
    ws.close(4001, "bye")


def bye_as_flask_sock(ws: Any) -> None:
    ws.receive()
    ws.close(4001, message="bye")


for view in (echo, size, refuse, fail, busy):
    path = f"/{view.__name__}"
    Sockets(ours).route(path, endpoint=path)(view)
    older.add_url_rule(path, path, from_environ(view), websocket=True)
    Sock(sock).route(path, endpoint=path)(view)
Sockets(ours).route("/bye", endpoint="bye")(bye)
older.add_url_rule("/bye", "bye", from_environ(bye), websocket=True)
Sock(sock).route("/bye", endpoint="bye")(bye_as_flask_sock)
