"""What the tests of bad handshakes need: views that count how often they ran, and what the process holds."""

from __future__ import annotations

import gc
import os

import gevent
from flask import Flask, request

import geventws
from geventws import listener, server, worker
from geventws.flask import Sockets

# As the tests set gunicorn's --keep-alive: what is slow must wait for the end of them.
listener.TLS_HANDSHAKE_TIMEOUT = 3.0
for module in (server, worker):
    vars(module)["REQUEST_TIMEOUT"] = 3.0

app = Flask(__name__)
sockets = Sockets(app)

views = pages = 0


@sockets.route("/echo")
def echo(ws: geventws.WebSocket) -> None:
    global views
    views += 1
    for message in ws:
        ws.send(message)


@app.route("/page", methods=["GET", "POST"])
def page() -> bytes:
    global pages
    pages += 1
    return b"page:" + request.get_data()


@app.route("/counts")
def counts() -> dict[str, int]:
    return {"views": views, "pages": pages}


@app.route("/held")
def held() -> dict[str, int]:
    gc.collect()
    hub = gevent.get_hub()
    greenlet = type(hub.parent)  # which all greenlets derive from; what gevent started has the hub for parent
    alive = [item for item in gc.get_objects() if issubclass(type(item), greenlet) and item.parent is hub and item]
    return {"greenlets": len(alive), "descriptors": len(os.listdir("/proc/self/fd"))}
