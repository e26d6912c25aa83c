"""What the tests of capacity need beyond tests.apps."""

from __future__ import annotations

import gevent

from tests.apps import app as app

present = 0


@app.route("/crowded")
def crowded() -> str:
    global present
    present += 1
    gevent.sleep(0.1)
    seen = present
    gevent.sleep(0.1)
    present -= 1
    return str(seen)
