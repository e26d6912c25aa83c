"""The Flask app that hostile peers meet: views that bear with them, and a page that tells what the process holds."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from pathlib import Path
from time import thread_time
from typing import Any

import gevent
from flask import Flask, request

import geventws
from geventws.flask import Sockets

app = Flask(__name__)
sockets = Sockets(app)

RawGreenlet: type = gevent.Greenlet.__base__  # of the greenlet package


class Collector:
    """Adds up the processor time that Python's garbage collector took, in seconds."""

    seconds = 0.0
    _since = 0.0

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._since = thread_time()
        else:
            self.seconds += thread_time() - self._since


collector = Collector()
gc.callbacks.append(collector)


@sockets.route("/echo")
def echo(ws: geventws.WebSocket) -> None:
    for message in ws:
        ws.send(message)


@sockets.route("/probe")
def probe(ws: geventws.WebSocket) -> None:
    for _ in ws:
        ws.send(f"{thread_time()} {collector.seconds}")


@sockets.route("/never-reads")
def never_reads(ws: geventws.WebSocket) -> None:
    _sleep_until_closed(ws)


@sockets.route("/sends-endlessly")
def sends_endlessly(ws: geventws.WebSocket) -> None:
    try:
        while True:
            ws.send(b"x" * 65_536)
    except geventws.ConnectionClosed as exc:
        _tell("failed to send", exc.code, exc.reason)


@sockets.route("/sends-and-sleeps/<int:size>")
def sends_and_sleeps(ws: geventws.WebSocket, size: int) -> None:
    ws.accept(max_outbox=2 * size)  # so that send() does not wait
    ws.send(b"x" * size)
    _sleep_until_closed(ws)


@sockets.route("/closes")
def closes(ws: geventws.WebSocket) -> None:
    ws.close(4000, "by the view")
    _sleep_until_closed(ws)


def _sleep_until_closed(ws: geventws.WebSocket) -> None:
    while not ws.closed:
        gevent.sleep(0.02)
    _tell("slept", ws.close_code, ws.close_reason)


def _tell(what: str, code: int | None, reason: str) -> None:
    print("view", request.args.get("id"), what, code, repr(reason), flush=True)


@app.route("/stats")
def stats() -> dict[str, int]:
    """Tell what this process holds now, and the most memory that it held since the last call."""
    gc.collect()  # Werkzeug leaves each request and its environ in a cycle
    ctypes.CDLL(None).malloc_trim(0)  # what is freed but kept for later counts as memory too
    memory = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE))
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the most memory is counted anew
    objects = [type(thing) for thing in gc.get_objects()]
    return {
        "process": os.getpid(),
        "memory": int(memory["VmRSS"]) << 10,  # bytes
        "peak": int(memory["VmHWM"]) << 10,  # bytes
        "descriptors": len(os.listdir("/proc/self/fd")),
        "greenlets": sum(issubclass(kind, RawGreenlet) for kind in objects),
        "websockets": sum(issubclass(kind, geventws.WebSocket) for kind in objects),
        "objects": len(objects),
    }
