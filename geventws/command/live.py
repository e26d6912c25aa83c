"""List the open WebSockets of all processes of this user on this machine, or close one: `python -m geventws live`."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..census import VARIABLE, check_private, directory
from ..errors import may_travel
from ..loglines import printable
from ..options import LONGEST_REASON
from . import MISTAKES, Parser, complain

PATIENCE = 5.0  # seconds for a process to send some of its answer; one whose hub is blocked sends none
CLEAR = "\x1b[H\x1b[2J"  # the terminal

Seen = dict[str, Any]  # a LiveConnection

DESCRIPTION = f"""\
List the open WebSockets of all gunicorn workers and servers of this user on
this machine. They are found in the directory that {VARIABLE} names.

  python -m geventws live --watch
      a table, each 2 seconds
  python -m geventws live --json | jq '.[] | select(.blocked)'
      what a program may read
  python -m geventws live --close 4711-17 --code 4001
      close the WebSocket of that ID
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return 0, 1 where a process did not answer or has no such WebSocket, 2 for a mistake."""
    chosen = _parser().parse_args(arguments)
    try:
        if chosen.code is not None and not may_travel(chosen.code):
            raise ValueError(f"--code must be a close code that may be sent, such as 1001 or 4000, not {chosen.code}")
        if chosen.close == "":
            raise ValueError("--close needs the ID of a WebSocket")
        if chosen.watch is not None and not chosen.watch > 0:
            raise ValueError(f"--watch must be a number of seconds above 0, not {chosen.watch:g}")
        where = directory(os.environ)
        if where is None:
            raise ValueError(f"{VARIABLE} is off")
        if where.exists():
            check_private(where)
        if chosen.close:
            return _close(where, chosen.close, chosen.code or 1000, chosen.reason)
        show = _as_json if chosen.json else _as_table
        return _list(where, show) if chosen.watch is None else _watch(where, show, chosen.watch)
    except BrokenPipeError:  # of stdout
        raise
    except MISTAKES as exc:
        complain(exc)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m geventws live",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="write one line of JSON: a list of objects")
    parser.add_argument(
        "--watch", nargs="?", type=float, const=2.0, metavar="SECONDS", help="look again each 2 s until Ctrl-C"
    )
    parser.add_argument("--close", metavar="ID", help="close this WebSocket")
    parser.add_argument("--code", type=int, help="its close code (default: 1000)")
    parser.add_argument("--reason", default="", metavar="TEXT", help="the reason that its client gets")
    return parser


# Asking the processes


def _sockets(where: Path) -> list[Path]:
    """Return the sockets of processes, which their ids name. Whatever else is in the directory is none of ours."""
    return sorted(path for path in where.glob("*.sock") if path.stem.isdigit() and path.is_socket())


def _ask(path: Path, question: Seen) -> list[Seen] | None:
    """Return the lines of a process's answer, or None of one that is gone, whose socket is removed.

    Raises OSError where it does not answer, ValueError where what it says is no answer.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return None
        sock.sendall(json.dumps(question).encode() + b"\n")
        with sock.makefile("rb") as answer:
            lines = [json.loads(line) for line in answer]
    if not lines or "done" not in lines[-1]:
        raise ConnectionAbortedError("it left in the middle of its answer")
    return lines


def _list(where: Path, show: Callable[[list[Seen], int], str]) -> int:
    seen: list[Seen] = []
    processes = silent = 0
    for path in _sockets(where):
        try:
            lines = _ask(path, {})
        except (OSError, ValueError) as exc:
            silent += 1
            _complain_of(path, exc)
            continue
        if lines is not None:
            processes += 1
            seen += lines[:-1]
    print(show(sorted(seen, key=lambda each: float(each["since"])), processes), flush=True)
    return 1 if silent else 0


def _complain_of(path: Path, exc: Exception) -> None:
    print(f"geventws: process {path.stem} does not answer, its hub may be blocked: {exc}", file=sys.stderr)


def _watch(where: Path, show: Callable[[list[Seen], int], str], pause: float) -> int:
    try:
        while True:
            if sys.stdout.isatty():
                print(CLEAR, end="")
            _list(where, show)
            time.sleep(pause)
    except KeyboardInterrupt:
        return 0


def _close(where: Path, name: str, code: int, reason: str) -> int:
    path = where / f"{name.partition('-')[0]}.sock"
    lines = None
    if path in _sockets(where):  # and no path of another directory
        try:
            lines = _ask(path, {"close": name, "code": code, "reason": reason[:LONGEST_REASON]})
        except (OSError, ValueError) as exc:
            _complain_of(path, exc)
            return 1
    if lines and lines[-1]["done"]:
        return 0
    print(f"geventws: no WebSocket {printable(name)} is open", file=sys.stderr)
    return 1


# Showing


def _as_json(seen: list[Seen], _processes: int) -> str:
    return json.dumps(seen)


def _as_table(seen: list[Seen], processes: int) -> str:
    rows = [HEADINGS, *(_row(each) for each in seen)] if seen else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, f"{len(seen)} WebSockets in {processes} processes"])


HEADINGS = ("ID", "AGE", "IDLE", "PING", "RECEIVED", "SENT", "WAITING", "PEER", "FORWARDED", "PATH", "ATTRIBUTES")


def _row(seen: Seen) -> tuple[str, ...]:
    latency = seen["latency"]
    attributes = " ".join(f"{name}={value}" for name, value in seen["attributes"].items())
    cells = (
        seen["id"],
        _time(time.time() - seen["since"]),
        _time(seen["idle"]),
        "-" if latency is None else f"{1000 * latency:.0f}ms",
        f"{seen['messages_received']} {_size(seen['bytes_received'])}",
        f"{seen['messages_sent']} {_size(seen['bytes_sent'])}",
        _size(seen["outbox"]) + (" blocked" if seen["blocked"] else ""),
        seen["peer"],
        seen["forwarded_for"] or "-",
        seen["path"],
        attributes,
    )
    return tuple(printable(cell) for cell in cells)  # most of it is what strangers wrote


def _time(seconds: float) -> str:
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole // 60 % 60:02}m"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f}{unit}"
        count /= 1024
    return f"{count:.1f}GiB"
