"""Raw clients: crowds of WebSockets in one thread that see every byte and when it came, and pages of HTTP."""

from __future__ import annotations

import resource
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

import pytest

from .servers import DEADLINE, Server, missing, upgrade_request

TEXT, CLOSE = 0x81, 0x88  # first byte of an unfragmented frame


def allow_descriptors(count: int) -> None:
    """Have this process, and the servers it starts from now on, open this many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            missing(f"a file descriptor limit of {count}, the hard limit is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def frame(first: int, payload: bytes) -> bytes:
    """Return a client's frame of less than 126 bytes; its mask of zeros leaves the payload as it is."""
    return bytes([first, 0x80 | len(payload), 0, 0, 0, 0]) + payload


def page(server: Server, path: str = "/") -> str:
    """Return the page that a GET on a connection of its own brings; fail if it is no 200."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    head, _, body = server.exchange(request.encode()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    return body.decode()


class Member:
    """One client, what it received, and when."""

    def __init__(self, sock: socket.socket, *, answers_close: bool) -> None:
        self.sock = sock
        self.answers_close = answers_close
        self.received = b""  # every byte
        self.status = 0  # of the HTTP answer
        self.frames: list[tuple[int, bytes]] = []
        self.close_payload: bytes | None = None
        self.closed_at = self.ended_at = 0.0  # time.monotonic() of the Close and of the end of the stream
        self._rest = b""

    @property
    def close_code(self) -> int | None:
        """Code of the Close received, None if none was."""
        return None if self.close_payload is None else int.from_bytes(self.close_payload[:2], "big")

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def take(self, data: bytes) -> None:
        """Take in what was received."""
        self.received += data
        self._rest += data
        if not self.status:
            head, end, rest = self._rest.partition(b"\r\n\r\n")
            if not end:
                return
            self.status, self._rest = int(head.split()[1]), rest
        while self.status == 101 and len(self._rest) > 1 and len(self._rest) >= 2 + self._rest[1]:
            first, size = self._rest[:2]
            assert size < 126, "the crowd reads short frames only"
            payload = self._rest[2 : 2 + size]
            self.frames.append((first, payload))
            if first == CLOSE:
                self.close_payload = payload
                self.closed_at = time.monotonic()
            self._rest = self._rest[2 + size :]


class Crowd:
    """Clients that ask for WebSockets; a context manager that drops them in the end."""

    def __init__(self, server: Server) -> None:
        self.members: list[Member] = []
        self._server = server
        self._selector = selectors.DefaultSelector()

    def join(self, path: str, count: int = 1, *, answers_close: bool = True) -> list[Member]:
        """Add clients, and return them when their handshakes are answered."""
        joined: list[Member] = []
        while len(joined) < count:
            for _ in range(min(200, count - len(joined))):  # fewer than fit into a listener's queue
                member = Member(self._server.socket(), answers_close=answers_close)
                joined.append(member)
                self._selector.register(member.sock, selectors.EVENT_READ, member)
                member.send(upgrade_request(path))
            self.wait(lambda: all(member.status for member in joined), "answer to each handshake")
        self.members += joined
        return joined

    def wait(self, condition: Callable[[], bool], what: str, within: float = DEADLINE) -> None:
        """Receive for all until the condition holds; fail naming what was awaited when the time is over."""
        end = time.monotonic() + within
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"no {what} within {within:g} s")
            for key, _ in self._selector.select(0.02):
                self._receive(key.data)

    def _receive(self, member: Member) -> None:
        try:
            data = member.sock.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            member.ended_at = time.monotonic()
            self._selector.unregister(member.sock)
            member.sock.close()
            return
        was_open = member.close_payload is None
        member.take(data)
        if was_open and member.close_payload is not None and member.answers_close:
            with suppress(ConnectionError):  # the server was quicker to end it
                member.send(frame(CLOSE, member.close_payload))

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for key in list(self._selector.get_map().values()):
            key.data.sock.close()
        self._selector.close()
