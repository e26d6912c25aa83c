"""Transport on real sockets: joined in pairs, plain and TLS."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from socket import SHUT_RD, SHUT_WR
from time import monotonic
from typing import Any

import gevent
import gevent.event
import gevent.socket
import gevent.ssl
import pytest
from gevent import get_hub

import geventws.transport
from geventws.deadlines import Deadline
from geventws.transport import CORK_SIZE, DISCARD_PAUSE, READ_SIZE, Transport

from .pairs import (
    KINDS,
    SMALL,
    Certificate,
    Passes,
    RecordingSocket,
    hold_hub,
    joined,
    living,
    reset,
    settle,
    until,
    with_room,
)

pytestmark = pytest.mark.usefixtures("errors")


class Recorder:
    """An owner that writes down what it is told; `on` runs further steps on it."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.told: list[str] = []
        self.transport: Transport
        self.on: dict[str, Callable[[], object]] = {}

    def _note(self, what: str, detail: str = "") -> None:
        self.told.append(what + detail)
        self.on.get(what, lambda: None)()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._note("data")

    def eof_received(self) -> None:
        self._note("eof")

    def connection_lost(self, cause: str, reason: str) -> None:
        self._note("lost", f" {reason}".rstrip())

    def drained(self) -> None:
        self._note("drained")

    @property
    def lost(self) -> list[str]:
        return [what for what in self.told if what.startswith("lost")]


class Maker:
    """Makes transports on sockets joined in pairs, and closes them when the test is over."""

    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate
        self._made: list[tuple[Transport, Any, Any]] = []

    def __call__(
        self,
        kind: str = "unix",
        *,
        buffer: int | None = None,
        max_outbox: int = 1 << 20,
        send_timeout: float | None = 20.0,
        start: bool = True,
        wrap: Callable[[Any], Any] = lambda sock: sock,
    ) -> tuple[Recorder, Any]:
        """Return the owner of a transport, reading if start, and the peer's socket."""
        server, client = joined(kind, self._certificate, buffer=buffer)
        owner = Recorder()
        owner.transport = Transport(wrap(server), owner, max_outbox=max_outbox, send_timeout=send_timeout)
        if start:
            owner.transport.start()
        client.settimeout(5)
        self._made.append((owner.transport, server, client))
        return owner, client

    def close(self) -> None:
        """Close them all."""
        for transport, server, client in self._made:
            client.close()
            transport.close()
            server.close()
        self._made.clear()


@pytest.fixture
def make(certificate: Certificate) -> Iterator[Maker]:
    maker = Maker(certificate)
    yield maker
    maker.close()


def read(sock: Any, size: int) -> bytes:
    """Return exactly size bytes."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(65536, size - len(data)))
        assert piece, f"the stream ended behind {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


def read_all(sock: Any) -> bytes:
    """Return what comes until the end."""
    data = bytearray()
    while piece := sock.recv(65536):
        data += piece
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_pass_whole_both_ways_at_once(make: Maker, kind: str) -> None:
    owner, client = make(kind, buffer=SMALL, max_outbox=1 << 30)
    there, back = os.urandom(3_000_000), os.urandom(3_000_000)
    sending = gevent.spawn(client.sendall, there)
    reading = gevent.spawn(read, client, len(back))
    for start in range(0, len(back), 70_001):
        owner.transport.write(back[start : start + 70_001], more=start % 2 == 0)
    assert reading.get() == back
    until(lambda: len(owner.received) == len(there), "all bytes")
    assert owner.received == there
    sending.get()
    assert (owner.transport.bytes_sent, owner.transport.bytes_received) == (len(back), len(there))


def test_small_data_leaves_at_once_on_tcp(make: Maker) -> None:
    """Nagle's algorithm would hold a second small segment back until the first is acknowledged."""
    owner, _ = make("tcp")
    sock = owner.transport._sock
    assert sock.getsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY)


def test_small_writes_gather_until_the_end_of_the_pass(make: Maker) -> None:
    sends: list[bytes] = []
    owner, client = make(wrap=partial(RecordingSocket, sends))
    for number in range(10):
        owner.transport.write(b"%d" % number, more=True)
    assert sends == []
    settle()
    assert sends == [b"0123456789"]
    assert client.recv(100) == b"0123456789"


