"""Session: what of a connection goes on in the hub. More of it stands in test_websocket, as views see it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from geventws.connection import OPEN, Close, Pong
from geventws.frames import TEXT
from geventws.websocket import WebSocket

from .pairs import Certificate, Opener, Peer, close_frame, masked, ping_frame, pong_frame, settle, until, watched_hub

KINDS = ["unix", "tcp", "tls"]
MEGABYTE = 1 << 20

greenlet: Any = gevent.Greenlet.__base__  # of the greenlet package


@pytest.fixture(autouse=True)
def errors() -> Iterator[Any]:
    with watched_hub() as errors:
        yield errors


@pytest.fixture
def opened(certificate: Certificate) -> Iterator[Opener]:
    opener = Opener(certificate)
    yield opener
    opener.close()


def test_session_begins_with_the_first_use(opened: Opener) -> None:
    ws, _ = opened(accept=False)
    assert not ws.accepted
    assert ws.session.connection.state is OPEN
    assert ws.accepted
    assert ws.session is ws.session


def test_session_takes_messages_until_too_much_waits_or_the_end_begins(opened: Opener) -> None:
    ws, peer = opened("tcp", buffer=4096, max_outbox=100_000)
    assert ws.session.takes_messages
    while ws.post(bytes(10_000)):
        pass
    assert not ws.session.takes_messages
    while not ws.session.takes_messages:
        assert peer.receive() == bytes(10_000)
    ws.close()
    assert not ws.session.takes_messages


def test_ping_has_no_time_where_the_end_began_before(opened: Opener) -> None:
    ws, _ = opened()
    ws.close()
    assert ws.session.ping(1) is None


@pytest.mark.parametrize("kind", KINDS)
def test_session_without_any_view_answers_a_ping_and_a_close(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind)
    peer.sock.sendall(ping_frame(b"there?"))
    assert peer.receive() == Pong(b"there?")
    peer.sock.sendall(close_frame(4000))
    assert peer.receive() == Close(4000, "")
    peer.sock.close()
    until(lambda: ws.session.transport.closed, "the end")


@pytest.mark.parametrize("rate", [None, 10_000], ids=["no rate", "a rate"])
def test_nothing_that_a_peer_sends_makes_a_greenlet_or_a_thread(opened: Opener, rate: int | None) -> None:
    ws, peer = opened("tcp", max_queue=5000, max_message_rate=rate)
    settle()

    def count() -> tuple[int, int]:
        greenlets = [thing for thing in gc.get_objects() if issubclass(type(thing), greenlet) and not thing.dead]
        return len(greenlets), threading.active_count()

    before = count()
    frames = (masked(TEXT, b"x"), ping_frame(), pong_frame())
    peer.sock.sendall(b"".join(frames) * 1000)
    until(lambda: ws.messages_received == 1000, "the last message")
    assert count() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_watcher_is_told_when_a_blocked_peer_has_taken_all(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind, max_outbox=16 * MEGABYTE)
    blocked: list[bool] = []
    ws.session.watch(lambda _: blocked.append(ws.session.transport.blocked))
    ws.send(bytes(8 * MEGABYTE))
    assert ws.session.transport.blocked and not blocked
    assert peer.receive() == bytes(8 * MEGABYTE)
    until(lambda: False in blocked, "call of the watcher")
    assert not ws.session.transport.blocked


ENDS: dict[str, Callable[[WebSocket, Peer], object]] = {
    "our Close": lambda ws, peer: ws.close(),
    "their Close": lambda ws, peer: peer.sock.sendall(close_frame()),
    "end of the stream": lambda ws, peer: peer.sock.close(),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_watcher_is_told_of_the_end(opened: Opener, end: str) -> None:
    ws, peer = opened()
    told: list[bool] = []
    unheard: list[bool] = []

    def stop_watching(_: None) -> None:
        unheard.append(True)

    ws.session.watch(lambda _: told.append(ws.closed))
    ws.session.watch(stop_watching)
    ws.session.unwatch(stop_watching)
    ENDS[end](ws, peer)
    until(lambda: told, "call of the watcher")
    assert told[0]
    assert not unheard
