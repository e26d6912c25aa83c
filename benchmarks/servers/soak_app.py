"""The Flask app that the soak tests: an echo, and what its process holds."""

import ctypes
import gc
import os
from contextlib import suppress
from time import monotonic
from typing import Any
from weakref import WeakSet

from flask import Flask, request
from greenlet import greenlet  # type: ignore[import-untyped, unused-ignore]

from geventws import WebSocket
from geventws.flask import Sockets

LONG_WAIT = 0.5  # seconds in send() that only a peer who does not read can cause

app = Flask(__name__)
sockets = Sockets(app)
websockets: WeakSet[WebSocket] = WeakSet()
waits = 0


@sockets.route("/echo")
def echo(ws: WebSocket) -> None:
    """Echo until the client ends the connection, or says bye."""
    global waits
    websockets.add(ws)
    for message in ws:
        if message == "bye":
            return
        began = monotonic()
        try:
            ws.send(message)
        finally:
            waits += monotonic() - began > LONG_WAIT


@app.route("/state")
def state() -> dict[str, Any]:
    """Return what the process holds at this moment; with ?collect, once all that is free is given back."""
    if "collect" in request.args:
        gc.collect()
        with suppress(AttributeError):  # only glibc has it
            ctypes.CDLL(None).malloc_trim(0)
    objects = gc.get_objects()
    # Not isinstance(): to some objects of the framework the question itself is a use.
    greenlets = [thing for thing in objects if issubclass(type(thing), greenlet) and not thing.dead]
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return {
        "pid": os.getpid(),
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "fds": len(os.listdir("/proc/self/fd")),
        "greenlets": len(greenlets),
        "websockets": len(websockets),
        "objects": len(objects),
        "waits": waits,
    }
