"""Closing: who says what at the end of a connection, and how long it may take."""

from __future__ import annotations

import logging
import os
import re
import socket
from time import monotonic

import gevent
import pytest

from geventws.closing import FAREWELL
from geventws.connection import Close, Event
from geventws.errors import ConnectionClosed
from geventws.frames import CLOSE, TEXT
from geventws.websocket import WebSocket

from .pairs import (
    KINDS,
    LAST_WORDS,
    MEGABYTE,
    SMALL,
    WITHIN,
    Opener,
    close_frame,
    echo,
    masked,
    settle,
    until_closed,
    with_room,
)

NEVER = 10 * WITHIN  # seconds: what is over before did not wait for it

pytestmark = pytest.mark.usefixtures("errors")


@pytest.mark.parametrize("kind", KINDS)
def test_the_peers_close_is_answered_while_the_view_sleeps(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind)
    peer.sock.sendall(close_frame(3000, "done"))
    assert peer.receive() == Close(3000, "")
    assert peer.receive() is None  # the server ends the stream first (§7.1.1); with TLS by close_notify
    assert (ws.closed, ws.close_code, ws.close_reason) == (True, 3000, "done")
    with pytest.raises(ConnectionClosed) as caught:
        ws.send("late")
    assert caught.value.code == 3000


def test_a_close_without_code_is_answered_by_one_without_code(opened: Opener) -> None:
    ws, peer = opened()
    peer.sock.sendall(masked(CLOSE))
    assert peer.receive() == Close(1005, "")
    assert ws.close_code == 1005