def test_a_write_that_expects_no_more_takes_along_what_gathered(make: Maker) -> None:
    sends: list[bytes] = []
    owner, _ = make(wrap=partial(RecordingSocket, sends))
    owner.transport.write(b"a", more=True)
    owner.transport.write(b"b")
    assert sends == [b"ab"]
    settle()
    assert sends == [b"ab"]


def test_gathered_bytes_leave_when_they_are_many(make: Maker) -> None:
    sends: list[bytes] = []
    owner, _ = make(wrap=partial(RecordingSocket, sends))
    written = 0
    while not sends and written < 2 * CORK_SIZE:
        owner.transport.write(bytes(1000), more=True)
        written += 1000
    assert CORK_SIZE <= written < CORK_SIZE + 1000
    assert len(sends[0]) == written


@pytest.mark.parametrize("kind", KINDS)
def test_a_paused_transport_holds_the_peer_back(make: Maker, kind: str) -> None:
    owner, client = make(kind, buffer=SMALL)
    data = os.urandom(2_000_000)
    owner.on["data"] = owner.transport.pause_reading
    sending = gevent.spawn(client.sendall, data)
    until(lambda: owner.received, "first bytes")
    settle()
    assert not sending.ready()
    assert owner.told == ["data"]
    owner.on.clear()
    owner.transport.resume_reading()
    until(lambda: len(owner.received) == len(data), "the rest")
    assert owner.received == data
    sending.get()


def test_a_tls_record_read_in_part_is_read_to_its_end(make: Maker) -> None:
    owner, client = make("tls", start=False)
    client.sendall(b"request, frames")
    sock = owner.transport._sock
    until(lambda: _recv_now(sock, 1) == b"r", "the first byte")
    owner.transport.start()
    until(lambda: owner.received == b"equest, frames", "the rest of the record")


def _recv_now(sock: Any, size: int) -> bytes:
    try:
        return bytes(sock.recv(size))
    except gevent.ssl.SSLWantReadError:
        return b""


def test_nothing_is_read_while_the_outbox_is_over_its_limit(make: Maker) -> None:
    owner, client = make(buffer=SMALL, max_outbox=100_000)
    transport = owner.transport
    transport.write(bytes(300_000))
    assert transport.congested
    assert not transport.reading
    client.sendall(b"hello")
    settle()
    assert owner.told == []
    taken = 0
    while transport.congested:
        taken += len(client.recv(4096))
        settle()
    assert owner.told[0] == "drained"
    # Over at half of the limit, less what the kernel holds.
    assert 240_000 <= transport.bytes_sent <= 300_000
    until(lambda: owner.received == b"hello", "bytes sent meanwhile")
    assert read(client, 300_000 - taken) == bytes(300_000 - taken)


def test_a_peer_that_takes_nothing_is_given_up_after_send_timeout(make: Maker) -> None:
    owner, _ = make(buffer=SMALL, send_timeout=0.1)
    owner.transport.write(bytes(1_000_000))
    start = monotonic()
    until(lambda: owner.told, "the end")
    assert owner.told == ["lost the peer took nothing for 0.1 s"]
    assert monotonic() - start >= 0.09
    assert owner.transport.closed


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_that_takes_little_at_a_time_is_not_given_up(make: Maker, kind: str) -> None:
    owner, client = make(kind, buffer=SMALL, send_timeout=1.0)
    size = 200_000
    owner.transport.write(bytes(size))
    end = monotonic() + 2.5  # more than two timeouts
    taken = 0
    while taken < size:
        taken += len(client.recv(2000 if monotonic() < end else size))
        if monotonic() < end:
            gevent.sleep(0.05)  # the peer's own pace
    assert owner.lost == []


class OfWindows(RecordingSocket):
    """A socket that has no sendmsg()."""

    def __getattribute__(self, name: str) -> Any:
        if name == "sendmsg":
            raise AttributeError(name)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        if name == "sendmsg":
            raise AttributeError(name)
        return super().__getattr__(name)


