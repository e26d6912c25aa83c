"""The load of the echo benchmark: opens the connections, says what is sent on them and what must come back.

Knows WebSocket, permessage-deflate and Socket.IO from the client's side; load.c, which takes the connections over,
knows only bytes. Therefore each different message is echoed and checked here once: after that, an echo of the same
bytes is right.
"""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from .clients import codec
from .servers import Running, Server

WARM_UP = 0.5  # seconds
PATIENCE = 10.0  # seconds for any answer but those that load.c awaits
OFFER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

Sample = dict[str, float]


@dataclass(frozen=True)
class Scenario:
    name: str
    connections: int
    in_flight: int
    size: int  # bytes
    kind: str  # text, binary; text that is sent compressed to those who agree: json, and deflated, as browsers do

    @property
    def compresses(self) -> bool:
        """Whether the client offers compression."""
        return self.kind in ("json", "deflated")

    def __str__(self) -> str:
        sizes = ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes"))
        size = next(f"{self.size // unit} {name}" for unit, name in sizes if self.size >= unit)
        kind = {"json": "JSON", "deflated": "text, compressed by the client,"}.get(self.kind, self.kind)
        return f"{self.name}: {kind} of {size}, {self.connections} connections, {self.in_flight} in flight on each"


class WrongEcho(Exception):
    """A server answered with something else than the echo; the message says with what."""


def measure(load: Path, core: int, server: Server, process: Running, scenario: Scenario, seconds: float) -> Sample:
    """Return what load.c counted, with the rate, the bytes of an echo, and the processor time of server and others.

    Raises WrongEcho when a reply is not the echo, or does not come.
    """
    with ExitStack() as stack:
        try:
            connections = [
                stack.enter_context(closing(connect(server, process.port, scenario)))
                for _ in range(scenario.connections)
            ]
            exchanges = [connections[0].exchange(message) for message in messages(scenario)]
        except (OSError, codec.Misbehaved) as error:
            raise WrongEcho(f"{type(error).__name__}: {error}") from error
        files = [each.fileno() for each in connections]
        command = [str(part) for part in (load, scenario.in_flight, WARM_UP, seconds, *files)]
        plan = b"".join(struct.pack("=II", len(sent), len(echo)) + sent + echo for sent, echo in exchanges)
        before = time.monotonic(), machine_seconds(), process.cpu_seconds(), own_seconds()
        pipe = subprocess.PIPE
        with subprocess.Popen(command, pass_fds=files, stdin=pipe, stdout=pipe, stderr=pipe) as client:
            os.sched_setaffinity(client.pid, {core})
            result, reason = client.communicate(plan)
        after = time.monotonic(), machine_seconds(), process.cpu_seconds(), own_seconds()
        if client.returncode:
            raise WrongEcho(reason.decode().strip())
        for each in connections:
            each.end()
    wall, machine_used, server_used, load_used = (end - begin for begin, end in zip(before, after, strict=True))
    sample: Sample = json.loads(result)
    sample["rate"] = sample["messages"] / sample["seconds"]
    sample["wire"] = sum(len(echo) for _, echo in exchanges) / len(exchanges)
    sample["server_us"] = 1e6 * server_used / sample["messages_in_all"]
    sample["other_work"] = max(0.0, machine_used - server_used - load_used) / (wall * (os.cpu_count() or 1))
    return sample


