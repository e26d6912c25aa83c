"""Check a WebSocket URL from the client's side, and say what to change: `python -m geventws check URL`."""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import sys
from collections.abc import Iterable, Sequence

import gevent

from ..options import TOKEN
from . import MISTAKES, Parser, complain
from .doctor import Doctor, Result
from .talk import FAILED, PASSED, RISKY, SKIPPED
from .wire import read_url

MARKS = {PASSED: "✓", FAILED: "✗", RISKY: "!", SKIPPED: "·"}
PLAIN_MARKS = {PASSED: "ok", FAILED: "FAILED", RISKY: "risky", SKIPPED: "-"}  # of a terminal without the others
WIDTH = 15  # of the names of checks

DESCRIPTION = """\
Check a WebSocket from the client's side: name, TCP, TLS, handshake,
compression, origins, messages, pings, close. It says what is wrong on the
way to the app, and what to change: in nginx, Apache, or the app.

  python -m geventws check wss://app.example/echo
      the whole way, as a browser goes it
  python -m geventws check wss://app.example/echo --via 127.0.0.1:8000
      the app alone, on its machine: is it the app or the proxy?
  python -m geventws check wss://app.example/chat --header "Cookie: session=..."
      with the login of a page
  python -m geventws check wss://app.example/echo --idle 70
      whether a connection lives on while nobody says anything

It sends the message "hello" and, where that comes back, 64 KiB and 1 MiB.
It asks as a stranger would, so the log of the app has a refusal more.
Exit status: 0 if nothing failed, 1 if a check failed, 2 for a mistake here.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return 0, 1 where a check failed, 2 for a mistake."""
    chosen = _parser().parse_args(arguments)
    try:
        target = read_url(chosen.url, chosen.via)
        _check_flags(chosen)
        doctor = Doctor(
            target,
            [_header(each) for each in chosen.header],
            origin=chosen.origin,
            subprotocols=chosen.subprotocol,
            idle=chosen.idle,
            via=chosen.via is not None,
        )
    except MISTAKES as exc:
        complain(exc)
        return 2
    # Python's own handler would run in the hub, which prints what it raises.
    before = signal.getsignal(signal.SIGINT)
    interrupt = gevent.signal_handler(signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt)
    try:
        if chosen.json:
            results = list(doctor.run())
            print(_as_json(target.url, results))
        else:
            print(target.url + (f" via {target.place}" if chosen.via else ""))
            results = _show(doctor.run())
            print("\n".join(_summary(results)))
    except KeyboardInterrupt:
        return 130
    finally:
        interrupt.cancel()
        signal.signal(signal.SIGINT, before)
    return 1 if any(result.mark == FAILED for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m geventws check",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("url", metavar="URL", help="such as wss://app.example/echo, best of a view that echoes")
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="send this header too; may be repeated"
    )
    parser.add_argument("--origin", metavar="ORIGIN", help="the page's own origin (default: that of the URL's host)")
    parser.add_argument(
        "--subprotocol", action="append", default=[], metavar="NAME", help="offer this subprotocol; may be repeated"
    )
    parser.add_argument(
        "--via", metavar="HOST:PORT", help="connect there, or to unix:PATH, but ask for the host of the URL"
    )
    parser.add_argument("--idle", type=float, metavar="SECONDS", help="keep a connection silent for so long")
    parser.add_argument("--json", action="store_true", help="write one JSON object, for programs")
    return parser


def _check_flags(chosen: argparse.Namespace) -> None:
    """Raise ValueError for a flag whose value no request could carry, or that makes no sense."""
    if chosen.origin is not None and not re.fullmatch(r"[!-~]+", chosen.origin):
        raise ValueError(f"--origin must be such as https://app.example, not {chosen.origin!r}")
    for name in chosen.subprotocol:
        if not re.fullmatch(TOKEN, name):
            raise ValueError(f"--subprotocol must be a name such as chat.v2, not {name!r}")
    if chosen.idle is not None and not 0 < chosen.idle < math.inf:
        raise ValueError(f"--idle must be a number of seconds, such as 70, not {chosen.idle:g}")


def _header(text: str) -> tuple[str, str]:
    """Return name and value of a header. Raises ValueError for a bad one, or one of the handshake's own."""
    name, colon, value = text.partition(":")
    value = value.strip()
    if not colon or not re.fullmatch(TOKEN, name) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]", value):
        raise ValueError(f"--header must be 'NAME: VALUE', such as 'Cookie: session=...', not {text!r}")
    if name.lower() in {"upgrade", "connection", "origin", "host"} or name.lower().startswith("sec-websocket-"):
        raise ValueError(f"--header {name} belongs to the handshake; see --origin, --subprotocol and --via")
    return name, value


def _show(results: Iterable[Result]) -> list[Result]:
    """Write a line for each check as it is done, but for those behind a failure; return all."""
    marks = MARKS
    try:
        "".join(MARKS.values()).encode(sys.stdout.encoding or "ascii")
    except UnicodeError:
        marks = PLAIN_MARKS
    shown: list[Result] = []
    for result in results:
        if not any(each.mark == FAILED and each.name in result.detail for each in shown):
            print(f"{marks[result.mark]} {result.name:{WIDTH}} {result.detail}".rstrip(), flush=True)
        shown.append(result)
    return shown


def _summary(results: list[Result]) -> list[str]:
    """Return the last lines: cause and cure of what failed or is risky, and a count."""
    lines = [""]
    for result in results:
        if result.diagnosis is not None:
            lines += [f"{result.name}: {result.diagnosis.cause}", f"  cure: {result.diagnosis.cure}", ""]
    counts = {mark: sum(result.mark == mark for result in results) for mark in MARKS}
    told = [f"{count} {'not checked' if mark == SKIPPED else mark}" for mark, count in counts.items() if count]
    return [*lines, ", ".join(told)]


def _as_json(url: str, results: list[Result]) -> str:
    checks = [
        {
            "name": result.name,
            "result": result.mark,
            "detail": result.detail,
            "cause": result.diagnosis and result.diagnosis.cause,
            "cure": result.diagnosis and result.diagnosis.cure,
        }
        for result in results
    ]
    return json.dumps({"url": url, "ok": all(result.mark != FAILED for result in results), "checks": checks})
