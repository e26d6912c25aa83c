"""--reload: a parent that stays, and a child that serves and leaves when the code has changed.

The child waits for changes by Werkzeug's reloader. Knows not what is served: it is given how to start.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable

import gevent

from . import MISTAKES, complain, stopping_signals
from .systemd import descriptors

log = logging.getLogger("geventws")

INTERVAL = 0.5  # seconds between looks at the files
GRACE = 0.2  # seconds for views to end by themselves before a restart; their clients have the Close by then
RESTART = 3  # exit status by which Werkzeug's reloader asks for a new process


def reload(start: Callable[[], Callable[[float], None]], flag: str) -> int:
    """Serve in a child process under Werkzeug's reloader, which leaves when the code has changed, as a flag asks.

    What start() returns stops the service again, within the seconds it is given. Return the exit status.
    """
    try:
        from werkzeug._reloader import run_with_reloader
    except ImportError:
        print(f"geventws: {flag} needs Werkzeug: pip install werkzeug", file=sys.stderr)
        return 2
    if os.environ.get("WERKZEUG_RUN_MAIN") != "true":
        return _supervise()
    reloader = gevent.getcurrent()
    stops: list[Callable[[float], None]] = []
    leaving = False

    def leave() -> None:
        nonlocal leaving
        if not leaving:  # Ctrl-C comes twice: from the terminal and from the parent
            leaving = True
            gevent.kill(reloader, SystemExit(0))

    def serve() -> None:
        for number in stopping_signals():
            gevent.signal_handler(number, leave)
        try:
            stops.append(start())
        except MISTAKES as exc:
            complain(exc, "; waiting for a change")

    try:
        run_with_reloader(serve, interval=INTERVAL)
    finally:
        for number in stopping_signals():
            gevent.signal_handler(number, log.debug, "already stopping")
        for stop in stops:
            stop(GRACE)
    return 0


def _supervise() -> int:
    """Run the child again each time it asks for it; hand it our signals, so that it can take leave of its clients."""
    child: subprocess.Popen[bytes] | None = None
    stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.terminate()

    for number in stopping_signals():
        gevent.signal_handler(number, stop)
    status = RESTART
    while status == RESTART and not stopping:
        child = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env={**os.environ, "WERKZEUG_RUN_MAIN": "true"},
            pass_fds=descriptors(),
        )
        if stopping:
            child.terminate()
        status = child.wait()
    return 0 if stopping else max(status, 0)
