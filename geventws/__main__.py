"""python -m geventws module:app: serve a WSGI app and its WebSockets, without gunicorn.

Patches the standard library first and imports the app after, so that its code cooperates.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import argparse
import dataclasses
import importlib
import logging
import os
import signal
import ssl
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event
from gevent.pool import Pool

from . import __version__
from .options import Options, parse
from .server import WebSocketServer

log = logging.getLogger("geventws")


class AppError(Exception):
    """The app cannot be found; the message says what was tried and why it failed."""


MISTAKES = (AppError, OSError, TypeError, ValueError)
RELOAD_GRACE = 1.0  # seconds for the clients to take the Close before a restart


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, or 2 for a mistake in its use."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    logging.basicConfig(
        format="[%(asctime)s] [%(levelname)s] %(message)s", level=chosen.log_level.upper(), stream=sys.stderr
    )
    if chosen.reload:
        return _reload(chosen)
    try:
        return _serve(chosen)
    except MISTAKES as exc:
        print(f"geventws: {exc}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m geventws", description="Serve a WSGI app and its WebSockets on gevent, without gunicorn."
    )
    parser.add_argument("app", metavar="MODULE:APP", help="the WSGI app, such as app:app or app:create_app()")
    parser.add_argument(
        "--bind", default="127.0.0.1:8000", metavar="ADDRESS", help="HOST:PORT or unix:PATH (default: %(default)s)"
    )
    parser.add_argument("--certfile", metavar="FILE", help="certificate chain in PEM: serve https and wss")
    parser.add_argument("--keyfile", metavar="FILE", help="private key in PEM, where certfile does not hold it")
    parser.add_argument("--reload", action="store_true", help="restart when the code changes, for development")
    parser.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error"], help="(default: %(default)s)"
    )
    parser.add_argument("--no-access-log", action="store_true", help="write no line for each request to stdout")
    parser.add_argument("--version", action="version", version=f"geventws {__version__}")
    group = parser.add_argument_group("options of WebSockets (each also as GEVENTWS_NAME in the environment)")
    for field in dataclasses.fields(Options):
        kind = field.metadata["kind"]
        default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            metavar={"bytes": "BYTES", "seconds": "SECONDS", "code": "CODE", "count": "N"}.get(kind, "LIST"),
            help=field.metadata["help"] + (f" (default: {default})" if default not in (None, "") else ""),
        )
    return parser


def _options(chosen: argparse.Namespace) -> Options:
    changes = {
        field.name: parse(field, getattr(chosen, field.name), f"--{field.name.replace('_', '-')}")
        for field in dataclasses.fields(Options)
        if getattr(chosen, field.name) is not None
    }
    return Options.from_environ(os.environ).replace(**changes)


def load_app(name: str) -> Any:
    """Return the WSGI app that MODULE:APP names; APP may be a call without arguments, `app` if left out.

    Raises AppError saying what was tried and why it failed.
    """
    module_name, _, attribute = name.partition(":")
    attribute = attribute or "app"
    factory = attribute.endswith("()")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not (module_name + ".").startswith(exc.name + "."):
            raise AppError(f"importing {module_name} failed: {exc}") from exc
        raise AppError(f"there is no module {module_name} in {os.getcwd()} or on the Python path") from exc
    except Exception as exc:
        raise AppError(f"importing {module_name} failed: {type(exc).__name__}: {exc}") from exc
    try:
        app = getattr(module, attribute.removesuffix("()"))
    except AttributeError:
        raise AppError(f"module {module_name} has no attribute {attribute.removesuffix('()')}") from None
    if factory:
        try:
            app = app()
        except Exception as exc:
            raise AppError(f"calling {name} failed: {type(exc).__name__}: {exc}") from exc
    if not callable(app):
        raise AppError(f"{name} is no WSGI app: it is {type(app).__name__}, which cannot be called")
    return app


def listen(address: str) -> Any:
    """Return a listening gevent socket for HOST:PORT or unix:PATH.

    Raises ValueError for another form, OSError naming the address that cannot be had.
    """
    family: int
    target: str | tuple[str, int]
    if address.startswith("unix:"):
        target = address.removeprefix("unix:")
        _remove_stale_socket(target)
        family = socket.AF_UNIX
    else:
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"--bind must be HOST:PORT or unix:PATH, not {address!r}")
        host = host.strip("[]") or "0.0.0.0"
        family, target = socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port))
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(target)
    except OSError as exc:
        raise OSError(f"cannot listen on {address}: {exc.strerror or exc}") from exc
    listener.listen(1024)
    return listener


def _remove_stale_socket(path: str) -> None:
    """Remove what a server that was killed left behind, unless somebody still answers there."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(f"cannot listen on unix:{path}: it exists and is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def _serve(chosen: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    server = _start(chosen)
    stopped = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stopped.set)
    stopped.wait()
    log.info("stopping")
    server.stop()
    if chosen.bind.startswith("unix:"):
        with suppress(FileNotFoundError):
            os.unlink(chosen.bind.removeprefix("unix:"))
    return 0


def _start(chosen: argparse.Namespace) -> WebSocketServer:
    if chosen.keyfile and not chosen.certfile:
        raise ValueError("--keyfile needs --certfile too")
    options = _options(chosen)
    app = load_app(chosen.app)
    tls = {"ssl_context": _tls_context(chosen.certfile, chosen.keyfile)} if chosen.certfile else {}
    listener = listen(chosen.bind)
    access_log = None if chosen.no_access_log else sys.stdout
    server = WebSocketServer(listener, app, options=options, spawn=Pool(), log=access_log, error_log=log, **tls)
    server.start()
    log.info("geventws %s serves %s on %s", __version__, chosen.app, _url(chosen, listener))
    return server


def _tls_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    context: ssl.SSLContext = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certfile, keyfile)
    except OSError as exc:
        raise OSError(f"cannot load certificate {certfile}: {exc.strerror or exc}") from exc
    return context


def _url(chosen: argparse.Namespace, listener: Any) -> str:
    if chosen.bind.startswith("unix:"):
        return str(chosen.bind)
    host, port = listener.getsockname()[:2]
    return f"http{'s' if chosen.certfile else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def _reload(chosen: argparse.Namespace) -> int:
    """Serve under Werkzeug's reloader: a child process serves, and leaves when the code has changed."""
    try:
        from werkzeug._reloader import run_with_reloader
    except ImportError:
        print("geventws: --reload needs Werkzeug: pip install werkzeug", file=sys.stderr)
        return 2
    servers: list[WebSocketServer] = []

    def serve() -> None:
        try:
            servers.append(_start(chosen))
        except MISTAKES as exc:
            print(f"geventws: {exc}; waiting for a change", file=sys.stderr)

    try:
        run_with_reloader(serve)
    finally:
        for server in servers:
            server.stop(timeout=RELOAD_GRACE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