def test_socket_without_sendmsg_loses_nothing(make: Maker) -> None:
    owner, client = make("tcp", buffer=SMALL, max_outbox=1 << 30, wrap=partial(OfWindows, []))
    sent = [os.urandom(size) for size in (10, 20_000, 300_000, 10, 10, 300_000, 20_000)]
    for piece in sent:
        owner.transport.write(piece, more=len(piece) == 10)
    assert read(client, sum(map(len, sent))) == b"".join(sent)
    assert owner.lost == []


class Interrupted(RecordingSocket):
    """A socket in whose next send() somebody else does something, as a signal handler may."""

    run_meanwhile: Callable[[], None] | None = None

    def send(self, data: bytes) -> int:
        size = super().send(data)
        run, self.run_meanwhile = self.run_meanwhile, None
        if run is not None:
            run()
        return size


def interrupted(make: Maker, room: int | None) -> tuple[Recorder, Any, Interrupted]:
    """Return an owner, the client, and the owner's socket, in whose send() others may do something."""
    socks: list[Interrupted] = []

    def wrap(sock: Any) -> Interrupted:
        socks.append(Interrupted([], sock))
        return socks[-1]

    owner, client = make("tcp", buffer=room, wrap=wrap)
    return owner, client, socks[0]


@pytest.mark.parametrize("room", [SMALL, None])
@pytest.mark.parametrize("size", [10, 20_000, 300_000])
def test_what_others_write_in_the_middle_of_a_write_leaves_behind_it(make: Maker, size: int, room: int | None) -> None:
    owner, client, sock = interrupted(make, room)
    data = os.urandom(size)
    sock.run_meanwhile = partial(owner.transport.write, b"of others")
    owner.transport.write(data)
    assert read(client, size + 9) == data + b"of others"
    assert owner.lost == []


@pytest.mark.parametrize("size", [10, 300_000])
def test_others_may_end_it_in_the_middle_of_a_write(make: Maker, size: int) -> None:
    owner, _, sock = interrupted(make, SMALL)
    sock.run_meanwhile = owner.transport.abort
    owner.transport.write(os.urandom(size))
    assert owner.transport.waiting == 0
    owner.transport.write(b"to nobody")
    assert owner.transport.waiting == 0


class Greedy(RecordingSocket):
    """A socket whose kernel takes ten bytes, after which the process gets no more memory until relax() is called."""

    limits: tuple[int, int]

    def send(self, data: bytes) -> int:
        size = super().send(data[:10])
        self.be_greedy()
        return size

    def sendmsg(self, parts: Sequence[bytes]) -> int:
        return self.send(next(bytes(part) for part in parts if part))

    def be_greedy(self) -> None:
        self.limits = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 20), self.limits[1]))

    def relax(self) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self.limits)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux: how much memory the process has")
def test_no_memory_to_gather_the_rest_of_what_was_sent_ends_the_connection(make: Maker) -> None:
    greedy: list[Greedy] = []

    def wrap(sock: Any) -> Greedy:
        greedy.append(Greedy([], sock))
        return greedy[0]

    owner, client = make(wrap=wrap)
    owner.transport.write(b"gathered before", more=True)
    data = bytes(1 << 28)
    try:
        owner.transport.write(data)
    finally:
        greedy[0].relax()
    assert owner.told == ["lost out of memory"]
    with suppress(ConnectionResetError):
        assert client.recv(100) == b"gathered b"
        assert client.recv(100) == b""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux: how much memory the process has")
def test_no_memory_for_a_copy_of_what_waits_ends_the_connection(make: Maker) -> None:
    greedy: list[Greedy] = []

    def wrap(sock: Any) -> Greedy:
        greedy.append(Greedy([], sock))
        return greedy[0]

    owner, client = make(wrap=wrap)
    data = bytes(1 << 28)
    try:
        owner.transport.write(data)  # whose rest is held as it is
        assert owner.transport.waiting == len(data) - 10
        with pytest.raises(MemoryError):
            owner.transport.write(data)
    finally:
        greedy[0].relax()
    assert owner.told == ["lost out of memory"]
    owner.transport.write(b"a frame behind half a frame")
    with suppress(ConnectionResetError):
        assert client.recv(100) == bytes(10)
        assert client.recv(100) == b""


