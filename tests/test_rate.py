"""Rate: what a peer may send in a second, and what becomes of one that sends more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat
from time import monotonic
from typing import Any

import pytest

from geventws import rate
from geventws.connection import OPEN, Close
from geventws.frames import BINARY, CONTINUATION, FIN, TEXT, frame_parts
from geventws.rate import BURST, RatedSession
from geventws.session import Session
from geventws.websocket import WebSocket

from .pairs import (
    KINDS,
    WITHIN,
    Opener,
    Peer,
    close_frame,
    echo,
    masked,
    ping_frame,
    pong_frame,
    settle,
    until,
    until_closed,
    usable,
)

pytestmark = pytest.mark.usefixtures("errors")

LONG = 1000.0  # seconds for which a test holds a peer back


def rated(ws: WebSocket) -> RatedSession:
    session = ws.session
    assert isinstance(session, RatedSession)
    return session


def fragment(first: int, payload: bytes = b"") -> bytes:
    """Return a client's frame, with FIN only if that is in its first byte."""
    return b"".join(frame_parts(first, payload, b"\1\2\3\4"))


def flood(peer: Peer, frames: Iterator[bytes]) -> None:
    """Send until the server ends it, or the test."""
    with suppress(OSError):
        for frame in frames:
            peer.sock.sendall(frame)


def test_connection_without_the_option_has_a_plain_session(opened: Opener) -> None:
    ws, _ = opened()
    assert type(ws.session) is Session
    ws, _ = opened(accept=False)
    ws.accept(max_message_rate=5)
    assert type(ws.session) is RatedSession


@pytest.mark.parametrize("kind", KINDS)
def test_messages_past_the_burst_come_no_faster_than_the_rate(opened: Opener, kind: str) -> None:
    begun = monotonic()
    ws, peer = opened(kind, max_message_rate=40)
    sending = opened.spawn(peer.send, *map(str, range(230)))
    assert [ws.receive(WITHIN) for _ in range(230)] == list(map(str, range(230)))
    assert monotonic() - begun >= (230 - 1) / 40 - BURST
    assert sending.get() is None
    assert ws.session.connection.state is OPEN
    assert usable(ws, peer)


@pytest.mark.parametrize("kind", KINDS)
def test_peer_that_is_held_back_is_not_read(opened: Opener, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "PAUSE", LONG)
    ws, peer = opened(kind, max_message_rate=2)
    opened.spawn(flood, peer, repeat(masked(BINARY, bytes(1000))))
    most = int(2 * BURST) + 1
    for _ in range(most):
        ws.receive(WITHIN)
    with pytest.raises(TimeoutError):
        ws.receive(0.1)
    received = ws.bytes_received
    settle()
    assert (ws.bytes_received, ws.messages_received, ws.session.transport.reading) == (received, most, False)


FLOODS: dict[str, Iterator[bytes]] = {
    "messages": repeat(masked(TEXT, b"hello") * 100),
    "large messages": repeat(masked(BINARY, bytes(100_000))),
    "fragmented messages": repeat((fragment(TEXT) + fragment(CONTINUATION) + fragment(FIN | CONTINUATION)) * 100),
    "pings": repeat(ping_frame(b"there?") * 100),
    "pongs": repeat(pong_frame() * 100),
}


@pytest.mark.parametrize("name", FLOODS)
def test_peer_that_goes_on_is_closed_with_a_reason_that_names_the_rate(
    opened: Opener, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rate, "PATIENCE", 1.0)
    ws, peer = opened("tcp", max_message_rate=20)
    sending = opened.spawn(flood, peer, FLOODS[name])
    viewing = opened.spawn(echo, ws)
    event: Any = None
    while not isinstance(event, Close):
        event = peer.receive()
        assert event is not None
    assert event == Close(1008, "more than 20 messages a second")
    assert peer.receive() is None, "what it still sends is not parsed, and so its answer is not awaited"
    sending.kill()
    peer.sock.close()
    viewing.get(timeout=WITHIN)
    until_closed(ws)
    settle()
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.endswith("/path closes: the peer goes on past max_message_rate, 20 messages a second")


