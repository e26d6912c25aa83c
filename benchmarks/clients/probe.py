"""The soak's probe: one connection that only measures how long a small echo takes.

It also measures how late it is woken itself, which is what the machine adds.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from time import monotonic, sleep

from . import PATIENCE, Plan, Tally
from .codec import CLOSE, FIN, PING, PONG, TEXT, Misbehaved, check_answer, frame, next_frame, request

PAUSE = 0.02  # seconds between two round trips


class Probe:
    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        key = os.urandom(16)
        self._sock.sendall(request(key, ""))
        while b"\r\n\r\n" not in self._buffer:
            self._receive()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        check_answer(bytes(head), key)

    def round_trip(self) -> float:
        """Return the seconds that an echo takes. Raises Misbehaved, OSError."""
        payload = os.urandom(32).hex().encode()
        began = monotonic()
        self._send(TEXT, payload)
        self._expect(TEXT, payload)
        return monotonic() - began

    def close(self) -> None:
        self._send(CLOSE, b"\x03\xe8")
        self._expect(CLOSE, b"\x03\xe8")
        self._sock.close()

    def _send(self, opcode: int, payload: bytes) -> None:
        self._sock.sendall(frame(FIN | opcode, payload, os.urandom(4)))

    def _expect(self, opcode: int, payload: bytes) -> None:
        while (found := next_frame(self._buffer)) is None or found[0] == FIN | PING:
            if found is None:
                self._receive()
            else:
                self._send(PONG, found[1])
        if found != (FIN | opcode, payload):
            raise Misbehaved("wrong bytes", f"the probe got {found}")

    def _receive(self) -> None:
        data = self._sock.recv(65536)
        if not data:
            raise Misbehaved("unexpected end", "of the probe's connection")
        self._buffer += data


def main() -> None:
    tally = Tally(live=1)
    try:
        probe = Probe(Plan.from_argument().port)
        report_at = monotonic()
        while not select.select([sys.stdin], [], [], 0)[0]:
            tally.round_trips.append(probe.round_trip())
            began = monotonic()
            sleep(PAUSE)
            now = monotonic()
            tally.late = max(tally.late, now - began - PAUSE)
            if now >= report_at:
                tally.report()
                report_at = now + 1
        probe.close()
    except Misbehaved as exc:
        tally.error(exc.kind, exc.details)
    except OSError as exc:
        tally.error("unexpected end", f"of the probe's connection: {exc!r}")
    tally.report()


if __name__ == "__main__":
    main()
