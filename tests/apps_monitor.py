"""Views that keep the hub from everybody else, and what is known of it."""

from __future__ import annotations

import json
import time

from gevent.monkey import get_original

from geventws import monitor
from tests.apps import app

sleep = get_original("time", "sleep")


@app.route("/block/<float:seconds>")
def block(seconds: float) -> str:
    sleep(seconds)
    return ""


@app.route("/compute/<float:seconds>")
def compute(seconds: float) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return ""


@app.route("/counted")
def counted() -> str:
    found = monitor.monitor
    return json.dumps(found and [found.blocks, found.blocked_seconds])