class Poor(RecordingSocket):
    """A socket for whose calls there is no memory."""

    def send(self, data: bytes) -> int:
        raise MemoryError

    def recv(self, size: int) -> bytes:
        raise MemoryError


def test_no_memory_to_send_what_was_gathered_ends_the_connection(make: Maker) -> None:
    owner, client = make(wrap=lambda sock: Poor([], sock))
    owner.transport.write(b"half of it may have left", more=True)
    until(lambda: owner.told, "the end")
    assert owner.told == ["lost out of memory"]
    assert client.recv(100) == b""


def test_no_memory_to_read_ends_the_connection(make: Maker) -> None:
    owner, client = make(wrap=lambda sock: Poor([], sock))
    client.sendall(b"hello")
    until(lambda: owner.told, "the end")
    assert owner.told == ["lost out of memory"]


def test_send_timeout_spares_a_peer_that_took_all_while_the_hub_was_held_up(make: Maker) -> None:
    owner, client = make(buffer=SMALL, send_timeout=0.1)
    owner.transport.write(bytes(50_000))
    assert owner.transport.blocked
    hold_hub(0.2)
    taken = len(client._sock.recv(65536))
    assert 0 < taken < 50_000
    settle()
    assert owner.lost == []
    read(client, 50_000 - taken)
    settle()
    assert owner.lost == []
    assert not owner.transport.blocked


def test_without_send_timeout_a_peer_may_take_nothing_for_as_long_as_it_likes(make: Maker) -> None:
    owner, client = make(buffer=SMALL, send_timeout=None)
    owner.transport.write(bytes(300_000))
    settle()
    assert owner.transport.blocked
    assert read(client, 300_000) == bytes(300_000)
    until(lambda: not owner.transport.blocked, "the last byte")
    assert owner.lost == []


def test_send_timeout_does_not_run_on_when_all_is_taken(make: Maker) -> None:
    owner, client = make(buffer=SMALL, send_timeout=0.05)
    owner.transport.write(bytes(50_000))
    read(client, 50_000)
    until(lambda: not owner.transport.blocked, "the empty outbox")
    fired: list[int] = []
    other = Deadline(lambda: fired.append(1))
    other.set(monotonic() + 0.15)
    until(lambda: fired, "a later deadline")
    assert owner.lost == []


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_half_close_by_the_peer_leaves_writing(make: Maker, kind: str) -> None:
    owner, client = make(kind)
    client.sendall(b"last words")
    client.shutdown(SHUT_WR)
    until(lambda: "eof" in owner.told, "the end of the stream")
    assert (bytes(owner.received), owner.told) == (b"last words", ["data", "eof"])
    owner.transport.write(b"answer")
    owner.transport.finish()
    assert read_all(client) == b"answer"
    assert owner.told == ["data", "eof", "lost"]
    assert owner.transport.closed


def test_reset_by_the_peer_names_its_reason(make: Maker) -> None:
    owner, client = make("tcp")
    reset(client)
    until(lambda: owner.told, "the end")
    assert owner.told == ["lost connection reset by peer"]


def test_reset_ends_a_blocked_transport(make: Maker) -> None:
    owner, client = make("tcp", buffer=SMALL, max_outbox=1000)
    owner.transport.write(bytes(1_000_000))
    reset(client)
    until(lambda: "eof" in owner.told or owner.lost, "the end")
    assert owner.transport.broken
    assert not owner.transport.congested


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_peer_sent_before_it_left_is_read_though_writing_fails(make: Maker, kind: str) -> None:
    owner, client = make(kind, start=False)
    client.sendall(b"farewell")
    client.close()
    settle()
    while not owner.transport.broken and not owner.transport.closed:
        owner.transport.write(b"are you there?")
        settle()
        if kind != "unix":
            break
    owner.transport.start()
    until(lambda: "eof" in owner.told or owner.lost, "the end")
    if kind == "unix":
        assert owner.received == b"farewell"
    owner.transport.close()
    assert len(owner.lost) == 1


def test_write_never_raises_and_never_waits_when_the_peer_is_gone(make: Maker) -> None:
    owner, client = make()
    client.close()
    for _ in range(3):
        owner.transport.write(b"x")
    assert owner.transport.broken
    until(lambda: "eof" in owner.told or owner.lost, "the end of the stream")