@pytest.mark.parametrize("kind", KINDS)
def test_finish_waits_for_the_peers_close_and_end(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind)
    finishing = opened.spawn(ws.finish)
    assert peer.receive() == Close(1000, "")
    settle()
    assert not finishing.ready()
    peer.sock.sendall(close_frame())
    assert peer.receive() is None
    peer.sock.close()
    finishing.join()
    assert (finishing.value, ws.close_code) == (None, 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_finish_gives_up_a_peer_that_never_answers(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind, close_timeout=0.1)
    start = monotonic()
    ws.finish()
    assert monotonic() - start >= 0.09
    assert peer.receive() == Close(1000, "")


@pytest.mark.parametrize("kind", KINDS)
def test_finish_gives_up_a_peer_that_answers_but_never_ends_the_stream(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind, close_timeout=0.1)
    finishing = opened.spawn(ws.finish)
    assert peer.receive() == Close(1000, "")
    peer.sock.sendall(close_frame())
    finishing.join()
    assert finishing.value is None


def test_finish_waits_for_a_peer_that_takes_data_slowly_as_long_as_it_takes_any(opened: Opener) -> None:
    ws, peer = opened(buffer=SMALL, close_timeout=0.1, send_timeout=0.5)
    with gevent.Timeout(0.01, False):
        ws.send(bytes(2 * MEGABYTE))
    finishing = opened.spawn(ws.finish)
    end = monotonic() + 0.4
    while monotonic() < end:
        peer.sock.recv(1000)
        gevent.sleep(0.01)  # the peer's own pace
    assert not finishing.ready()
    finishing.join()  # it takes no more
    assert monotonic() - end >= 0.3
    assert finishing.value is None


def test_finish_waits_for_a_peer_that_takes_what_the_kernel_holds(opened: Opener) -> None:
    ws, peer = opened("tcp", buffer=SMALL, wrap=with_room, close_timeout=0.15)
    message = os.urandom(100_000)
    ws.send(message)
    finishing = opened.spawn(ws.finish)
    received: list[Event] = []
    while len(received) < 2:
        received += peer.connection.receive_data(peer.sock.recv(2000))
        gevent.sleep(0.01)  # the peer's own pace
    assert received == [message, Close(1000, "")]
    peer.sock.sendall(close_frame())
    peer.sock.close()
    finishing.join()
    assert finishing.value is None


def test_finish_waits_for_a_peer_that_takes_what_the_kernel_holds_however_long_that_is(opened: Opener) -> None:
    ws, peer = opened("tcp", buffer=SMALL, wrap=with_room, close_timeout=0.04)
    message = os.urandom(400_000)
    ws.send(message)
    finishing = opened.spawn(ws.finish)
    received: list[Event] = []
    while len(received) < 2:
        received += peer.connection.receive_data(peer.sock.recv(4000))
        gevent.sleep(0.01)  # the peer's own pace: at least 25 times close_timeout
    assert received == [message, Close(1000, "")]
    peer.sock.sendall(close_frame())
    peer.sock.close()
    finishing.join()


def test_peer_whose_system_has_all_reads_it_behind_the_close_deadline_too(opened: Opener) -> None:
    ws, peer = opened("tcp", buffer=MEGABYTE, close_timeout=0.05)
    message = os.urandom(200_000)
    ws.send(message)
    ws.finish()
    assert peer.read_all() == [message, Close(1000, "")]


@pytest.mark.parametrize("kind", KINDS)
def test_log_tells_what_a_peer_did_not_take(opened: Opener, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "geventws")
    ws, _ = opened(kind, buffer=SMALL, close_timeout=0.05, send_timeout=0.2)
    with gevent.Timeout(0.05, False):
        ws.send(bytes(MEGABYTE))
    ws.finish()
    settle()
    lost = re.search(r"/path close 1000 (\d+) bytes before it were not taken ", caplog.messages[-1])
    assert lost
    assert MEGABYTE // 2 < int(lost[1]) < 1.1 * MEGABYTE


def test_finish_does_not_wait_for_a_peer_that_takes_nothing_of_what_the_kernel_holds(opened: Opener) -> None:
    ws, _ = opened("tcp", buffer=SMALL, wrap=with_room, close_timeout=0.1)
    ws.send(bytes(MEGABYTE // 2))
    ws.finish()


def test_finish_by_two_greenlets_ends_both(opened: Opener) -> None:
    ws, peer = opened()
    both = [opened.spawn(ws.finish) for _ in range(2)]
    assert peer.receive() == Close(1000, "")
    peer.sock.sendall(close_frame())
    peer.sock.close()
    gevent.joinall(both)
    assert [one.value for one in both] == [None, None]


def test_finish_killed_closes_at_once(opened: Opener) -> None:
    ws, peer = opened("tcp")
    finishing = opened.spawn(ws.finish)
    assert peer.receive() == Close(1000, "")
    finishing.kill()
    with pytest.raises(ConnectionResetError):
        peer.receive()


def test_finish_lets_what_was_sent_go_out_first(opened: Opener) -> None:
    ws, peer = opened(buffer=SMALL, close_timeout=0.1)
    with gevent.Timeout(0.01, False):
        ws.send(bytes(2 * MEGABYTE))
    finishing = opened.spawn(ws.finish)
    assert [peer.receive(), peer.receive()] == [bytes(2 * MEGABYTE), Close(1000, "")]
    peer.sock.sendall(close_frame())
    peer.sock.close()
    finishing.join()


def test_messages_in_flight_when_the_view_closes_are_dropped(opened: Opener) -> None:
    ws, peer = opened()
    ws.close()
    peer.sock.sendall(peer.frame("crossed") + close_frame())
    assert peer.read_all() == [Close(1000, "")]
    assert ws.receive() is None


@pytest.mark.parametrize("count", [2, 1000])
def test_a_view_that_closes_with_a_full_queue_still_sees_the_peers_close(opened: Opener, count: int) -> None:
    ws, peer = opened(max_queue=2, close_timeout=30)
    sending = opened.spawn(peer.send, *["message"] * count)
    settle()
    finishing = opened.spawn(ws.finish)
    assert peer.receive() == Close(1000, "")
    sending.join()
    peer.sock.sendall(close_frame())
    assert peer.receive() is None
    peer.sock.close()
    finishing.join(WITHIN)
    assert finishing.ready()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [b"", b"\x81\x85aaaa", b"\xff\xff\xff"])
def test_data_behind_a_close_is_thrown_away(opened: Opener, kind: str, more: bytes) -> None:
    ws, peer = opened(kind)
    peer.sock.sendall(peer.frame("message") + close_frame(1001) + masked(TEXT, b"late") + more)
    assert list(ws) == ["message"]
    assert peer.read_all() == [Close(1001, "")]
    assert ws.close_code == 1001


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_peer_that_broke_a_rule_is_told_and_read_until_close_timeout_only(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind, close_timeout=0.2)
    peer.sock.sendall(masked(0x3, b"reserved"))
    start = monotonic()
    assert ws.receive() is None
    assert ws.close_code == 1002
    event = peer.receive()
    assert isinstance(event, Close)
    assert event.code == 1002
    assert peer.receive() is None
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while monotonic() - start < WITHIN:
            peer.sock.sendall(bytes(10_000))
    assert monotonic() - start >= 0.19


@pytest.mark.parametrize("end", LAST_WORDS)
@pytest.mark.parametrize("count", [1, 5, 16, 40])
@pytest.mark.parametrize("waiting", [True, False])
@pytest.mark.parametrize("kind", ["unix", "tls"])
def test_the_end_in_the_same_bytes_as_messages_waits_for_their_replies(
    opened: Opener, kind: str, waiting: bool, count: int, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geventws.closing.FAREWELL", NEVER)
    ws, peer = opened(kind, close_timeout=NEVER)
    last, code = LAST_WORDS[end]
    if waiting:
        view = opened.spawn(echo, ws)
        settle()
    peer.sock.sendall(b"".join(peer.frame(str(number)) for number in range(count)) + last)
    if not waiting:
        settle()
        view = opened.spawn(echo, ws)
    events = peer.read_all()
    assert events[:-1] == [str(number) for number in range(count)]
    assert isinstance(events[-1], Close)
    assert events[-1].code == code
    peer.sock.close()
    view.join()
    assert (view.value, ws.close_code) == (None, code)


@pytest.mark.parametrize("end", LAST_WORDS)
def test_a_view_that_sleeps_does_not_hold_the_end_for_long(opened: Opener, end: str) -> None:
    ws, peer = opened()
    last, code = LAST_WORDS[end]
    start = monotonic()
    peer.sock.sendall(peer.frame("one") + peer.frame("two") + last)
    event = peer.receive()
    assert isinstance(event, Close)
    assert event.code == code
    assert monotonic() - start >= FAREWELL * 0.9
    # The messages are still there, only too late to be answered.
    assert ws.receive() == "one"
    with pytest.raises(ConnectionClosed):
        ws.send("late")
    assert [ws.receive(), ws.receive()] == ["two", None]


def test_farewell_is_not_longer_than_close_timeout(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geventws.closing.FAREWELL", NEVER)
    _, peer = opened(close_timeout=0.1)
    peer.sock.sendall(peer.frame("one") + close_frame())
    assert peer.receive() == Close(1000, "")


def test_closed_is_true_from_the_peers_close_on(opened: Opener) -> None:
    ws, peer = opened()
    assert not ws.closed
    peer.sock.sendall(peer.frame("one") + close_frame())
    settle()
    assert ws.closed
    assert ws.receive() == "one"


def test_closed_is_true_when_writing_is_over(opened: Opener) -> None:
    ws, peer = opened()
    peer.sock.shutdown(socket.SHUT_RD)
    with pytest.raises(ConnectionClosed):
        ws.send("lost")
    assert ws.closed
    until_closed(ws)
    assert ws.close_code == 1006


def test_send_waits_for_the_peer_also_behind_its_close(opened: Opener) -> None:
    """A view that never receives leaves the queue as it is, so that the Close waits for FAREWELL."""
    ws, peer = opened(buffer=SMALL, max_outbox=100_000)
    peer.sock.sendall(peer.frame("never received") + close_frame())
    settle()
    sent = 0

    def view() -> None:
        nonlocal sent
        while sent < 100:
            ws.send(bytes(100_000))
            sent += 1

    viewing = opened.spawn(view)
    settle()
    assert sent <= 2
    viewing.join()
    assert isinstance(viewing.value, ConnectionClosed)


def test_the_view_may_end_it_inside_the_same_turn_that_brings_the_end(opened: Opener) -> None:
    for ending in ("close", "finish"):
        for last in (close_frame(), masked(0x3), b""):
            ws, peer = opened()

            def view(ws: WebSocket = ws, ending: str = ending) -> None:
                ws.receive()
                getattr(ws, ending)()

            running = opened.spawn(view)
            settle()
            peer.sock.sendall(peer.frame("one") + last)
            assert isinstance(peer.receive(), Close)
            peer.sock.close()
            running.join(WITHIN)
            assert running.ready()
            opened.close()
