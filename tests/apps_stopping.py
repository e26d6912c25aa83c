"""What the tests of stopping need beyond tests.apps. Run as a program it is a script that stops its own server."""

from __future__ import annotations

import os
import signal

import gevent
from gevent.event import Event

import geventws
from tests.apps import app, sockets


@app.route("/pid")
def pid() -> str:
    return str(os.getpid())


@app.route("/slow")
def slow() -> str:
    print("slow page begins", flush=True)
    gevent.sleep(1)
    return "slow page"


@app.route("/hang")
def hang() -> str:
    print("hanging page begins", flush=True)
    gevent.sleep(600)
    return ""


@sockets.route("/pid-echo")
def pid_echo(ws: geventws.WebSocket) -> None:
    ws.send(str(os.getpid()))
    for message in ws:
        ws.send(message)


@sockets.route("/parked")
def parked(ws: geventws.WebSocket) -> None:
    ws.accept()
    try:
        Event().wait()
    finally:
        print("parked view cleans up", flush=True)


@sockets.route("/cleans-up/<float:seconds>")
def cleans_up(ws: geventws.WebSocket, seconds: float) -> None:
    for message in ws:
        ws.send(message)
    print("cleanup begins", flush=True)
    gevent.sleep(seconds)
    print("cleanup is done", flush=True)


@sockets.route("/late")
def late(ws: geventws.WebSocket) -> None:
    print("late view begins", flush=True)
    gevent.sleep(1)
    ws.send("late")
    for message in ws:
        ws.send(message)


@sockets.route("/flood")
def flood(ws: geventws.WebSocket) -> None:
    while True:
        ws.send(b"x" * 65536)


def main() -> None:
    """Serve until SIGTERM, as a script with a server of its own does."""
    server = geventws.WebSocketServer(("127.0.0.1", 0), app, log=None, options={"close_timeout": 1.0})
    gevent.signal_handler(signal.SIGTERM, server.stop)
    server.start()
    print(f"script serves itself on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
    print("serve_forever() has returned", flush=True)


if __name__ == "__main__":
    main()