@pytest.mark.parametrize("kind", KINDS)
def test_finish_sends_what_waits_then_ends_the_stream_and_closes_at_the_peers_end(make: Maker, kind: str) -> None:
    owner, client = make(kind, buffer=SMALL)
    data = os.urandom(400_000)
    owner.transport.write(data)
    owner.transport.write(b"gathered", more=True)
    owner.transport.finish()
    owner.transport.write(b"too late")
    assert read_all(client) == data + b"gathered"  # with TLS, an end without close_notify would raise
    assert not owner.transport.closed
    client.close()
    until(lambda: owner.transport.closed, "the close")
    assert owner.told[-1] == "lost"


def test_finish_ends_tls_properly_also_when_the_kernels_buffer_is_just_full(make: Maker) -> None:
    for count in range(1, 12):
        owner, client = make("tls", buffer=SMALL)
        for _ in range(count):
            if not owner.transport.blocked:
                owner.transport.write(bytes(700))
        owner.transport.finish()
        assert len(read_all(client)) >= 700  # an end without close_notify raises
        client.close()


@pytest.mark.parametrize("kind", KINDS)
def test_finish_throws_away_what_the_peer_still_sends(make: Maker, kind: str) -> None:
    owner, client = make(kind, buffer=SMALL)
    owner.transport.finish()
    assert client.recv(1) == b""
    raw = client._sock  # the TLS layer would refuse to go on
    sent = 0
    while sent < 1_000_000:
        try:
            sent += raw.send(bytes(4096))
        except BlockingIOError:
            settle()
    client.close()
    until(lambda: owner.transport.closed, "the close")
    assert owner.told == ["lost"]


@pytest.mark.parametrize("kind", KINDS)
def test_finish_holds_back_a_peer_that_never_stops_sending(make: Maker, kind: str) -> None:
    owner, client = make(kind)
    owner.transport.finish()
    assert client.recv(1) == b""
    raw, begun, before = client._sock, monotonic(), owner.transport.bytes_received
    while monotonic() - begun < 0.3:
        with suppress(BlockingIOError):
            raw.send(bytes(READ_SIZE))
        settle()
    reads = (monotonic() - begun) / DISCARD_PAUSE + 1
    assert owner.transport.bytes_received - before <= reads * READ_SIZE
    client.close()
    until(lambda: owner.transport.closed, "the close")


@pytest.mark.parametrize("kind", KINDS)
def test_finish_after_the_peers_end_closes_at_once(make: Maker, kind: str) -> None:
    owner, client = make(kind)
    if kind == "tls":
        ended = gevent.spawn(client.unwrap)  # sends close_notify, waits for ours
    else:
        client.shutdown(SHUT_WR)
    until(lambda: owner.told == ["eof"], "the end of the stream")
    owner.transport.finish()
    assert owner.told == ["eof", "lost"]
    if kind == "tls":
        ended.get()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_the_peers_end_while_the_outbox_drains_lets_it_drain(make: Maker, kind: str) -> None:
    owner, client = make(kind, buffer=SMALL)
    data = os.urandom(300_000)
    owner.transport.write(data)
    owner.transport.finish()
    client.shutdown(SHUT_WR)
    assert read_all(client) == data
    until(lambda: owner.transport.closed, "the close")
    assert owner.told[-1] == "lost"


def test_abort_resets_the_connection_and_drops_what_waits(make: Maker) -> None:
    owner, client = make("tcp", buffer=SMALL)
    owner.transport.write(bytes(1_000_000))
    owner.transport.abort("enough")
    assert owner.told == ["lost enough"]
    with pytest.raises(ConnectionResetError):
        read_all(client)


