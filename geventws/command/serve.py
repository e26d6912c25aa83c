"""Serve a WSGI app and its WebSockets, without gunicorn: what `python -m geventws app:app` and `flask geventws` do."""

from __future__ import annotations

import argparse
import logging
import os
import ssl
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Pool

from .. import __version__
from ..census import publish
from ..server import WebSocketServer
from . import MISTAKES, complain, stopping_signals
from .apps import debugged, load_app, load_flask_app
from .arguments import options, read
from .listen import listen
from .reload import reload
from .tls import tls_context

log = logging.getLogger("geventws")


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status: 0, or 2 for a mistake in its use."""
    chosen = read(arguments)
    logging.basicConfig(
        format="[%(asctime)s] [%(levelname)s] %(message)s", level=chosen.log_level.upper(), stream=sys.stderr
    )
    if sys.stdout is not None:  # as it is where it was closed before the start
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        start = partial(_start, chosen, options(chosen), tls_context(chosen.certfile, chosen.keyfile))
        if chosen.reload:
            return reload(start, _stop, "--debug" if chosen.debug else "--reload")
        server = start()
    except MISTAKES as exc:
        complain(exc)
        return 2
    except KeyboardInterrupt:
        return 130
    _serve(server)
    return 0


def _start(chosen: argparse.Namespace, options: dict[str, Any], tls: ssl.SSLContext | None) -> WebSocketServer:
    app = load_app(chosen.app) if chosen.app is not None else load_flask_app()
    name = chosen.app or os.environ.get("FLASK_APP") or app.import_name
    if chosen.debug:
        app = debugged(app)
    listener = listen(chosen.bind)
    access_log = None if chosen.no_access_log else sys.stdout
    ssl_args = {"ssl_context": tls} if tls else {}
    server = WebSocketServer(listener, app, options=options, spawn=Pool(), log=access_log, error_log=log, **ssl_args)
    server.start()
    publish()
    log.info("geventws %s serves %s on %s", __version__, name, _url(chosen, listener))
    return server


def _stop(server: WebSocketServer, timeout: float | None = None) -> None:
    """Stop a server as its own stop() does; remove the file of its Unix socket."""
    if isinstance(server.address, str):
        # First, as long as it is surely ours: a successor may listen there while our views come to their end.
        with suppress(FileNotFoundError):
            os.unlink(server.address)
    server.stop(timeout)


def _serve(server: WebSocketServer) -> None:
    """Serve until a signal comes that ends it."""
    stopped = Event()
    for number in stopping_signals():
        gevent.signal_handler(number, stopped.set)
    stopped.wait()
    log.info("stopping")
    _stop(server)


def _url(chosen: argparse.Namespace, listener: Any) -> str:
    if chosen.bind.startswith("unix:"):
        return str(chosen.bind)
    host, port = listener.getsockname()[:2]
    return f"http{'s' if chosen.certfile else ''}://{f'[{host}]' if ':' in host else host}:{port}"
