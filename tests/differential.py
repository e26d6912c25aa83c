"""One case after the other, with C and without: bytes in pieces, a view, a peer, kills, timeouts. Both do the same.

    python -m tests.differential --seconds 60 --seed 1

A case is made from its number alone. Two runs of the same kind may differ where the kernel takes a write in other
parts. So a difference counts only if each of several runs of either kind is unlike each of the other.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import random
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any

import gevent
import gevent.socket
from gevent.event import Event

from geventws import keepalive, turns
from geventws import session as session_module
from geventws import websocket as websocket_module
from geventws.connection import OPEN
from geventws.frames import encode_frame
from geventws.handshake import Request
from geventws.message import Prepared
from geventws.options import Options
from geventws.session import Session
from geventws.transport import Transport
from geventws.websocket import WebSocket

from .pairs import ENVIRON, KEY, SMALL, hold_hub, settle

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
RSV1 = 0x40
OFFERS: tuple[Any, ...] = (
    (),
    (("permessage-deflate", ()),),
    (("permessage-deflate", (("client_no_context_takeover", None),)),),
    (("permessage-deflate", (("server_max_window_bits", "10"), ("client_max_window_bits", "9"))),),
)


class PythonSession(Session):
    """One that C leaves alone, as it takes exactly a Session."""

    __slots__ = ()


class PythonTransport(Transport):
    """The same of a Transport."""

    __slots__ = ()


@contextmanager
def kind(is_python: bool) -> Iterator[None]:
    """Have WebSockets be opened that C leaves alone, or as always."""
    before = websocket_module.Session, session_module.Transport  # type: ignore[attr-defined]
    if is_python:
        websocket_module.Session = PythonSession  # type: ignore[attr-defined]
        session_module.Transport = PythonTransport  # type: ignore[attr-defined]
    try:
        yield
    finally:
        websocket_module.Session, session_module.Transport = before  # type: ignore[attr-defined]


@contextmanager
def long_turns(size: int) -> Iterator[None]:
    """Have no turn end by time, of which C takes less, nor by the work for others, whose order is another."""
    before = turns.TURN, turns.WORK_PER_PASS
    _set_turn(1000.0, before[1] if size == 1 else 1 << 60)
    try:
        yield
    finally:
        _set_turn(*before)


def _set_turn(seconds: float, work: int) -> None:
    turns.WORK_PER_PASS = turns.turns().left = work
    modules: list[Any] = [turns, session_module, websocket_module]
    for module in modules:
        module.TURN = seconds
    if compiled := sys.modules.get("geventws._fast"):
        ctypes.c_double.in_dll(ctypes.CDLL(str(compiled.__file__)), "geventws_turn").value = seconds


class Case:
    """What happens, by its number."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)
        chance = self.random.choice
        self.options = Options(
            max_queue=chance([1, 2, 3, 16, 16, 64]),
            max_message_size=chance([1, 125, 1000, 5000, 1 << 20, 1 << 20]),
            max_outbox=chance([1, 4096, 65536]),
            deflate_threshold=chance([1, 50, 192]),
            deflate_context_takeover=chance([False, False, True]),
        )
        self.offers = chance(OFFERS)
        self.is_small = chance([False, False, True])  # the kernel's buffers
        self.view = [self._action() for _ in range(self.random.randrange(1, 40))]
        self.is_echo = chance([False, True])
        self.steps = list(self._steps())

    def _steps(self) -> Iterator[tuple[Any, ...]]:
        """Yield what the peer and other greenlets do."""
        stream = b"".join(self._frame() for _ in range(self.random.randrange(1, 30)))
        while stream:
            size = self.random.randrange(1, self.random.choice([2, 10, 100, 500, 5000, 60_000, 120_000]))
            yield "bytes", stream[:size]
            stream = stream[size:]
            if self.random.random() < 0.3:
                yield self._event()
        yield self.random.choice([("eof",), ("leave",), ("ping",), ("go",)])

    def _event(self) -> tuple[Any, ...]:
        return self.random.choice(
            [
                ("go",),
                ("go",),
                ("read", self.random.randrange(1, 100_000)),
                ("read", 1 << 20),
                ("send", self._message()),
                ("post", self._message()),
                ("kill",),
                ("timeout",),
                ("ping",),
                ("close", self.random.choice([1000, 4001])),
            ]
        )

    def _action(self) -> tuple[Any, ...]:
        """Return one thing that the view does."""
        return self.random.choice(
            [
                ("receive", None),
                ("receive", None),
                ("receive", 0),
                ("iterate", self.random.randrange(1, 6)),
                ("iterate", self.random.randrange(1, 6)),
                ("send", self._message()),
                ("send", self._message()),
                ("post", self._message()),
                ("prepared", self._message()),
                ("many", self.random.randrange(2, 200)),
                ("compute",),
                ("pause",),
                ("closed",),
                ("ping",),
            ]
        )

    def _message(self) -> str | bytes | bytearray:
        size = self.random.choice([0, 1, 20, 64, 125, 126, 127, 300, 2000, 2100, 20_000, 70_000, 150_000])
        data = self.random.randbytes(min(size, 1000)) * (size // 1000 + 1)
        forms: list[str | bytes | bytearray] = [data[:size], bytearray(data[:size]), data.hex()[:size]]
        return self.random.choice([*forms, "é" * size, "x" * size])

    def _frame(self) -> bytes:
        """Return a frame, or several, of the peer's: most are plain."""
        what = self.random.random()
        if what < 0.6:
            message = self._message()
            payload = message.encode() if isinstance(message, str) else bytes(message)
            return self._masked(TEXT if isinstance(message, str) else BINARY, payload)
        if what < 0.75 and self.offers:
            return self._compressed()
        if what < 0.82:
            return self._masked(self.random.choice([PING, PONG]), self.random.randbytes(self.random.randrange(8)))
        if what < 0.88:
            pieces = [
                self.random.randbytes(self.random.choice([0, 3, 200])) for _ in range(self.random.randrange(1, 4))
            ]
            return (
                self._masked(BINARY, b"first", fin=False)
                + b"".join(self._masked(CONTINUATION, piece, fin=False) for piece in pieces)
                + self._masked(CONTINUATION, b"last")
            )
        if what < 0.96:
            ascii_first = "a" * self.random.choice([0, 0, 9000, 100_000])
            return self._masked(TEXT, (ascii_first + "é€😀" * self.random.choice([1, 50, 1000, 20_000])).encode())
        return self._broken()

    def _compressed(self) -> bytes:
        size = self.random.choice([0, 5, 64, 64, 64, 500, 3000, 9000, 100_000])
        payload = self.random.choice([b"x" * size, self.random.randbytes(size), ("é" * (size // 2)).encode()])
        text = b"\x80" not in payload and payload.isascii()
        compressor = zlib.compressobj(6, zlib.DEFLATED, -9)
        data = (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        if self.random.random() < 0.05:
            data = data[:-1] + self.random.randbytes(1)
        return self._masked(RSV1 | (TEXT if text else self.random.choice([TEXT, BINARY, BINARY])), data)

    def _broken(self) -> bytes:
        return self.random.choice(
            [
                self._masked(CLOSE, b"\x03\xe8bye"),
                self._masked(TEXT, b"good until here \xff" + bytes(self.random.choice([0, 200, 9000]))),
                self._masked(TEXT, b"\xed\xa0\x80"),
                self._masked(TEXT, b"a" * 5000 + b"\xed\xa0"),
                self._masked(3, b""),
                self._masked(CONTINUATION, b"of nothing"),
                encode_frame(TEXT, b"not masked"),
                b"\x81\xfe\x00\x05" + b"\x00" * 9,
                b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"\0\0\0\0",
                b"\x82\xff" + (1 << 63).to_bytes(8, "big") + b"\0\0\0\0",
                self._masked(RSV1 | PING, b""),
            ]
        )

    def _masked(self, opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
        first = opcode | (0x80 if fin else 0)
        frame = encode_frame(opcode & 0x0F, payload, fin=fin, masking_key=self.random.randbytes(4))
        return bytes([first]) + frame[1:]


class Run:
    """One run of a case, and what was seen of it."""

    patience = 10.0  # seconds that the end may take

    def __init__(self, case: Case, *, is_alone: bool = True) -> None:
        self.case = case
        self.is_alone = is_alone  # else a timeout of 0 s depends on what others do in the same pass of the loop
        self.seen: list[Any] = []
        self.view: Any = None
        self.go = Event()
        self.wire = bytearray()
        server, self.peer = gevent.socket.socketpair()
        if case.is_small:
            server.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_SNDBUF, SMALL)
        leftovers = itertools.repeat(b"")
        ends = server, lambda: next(leftovers), dict(ENVIRON), lambda size: None
        self.ws = WebSocket(*ends, case.options, Request(KEY, (), case.offers))
        self.ws.accept()

    def run(self) -> list[Any]:
        """Do all steps, and return what was seen."""
        self.begin()
        for step in self.case.steps:
            self.step(step)
            settle()
            self.note_step()
        return self.end()

    def begin(self) -> None:
        """Start the view."""
        self.view = gevent.spawn(self._view)
        self.ws.belongs_to(self.view)

    def end(self) -> list[Any]:
        """Return what was seen: by the view, by others, by the peer."""
        settle()
        self._note("state", *self._state())
        self.view.kill(block=False)
        settle()
        ending = gevent.spawn(self.ws.finish)
        end = monotonic() + self.patience
        while not self.ws.has_ended and monotonic() < end:
            self._read(1 << 20)
            with suppress(OSError):
                self.peer.shutdown(1)
            settle()
        ending.kill()
        self._read(1 << 20)
        self.peer.close()
        self._note("end", *self._state())
        self._note("wire", bytes(self.wire))
        return self.seen

    def note_step(self) -> None:
        """Note that a step is over."""
        self._note("step")

    def _note(self, *what: Any) -> None:
        self.seen.append(what)

    def _state(self) -> tuple[Any, ...]:
        ws, session = self.ws, self.ws.session
        connection, transport = session.connection, session.transport
        seen = [connection.state, list(session.queue), ws.close_code, ws.close_reason, session.cause]
        seen += [ws.messages_received, ws.messages_sent, connection.limited, connection.inflated]
        if connection.state is OPEN:  # what comes behind the end is thrown away, at a pace of its own
            seen += [session.reader is None, transport.reading]
        return tuple(seen)

    def step(self, step: tuple[Any, ...]) -> None:
        """Do what the peer or another greenlet does next."""
        view = self.view
        name, *values = step
        if name == "bytes":
            with suppress(OSError):
                self.peer._sock.send(values[0])
        elif name == "read":
            self._read(values[0])
        elif name == "go":
            self.go.set()
        elif name == "kill":
            view.kill(block=False)
        elif name == "timeout":
            if not view.dead:
                gevent.get_hub().loop.run_callback(view.throw, gevent.Timeout(None))
        elif name == "eof":
            self.peer.shutdown(1)
        elif name == "leave":  # with what it has not read, which is a reset
            self.peer.close()
        else:
            helper = gevent.spawn(self._attempt, name, *values)
            settle()
            helper.kill(block=False)

    def _read(self, size: int) -> None:
        while size > 0:
            try:
                data = self.peer._sock.recv(min(size, 65536), 0x40)  # MSG_DONTWAIT
            except OSError:
                return
            if not data:
                return
            self.wire += data
            size -= len(data)
            settle()

    def _view(self) -> None:
        for name, *values in self.case.view:
            self._attempt(name, *values)
        while self.case.is_echo and not self.ws.closed:
            try:
                for message in self.ws:
                    self._note("got", message)
                    self.ws.send(message)
            except (Exception, gevent.Timeout) as exc:
                self._note("raised", type(exc), str(exc))

    def _attempt(self, name: str, *values: Any) -> None:
        try:
            result = getattr(self, "_" + name)(*values)
        except gevent.GreenletExit:
            self._note(name, "killed")
            raise
        except (Exception, gevent.Timeout) as exc:
            self._note(name, type(exc), str(exc))
        else:
            self._note(name, result)

    def _receive(self, timeout: float | None) -> Any:
        if timeout is None:
            return self.ws.receive()
        return self.ws.receive(timeout) if self.is_alone else None

    def _iterate(self, count: int) -> Any:
        got = []
        for message in self.ws:
            got.append(message)
            self._note("got", message)
            if len(got) == count:
                break
        return len(got)

    def _send(self, message: Any) -> None:
        self.ws.send(message)

    def _post(self, message: Any) -> bool:
        return self.ws.post(message)

    def _prepared(self, message: Any) -> None:
        self.ws.send(Prepared(message))

    def _many(self, count: int) -> None:
        for number in range(count):
            self.ws.send(str(number))

    def _compute(self) -> None:
        hold_hub(0.006)

    def _pause(self) -> None:
        self.go.clear()
        self.go.wait(1.0 if self.case.is_echo else None)

    def _closed(self) -> bool:
        return self.ws.closed

    def _ping(self) -> None:
        if self.is_alone:
            self.ws.ping(0)

    def _close(self, code: int) -> None:
        self.ws.close(code)


def outcome(number: int, size: int, *, is_python: bool) -> list[Any]:
    """Return what is seen of so many cases beside each other."""
    with kind(is_python), long_turns(size):
        keepalive._number = itertools.count(1)  # of pings, as the peer sees them
        runs = [Run(Case(number + index), is_alone=size == 1) for index in range(size)]
        for run in runs:
            run.begin()
        for steps in itertools.zip_longest(*(run.case.steps for run in runs)):
            for run, step in zip(runs, steps, strict=True):
                if step is not None:
                    run.step(step)
            for _ in range(1 if size == 1 else 5):  # what the work for all leaves for later passes
                settle()
            for run in runs:
                run.note_step()
        return [run.end() for run in runs]


def difference(number: int, size: int = 1) -> str:
    """Return the first difference between C and Python, an empty string where there is none."""
    outcomes = [(outcome(number, size, is_python=False), outcome(number, size, is_python=True))]
    for _ in range(4):
        in_c, in_python = zip(*outcomes, strict=True)
        differing = [
            index for index in range(size) if not any(c[index] == python[index] for c in in_c for python in in_python)
        ]
        if not differing:
            return ""
        outcomes.append((outcome(number, size, is_python=False), outcome(number, size, is_python=True)))
    index = differing[0]
    pairs = itertools.zip_longest(in_c[0][index], in_python[0][index], fillvalue=())
    first = next(pair for pair in pairs if pair[0] != pair[1])
    parts = [pair for pair in itertools.zip_longest(*first) if pair[0] != pair[1]]
    return f"case {number + index} of {number}, {first[0][:1]}: C, Python {str(parts)[:200]}"


def arguments(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Return what says which cases are run, and for how long."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cases", type=int, help="so many, however long they take")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first case")
    return parser


def compare(options: argparse.Namespace, difference: Callable[[int], str], size: int = 1) -> int:
    """Print the differences of cases, `size` at a time, and how many there were; return whether there were any."""
    end, found, number = monotonic() + options.seconds, 0, options.seed
    while monotonic() < end if options.cases is None else number < options.seed + options.cases:
        if told := difference(number):
            print(told, flush=True)
            found += 1
        number += size
    print(f"{number - options.seed} cases, {found} differences")
    return bool(found)


def main() -> int:
    parser = arguments("python -m tests.differential", __doc__)
    parser.add_argument("--size", type=int, default=1, help="cases beside each other")
    options = parser.parse_args()
    return compare(options, partial(difference, size=options.size), options.size)


if __name__ == "__main__":
    sys.exit(main())
