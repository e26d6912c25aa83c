"""python -m geventws module:app, or flask geventws: serve a WSGI app and its WebSockets, without gunicorn.

Patches the standard library first and imports the app after, so that its code cooperates.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import argparse
import dataclasses
import getpass
import importlib
import logging
import os
import signal
import ssl
import stat
import subprocess
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn

import gevent
from gevent import socket
from gevent.event import Event
from gevent.pool import Pool

from . import __version__
from .frameworks import why_no_app
from .options import Options, RequestLimits, parse
from .server import WebSocketServer

log = logging.getLogger("geventws")


class AppError(Exception):
    """There is no app to serve; the message says what was tried and why it failed.

    The cause, if there is one, is an exception of the app's own code, with its traceback from the app's frames on.
    """


MISTAKES = (AppError, OSError, TypeError, ValueError)
METAVARS = {"bytes": "BYTES", "seconds": "SECONDS", "code": "CODE", "count": "N", "switch": "on|off"}
RELOAD_INTERVAL = 0.5  # seconds between looks at the files
RELOAD_GRACE = 0.2  # seconds for views to end by themselves before a restart; their clients have the Close by then
RESTART = 3  # exit status by which Werkzeug's reloader asks for a new process
FLAGS_OF_FLASK_RUN = {
    **dict.fromkeys(("--host", "-p", "--port"), "--bind HOST:PORT"),
    "--cert": "--certfile FILE",
    "--key": "--keyfile FILE",
}
LOADERS = {"__main__", "geventws", "importlib", "flask", "click"}  # modules that run before the app's own code
FLASK = "--flask"  # the first argument where the command is `flask geventws`


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        for flag, ours in FLAGS_OF_FLASK_RUN.items():
            if f" {flag} " in message.replace("=", " ") + " ":
                message += f"; for {flag} write {ours}"
        self.exit(2, f"geventws: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, or 2 for a mistake in its use."""
    chosen = _parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        format="[%(asctime)s] [%(levelname)s] %(message)s", level=chosen.log_level.upper(), stream=sys.stderr
    )
    if sys.stdout is not None:  # as it is where it was closed before the start
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        options, tls = _options(chosen), _tls_context(chosen)
        if chosen.reload:
            return _reload(chosen, options, tls)
        server = _start(chosen, options, tls)
    except MISTAKES as exc:
        _complain(exc)
        return 2
    except KeyboardInterrupt:
        return 130
    _serve(server)
    return 0


def _complain(mistake: Exception, then: str = "") -> None:
    """Say in one line what is wrong, behind the traceback where the app's own code has failed."""
    if isinstance(mistake, AppError) and mistake.__cause__ is not None:
        traceback.print_exception(mistake.__cause__)
    print(f"geventws: {mistake}{then}", file=sys.stderr)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    is_flask = list(arguments[:1]) == [FLASK]
    chosen = _parser(is_flask).parse_args(arguments[is_flask:])
    if is_flask and os.environ.get("FLASK_DEBUG", "0").lower() not in {"0", "false", "no"}:
        chosen.debug = True  # flask --debug geventws
    if chosen.debug:
        os.environ["FLASK_DEBUG"] = "1"  # which a Flask app reads when it is made
        chosen.reload = True
    return chosen


def _parser(is_flask: bool) -> argparse.ArgumentParser:
    if is_flask:
        parser = _Parser(
            prog="flask geventws",
            description="Serve the app that flask --app names, or wsgi.py or app.py, and its WebSockets on gevent.",
            allow_abbrev=False,
        )
        parser.set_defaults(app=None)
    else:
        parser = _Parser(
            prog="python -m geventws",
            description="Serve a WSGI app and its WebSockets on gevent, without gunicorn.",
            allow_abbrev=False,
        )
        parser.add_argument("app", metavar="MODULE:APP", help="the WSGI app, such as app:app or app:create_app()")
    parser.add_argument(
        "--bind",
        default="127.0.0.1:8000",
        metavar="ADDRESS",
        help="where to listen: HOST:PORT or unix:PATH (default: %(default)s)",
    )
    parser.add_argument("--certfile", metavar="FILE", help="certificate chain in PEM: serve https and wss")
    parser.add_argument("--keyfile", metavar="FILE", help="private key in PEM, where certfile does not hold it")
    parser.add_argument("--reload", action="store_true", help="restart when the code changes, for development")
    parser.add_argument(
        "--debug",
        action="store_true",
        help="for development only: --reload, Flask's debug mode, and Werkzeug's debugger on pages that fail",
    )
    parser.add_argument(
        "--log-level",
        default="info",
        choices=["debug", "info", "warning", "error"],
        help="least severity to log to stderr; debug shows each frame (default: %(default)s)",
    )
    parser.add_argument("--no-access-log", action="store_true", help="write no line for each request to stdout")
    parser.add_argument("--version", action="version", version=f"geventws {__version__}")
    groups = {
        Options: parser.add_argument_group(
            "options of WebSockets",
            "Each may also come from the environment, such as GEVENTWS_PING_INTERVAL=10. SECONDS may be a fraction; "
            "off switches a time off. A LIST is separated by commas or spaces.",
        ),
        RequestLimits: parser.add_argument_group(
            "limits of requests", "Named as gunicorn has them; or from the environment, as the options above."
        ),
    }
    for settings, group in groups.items():
        for field in dataclasses.fields(settings):
            kind = field.metadata["kind"]
            group.add_argument(
                _flag(field), metavar=METAVARS.get(kind, "LIST"), help=field.metadata["help"] + _default(field.default)
            )
    return parser