def machine_seconds() -> float:
    """Return the processor time that anything on the machine used, or that its host took, since it started."""
    user, nice, system, _idle, _iowait, *others = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    return sum(map(int, (user, nice, system, *others))) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Return the processor time of this process and of its children that ended."""
    return sum(os.times()[:4])


def messages(scenario: Scenario) -> Iterator[str | bytes]:
    """Yield different messages of one size, the same at every start.

    Four show an echo in the wrong place; zlib is given more, as it is faster with what it has just seen.
    """
    write = random.Random(6455)
    for _ in range(64 if scenario.kind == "json" else 4):
        if scenario.kind == "binary":
            yield write.randbytes(scenario.size)
        elif scenario.kind in ("text", "deflated"):
            yield "".join(write.choices("abcdefghijklmnopqrstuvwxyz ", k=scenario.size))
        else:
            yield records(write, scenario.size)


def records(write: random.Random, size: int) -> str:
    """Return a JSON list of objects as an API answers with; a last text brings it to the size."""
    words = ["".join(write.choices("aeinrstlodmup", k=write.randint(3, 9))) for _ in range(300)]
    listed: list[object] = []
    while len(text := json.dumps([*listed, ""], separators=(",", ":"))) < size - 250:
        first, last, *note = write.choices(words, k=9)
        number, price = write.randrange(10**6), write.randrange(10**5) / 100
        record: dict[str, object] = {"id": number, "name": f"{first} {last}", "email": f"{first}.{last}@example.org"}
        record |= {"price": price, "active": number % 3 > 0, "updated": f"2026-11-21T08:{number % 60:02}:00Z"}
        listed.append({**record, "note": " ".join(note)})
    filling = " ".join(write.choices(words, k=size))[: size - len(text)]
    return json.dumps([*listed, filling], separators=(",", ":"))


def connect(server: Server, port: int, scenario: Scenario) -> RawConnection:
    kind = RawConnection if server.raw else SocketIOConnection if server.socketio else WebSocketConnection
    return kind(port, OFFER if scenario.compresses else "")


class RawConnection:
    """One connection, up to where load.c takes it over, and its end."""

    def __init__(self, port: int, offer: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._compresses = bool(offer)

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def exchange(self, message: str | bytes) -> tuple[bytes, bytes]:
        """Return the bytes of a message and those of its echo. Raises Misbehaved for anything else than the echo."""
        sent = self._frame(message)
        return sent, sent

    def end(self) -> None:
        """End the connection as the protocol says, if it has one."""

    def _frame(self, message: str | bytes) -> bytes:
        first, payload = (codec.TEXT, message.encode()) if isinstance(message, str) else (codec.BINARY, message)
        if self._compresses:
            deflater = zlib.compressobj(wbits=-15)
            payload = (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)).removesuffix(codec.FLUSHED)
            first |= codec.RSV1
        return codec.frame(codec.FIN | first, payload, key=zlib.crc32(payload).to_bytes(4, "big"))


class WebSocketConnection(RawConnection):
    path = "/"

    def __init__(self, port: int, offer: str) -> None:
        super().__init__(port, offer)
        key = os.urandom(16)
        lines = [f"GET {self.path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {base64.b64encode(key).decode()}", "Sec-WebSocket-Version: 13"]
        lines += [f"Sec-WebSocket-Extensions: {offer}"] if offer else []
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._received = bytearray()
        while b"\r\n\r\n" not in self._received:
            self._receive_more()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        agreed = codec.check_answer(bytes(head), key)
        if agreed and "server_no_context_takeover" not in agreed:
            raise codec.Misbehaved("not what was offered", agreed)
        self._inflater = codec.Deflate(agreed) if agreed else None
        self._compresses = bool(agreed)

    def exchange(self, message: str | bytes) -> tuple[bytes, bytes]:
        wrapped = self._wrap(message)
        sent = b"".join(map(self._frame, wrapped))
        self._socket.sendall(sent)
        echo = b""
        for wanted in wrapped:
            received, frames = self._receive()
            if received != wanted:
                raise codec.Misbehaved("not the echo", f"{received[:80]!r} of {len(received)}")
            echo += frames
        return sent, echo

    def end(self) -> None:
        """Send a Close; the server answers and ends the connection (RFC 6455 §7.1.1)."""
        with suppress(OSError):
            self._socket.sendall(codec.frame(codec.FIN | codec.CLOSE, (1000).to_bytes(2, "big"), bytes(4)))
            self._socket.recv(1 << 16)

    def _wrap(self, message: str | bytes) -> list[str | bytes]:
        """Return the WebSocket messages that carry a message."""
        return [message]

    def _receive(self) -> tuple[str | bytes, bytes]:
        """Return a message, and the bytes of its frames."""
        kind, payload, frames = 0, b"", b""
        while True:
            before = bytes(self._received)
            if (found := codec.next_frame(self._received)) is None:
                self._receive_more()
                continue
            first, part = found
            kind, payload, frames = kind or first, payload + part, frames + before[: len(before) - len(self._received)]
            if first & codec.FIN:
                break
        if kind & codec.RSV1 and self._inflater:
            payload = self._inflater.inflate(payload, limit=4 << 20)
        opcode = kind & 15
        if opcode not in (codec.TEXT, codec.BINARY):
            raise codec.Misbehaved("not the echo", f"opcode {opcode}")
        return payload.decode() if opcode == codec.TEXT else payload, frames

    def _receive_more(self) -> None:
        more = self._socket.recv(1 << 18)
        if not more:
            raise codec.Misbehaved("connection closed", repr(bytes(self._received[:200])))
        self._received += more


class SocketIOConnection(WebSocketConnection):
    """Socket.IO 5 over Engine.IO 4: a message is the one argument of the event "message"."""

    path = "/socket.io/?EIO=4&transport=websocket"

    def __init__(self, port: int, offer: str) -> None:
        super().__init__(port, offer)
        self._receive()  # the packet "open" of Engine.IO
        self._socket.sendall(self._frame("40"))  # connect to the main namespace
        answer, _ = self._receive()
        if not str(answer).startswith("40{"):
            raise codec.Misbehaved("no namespace", repr(answer))

    def _wrap(self, message: str | bytes) -> list[str | bytes]:
        if isinstance(message, str):
            return [f'42["message",{json.dumps(message)}]']
        return ['451-["message",{"_placeholder":true,"num":0}]', message]
