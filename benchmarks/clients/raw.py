"""Raw clients of the soak: thousands of connections in one process, of which some read slowly, idle, or end badly."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import cast

from . import LARGEST, PATIENCE, Corpus, Message, Plan, Tally, run
from .codec import (
    BINARY,
    CLOSE,
    FIN,
    PING,
    PONG,
    RSV1,
    TEXT,
    Deflate,
    Misbehaved,
    check_answer,
    frame,
    mask,
    next_frame,
    request,
)

TICK = 0.01  # seconds
OPENING_AT_ONCE = 16
IN_FLIGHT = 8  # messages, at most
KEYS = 4  # masking keys, of which each has its masked corpus at hand
FRAGMENTED = 0.2  # of the messages; the shares below are of the connections
COMPRESSED = 0.8  # of the messages, where it was agreed
IDLE, SLOW, OFFERING, DROPPED_EARLY = 0.1, 0.005, 0.25, 0.02
IDLE_PAUSE = 30.0  # seconds between two messages of an idle connection, on average: more than ping_interval
SLOW_BURST = 6 << 20  # bytes; more than the kernel and max_outbox hold
SLOW_BUFFER = 32_768  # bytes that the kernel keeps for a slow peer, who takes at most twice that
SLOW_PAUSE = 0.25  # seconds, and then waits
OFFERS = (
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    "permessage-deflate; server_max_window_bits=10; client_max_window_bits=12, permessage-deflate",
)
MANNERS = ("close", "bye", "half-close", "reset", "reset in a frame", "drop")
GENTLE = ("close", "bye")
CLOSE_CODES = (1000, 1001, 3000, 4999, None)
RESET = struct.pack("ii", 1, 0)


class Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self, crowd: Crowd) -> None:
        rng = crowd.rng
        self.crowd = crowd
        self.manner = ""  # of the end that it was told to come to; empty while it must live
        self.is_open = False
        self.is_slow = rng.random() < SLOW
        self.is_idle = not self.is_slow and rng.random() < IDLE
        self.pending: deque[Message] = deque()
        self._rng = rng
        self._key = rng.randbytes(16)
        self._offer = rng.choice(OFFERS) if rng.random() < OFFERING else ""
        self._deflate: Deflate | None = None
        self._buffer = bytearray()
        self._pings: list[bytes] = []
        self._close_payload = b""
        self._close_received = False
        self._failed = False
        self._waiting_since = monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.crowd.peers.add(self)
        handshake = request(self._key, self._offer)
        if self._rng.random() < DROPPED_EARLY:
            self.transport.write(handshake[: self._rng.randrange(len(handshake) + 1)])
            # Not from within connection_made(): asyncio has yet to begin to read.
            asyncio.get_running_loop().call_soon(self.end, "reset in the handshake")
        else:
            self.transport.write(handshake)

    # Sending

    def send(self, message: Message) -> None:
        """Send a message whole or in fragments, compressed or not."""
        if not self.is_waiting:
            self._waiting_since = monotonic()
        self.pending.append(message)
        cuts = self._cuts(message)
        first = TEXT if message.is_text else BINARY
        if self._deflate and self._rng.random() < COMPRESSED and message.stop - message.start < LARGEST - 1024:
            compressed = self._deflate.compress(self.crowd.corpus.data[message.start : message.stop])
            scale = len(compressed) / max(message.stop - message.start, 1)
            cuts = [int((cut - message.start) * scale) for cut in cuts]
            pieces = [compressed[start:stop] for start, stop in _ranges(0, len(compressed), cuts)]
            frames = [(piece, self._rng.randbytes(4), False) for piece in pieces]
            first |= RSV1
            self.crowd.tally.counts["sent compressed"] += 1
        else:
            frames = [
                (*self.crowd.masked(start, stop), True) for start, stop in _ranges(message.start, message.stop, cuts)
            ]
        wire = []
        for number, (payload, key, masked) in enumerate(frames):
            opcode = (0 if number else first) | (FIN if number == len(frames) - 1 else 0)
            wire.append(frame(opcode, payload, key, masked=masked))
            if len(frames) > 1 and self._rng.random() < 0.1:
                wire.append(self._ping())
        self.transport.write(b"".join(wire))
        self.crowd.tally.counts["sent fragmented"] += len(frames) > 1

    def _cuts(self, message: Message) -> list[int]:
        """Return where to cut it: a fragment may be empty, and a character in two."""
        if self._rng.random() >= FRAGMENTED or message.stop - message.start > LARGEST - 1024:
            return []
        return sorted(self._rng.randint(message.start, message.stop) for _ in range(self._rng.randrange(1, 6)))

    def _ping(self) -> bytes:
        payload = self._rng.randbytes(self._rng.randrange(126))
        self._pings.append(payload)
        return self._control(PING, payload)

    def _control(self, opcode: int, payload: bytes) -> bytes:
        return frame(FIN | opcode, payload, self._rng.randbytes(4))

    # Ending

    def end(self, manner: str) -> None:
        """End the connection in one of MANNERS."""
        self.manner = manner
        self.crowd.closing(self)
        self._waiting_since = monotonic()
        if manner == "close":
            code = self._rng.choice(CLOSE_CODES)
            self._close_payload = b"" if code is None else struct.pack("!H", code) + b"enough"
            self.transport.write(self._control(CLOSE, self._close_payload))
        elif manner == "bye":
            self.transport.write(self._control(TEXT, b"bye"))
        elif manner == "half-close":
            self.transport.write_eof()
        else:
            if manner == "reset in a frame":
                whole = frame(FIN | BINARY, self._rng.randbytes(200), self._rng.randbytes(4))
                self.transport.write(whole[: self._rng.randrange(1, len(whole))])
            if manner != "drop":
                sock = self.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()

    def _fail(self, kind: str, details: str) -> None:
        if not self._failed:
            self._failed = True
            self.crowd.tally.error(kind, f"{details} ({self})")
        self.transport.abort()

    def __str__(self) -> str:
        traits = ["slow"] * self.is_slow + ["idle"] * self.is_idle + ["deflate"] * (self._deflate is not None)
        end = f", told to end by {self.manner}" if self.manner else ""
        return f"{' '.join(traits) or 'plain'}, {len(self.pending)} messages pending{end}"

    # Receiving

    @property
    def is_waiting(self) -> bool:
        return not self.is_open or bool(self.manner or self.pending or self._pings)

    def judge(self, now: float) -> None:
        """Fail if what must come did not come in time."""
        if self.is_waiting and now - self._waiting_since > PATIENCE:
            what = f"end by {self.manner}" if self.manner else "echo" if self.is_open else "handshake"
            self._fail(f"no {what} in {PATIENCE:g} s", "")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            if self.is_open or self._finish_handshake():
                while not self._failed and (found := next_frame(self._buffer)):
                    self._take(*found)
        except Misbehaved as exc:
            self._fail(exc.kind, exc.details)
        if self.is_slow and self.is_open and not self.crowd.leaving:
            self.transport.pause_reading()

    def _finish_handshake(self) -> bool:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return False
        agreed = check_answer(bytes(head), self._key)
        if agreed:
            if not self._offer:
                raise Misbehaved("wrong extension", f"not offered: {agreed}")
            self._deflate = Deflate(agreed)
        self._buffer = rest
        self.is_open = True
        self.crowd.opened(self)
        self.crowd.tally.counts["opened"] += 1
        self.crowd.tally.counts["opened with deflate"] += bool(agreed)
        return True

    def _take(self, first: int, payload: bytes) -> None:
        if self._close_received:
            raise Misbehaved("frame behind Close", f"{first:#x}, {len(payload)} bytes")
        compressed = first == (FIN | RSV1 | TEXT) or first == (FIN | RSV1 | BINARY)
        if compressed and self._deflate:
            first &= ~RSV1
        if first == FIN | TEXT or first == FIN | BINARY:
            self._take_message(first == FIN | TEXT, payload, compressed)
        elif first == FIN | PING:
            self.crowd.tally.counts["pings answered"] += 1
            if self.manner not in {"close", "half-close"}:  # after which it may send no more
                self.transport.write(self._control(PONG, payload))
        elif first == FIN | PONG:
            if payload not in self._pings:
                raise Misbehaved("pong without a ping", payload.hex())
            del self._pings[: self._pings.index(payload) + 1]  # §5.5.3 lets the newest answer for all
            self._waiting_since = monotonic()
        elif first == FIN | CLOSE:
            self._take_close(payload)
        else:
            raise Misbehaved("wrong frame", f"{first:#x}, {len(payload)} bytes")

    def _take_message(self, is_text: bool, payload: bytes, compressed: bool) -> None:
        if not self.pending:
            raise Misbehaved("message out of nothing", f"{len(payload)} bytes: {payload[:40]!r}")
        expected = self.pending.popleft()
        size = expected.stop - expected.start
        if compressed:
            assert self._deflate is not None
            payload = self._deflate.inflate(payload, size)
        if is_text != expected.is_text or payload != self.crowd.corpus.data[expected.start : expected.stop]:
            wanted, got = ("text" if kind else "binary" for kind in (expected.is_text, is_text))
            raise Misbehaved("wrong bytes", f"{got} of {len(payload)} bytes, sent was {wanted} of {size}")
        self._waiting_since = monotonic()
        self.crowd.tally.counts["messages"] += 1
        self.crowd.tally.counts["bytes"] += size
        self.crowd.tally.counts["received compressed"] += compressed

    def _take_close(self, payload: bytes) -> None:
        self._close_received = True
        code = int.from_bytes(payload[:2], "big")
        if self.manner == "close":
            if payload[:2] != self._close_payload[:2]:
                raise Misbehaved("wrong close code", f"{code} for {self._close_payload!r}")
        elif self.manner == "bye" and code == 1000:
            if self.pending:
                raise Misbehaved("echo lost before the view's Close", f"{len(self.pending)} messages")
            self.transport.write(self._control(CLOSE, payload))
        else:
            raise Misbehaved("unexpected Close", f"{code} {payload[2:].decode(errors='replace')}")

    def connection_lost(self, exc: Exception | None) -> None:
        crowd = self.crowd
        crowd.closing(self)
        crowd.peers.discard(self)
        if self._failed:
            return
        if not self.manner:
            self._fail("unexpected end" if self.is_open else "unexpected end of the handshake", str(exc or "EOF"))
        elif self.manner in GENTLE and not self._close_received:
            self._fail("end without Close", str(exc or "EOF"))
        elif self.manner in GENTLE and exc is not None:
            self._fail("reset behind Close", str(exc))
        else:
            crowd.tally.counts[f"ended by {self.manner}"] += 1
            crowd.tally.counts["unanswered"] += len(self.pending)


class Crowd:
    """The connections of this process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.corpus = Corpus(self.rng)
        self.tally = Tally()
        self.peers: set[Peer] = set()
        self.leaving = False
        self._open: list[Peer] = []  # of them those that were not told to end
        self._opening: set[asyncio.Task[None]] = set()
        keys = [self.rng.randbytes(4) for _ in range(KEYS)]
        self._masked = [(key * 2, mask(self.corpus.data, key)) for key in keys]

    def masked(self, start: int, stop: int) -> tuple[bytes, bytes]:
        """Return a piece of the corpus, masked, and its key: the corpus's, turned to where the piece begins."""
        keys, masked = self.rng.choice(self._masked)
        return masked[start:stop], keys[start % 4 : start % 4 + 4]

    def opened(self, peer: Peer) -> None:
        self._open.append(peer)

    def closing(self, peer: Peer) -> None:
        with suppress(ValueError):
            self._open.remove(peer)

    async def run(self, told: asyncio.Event) -> None:
        """Keep the plan until told to leave, then end every connection in peace."""
        last = monotonic()
        budget = dict.fromkeys(("send", "end", "second", "slow"), 0.0)
        while self.peers or self._opening or not self.leaving:
            await asyncio.sleep(TICK)
            last, elapsed = monotonic(), min(monotonic() - last, 1.0)
            budget["send"] += elapsed * self.plan.rate
            budget["end"] += elapsed * self.plan.connections / self.plan.lifetime
            budget["second"] += elapsed
            budget["slow"] += elapsed / SLOW_PAUSE
            due = {name: int(amount) for name, amount in budget.items()}
            for name, count in due.items():
                budget[name] -= count
            if told.is_set():
                self._leave()
            else:
                self._open_more()
                self._send_some(due["send"])
                self._end_some(due["end"])
            if due["slow"]:
                self._resume_slow()
            if due["second"]:
                self._each_second(last)
        self.tally.live = 0
        self.tally.report()

    def _open_more(self) -> None:
        missing = self.plan.connections - len(self.peers) - len(self._opening)
        for _ in range(min(missing, OPENING_AT_ONCE - len(self._opening))):
            task = asyncio.create_task(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        peer = Peer(self)
        sock = socket.socket()
        sock.setblocking(False)
        if peer.is_slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
        try:
            await asyncio.wait_for(loop.sock_connect(sock, ("127.0.0.1", self.plan.port)), PATIENCE)
        except (OSError, asyncio.TimeoutError) as exc:
            sock.close()
            self.tally.error("no connection", str(exc) or f"in {PATIENCE:g} s")
            return
        await loop.create_connection(lambda: peer, sock=sock)

    def _send_some(self, count: int) -> None:
        for _ in range(count if self._open else 0):
            peer = self.rng.choice(self._open)
            if not (peer.is_idle or peer.is_slow) and len(peer.pending) < IN_FLIGHT:
                peer.send(self.corpus.pick())

    def _end_some(self, count: int) -> None:
        for _ in range(count if self._open else 0):
            self.rng.choice(self._open).end(self.rng.choice(MANNERS))

    def _resume_slow(self) -> None:
        for peer in self.peers:
            if peer.is_slow and peer.is_open:
                peer.transport.resume_reading()

    def _each_second(self, now: float) -> None:
        for peer in list(self.peers):
            peer.judge(now)
        for peer in [] if self.leaving else self._open:
            if peer.is_slow and not peer.pending:
                total = 0
                while total < SLOW_BURST:
                    message = self.corpus.pick(self.rng.randrange(LARGEST // 16, LARGEST - 1024))
                    total += message.stop - message.start
                    peer.send(message)
            elif peer.is_idle and self.rng.random() < 1 / IDLE_PAUSE:
                peer.send(self.corpus.pick())
        self.tally.live = len(self.peers)
        self.tally.report()

    def _leave(self) -> None:
        """Close what waits for nothing more; a slow peer hurries now."""
        if not self.leaving:
            self.leaving = True
            self._resume_slow()
        for peer in list(self._open):
            if not peer.is_waiting:
                peer.end("close")


def _ranges(start: int, stop: int, cuts: list[int]) -> list[tuple[int, int]]:
    return list(zip([start, *cuts], [*cuts, stop], strict=True))


async def main(told: asyncio.Event) -> None:
    await Crowd(Plan.from_argument()).run(told)


if __name__ == "__main__":
    os.nice(5)  # the server and the probe come first
    run(main)
