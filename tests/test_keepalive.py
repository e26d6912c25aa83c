"""Keepalive: its pings, and what is held against a silent peer and what is not."""

from __future__ import annotations

import math
from time import monotonic

import gevent
import pytest

from geventws.connection import Ping
from geventws.deadlines import Deadline
from geventws.frames import TEXT
from geventws.websocket import WebSocket

from .pairs import (
    KINDS,
    MEGABYTE,
    SMALL,
    WITHIN,
    Opener,
    RecordingSocket,
    answer_pings,
    hold_hub,
    masked,
    pong_frame,
    read_slowly,
    settle,
    until,
    with_room,
)

pytestmark = pytest.mark.usefixtures("errors")


def test_keepalive_measures_latency(opened: Opener) -> None:
    ws, peer = opened(ping_interval=0.03)
    opened.spawn(answer_pings, peer)
    until(lambda: ws.latency is not None, "the first pong")
    assert ws.latency is not None
    assert 0 < ws.latency < 5


@pytest.mark.parametrize("kind", KINDS)
def test_keepalive_gives_up_a_silent_peer(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind, ping_interval=0.05, ping_timeout=0.1)
    start = monotonic()
    assert ws.receive() is None
    assert monotonic() - start >= 0.14
    assert (ws.close_code, ws.close_reason) == (1006, "no sign of life within 0.1 s of a ping")
    if kind == "tcp":
        with pytest.raises(ConnectionResetError):
            peer.read_all()


def test_any_byte_is_a_sign_of_life(opened: Opener) -> None:
    ws, peer = opened(ping_interval=0.1, ping_timeout=0.3)
    frame = masked(TEXT, b"a" * 94)
    end = monotonic() + 0.9
    for byte in range(len(frame) - 1):
        peer.sock.sendall(frame[byte : byte + 1])
        gevent.sleep(0.01)  # the peer's own pace
    assert monotonic() > end
    assert not ws.closed
    peer.sock.sendall(frame[-1:])
    assert ws.receive() == "a" * 94


def test_keepalive_holds_no_silence_against_a_peer_that_is_not_read(opened: Opener) -> None:
    ws, peer = opened(ping_interval=0.03, ping_timeout=0.06, max_queue=2)
    peer.send("one", "two", "three")
    ran: list[int] = []
    later = Deadline(lambda: ran.append(1))
    later.set(monotonic() + 0.4)
    until(lambda: ran, "many ping timeouts")
    assert not ws.closed
    assert [ws.receive(), ws.receive(), ws.receive()] == ["one", "two", "three"]
    opened.spawn(answer_pings, peer)
    later.set(monotonic() + 0.2)
    until(lambda: len(ran) == 2, "more of them")
    assert not ws.closed


def test_keepalive_holds_no_silence_against_a_peer_while_the_hub_was_held_up(opened: Opener) -> None:
    ws, peer = opened(ping_interval=0.05, ping_timeout=0.1)
    for _ in range(3):
        event = peer.receive()
        assert isinstance(event, Ping)
        peer.sock.sendall(pong_frame(event.payload))
        hold_hub(0.25)
        settle()
        assert not ws.closed
    opened.spawn(answer_pings, peer)
    assert usable_now(ws)


def test_keepalive_does_not_call_silent_a_peer_that_left_while_the_hub_was_held_up(opened: Opener) -> None:
    ws, peer = opened(ping_interval=0.05, ping_timeout=0.1)
    assert isinstance(peer.receive(), Ping)
    peer.sock.close()
    hold_hub(0.25)
    assert ws.receive() is None
    assert (ws.close_code, ws.close_reason) == (1006, "")


def usable_now(ws: WebSocket) -> bool:
    return ws.ping(timeout=WITHIN) >= 0


@pytest.mark.parametrize("max_outbox", [1000, 1 << 30])
def test_keepalive_leaves_a_peer_that_takes_data_slowly_to_send_timeout(opened: Opener, max_outbox: int) -> None:
    ws, peer = opened(buffer=SMALL, ping_interval=0.03, ping_timeout=0.1, send_timeout=5.0, max_outbox=max_outbox)
    assert isinstance(peer.receive(), Ping)
    opened.spawn(ws.send, bytes(2 * MEGABYTE))
    end = monotonic() + 0.4
    while monotonic() < end:
        peer.connection.receive_data(peer.sock.recv(2000))
        gevent.sleep(0.01)  # the peer's own pace
    assert not ws.closed


def test_keepalive_leaves_a_peer_that_takes_what_the_kernel_holds_until_it_takes_no_more(opened: Opener) -> None:
    ws, peer = opened("tcp", buffer=SMALL, wrap=with_room, ping_interval=0.05, ping_timeout=0.15)
    ws.send(bytes(MEGABYTE // 2))
    read_slowly(peer, 0.8)
    assert not ws.closed
    assert ws.receive(timeout=WITHIN) is None
    assert (ws.close_code, ws.close_reason) == (1006, "no sign of life within 0.15 s of a ping")


def test_keepalive_gives_up_a_peer_that_takes_nothing_of_what_the_kernel_holds(opened: Opener) -> None:
    ws, _ = opened("tcp", buffer=SMALL, wrap=with_room, ping_interval=0.05, ping_timeout=0.15)
    ws.send(bytes(MEGABYTE // 2))
    assert ws.receive(timeout=WITHIN) is None
    assert ws.close_code == 1006


class PoorAfterThe101(RecordingSocket):
    """A socket that sends one thing, and has no memory for more."""

    def send(self, data: bytes) -> int:
        if self.sends:
            raise MemoryError
        return super().send(data)


def test_no_ping_is_due_behind_one_for_which_there_was_no_memory(opened: Opener) -> None:
    ws, _ = opened(wrap=lambda sock: PoorAfterThe101([], sock), ping_interval=0.02)
    session = ws.session
    session.transport.write(b"gathered in this pass of the loop", more=True)
    hold_hub(0.03)
    session.keepalive.fall_due()
    assert session.transport.closed
    assert session.keepalive.when == math.inf
