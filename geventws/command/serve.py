"""Serve a WSGI app and its WebSockets, without gunicorn: what `python -m geventws app:app` and `flask geventws` do."""

from __future__ import annotations

import argparse
import logging
import os
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Pool

from .. import __version__
from ..census import publish
from ..server import WebSocketServer
from . import MISTAKES, complain, stopping_signals, systemd
from .apps import debugged, load_app, load_flask_app
from .arguments import options, read
from .listen import ADDRESS, listen
from .listen import name as name_of
from .reload import reload
from .tls import tls_context

log = logging.getLogger("geventws")


Stop = Callable[..., None]  # stops what was started, within the seconds it may be given


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status: 0, or 2 for a mistake in its use."""
    chosen = read(arguments)
    logging.basicConfig(
        format="[%(asctime)s] [%(levelname)s] %(message)s", level=chosen.log_level.upper(), stream=sys.stderr
    )
    if sys.stdout is not None:  # as it is where it was closed before the start
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    stopped = Event()
    try:
        start = partial(_start, chosen, options(chosen), tls_context(chosen.certfile, chosen.keyfile))
        if chosen.reload:
            return reload(start, "--debug" if chosen.debug else "--reload")
        stop = start(stopped)
    except MISTAKES as exc:
        complain(exc)
        return 2
    except KeyboardInterrupt:
        return 130
    stopped.wait()
    log.info("stopping")
    systemd.notify("STOPPING=1")
    stop()
    return 0


def _start(
    chosen: argparse.Namespace, options: dict[str, Any], tls: ssl.SSLContext | None, stopped: Event | None = None
) -> Stop:
    """Serve what was chosen, and say so. From the first connection on, a signal to end the command sets `stopped`."""
    app = load_app(chosen.app) if chosen.app is not None else load_flask_app()
    name = chosen.app or os.environ.get("FLASK_APP") or app.import_name
    if chosen.debug:
        app = debugged(app)
    listeners = systemd.listeners()
    files: list[str] = []  # of Unix sockets that are ours to remove
    if listeners and chosen.bind is not None:
        raise ValueError(f"--bind {chosen.bind} and the sockets of systemd exclude each other: leave --bind out")
    if not listeners:
        listeners = [listen(ADDRESS if chosen.bind is None else chosen.bind)]
        if isinstance(address := listeners[0].getsockname(), str):
            files.append(address)
    common = {"options": options, "spawn": Pool(), "error_log": log, **({"ssl_context": tls} if tls else {})}
    common["log"] = None if chosen.no_access_log else sys.stdout
    servers: list[WebSocketServer] = []
    for listener in listeners:
        servers.append(WebSocketServer(listener, app, gateway=servers[0].gateway if servers else None, **common))
    if stopped is not None:
        for number in stopping_signals():
            gevent.signal_handler(number, stopped.set)
    for server in servers:
        server.start()
    publish()
    urls = ", ".join(_url(name_of(listener), tls) for listener in listeners)
    log.info("geventws %s serves %s on %s", __version__, name, urls)
    systemd.notify("READY=1")
    systemd.keep_watchdog()
    return partial(_stop, servers, files)


def _stop(servers: Sequence[WebSocketServer], files: Sequence[str], timeout: float | None = None) -> None:
    """Stop servers, which share pool and gateway, as their own stop() does; remove the files of their Unix sockets."""
    for path in files:
        # First, as long as it is surely ours: a successor may listen there while our views come to their end.
        with suppress(FileNotFoundError):
            os.unlink(path)
    for server in servers:
        server.begin_stop()
    for server in servers:
        server.stop(timeout)  # the first waits for all connections, and leaves nothing to the others


def _url(address: str, tls: ssl.SSLContext | None) -> str:
    return address if address.startswith("unix:") else f"http{'s' if tls else ''}://{address}"
