"""What the command line of serve says: its flags, their help, and the options of WebSockets and requests.

Knows all flags; does nothing that they ask for.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from ..options import Options, RequestLimits, parse

METAVARS = {"bytes": "BYTES", "seconds": "SECONDS", "code": "CODE", "count": "N", "switch": "on|off"}
FLAGS_OF_FLASK_RUN = {
    **dict.fromkeys(("--host", "-p", "--port"), "--bind HOST:PORT"),
    "--cert": "--certfile FILE",
    "--key": "--keyfile FILE",
}
FLASK = "--flask"  # the first argument where the command is `flask geventws`


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        for flag, ours in FLAGS_OF_FLASK_RUN.items():
            if f" {flag} " in message.replace("=", " ") + " ":
                message += f"; for {flag} write {ours}"
        self.exit(2, f"geventws: {message}; see {self.prog} --help\n")


def read(arguments: Sequence[str]) -> argparse.Namespace:
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
