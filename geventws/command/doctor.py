"""The doctor: checks a WebSocket URL step by step, as a browser would reach it, and stops where nothing more can pass.

Knows the order of the checks; what a failure means, the diagnosis knows.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from time import monotonic, time
from typing import Any, NamedTuple

from ..errors import WebSocketError
from ..loglines import printable
from ..permessage_deflate import NAME
from . import diagnosis, talk, wire
from .diagnosis import Diagnosis
from .talk import FAILED, PASSED, RISKY, SKIPPED, TIMEOUT, Failed, Finding, shown
from .wire import Answer, Client, NoAnswer, Target

STRANGER = "https://stranger.example"
SLOW = 2.0  # seconds of a handshake that are told
AT_ONCE = 3
TLS_TIMEOUT = 3.0  # seconds for a port that hung up on HTTP to answer to TLS
TLS_ALERT = b"\x15\x03"
SOON = 14 * 86_400  # seconds before its end at which a certificate is told


class Result(NamedTuple):
    """What one check found. diagnosis is there if it failed or is risky."""

    name: str
    mark: str
    detail: str
    diagnosis: Diagnosis | None = None


class Doctor:
    """Checks one URL."""

    def __init__(
        self,
        target: Target,
        headers: Sequence[tuple[str, str]] = (),
        *,
        origin: str | None = None,
        subprotocols: Sequence[str] = (),
        idle: float | None = None,
        via: bool = False,
    ) -> None:
        """Take what is checked; origin is that of the page, by default of the URL's host, and idle is seconds."""
        self._target = target
        self._headers = headers
        self._origin = origin or target.origin
        self._subprotocols = subprotocols
        self._idle_seconds = idle
        self._is_via = via
        self._speaks_tls = target.secure
        self._places: list[tuple[int, Any]] = []
        self._opened: list[Client] = []  # by a check; all but the one that is kept are left behind it
        self._kept: Client | None = None  # of the echo, then of ping and close

    def run(self) -> Iterator[Result]:
        """Give the result of each check once it is there; those behind a failure are skipped."""
        checks: dict[str, Callable[[], Finding]] = {
            "name": self._name,
            "TCP": self._tcp,
            "TLS": self._tls,
            "handshake": self._handshake,
            "compression": self._compression,
            "own origin": self._own_origin,
            "foreign origin": self._foreign_origin,
            "subprotocol": self._subprotocol,
            "echo": self._echo,
            "ping": self._ping,
            "close": self._close,
            "three at once": self._three,
            "idle": self._idle,
        }
        failed = ""
        for name, check in checks.items():
            if failed:
                yield Result(name, SKIPPED, f"needs {failed}")
                continue
            try:
                yield Result(name, *check())
            except Failed as exc:
                failed = name
                yield Result(name, FAILED, exc.detail, exc.diagnosis)
            if failed:
                self._kept = None
            for client in self._opened:
                if client is not self._kept:
                    client.leave()
            self._opened = [self._kept] if self._kept else []

    # The way there

    def _name(self) -> Finding:
        if isinstance(self._target.address, str):
            self._places = wire.resolve(self._target)
            return Finding(SKIPPED, "a Unix socket needs none")
        name = self._target.address[0]
        try:
            self._places = wire.resolve(self._target)
        except OSError as exc:
            raise Failed(f"{name}: {exc.strerror or exc}", diagnosis.of_name(name)) from exc
        addresses = [str(address[0]) for _, address in self._places]
        return Finding(PASSED, f"{name} is {', '.join(addresses) if addresses != [name] else 'an address'}")

    def _tcp(self) -> Finding:
        started = monotonic()
        for place in self._places:
            try:
                wire.dial(*place, TIMEOUT).close()
            except OSError as exc:
                error = exc
                continue
            self._places = [place]
            return Finding(PASSED, f"{self._target.place}, {shown(monotonic() - started)}")
        raise Failed(f"{self._target.place}: {error.strerror or error}", diagnosis.of_connecting(error, self._target))

    def _tls(self) -> Finding:
        if not self._speaks_tls:
            return Finding(SKIPPED, "ws:// has none")
        try:
            with self._connected() as sock:
                version, certificate = sock.version(), sock.getpeercert()
        except OSError as exc:
            if self._is_via and not isinstance(exc, ssl.SSLCertVerificationError):
                self._speaks_tls = False
                return Finding(SKIPPED, f"{self._target.place} has none")
            words = getattr(exc, "verify_message", None) or getattr(exc, "reason", None) or exc
            raise Failed(str(words), diagnosis.of_tls(exc, self._target)) from exc
        until = certificate["notAfter"]
        if ssl.cert_time_to_seconds(until) - time() < SOON:
            return Finding(RISKY, f"{version}, certificate until {until}", diagnosis.ENDS_SOON)
        return Finding(PASSED, f"{version}, certificate until {until}")

    def _connected(self) -> Any:
        sock = wire.dial(*self._places[0], TIMEOUT)
        return wire.secured(sock, self._target.name, TIMEOUT) if self._speaks_tls else sock

    # The handshake

    def _ask(self, origin: str | None = None, *, deflate: bool = False, version: str = "13") -> Client | Answer:
        """Return an open WebSocket, or the answer that refuses it."""
        asked = wire.request(
            self._target,
            self._headers,
            origin=origin,
            subprotocols=self._subprotocols,
            deflate=deflate,
            version=version,
        )
        try:
            sock = self._connected()
        except OSError as exc:
            raise Failed(str(exc), diagnosis.of_connecting(exc, self._target)) from exc
        try:
            answer, rest = wire.ask(sock, self._target, asked, TIMEOUT)
            if answer.status == 101:
                client, sock = Client(sock, answer, rest, asked), None
                self._opened.append(client)
                return client
            return answer
        except NoAnswer as exc:
            may_be_tls = not exc.received or exc.received.startswith(TLS_ALERT)
            found = diagnosis.of_silence(str(exc), exc.received, speaks_tls=may_be_tls and self._is_tls_port())
            raise Failed(str(exc), found) from exc
        except WebSocketError as exc:
            raise Failed(str(exc), diagnosis.STRANGE_ANSWER) from exc
        finally:
            if sock is not None:
                sock.close()

    def _open(self, origin: str | None = None, *, deflate: bool = False) -> Client:
        """Return an open WebSocket. Raises Failed, with what the answer means."""
        found = self._ask(origin, deflate=deflate)
        if isinstance(found, Client):
            return found
        raise Failed(_status(found), diagnosis.of_answer(found, self._target, origin, self._is_reached(found)))

    def _is_reached(self, answer: Answer) -> bool:
        """Whether geventws sees handshakes here: it refuses one of an impossible version before the app sees it."""
        if answer.rule is not None:
            return answer.rule != "upgrade"
        with suppress(Failed):
            found = self._ask(version="0")
            return isinstance(found, Answer) and found.rule not in {None, "upgrade"}
        return False

    def _is_tls_port(self) -> bool:
        """Whether the port speaks TLS though we do not."""
        if self._speaks_tls:
            return False
        try:
            sock = wire.dial(*self._places[0], TIMEOUT)
            wire.secured(sock, self._target.name, TLS_TIMEOUT, verify=False).close()
        except OSError:
            return False
        return True

    def _handshake(self) -> Finding:
        started = monotonic()
        client = self._open()
        seconds = monotonic() - started
        server = client.answer.headers["Server"]
        detail = f"101, {shown(seconds)}" + (f", by {printable(server)}" if server else "")
        return Finding(PASSED, detail) if seconds < SLOW else Finding(RISKY, detail, diagnosis.SLOW_HANDSHAKE)

    def _compression(self) -> Finding:
        if self._open(deflate=True).agreement is None:
            return Finding(SKIPPED, "none agreed, messages travel as they are")
        return Finding(PASSED, NAME)

    def _own_origin(self) -> Finding:
        self._open(self._origin, deflate=True)
        return Finding(PASSED, self._origin)

    def _foreign_origin(self) -> Finding:
        found = self._ask(STRANGER)
        if isinstance(found, Client):
            return Finding(RISKY, f"{STRANGER} is let in", diagnosis.ANY_ORIGIN)
        if not 400 <= found.status < 500:
            raise Failed(_status(found), diagnosis.of_answer(found, self._target, None, self._is_reached(found)))
        return Finding(PASSED, f"{STRANGER} is refused with {found.status}")

    def _subprotocol(self) -> Finding:
        if not self._subprotocols:
            return Finding(SKIPPED, "none asked for, see --subprotocol")
        chosen = self._open(self._origin).subprotocol
        if chosen is not None:
            return Finding(PASSED, chosen)
        found = diagnosis.of_no_subprotocol(self._subprotocols[0])
        return Finding(FAILED, f"none of {', '.join(self._subprotocols)} is chosen", found)

    # The open WebSocket

    def _echo(self) -> Finding:
        self._kept = self._open(self._origin, deflate=True)
        return talk.echo(self._kept)

    def _ping(self) -> Finding:
        return talk.ping(self._standing())

    def _close(self) -> Finding:
        client = self._standing()
        self._kept = None
        return talk.close(client)

    def _standing(self) -> Client:
        """Return the client of the echo, or a new one where that has ended."""
        if self._kept is None or self._kept.has_ended:
            self._kept = self._open(self._origin)
        return self._kept

    def _three(self) -> Finding:
        for number in range(AT_ONCE):
            found = self._ask(self._origin)
            if isinstance(found, Answer):
                raise Failed(f"{number} pass, then {_status(found)}", diagnosis.of_three(found))
        return Finding(PASSED, "all open")

    def _idle(self) -> Finding:
        if self._idle_seconds is None:
            return Finding(SKIPPED, "not asked for, see --idle SECONDS")
        return talk.idle(self._open(self._origin), self._idle_seconds)


def _status(answer: Answer) -> str:
    return f"{answer.status} {printable(answer.phrase)}".strip()
