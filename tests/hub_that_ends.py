"""A program whose hub ends in a thread, by itself or by destroy(), and what a WebSocket of it then does elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import gevent

from geventws import threads

from .pairs import Opener


def main(end: str) -> None:
    """Print a line for each call: its name, and the kind of error that it raised."""
    threads.LOOK = 0.1
    box: list[Any] = []
    is_open, ending = threading.Event(), threading.Event()

    def serve() -> None:
        box.extend((opener := Opener(("", "", None)), *opener()))
        is_open.set()
        while not ending.is_set():
            gevent.sleep(0.01)
        if end == "destroy":
            gevent.get_hub().destroy()

    server = threading.Thread(target=serve)
    server.start()
    is_open.wait()
    ws = box[1]
    waiting = threading.Thread(target=attempt, args=("waiting", ws.receive))
    waiting.start()
    while ws.session.reader is None:
        pass
    ending.set()
    server.join()
    waiting.join()
    for name, call in (("receive", ws.receive), ("send", lambda: ws.send("to nobody")), ("close", ws.close)):
        attempt(f"{name} here", call)
        # It may get the number that the thread which has ended had.
        thread = threading.Thread(target=attempt, args=(f"{name} in a new thread", call))
        thread.start()
        thread.join()


def attempt(name: str, function: Callable[[], object]) -> None:
    try:
        function()
    except RuntimeError as exc:
        print(name, exc if "hub of this WebSocket" in str(exc) else repr(exc), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