def test_peer_that_was_too_fast_once_is_forgiven(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "PATIENCE", 0.1)
    ws, peer = opened(max_message_rate=1000)
    session = rated(ws)
    for _ in range(3):
        peer.send(*repeat("x", 5002))
        for _ in range(5002):
            ws.receive(WITHIN)
        until(lambda: not session._is_held, "the end of the pause")
        # As a second does in which it is silent.
        session._released_at -= 1
        session._earned_at -= BURST
    assert session.connection.state is OPEN
    assert usable(ws, peer)


def test_message_takes_one_token_in_however_many_fragments(opened: Opener) -> None:
    ws, peer = opened(max_message_rate=1)
    peer.sock.sendall(fragment(TEXT) + fragment(CONTINUATION, b"x") * 500 + fragment(FIN | CONTINUATION))
    assert ws.receive(WITHIN) == "x" * 500
    until(lambda: rated(ws)._paid == 1, "payment")


def test_pongs_of_our_own_pings_are_free(opened: Opener) -> None:
    ws, peer = opened(max_message_rate=1)

    def answer() -> None:
        while True:
            event: Any = peer.receive()
            peer.sock.sendall(pong_frame(event.payload))

    opened.spawn(answer)
    for _ in range(20):
        ws.ping(WITHIN)
    assert rated(ws)._paid == 0
    peer.sock.sendall(pong_frame(b"another"))
    until(lambda: rated(ws)._paid == 1, "payment of a pong that nobody asked for")


def test_full_queue_is_left_alone_when_the_peer_is_held_back_no_longer(opened: Opener) -> None:
    ws, peer = opened(max_message_rate=1, max_queue=6)
    session = rated(ws)
    peer.send(*map(str, range(8)))
    until(lambda: session._is_held, "a pause")
    assert len(session.queue) == 6
    until(lambda: not session._is_held, "the end of the pause")
    assert (len(session.queue), session.transport.reading) == (6, False)
    assert [ws.receive(WITHIN) for _ in range(8)] == list(map(str, range(8)))


@pytest.fixture
def held(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[WebSocket, Peer]]:
    """Give a WebSocket whose peer is held back for long."""
    monkeypatch.setattr(rate, "PAUSE", LONG)

    def make() -> tuple[WebSocket, Peer]:
        ws, peer = opened(max_message_rate=1)
        peer.send(*repeat("x", 6))
        until(lambda: rated(ws)._is_held, "a pause")
        return ws, peer

    return make


def test_close_of_a_peer_that_is_held_back_is_heard(held: Any) -> None:
    ws, peer = held()
    ws.close(4000)
    assert peer.receive() == Close(4000, "")
    peer.sock.sendall(close_frame(4000))
    assert peer.receive() is None
    peer.sock.close()
    until_closed(ws)
    assert (ws.close_code, rated(ws)._is_held) == (4000, False)


def test_bytes_that_were_left_wait_for_the_end_of_the_pause(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "PAUSE", 0.5)
    ws, peer = opened(max_message_rate=1)
    peer.send(*map(str, range(7)))
    assert [ws.receive(WITHIN) for _ in range(6)] == list(map(str, range(6)))
    assert ws.session.connection.limited
    assert ws.receive(WITHIN) == "6"


def test_end_of_a_peer_that_is_held_back_leaves_no_deadline(held: Any) -> None:
    ws, _ = held()
    ws.session.transport.abort("given up")
    assert rated(ws)._hold.when == float("inf")
    assert [ws.receive() for _ in range(7)] == [*repeat("x", 6), None]
    assert ws.close_code == 1006


def test_what_comes_behind_the_close_costs_no_token(opened: Opener) -> None:
    ws, peer = opened(max_message_rate=1)
    ws.close()
    peer.sock.sendall(masked(TEXT, b"x") * 100 + close_frame())
    peer.sock.close()
    until_closed(ws)
    assert (rated(ws)._paid, ws.close_code) == (0, 1000)
