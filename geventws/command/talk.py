"""What the doctor checks on a WebSocket that is open: messages of three sizes, pings, the close, and silence.

Knows the client; how it was opened, the doctor knows.
"""

from __future__ import annotations

import os
import statistics
from time import monotonic
from typing import NamedTuple

from ..connection import Close, Event, Failure, Pong
from ..errors import CloseCode
from . import diagnosis
from .diagnosis import Diagnosis
from .wire import Client, Lost

PASSED, FAILED, RISKY, SKIPPED = "passed", "failed", "risky", "skipped"

TIMEOUT = 10.0  # seconds for each thing waited for: more than accept_after
ECHO_WAIT = 1.0  # seconds for a view to send a message back, once its server has answered a Ping
SIZES = {"5 B": 5, "64 KiB": 65_536, "1 MiB": 1_048_576}
PINGS = 5

_END = (Close, Lost, Failure, type(None))  # what a client receives when nothing more is to come, or not in time


class Finding(NamedTuple):
    """What a check found; the diagnosis is there if it failed or is risky."""

    mark: str
    detail: str
    diagnosis: Diagnosis | None = None


class Failed(Exception):
    """A check failed, and none behind it can pass."""

    def __init__(self, detail: str, diagnosis: Diagnosis) -> None:
        super().__init__(detail)
        self.detail = detail
        self.diagnosis = diagnosis


def echo(client: Client) -> Finding:
    """Send messages, and have the view send them back; a view that keeps the first gets no other."""
    messages: dict[str, str | bytes] = {
        "5 B": "hello",
        "64 KiB": os.urandom(SIZES["64 KiB"] // 2).hex(),  # which is sent compressed
        "1 MiB": os.urandom(SIZES["1 MiB"]),
    }
    passed: list[str] = []
    for size, message in messages.items():
        started = monotonic()
        client.send(message, TIMEOUT)
        end = _await(client, message) if passed else _await_first(client, message)
        detail = ", ".join([*passed, size])
        if isinstance(end, Close):
            return _closed(f"{detail}: closed with {end.code}", end, is_first=not passed)
        if isinstance(end, (Lost, Failure)):
            raise Failed(f"{detail}: {end.reason}", diagnosis.of_lost_message(is_first=not passed))
        if end is None and not passed:
            return Finding(SKIPPED, "the view did not send the message back")
        if end is None:
            raise Failed(f"{detail} did not come back", diagnosis.of_lost_message(is_first=False))
        passed.append(f"{size} in {shown(monotonic() - started)}")
    return Finding(PASSED, ", ".join(passed))


def _await(client: Client, message: str | bytes) -> Event | Lost | None:
    """Return the message once it is back, what ended the connection, or None where neither comes."""
    end = monotonic() + TIMEOUT
    while (event := client.receive(end - monotonic())) != message and not isinstance(event, _END):
        pass
    return event


def _await_first(client: Client, message: str | bytes) -> Event | Lost | None:
    """Do the same, but once a Pong has come, wait no longer than a view takes. Raises Failed if nothing comes."""
    client.ping(b"hello", TIMEOUT)
    end = monotonic() + TIMEOUT
    has_pong = False
    while (event := client.receive(end - monotonic())) != message and not isinstance(event, _END):
        if isinstance(event, Pong):
            has_pong, end = True, monotonic() + ECHO_WAIT
    if event is None and not has_pong:
        raise Failed(f"nothing comes back within {TIMEOUT:g} s", diagnosis.DEAF)
    return event


def _closed(detail: str, close: Close, *, is_first: bool) -> Finding:
    """Judge that the connection was closed where a message was to come back."""
    if close.code == CloseCode.NORMAL_CLOSURE and is_first:
        return Finding(SKIPPED, "the view ended by itself")
    found = diagnosis.of_close(close.code, close.reason)
    if close.code == CloseCode.INTERNAL_ERROR:
        raise Failed(detail, found)
    return Finding(RISKY, detail, found)


def ping(client: Client) -> Finding:
    """Measure round trips, which need no view."""
    seconds = []
    for number in range(PINGS):
        started = monotonic()
        payload = f"ping {number}".encode()
        client.ping(payload, TIMEOUT)
        while (event := client.receive(started + TIMEOUT - monotonic())) != Pong(payload):
            if isinstance(event, Close):
                return Finding(SKIPPED, f"the view closed with {event.code}")
            if isinstance(event, _END):
                raise Failed("no Pong came back" if event is None else event.reason, diagnosis.DEAF)
        seconds.append(monotonic() - started)
    return Finding(PASSED, f"{PINGS} round trips, {shown(statistics.median(seconds))} in the middle")


def close(client: Client) -> Finding:
    """Close with 1000, which is to be answered."""
    client.close()
    end = monotonic() + TIMEOUT
    while not isinstance(event := client.receive(end - monotonic()), _END):
        pass
    if isinstance(event, Close):
        return Finding(PASSED, f"{event.code}, answered")
    return Finding(RISKY, "no answer" if event is None else f"no answer: {event.reason}", diagnosis.NO_CLOSE)


def idle(client: Client, seconds: float) -> Finding:
    """Say nothing for so many seconds, then ping."""
    started = monotonic()
    end = started + seconds
    while not isinstance(event := client.receive(end - monotonic()), _END):
        pass
    passed = monotonic() - started
    if isinstance(event, Close) and event.code == CloseCode.NORMAL_CLOSURE:
        return Finding(SKIPPED, f"the view ended by itself after {passed:.0f} s")
    if isinstance(event, Close):
        raise Failed(f"closed after {passed:.0f} s", diagnosis.of_close(event.code, event.reason))
    if event is not None:
        raise Failed(f"cut after {passed:.0f} s", diagnosis.of_cut(passed, client.answer, client.pings))
    client.ping(b"still there?", TIMEOUT)
    end = monotonic() + TIMEOUT
    while not isinstance(event := client.receive(end - monotonic()), (Pong, *_END)):
        pass
    if not isinstance(event, Pong):
        raise Failed(f"dead after {seconds:g} s", diagnosis.of_cut(seconds, client.answer, client.pings))
    return Finding(PASSED, f"{seconds:g} s, in which the server sent {client.pings} Pings")


def shown(seconds: float) -> str:
    """Return a time as people read it."""
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