@pytest.mark.parametrize("end", ["close", "abort", "finish"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_owner_may_end_it_from_any_call_and_is_told_once(make: Maker, kind: str, end: str) -> None:
    for moment in ("data", "eof", "drained", "lost"):
        owner, client = make(kind, buffer=SMALL, max_outbox=20_000)
        ending = getattr(owner.transport, end)

        def finish_all(owner: Recorder = owner, ending: Callable[[], None] = ending) -> None:
            ending()
            ending()
            owner.transport.write(b"too late")
            owner.transport.pause_reading()
            owner.transport.resume_reading()
            owner.transport.read_now()

        owner.on[moment] = finish_all
        owner.transport.write(bytes(100_000))
        with suppress(OSError, AssertionError):
            client.sendall(b"data")
            read(client, 100_000)
        if moment != "drained":
            until(lambda told=owner.told: "data" in told, "data")  # type: ignore[misc]
        client.close()
        if moment == "lost":
            owner.transport.close()
        until(lambda transport=owner.transport: transport.closed, "the close")  # type: ignore[misc]
        settle()
        assert len(owner.lost) == 1
        assert owner.told[-1] == owner.lost[0]


def test_a_blocked_owner_learns_that_the_peer_reads_no_more(make: Maker) -> None:
    """A Unix socket's peer can end one direction alone; nothing then comes to be read."""
    owner, client = make(buffer=SMALL, max_outbox=10_000, send_timeout=0.1)
    owner.transport.write(bytes(100_000))
    assert owner.transport.congested
    client.shutdown(SHUT_RD)
    until(lambda: owner.transport.broken, "the failing write")
    assert not owner.transport.congested
    until(lambda: owner.told, "word to the owner")


def test_finish_sends_what_gathered(make: Maker) -> None:
    owner, client = make()
    owner.transport.write(b"gathered", more=True)
    owner.transport.finish()
    assert read_all(client) == b"gathered"


def test_finish_on_a_connection_that_was_reset_closes_it(make: Maker) -> None:
    owner, client = make("tcp", start=False)
    reset(client)
    settle()
    owner.transport.finish()
    assert len(owner.lost) == 1


def test_finish_that_finds_the_peer_gone_closes(make: Maker) -> None:
    owner, client = make()
    owner.transport.write(b"gathered", more=True)
    client.close()
    owner.transport.finish()
    until(lambda: owner.transport.closed, "the close")
    assert len(owner.lost) == 1


def _blocked(owner: Recorder, client: Any) -> None:
    owner.transport.write(bytes(50_000))


def _congested_and_the_peer_gone_silent(owner: Recorder, client: Any) -> None:
    owner.transport.write(bytes(500_000))
    client.sendall(b"data")


def _paused_with_data_waiting(owner: Recorder, client: Any) -> None:
    owner.transport.pause_reading()
    client.sendall(b"data")


def _paused_and_the_peer_gone(owner: Recorder, client: Any) -> None:
    owner.transport.pause_reading()
    client.close()


def _half_closed(owner: Recorder, client: Any) -> None:
    client._sock.shutdown(SHUT_WR)


def _half_closed_and_blocked(owner: Recorder, client: Any) -> None:
    owner.transport.write(bytes(50_000))
    client._sock.shutdown(SHUT_WR)


def _finished(owner: Recorder, client: Any) -> None:
    owner.transport.finish()


def _finished_and_blocked(owner: Recorder, client: Any) -> None:
    owner.transport.write(bytes(50_000))
    owner.transport.finish()


def _finished_blocked_and_half_closed(owner: Recorder, client: Any) -> None:
    owner.transport.write(bytes(50_000))
    owner.transport.finish()
    client._sock.shutdown(SHUT_WR)


def _closed(owner: Recorder, client: Any) -> None:
    owner.transport.close()


@pytest.mark.parametrize(
    "state",
    [
        _blocked,
        _congested_and_the_peer_gone_silent,
        _paused_with_data_waiting,
        _paused_and_the_peer_gone,
        _half_closed,
        _half_closed_and_blocked,
        _finished,
        _finished_and_blocked,
        _finished_blocked_and_half_closed,
        _closed,
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_transport_that_waits_does_not_keep_the_loop_spinning(
    make: Maker, kind: str, state: Callable[[Recorder, Any], None]
) -> None:
    owner, client = make(kind, buffer=SMALL, max_outbox=100_000)
    state(owner, client)
    settle()
    waiter = gevent.event.Event()
    pause = Deadline(waiter.set)
    with Passes() as passes:
        pause.set(monotonic() + 0.05)
        waiter.wait()
    assert passes.count < 20


def test_closed_transports_leave_no_watcher_and_no_object(make: Maker) -> None:
    settle()
    others = living(Transport, Recorder)  # of tests before, whose tracebacks pytest may keep
    before = get_hub().loop.activecnt
    for kind in KINDS:
        for end in ("close", "abort", "finish"):
            owner, client = make(kind, buffer=SMALL, send_timeout=60)
            owner.transport.write(bytes(100_000))
            if end == "finish":
                read(client, 100_000)
            getattr(owner.transport, end)()
            client.close()
            until(lambda transport=owner.transport: transport.closed, "the close")  # type: ignore[misc]
    make.close()
    del owner
    settle()
    assert [one for one in living(Transport, Recorder) if not any(one is other for other in others)] == []
    assert get_hub().loop.activecnt == before


class Full(RecordingSocket):
    """A socket whose kernel takes no more, once it has been full."""

    is_full = False

    def send(self, data: bytes) -> int:
        if self.is_full:
            raise BlockingIOError
        size = super().send(data)
        self.is_full = size < len(data)
        return size


def test_a_peer_that_takes_what_the_kernel_holds_is_not_given_up_though_the_kernel_takes_no_more(make: Maker) -> None:
    owner, client = make("tcp", buffer=SMALL, send_timeout=0.25, wrap=lambda sock: Full([], with_room(sock)))
    while not owner.transport.blocked:
        owner.transport.write(bytes(100_000))
    sent = owner.transport.bytes_sent
    end = monotonic() + 0.8  # several timeouts
    while monotonic() < end:
        client.recv(20_000)
        gevent.sleep(0.01)  # the peer's own pace
    assert owner.lost == []
    until(lambda: owner.lost, "the end")
    assert owner.lost == ["lost the peer took nothing for 0.25 s"]
    assert owner.transport.bytes_sent == sent


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_finish_behind_the_peers_end_sends_what_waits_then_closes(make: Maker, kind: str) -> None:
    owner, client = make(kind, buffer=SMALL)
    client.shutdown(SHUT_WR)
    until(lambda: "eof" in owner.told, "the peer's end")
    owner.transport.write(bytes(300_000))
    assert owner.transport.blocked
    owner.transport.finish()
    assert read(client, 300_000) == bytes(300_000)
    assert client.recv(1) == b""
    assert owner.lost == ["lost"]


def test_an_end_that_was_read_is_told_once_where_the_owner_closes_first(make: Maker) -> None:
    owner, client = make("tcp")
    reset(client)
    behind_sockets = get_hub().loop.timer(0.0, priority=-2)
    behind_sockets.start(owner.transport.close)
    until(lambda: owner.lost, "the end")
    settle()
    behind_sockets.close()
    assert owner.lost == ["lost"]


@pytest.mark.parametrize("first", ["abandon", "close"])
def test_an_abandoned_pipe_tells_nobody(make: Maker, first: str) -> None:
    owner, _ = make()
    getattr(owner.transport, first)()
    told = list(owner.told)
    owner.transport.abandon()
    settle()
    assert owner.told == told == ([] if first == "abandon" else ["lost"])
    assert owner.transport.closed


def test_a_system_that_limits_nothing_unsent_serves_all_the_same(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geventws.transport, "_NOT_SENT", None)
    owner, client = make("tcp")
    owner.transport.write(b"there")
    client.sendall(b"back")
    assert read(client, 5) == b"there"
    until(lambda: owner.received == b"back", "the answer")


def test_where_the_system_does_not_tell_what_the_peer_has_it_has_all(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geventws.transport, "fcntl", None)
    owner, _ = make("tcp", buffer=SMALL)
    owner.transport.write(bytes(300_000))
    assert 0 < owner.transport.acknowledged() == owner.transport.bytes_sent < 300_000


def test_memory_of_large_messages_is_not_had_from_the_kernel_each_time() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("how glibc keeps memory")
    code = """
import resource, sys
if sys.argv[1:]: import geventws.transport
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    if _ == 20: before = faults()
    messages = [b"x" * (1 << 20) for _ in range(4)]
    del messages
print(faults() - before)
"""
    without, with_it = (
        int(subprocess.run([sys.executable, "-c", code, *name], check=True, capture_output=True, text=True).stdout)
        for name in ([], ["transport"])
    )
    assert without > 10_000 > 1000 > with_it, (without, with_it)