def _default(value: Any) -> str:
    """Return an option's default as --help shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        value = "on" if value else "off"
    elif isinstance(value, tuple):
        value = " ".join(value) or "none"
    return f" (default: {value})"


def _flag(field: dataclasses.Field[Any]) -> str:
    return f"--{field.name.replace('_', '-')}"


def _options(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return what the variables and, before them, the flags set; Options and RequestLimits in one."""
    found: dict[str, Any] = {}
    for settings in (Options, RequestLimits):
        flags = {
            field.name: parse(field, getattr(chosen, field.name), _flag(field))
            for field in dataclasses.fields(settings)
            if getattr(chosen, field.name) is not None
        }
        found |= dataclasses.asdict(dataclasses.replace(settings.from_environ(os.environ), **flags))
    return found


def _tls_context(chosen: argparse.Namespace) -> ssl.SSLContext | None:
    """Return the context for --certfile and --keyfile, None without them.

    Raises OSError or ValueError naming the file.
    """
    certfile, keyfile = chosen.certfile, chosen.keyfile
    if not certfile:
        if keyfile:
            raise ValueError("--keyfile needs --certfile too")
        return None
    for name in filter(None, (certfile, keyfile)):
        try:
            open(name).close()
        except OSError as exc:
            raise OSError(f"cannot read {name}: {exc.strerror}") from exc
    context: ssl.SSLContext = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    was_asked = False

    def passphrase() -> str:
        nonlocal was_asked
        was_asked = True
        return _passphrase(keyfile or certfile)

    try:
        context.load_cert_chain(certfile, keyfile, passphrase)
    except ssl.SSLError as exc:
        if was_asked:
            why = f"the passphrase does not open {keyfile or certfile}"
        elif keyfile:
            why = f"{keyfile} is not the private key of {certfile}, or one of them is no PEM file"
        else:
            why = f"{certfile} is no PEM file with a certificate and its private key; give the key with --keyfile"
        raise ValueError(f"{why} ({exc.reason or exc})") from exc
    return context


def _passphrase(name: str) -> str:
    """Return the passphrase of a key file, from the terminal; without one from stdin.

    Raises ValueError naming the file, where stdin has none either.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(f"Passphrase of {name}: ")
    except (getpass.GetPassWarning, EOFError):
        given = sys.stdin.readline().rstrip("\n") if sys.stdin is not None else ""
    if not given:
        raise ValueError(
            f"{name} has a passphrase, and there is no terminal to ask for it: pass it to stdin, "
            f"or write the key without one, by openssl pkey -in {name} -out plain.pem"
        )
    return given


def load_app(name: str) -> Any:
    """Return the WSGI app that MODULE:APP names; APP may be a call without arguments, `app` if left out.

    Raises AppError saying what was tried and why it failed.
    """
    module_name, colon, attribute = name.partition(":")
    attribute = attribute if colon else "app"
    factory = attribute.endswith("()")
    attribute = attribute.removesuffix("()")
    if module_name.endswith(".py"):
        hint = module_name.removesuffix(".py").replace("/", ".")
        raise AppError(f"the app must be MODULE:APP, not a file; did you mean {hint}:{attribute}?")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise AppError(f"the app must be MODULE:APP such as app:app or app:create_app(), not {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as exc:
        if isinstance(exc, ModuleNotFoundError) and _own_traceback(exc) is None:
            raise AppError(f"there is no module {module_name} in {os.getcwd()} or on the Python path") from None
        _fail(f"importing {module_name}", exc)
    try:
        app = getattr(module, attribute)
    except AttributeError:
        raise AppError(f"module {module_name} has no attribute {attribute}") from None
    except (Exception, SystemExit) as exc:  # of the module's own __getattr__()
        _fail(f"importing {name}", exc)
    if factory:
        try:
            app = app()
        except (Exception, SystemExit) as exc:
            _fail(f"calling {name}", exc)
    if why := why_no_app(app, name):
        raise AppError(why)
    return app


def _load_flask_app() -> Any:
    from .flask import find_app

    try:
        return find_app()
    except (Exception, SystemExit) as exc:
        if not hasattr(exc, "format_message"):
            _fail("loading the Flask app", exc)
        # One of click's, which say all themselves. Flask makes one of an ImportError inside of the app, too.
        if isinstance(exc.__context__, ImportError) and _own_traceback(exc.__context__) is not None:
            _fail("loading the Flask app", exc.__context__)
        raise AppError(exc.format_message()) from None


def _debugged(app: Any) -> Any:
    """Return app with Werkzeug's debugger for its pages; what a view of a WebSocket raises is logged anyway."""
    from werkzeug.debug import DebuggedApplication

    class Debugger(DebuggedApplication):
        def __call__(self, environ: Any, start_response: Any) -> Any:
            if "wsgi.websocket" in environ:
                return self.app(environ, start_response)
            return super().__call__(environ, start_response)

    return Debugger(app, evalex=True)


