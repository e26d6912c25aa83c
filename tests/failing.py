"""Cases of differential.py and broadcasts.py in which one call for memory fails in C, each of them in turn.

    python -m tests.failing --seconds 60

Needs a geventws._fast that was compiled with tests/failing.h. MemoryError reaches who called, or the connection ends as
"out of memory", or all goes on as it would have. The peer gets whole frames, but for the last of a connection that
broke.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import itertools
import random
import sys
from collections.abc import Iterator
from time import monotonic
from typing import Any

from gevent import get_hub

from geventws import keepalive
from geventws.errors import ProtocolError
from geventws.frames import parse_header

from . import broadcasts
from .differential import Case, Run

IN_TURN = 12  # of the calls in a case, that many fail in turn, and then as many of the others
LIBRARY = ctypes.CDLL(sys.modules["geventws._fast"].__file__)
calls, failing = (ctypes.c_long.in_dll(LIBRARY, name) for name in ("calls", "failing"))


def is_cut(wire: bytes, *, deflate: bool = False) -> bool:
    """Whether the last frame is not whole. Raises ProtocolError where the others are none."""
    start = 0
    while start < len(wire):
        header = parse_header(wire, start, masked=False, deflate=deflate)
        if header is None or header.stop + header.size > len(wire):
            return True
        start = header.stop + header.size
    return False


def frames(seen: list[Any]) -> bytes:
    """Return what the peer got behind the 101, which is the last that is noted."""
    return _behind_head(seen[-1][1])


def _behind_head(wire: bytes) -> bytes:
    return wire.partition(b"\r\n\r\n")[2]


def outcome(number: int, call: int) -> tuple[Run, list[Any], str]:
    """Return a case's run where the call of this number fails, 0 is none; what was seen; and what the hub told."""
    case = Case(number)
    case.offers = ()
    case.is_small = True
    case.view[:0] = [("post", "x" * 300_000), ("post", b"behind what its peer took in part")]
    case.options = case.options.replace(close_timeout=0.1)
    run = Run(case)
    run.patience = 1.0  # for a socket that is watched no more
    keepalive._number = itertools.count(1)  # of pings, as the peer sees them
    return run, *_seen(run, call)


def _seen(run: Run | broadcasts.Run, call: int) -> tuple[list[Any], str]:
    """Do a run in which the call of this number fails; return what was seen, and what the hub told."""
    errors = get_hub().exception_stream = io.StringIO()
    calls.value, failing.value = 0, call
    try:
        return run.run(), errors.getvalue()
    finally:
        failing.value = 0


def faults(number: int, call: int, undisturbed: list[Any]) -> Iterator[str]:
    """Yield what is wrong with a case whose call of this number fails."""
    run, seen, errors = outcome(number, call)
    wire = frames(seen)
    is_told = any(MemoryError in note for note in seen)
    is_lost = run.ws.close_code == 1006 or run.ws.session.transport.undelivered > 0  # behind a Close, perhaps
    try:
        # The hub is told of a Python callback that fails, whose watcher may then stand still until the time limits.
        # Who called has MemoryError, and the connection is given up, under the close code that it had already.
        may_be_cut = is_lost or is_told or "MemoryError" in errors or ("leave",) in run.case.steps
        # A peer that takes nothing for close_timeout gets a part of a frame where nothing fails, too.
        if is_cut(wire) and not may_be_cut and not is_cut(frames(undisturbed)):
            yield "the peer got a part of a frame"
    except ProtocolError as exc:
        yield f"the peer got what is no frame: {exc}"
    if "method _on_readable" in errors:
        yield "the connection goes on without what it has read"
    if not is_lost and not is_told and "MemoryError" not in errors and seen != undisturbed:
        yield "nobody was told"


class Room(broadcasts.Run):
    """A room in which whoever calls may run out of memory."""

    def _event(self, hearer: broadcasts.Hearer, what: float) -> None:
        try:
            super()._event(hearer, what)
        except MemoryError:
            self.seen.append(MemoryError)


def outcome_of_room(number: int, call: int) -> tuple[Room, list[Any], str]:
    """Return the same of a case of broadcasts.py."""
    run = Room(number)
    return run, *_seen(run, call)


def faults_of_room(number: int, call: int, undisturbed: list[Any]) -> Iterator[str]:
    """Yield what is wrong with a room of which a call of this number fails."""
    run, seen, errors = outcome_of_room(number, call)
    end = max(cursor for *_, cursor, _, _ in seen[-2][1:])
    for hearer, state, wire, before in zip(run.hearers, seen[-2][1:], seen[-1], undisturbed[-1], strict=True):
        *_, cursor, _, has_left = state
        is_lost = hearer.ws.close_reason == "out of memory"
        try:
            is_new = is_cut(_behind_head(wire), deflate=True) and not is_cut(_behind_head(before), deflate=True)
            if is_new and not is_lost:
                yield "a member got a part of a frame"
        except ProtocolError as exc:
            yield f"a member got what is no frame: {exc}"
        if cursor != end and not has_left and not is_lost and "MemoryError" not in errors:
            yield "a member lacks what was said"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.failing", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first case")
    parser.add_argument("--cases", type=int, default=40, help="at most")
    options = parser.parse_args()
    end, found, number, failed = monotonic() + options.seconds, 0, options.seed, 0
    kinds: list[tuple[Any, Any]] = [(outcome, faults), (outcome_of_room, faults_of_room)]
    while monotonic() < end and number < options.seed + options.cases:
        for run, look in kinds:
            _, undisturbed, _ = run(number, 0)
            total = calls.value
            others: Any = range(IN_TURN + 1, total + 1)
            others = random.Random(number).sample(others, min(IN_TURN, len(others)))
            for call in [*range(1, min(IN_TURN, total) + 1), *others]:
                failed += 1
                for fault in look(number, call, undisturbed):
                    print(f"{look.__name__}, case {number}, call {call} of {total}: {fault}", flush=True)
                    found += 1
        number += 1
    print(f"{number - options.seed} cases, {failed} failures, {found} faults")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
