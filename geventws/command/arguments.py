"""What the command line of serve says: its flags, their help, and the options of WebSockets and requests.

Knows all flags; does nothing that they ask for.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

from .. import __version__, fast, frames, permessage_deflate
from ..options import Options, RequestLimits, parse
from . import Parser
from .listen import ADDRESS, is_local

METAVARS = {"bytes": "BYTES", "seconds": "SECONDS", "code": "CODE", "count": "N", "switch": "on|off", "text": "TEXT"}
FLAGS_OF_FLASK_RUN = {
    **dict.fromkeys(("--host", "-p", "--port"), "--bind HOST:PORT"),
    "--cert": "--certfile FILE",
    "--key": "--keyfile FILE",
}
HUB_WARNING = "0.5"  # seconds, the option hub_warning of --debug
HOSTS = "loopback"  # the option hosts of --debug, where strangers have no way but by a page in this machine's browser
FLASK = "--flask"  # the first argument where the command is `flask geventws`


USAGE = "%(prog)s [serve] MODULE:APP [--bind ADDRESS] [--debug] ..."
DESCRIPTION = """\
Serve a WSGI app and its WebSockets on gevent, without gunicorn.
The word serve may be left out.

  python -m geventws app:app
      the app in app.py, on http://127.0.0.1:8000
  python -m geventws "app:create_app()" --debug
      what create_app() returns; restarts when the code changes
  python -m geventws app:app --bind :8443 --certfile cert.pem --keyfile key.pem
      https and wss, on all addresses of this machine
  python -m geventws live
      the WebSockets that are open on this machine; see live --help
  python -m geventws check wss://app.example/echo
      what is wrong on the way to a server; see check --help
"""


def version() -> str:
    """Return our version, and what does a part of the work in C."""
    zlib_ng = permessage_deflate.zlib_ng
    in_c = ["_fast"] if fast.is_compiled else []
    in_c += ["_mask"] if frames.mask is not frames.mask_in_python else []
    in_c += ["_inflate"] if permessage_deflate.inflate_frame else []
    in_c += [f"zlib-ng {zlib_ng.ZLIBNG_RUNTIME_VERSION}"] if zlib_ng else []
    return f"geventws {__version__} {'with ' + ', '.join(in_c) if in_c else 'in pure Python'}"


def read(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what a command line says; end the program with status 2 and one line where that makes no sense."""
    is_flask = list(arguments[:1]) == [FLASK]
    parser = _parser(is_flask)
    chosen, others = parser.parse_known_args(arguments[is_flask:])
    if others:
        parser.error("; ".join([f"unrecognized arguments: {' '.join(others)}", *_cures(chosen.app, others)]))
    if is_flask and os.environ.get("FLASK_DEBUG", "0").lower() not in {"0", "false", "no"}:
        chosen.debug = True  # flask --debug geventws
    if chosen.debug:
        os.environ["FLASK_DEBUG"] = "1"  # which a Flask app reads when it is made
        chosen.reload = True
        chosen.hub_warning = chosen.hub_warning or os.environ.get("GEVENTWS_HUB_WARNING", HUB_WARNING)
        if is_local(chosen.bind or ADDRESS):
            chosen.hosts = chosen.hosts or os.environ.get("GEVENTWS_HOSTS", HOSTS)
    return chosen


def _cures(app: str | None, others: list[str]) -> Iterator[str]:
    """Give what to write instead of arguments that are none of ours."""
    for flag in (other.partition("=")[0] for other in others):
        if flag in FLAGS_OF_FLASK_RUN:
            yield f"for {flag} write {FLAGS_OF_FLASK_RUN[flag]}"
    if others[0].startswith("-"):
        return
    if app is None:
        yield "name the app before the command: flask --app MODULE:APP geventws"
    elif ":" not in app:
        yield f"{app} is no command, or does not stand first: write python -m geventws serve MODULE:APP"


def _parser(is_flask: bool) -> argparse.ArgumentParser:
    if is_flask:
        parser = Parser(
            prog="flask geventws",
            usage="%(prog)s [--bind ADDRESS] [--debug] ...",
            description="Serve the app that flask --app names, or wsgi.py or app.py, and its WebSockets on gevent.",
            allow_abbrev=False,
        )
        parser.set_defaults(app=None)
    else:
        parser = Parser(
            prog="python -m geventws",
            usage=USAGE,
            description=DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("app", metavar="MODULE:APP", help="the WSGI app, such as app:app or app:create_app()")
    parser.add_argument(
        "--bind",
        metavar="ADDRESS",
        help="where to listen: HOST:PORT or unix:PATH (default: the sockets of systemd, or 127.0.0.1:8000)",
    )
    parser.add_argument("--certfile", metavar="FILE", help="certificate chain in PEM: serve https and wss")
    parser.add_argument("--keyfile", metavar="FILE", help="private key in PEM, where certfile does not hold it")
    parser.add_argument("--reload", action="store_true", help="restart when the code changes, for development")
    parser.add_argument(
        "--debug",
        action="store_true",
        help="for development only: --reload, Flask's debug mode, Werkzeug's debugger on pages that fail, "
        f"--hub-warning {HUB_WARNING}, and --hosts {HOSTS} on localhost",
    )
    parser.add_argument(
        "--log-level",
        default="info",
        choices=["debug", "info", "warning", "error"],
        help="least severity to log to stderr; debug shows each frame (default: %(default)s)",
    )
    parser.add_argument("--no-access-log", action="store_true", help="write no line for each request to stdout")
    parser.add_argument("--version", action="version", version=version())
    groups = {
        Options: parser.add_argument_group(
            "options of WebSockets",
            "Each may also come from the environment, such as GEVENTWS_PING_INTERVAL=10.\n"
            "SECONDS may be a fraction; off switches a time off.\n"
            "A LIST is separated by commas or spaces.",
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


def options(chosen: argparse.Namespace) -> dict[str, Any]:
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