def _fail(doing: str, exc: BaseException) -> NoReturn:
    """Raise AppError for what the app's own code raised."""
    own = _own_traceback(exc)
    where = "" if own is None or isinstance(exc, SyntaxError) else f" ({_where(own)})"
    exits = isinstance(exc, SystemExit)  # on purpose: its text says all
    summary = exc if exits else str(exc).partition("\n")[0]
    is_shown = not exits and (own is not None or isinstance(exc, SyntaxError))
    raise AppError(f"{doing} failed: {type(exc).__name__}: {summary}{where}") from (
        exc.with_traceback(own) if is_shown else None
    )


def _own_traceback(exc: BaseException) -> TracebackType | None:
    """Return the traceback of exc from the first frame of the app's own code on; None where it has none."""
    found = exc.__traceback__
    while found is not None and found.tb_frame.f_globals.get("__name__", "").partition(".")[0] in LOADERS:
        found = found.tb_next
    return found


def _where(own: TracebackType) -> str:
    """Return the file and line of the last frame that is in the current directory, or of the last of all."""
    frames = traceback.extract_tb(own)
    here = os.getcwd() + os.sep
    near = [frame for frame in frames if frame.filename.startswith(here) and "site-packages" not in frame.filename]
    frame = (near or frames)[-1]
    return f"{os.path.basename(frame.filename)}, line {frame.lineno}"


def listen(address: str) -> Any:
    """Return a listening gevent socket for HOST:PORT or unix:PATH.

    Raises ValueError for another form, OSError naming the address that cannot be had.
    """
    family: int
    target: str | tuple[str, int]
    if address.startswith("unix:"):
        target = address.removeprefix("unix:")
        if not target:
            raise ValueError(f"--bind must be HOST:PORT or unix:PATH, not {address!r}")
        _remove_stale_socket(target)
        family = socket.AF_UNIX
    else:
        host, colon, port = address.rpartition(":")
        if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
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


def _start(chosen: argparse.Namespace, options: dict[str, Any], tls: ssl.SSLContext | None) -> WebSocketServer:
    app = load_app(chosen.app) if chosen.app is not None else _load_flask_app()
    name = chosen.app or os.environ.get("FLASK_APP") or app.import_name
    if chosen.debug:
        app = _debugged(app)
    listener = listen(chosen.bind)
    access_log = None if chosen.no_access_log else sys.stdout
    ssl_args = {"ssl_context": tls} if tls else {}
    server = WebSocketServer(listener, app, options=options, spawn=Pool(), log=access_log, error_log=log, **ssl_args)
    server.start()
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
    """Serve until SIGTERM or SIGINT."""
    stopped = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stopped.set)
    stopped.wait()
    log.info("stopping")
    _stop(server)


def _url(chosen: argparse.Namespace, listener: Any) -> str:
    if chosen.bind.startswith("unix:"):
        return str(chosen.bind)
    host, port = listener.getsockname()[:2]
    return f"http{'s' if chosen.certfile else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def _reload(chosen: argparse.Namespace, options: dict[str, Any], tls: ssl.SSLContext | None) -> int:
    """Serve in a child process under Werkzeug's reloader, which leaves when the code has changed."""
    try:
        from werkzeug._reloader import run_with_reloader
    except ImportError:
        print("geventws: --reload needs Werkzeug: pip install werkzeug", file=sys.stderr)
        return 2
    if os.environ.get("WERKZEUG_RUN_MAIN") != "true":
        return _supervise()
    reloader, servers = gevent.getcurrent(), []
    leaving = False

    def leave() -> None:
        nonlocal leaving
        if not leaving:  # Ctrl-C comes twice: from the terminal and from the parent
            leaving = True
            gevent.kill(reloader, SystemExit(0))

    def serve() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, leave)
        try:
            servers.append(_start(chosen, options, tls))
        except MISTAKES as exc:
            _complain(exc, "; waiting for a change")

    try:
        run_with_reloader(serve, interval=RELOAD_INTERVAL)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, log.debug, "already stopping")
        for server in servers:
            _stop(server, RELOAD_GRACE)
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

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop)
    status = RESTART
    while status == RESTART and not stopping:
        child = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env={**os.environ, "WERKZEUG_RUN_MAIN": "true"})
        if stopping:
            child.terminate()
        status = child.wait()
    return 0 if stopping else max(status, 0)


if __name__ == "__main__":
    sys.exit(main())
