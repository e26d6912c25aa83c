"""WebSocket on real sockets joined in pairs: a view's calls here, a client driven by hand there."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import random
import resource
import socket
import tracemalloc
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import gevent.event
import pytest
from gevent import get_hub

from geventws.connection import Close, Failure, Ping, Pong, State
from geventws.errors import ConnectionClosed
from geventws.frames import CONTINUATION, FIN, PONG, TEXT, encode_frame
from geventws.late import OWN_DROPS
from geventws.message import Prepared
from geventws.transport import Transport
from geventws.websocket import WebSocket

from .pairs import (
    KINDS,
    MEGABYTE,
    SMALL,
    WITHIN,
    Opener,
    Passes,
    Peer,
    answer_pings,
    close_frame,
    echo,
    hold_hub,
    living,
    masked,
    ping_frame,
    pong_frame,
    recording_pair,
    reset,
    settle,
    until,
    until_closed,
    usable,
)

pytestmark = pytest.mark.usefixtures("errors")

INTERRUPTS = [gevent.GreenletExit, gevent.Timeout]
# The hub prints any exception but GreenletExit that meets a greenlet before its start.
FIRST_TURN = {gevent.GreenletExit: 0, gevent.Timeout: 1}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No view is slow, however busy the machine is."""
    monkeypatch.setattr("geventws.websocket.TURN", 60.0)


def steps(*actions: tuple[int, Callable[[], object]]) -> None:
    """Run each action at its turn: 0 is now, odd ones come before the sockets' events of a pass, even ones behind."""
    hub = get_hub()
    for turn in range(max(number for number, _ in actions) + 1):
        for number, action in actions:
            if number == turn:
                action()
        hub.wait(hub.loop.timer(0.0, priority=-2 if turn % 2 else 2))
    settle()


# Interrupted calls (law 3)


@pytest.mark.parametrize("interrupt", INTERRUPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_receive_interrupted_at_any_moment_loses_no_message(opened: Opener, kind: str, interrupt: type) -> None:
    for sent_at, interrupted_at in itertools.product(range(4), range(FIRST_TURN[interrupt], 6)):
        ws, peer = opened(kind)
        got: list[Any] = []

        def read_all(ws: WebSocket = ws, got: list[Any] = got) -> None:
            while True:
                got.append(ws.receive())

        reader = opened.spawn(read_all)
        steps(
            (sent_at, partial(peer.send, "one", "two")),
            (interrupted_at, partial(reader.kill, interrupt, block=False)),
        )
        assert reader.ready()
        assert got in ([], ["one"], ["one", "two"])  # one where the loop was late, and others had their turn between
        got += [ws.receive(timeout=WITHIN) for _ in range(2 - len(got))]
        assert got == ["one", "two"]
        assert usable(ws, peer)
        opened.close()


@pytest.mark.parametrize("view_pause", [False, True])
def test_receive_interrupted_between_two_messages_loses_none(opened: Opener, view_pause: bool) -> None:
    for turn in range(1, 12):
        ws, peer = opened()
        got: list[Any] = []

        def read_all(ws: WebSocket = ws, got: list[Any] = got) -> None:
            while True:
                got.append(ws.receive())
                if view_pause:
                    gevent.sleep(0)

        reader = opened.spawn(read_all)
        sends = [(at, partial(peer.send, str(at))) for at in range(10)]
        steps(*sends, (turn, partial(reader.kill, gevent.Timeout, block=False)))
        while len(got) < 10:
            got.append(ws.receive(timeout=WITHIN))
        assert got == [str(number) for number in range(10)]
        opened.close()


def test_receive_with_timeouts_that_race_with_messages_loses_none(opened: Opener) -> None:
    ws, peer = opened()
    chance = random.Random(2)
    pauses = [chance.uniform(0, 0.003) for _ in range(150)]

    def send_all() -> None:
        for number, pause in enumerate(pauses):
            gevent.sleep(pause)
            peer.send(str(number))

    opened.spawn(send_all)
    got: list[Any] = []
    timeouts = 0
    while len(got) < len(pauses):
        how = chance.randrange(3)
        try:
            if how == 0:
                got.append(ws.receive(timeout=chance.uniform(0, 0.003)))
            elif how == 1:
                with gevent.Timeout(chance.uniform(0, 0.003)):
                    got.append(ws.receive())
            else:
                got.append(ws.receive(timeout=0))
        except (TimeoutError, gevent.Timeout):
            timeouts += 1
    assert got == [str(number) for number in range(len(pauses))]
    assert timeouts


@pytest.mark.parametrize("interrupt", INTERRUPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_send_interrupted_at_any_moment_leaves_whole_messages(opened: Opener, kind: str, interrupt: type) -> None:
    for interrupted_at, read_at in itertools.product(range(FIRST_TURN[interrupt], 6), (0, 3)):
        ws, peer = opened(kind, buffer=SMALL, max_outbox=10_000)
        big = bytes(300_000)
        sender = opened.spawn(ws.send, big)
        events: list[Any] = []

        def read_all(peer: Peer = peer, events: list[Any] = events) -> None:
            while (event := peer.receive()) != "end":
                events.append(event)

        steps(
            (interrupted_at, partial(sender.kill, interrupt, block=False)),
            (read_at, partial(opened.spawn, read_all)),
        )
        assert sender.ready()
        ws.send("end")
        until(lambda peer=peer: not peer.has_data(), "the last message")  # type: ignore[misc]
        assert events in ([], [big])
        assert bool(events) is (interrupted_at > 0)
        assert usable(ws, peer)
        opened.close()


def test_a_kill_while_sending_in_a_row_leaves_whole_messages_in_order(opened: Opener) -> None:
    ws, peer = opened(buffer=SMALL, max_outbox=10_000)

    def send_all() -> None:
        for number in itertools.count():
            ws.send(str(number).zfill(1000))

    sender = opened.spawn(send_all)
    for number in range(40):
        assert peer.receive() == str(number).zfill(1000)
    sender.kill()
    ws.send("end")
    for number in itertools.count(40):
        event = peer.receive()
        if event == "end":
            break
        assert event == str(number).zfill(1000)
    assert usable(ws, peer)


@pytest.mark.parametrize("kind", KINDS)
def test_megabyte_messages_of_two_senders_never_interleave(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind, max_outbox=100_000)

    def send_three(fill: bytes) -> None:
        for _ in range(3):
            ws.send(fill * MEGABYTE)

    senders = [opened.spawn(send_three, fill) for fill in (b"a", b"b")]
    got = [peer.receive() for _ in range(6)]
    assert sorted(got, key=str) == [b"a" * MEGABYTE] * 3 + [b"b" * MEGABYTE] * 3
    gevent.joinall(senders)
    assert ws.messages_sent == 6


def test_interrupted_sends_to_a_peer_that_does_not_read_take_bounded_memory(opened: Opener) -> None:
    """Law 4: what is past max_outbox has a named outcome, also when a view gives up waiting each time."""
    ws, peer = opened(buffer=SMALL, max_outbox=100_000, close_timeout=0.1)
    for _ in range(50):
        with gevent.Timeout(0.002, False):
            ws.send(bytes(100_000))
    opened.spawn(ws.finish)
    assert len(peer.read_all()) - 1 <= 4


# A peer that is slow or goes away


@pytest.mark.parametrize("kind", KINDS)
def test_send_to_a_peer_that_stopped_reading_waits_then_fails(opened: Opener, kind: str) -> None:
    ws, _ = opened(kind, buffer=SMALL, send_timeout=0.15)
    start = monotonic()
    with pytest.raises(ConnectionClosed) as caught:
        ws.send(bytes(4 * MEGABYTE))
    assert monotonic() - start >= 0.14
    assert (caught.value.code, caught.value.reason) == (1006, "the peer took nothing for 0.15 s")
    assert (ws.closed, ws.close_code) == (True, 1006)
    assert ws.receive() is None
    with pytest.raises(ConnectionClosed):
        ws.send("more")
    with pytest.raises(ConnectionClosed):
        ws.receive()


@pytest.mark.parametrize("kind", KINDS)
def test_a_blocked_send_goes_on_when_the_peer_reads_again(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind, buffer=SMALL)
    sender = opened.spawn(ws.send, bytes(2 * MEGABYTE))
    settle()
    assert not sender.ready()
    assert peer.receive() == bytes(2 * MEGABYTE)
    sender.join()
    assert sender.value is None
    assert usable(ws, peer)


def test_a_send_below_the_limit_does_not_wait(opened: Opener) -> None:
    ws, peer = opened(buffer=SMALL)
    with gevent.Timeout(0.5):
        ws.send(bytes(MEGABYTE - 100))
    assert peer.receive() == bytes(MEGABYTE - 100)


def test_a_blocked_send_fails_when_the_peer_reads_no_more(opened: Opener) -> None:
    """A Unix socket's peer can end one direction alone; nothing then comes to be read."""
    ws, peer = opened(buffer=SMALL, send_timeout=0.1, ping_interval=None)
    sender = opened.spawn(ws.send, bytes(2 * MEGABYTE))
    settle()
    peer.sock.shutdown(socket.SHUT_RD)
    sender.join(WITHIN)
    assert isinstance(sender.value, ConnectionClosed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_peers_close_reaches_a_view_that_never_stops_sending(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind)

    def flood() -> None:
        while True:
            ws.send(bytes(65_536))

    sender = opened.spawn(flood)
    settle()
    peer.sock.sendall(close_frame())
    answers = [peer.receive() for _ in range(500)]
    assert Close(1000, "") in answers
    sender.join(WITHIN)
    assert isinstance(sender.value, ConnectionClosed)


@pytest.mark.parametrize("blocked", ["receive", "send"])
@pytest.mark.parametrize("kind", KINDS)
def test_end_of_stream_without_close_is_1006(opened: Opener, kind: str, blocked: str) -> None:
    ws, peer = opened(kind, buffer=SMALL)
    waiting = opened.spawn(ws.receive) if blocked == "receive" else opened.spawn(ws.send, bytes(2 * MEGABYTE))
    settle()
    peer.sock.close()
    waiting.join()
    assert waiting.value is None if blocked == "receive" else waiting.value.code == 1006
    until_closed(ws)
    assert ws.close_code == 1006


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_half_close_without_close_gives_the_messages_then_the_end(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind)
    peer.send("one", "two")
    peer.sock.shutdown(socket.SHUT_WR)
    settle()
    assert [ws.receive(), ws.receive(), ws.receive()] == ["one", "two", None]
    assert ws.close_code == 1006
    assert peer.read_all() == []


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_half_close_behind_a_close_still_gets_replies_and_the_echo(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind)
    peer.sock.sendall(peer.frame("question") + close_frame(1001, "bye"))
    peer.sock.shutdown(socket.SHUT_WR)
    settle()
    assert ws.receive() == "question"
    ws.send("answer")
    assert ws.receive() is None
    assert peer.read_all() == ["answer", Close(1001, "")]
    assert (ws.close_code, ws.close_reason) == (1001, "bye")


@pytest.mark.parametrize("blocked", ["receive", "send", "ping", "finish"])
def test_reset_wakes_whoever_waits(opened: Opener, blocked: str) -> None:
    ws, peer = opened("tcp", buffer=SMALL)
    calls: dict[str, Callable[[], object]] = {
        "receive": ws.receive,
        "send": partial(ws.send, bytes(2 * MEGABYTE)),
        "ping": ws.ping,
        "finish": ws.finish,
    }
    waiting = opened.spawn(calls[blocked])
    settle()
    assert not waiting.ready()
    reset(peer.sock)
    waiting.join()
    if blocked in {"receive", "finish"}:
        assert waiting.value is None
    else:
        assert isinstance(waiting.value, ConnectionClosed)
    until_closed(ws)
    assert ws.close_code == (1000 if blocked == "finish" else 1006)
    if blocked == "receive":
        assert ws.close_reason == "connection reset by peer"


def test_reset_noticed_by_a_blocked_send_has_its_reason(opened: Opener) -> None:
    ws, peer = opened("tcp", buffer=SMALL)
    sender = opened.spawn(ws.send, bytes(2 * MEGABYTE))
    settle()
    reset(peer.sock)
    sender.join()
    until_closed(ws)
    assert ws.close_reason == "connection reset by peer"


# post()


def post_all(ws: WebSocket, size: int) -> int:
    """Post messages of this many bytes until one is not taken; return how many were. No other greenlet may run."""
    ran: list[bool] = []
    for kind in range(50):
        gevent.spawn(ran.append, True) if kind else get_hub().loop.run_callback(ran.append, True)
    count = 0
    while ws.post(bytes([count]) * size):
        count += 1
    assert ran == []
    return count


@pytest.mark.parametrize("size", [1000, 30_000])
@pytest.mark.parametrize("kind", KINDS)
def test_post_to_a_peer_that_stopped_reading_is_false_and_queues_nothing(opened: Opener, kind: str, size: int) -> None:
    ws, peer = opened(kind, buffer=SMALL, max_outbox=100_000, ping_interval=None)
    count = post_all(ws, size)
    transport = ws.session.transport
    assert transport is not None
    waiting = transport.waiting
    assert 100_000 < waiting <= 100_000 + size + 4
    assert [ws.post("more") for _ in range(10)] == [False] * 10
    assert (transport.waiting, ws.messages_sent) == (waiting, count)
    assert [peer.receive() for _ in range(count)] == [bytes([number]) * size for number in range(count)]
    until(lambda: not transport.congested, "room")
    assert ws.post("again") is True
    assert peer.receive() == "again"


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system has no TCP_NOTSENT_LOWAT")
@pytest.mark.parametrize("max_outbox", [1 << 16, 1 << 18, 1 << 20])
@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_kernel_holds_about_twice_max_outbox_for_a_peer_that_does_not_read(
    opened: Opener, kind: str, max_outbox: int
) -> None:
    """Where nothing limits it, it is 4 MiB and more."""
    ws, _ = opened(kind, max_outbox=max_outbox, ping_interval=None)
    transport = ws.session.transport
    assert transport is not None
    for _ in range(5):
        while ws.post(bytes(1 << 14)):
            pass
        gevent.sleep(0.02)
    assert transport.congested
    assert transport.bytes_sent - transport.acknowledged() <= max(2 * max_outbox, 1 << 18) + (1 << 17)


def test_post_may_be_called_from_a_hub_callback(opened: Opener) -> None:
    ws, peer = opened(accept=False)
    posted: list[bool] = []
    for message in ("one", b"two", Prepared("three")):
        get_hub().loop.run_callback(lambda message=message: posted.append(ws.post(message)))
    settle()
    assert posted == [True, True, True]
    peer.open()
    assert [peer.receive() for _ in range(3)] == ["one", b"two", "three"]


@pytest.mark.parametrize("end", ["close", "finish", "peer's close", "eof", "reset", "broken rule"])
def test_post_after_the_end_is_false(opened: Opener, end: str) -> None:
    ws, peer = opened("tcp")
    if end == "close":
        ws.close()
    elif end == "finish":
        opened.spawn(ws.finish)
    elif end == "reset":
        reset(peer.sock)
    elif end == "eof":
        peer.sock.close()
    else:
        peer.sock.sendall(close_frame() if end == "peer's close" else b"\xff")
    until(lambda: not ws.post("late"), "False")
    sent = ws.messages_sent
    settle()
    assert not ws.post("late")
    assert not ws.post(Prepared("late"))
    assert ws.messages_sent == sent


def test_post_that_meets_the_end_is_false_and_not_counted(opened: Opener) -> None:
    """The reset has not been read yet, so that writing is what tells of it."""
    for size in (10, 30_000):
        ws, peer = opened("tcp", buffer=SMALL)
        reset(peer.sock)
        assert [ws.post(bytes(size)) for _ in range(3)] == [False] * 3
        assert ws.messages_sent == 0


def test_post_behind_the_peers_close_is_taken_while_the_view_has_its_say(opened: Opener) -> None:
    ws, peer = opened()
    peer.sock.sendall(peer.frame("question") + close_frame())
    settle()
    assert ws.post("answer")
    assert ws.receive() == "question"
    assert ws.receive() is None
    assert not ws.post("late")
    assert peer.read_all()[0] == "answer"


@pytest.mark.usefixtures("quick")
def test_posts_while_messages_wait_leave_together(opened: Opener) -> None:
    ws, peer, sends = recording_pair(opened)
    peer.send("one", "two")
    settle()
    assert ws.receive() == "one"
    assert all(ws.post(f"re: {number}") for number in range(5))
    assert sends == []
    settle()
    assert len(sends) == 1
    assert [peer.receive() for _ in range(5)] == [f"re: {number}" for number in range(5)]


def test_posts_to_all_never_let_another_greenlet_run(opened: Opener) -> None:
    pairs = [opened(buffer=SMALL, max_outbox=10_000) for _ in range(10)]
    ran: list[bool] = []
    gevent.spawn(ran.append, True)
    prepared = Prepared("x" * 5000)
    results = [[ws.post(prepared) for ws, _ in pairs] for _ in range(100)]
    hold_hub(0.01)
    results += [[ws.post(prepared) for ws, _ in pairs] for _ in range(100)]
    assert ran == []
    assert results[0] == [True] * 10
    assert results[-1] == [False] * 10


@pytest.mark.parametrize("use", ["send", "post"])
def test_prepared_message_is_sent_counted_and_logged_as_any(
    opened: Opener, use: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "geventws")
    pairs = [opened() for _ in range(3)]
    for prepared, message in ((Prepared("é"), "é"), (Prepared(bytes(70_000)), bytes(70_000))):
        for ws, peer in pairs:
            assert getattr(ws, use)(prepared) is (None if use == "send" else True)
            assert peer.receive() == message
    assert [ws.messages_sent for ws, _ in pairs] == [2, 2, 2]
    settle()
    assert sum(line.endswith(" > text 'é'") for line in caplog.messages) == 3


@pytest.mark.parametrize("message", [None, 5, ["a"], {"a": 1}, "\ud800"])
def test_what_is_no_message_is_refused_by_post(opened: Opener, message: Any) -> None:
    ws, peer = opened()
    with pytest.raises((TypeError, UnicodeError)):
        ws.post(message)
    assert (ws.messages_sent, peer.has_data()) == (0, False)


# close() by another greenlet


def test_close_wakes_receive_with_none(opened: Opener) -> None:
    ws, peer = opened()
    reader = opened.spawn(ws.receive)
    settle()
    ws.close(4000, "enough")
    reader.join()
    assert reader.value is None
    assert (ws.close_code, ws.close_reason) == (4000, "enough")
    assert peer.receive() == Close(4000, "enough")


def test_close_wakes_a_blocked_send_whose_message_still_leaves(opened: Opener) -> None:
    ws, _ = opened(buffer=SMALL)
    sender = opened.spawn(ws.send, bytes(2 * MEGABYTE))
    settle()
    ws.close()
    sender.join(WITHIN)
    assert sender.successful()
    assert sender.value is None


def test_close_does_not_cut_a_blocked_message(opened: Opener) -> None:
    ws, peer = opened(buffer=SMALL)
    opened.spawn(ws.send, bytes(2 * MEGABYTE))
    settle()
    ws.close()
    assert [peer.receive(), peer.receive()] == [bytes(2 * MEGABYTE), Close(1000, "")]


def test_close_wakes_ping_with_connection_closed(opened: Opener) -> None:
    ws, _ = opened()
    pinging = opened.spawn(ws.ping)
    settle()
    ws.close()
    pinging.join(WITHIN)
    assert isinstance(pinging.value, ConnectionClosed)


def test_close_is_idempotent_and_refuses_what_may_not_travel(opened: Opener) -> None:
    ws, peer = opened()
    for code in (1005, 1006, 999, 5000):
        with pytest.raises(ValueError, match=str(code)):
            ws.close(code)
    assert not ws.closed
    ws.close(1001, "é" * 100)
    ws.close(1000)
    event = peer.receive()
    assert event == Close(1001, "é" * 61)
    assert ws.close_code == 1001


@pytest.mark.parametrize("state", State)
def test_close_refuses_what_may_not_travel_in_every_state(opened: Opener, state: State) -> None:
    ws, peer = opened()
    if state is State.LOCAL_CLOSING:
        ws.close()
    elif state is State.CLOSED:
        peer.sock.close()
        until_closed(ws)
    elif state is not State.OPEN:  # a message that waits for the view keeps the end from being answered
        peer.sock.sendall(peer.frame("first") + (b"\xff" if state is State.FAILING else close_frame()))
        settle()
    assert ws.session.connection.state is state
    for code in (999, 1005, 1006, 5000):
        with pytest.raises(ValueError, match=str(code)):
            ws.close(code)
    assert ws.session.connection.state is state


def test_nothing_is_sent_behind_a_close(opened: Opener) -> None:
    ws, peer = opened()
    ws.close()
    for call in (partial(ws.send, "late"), ws.ping, partial(ws.send_json, 1)):
        with pytest.raises(ConnectionClosed):
            call()
    peer.sock.sendall(close_frame())
    assert peer.read_all() == [Close(1000, "")]


# receive()


def test_a_second_receiver_gets_an_error_and_no_message_is_lost(opened: Opener) -> None:
    ws, peer = opened()
    first = opened.spawn(ws.receive)
    settle()
    with pytest.raises(RuntimeError, match="another greenlet"):
        ws.receive()
    with pytest.raises(RuntimeError, match="another greenlet"):
        next(iter(ws))
    peer.send("one", "two")
    first.join()
    assert [first.value, ws.receive()] == ["one", "two"]
    assert usable(ws, peer)


def test_receive_in_turns_by_two_greenlets_is_fine(opened: Opener) -> None:
    ws, peer = opened()
    peer.send(*map(str, range(6)))
    settle()
    got = [gevent.spawn(ws.receive).get() if turn % 2 else ws.receive() for turn in range(6)]
    assert got == [str(number) for number in range(6)]


@pytest.mark.parametrize("timeout", [0, 0.05, -1])
def test_receive_that_times_out_leaves_the_connection_usable(opened: Opener, timeout: float) -> None:
    ws, peer = opened()
    start = monotonic()
    with pytest.raises(TimeoutError, match="no message"):
        ws.receive(timeout=timeout)
    assert monotonic() - start >= timeout
    assert usable(ws, peer)
    assert not ws.closed


@pytest.mark.parametrize("kind", KINDS)
def test_receive_without_waiting_gives_what_the_kernel_holds(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind)
    peer.send("waits")
    assert ws.receive(timeout=0) == "waits"


def test_receive_does_not_time_out_for_a_message_that_came_while_the_hub_was_held_up(opened: Opener) -> None:
    ws, peer = opened()
    reader = opened.spawn(ws.receive, 0.05)
    settle()
    peer.send("in time")
    hold_hub(0.1)
    reader.join()
    assert reader.value == "in time"


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_anothers_timeout_passes_through(opened: Opener, timeout: float | None) -> None:
    ws, peer = opened()
    mine = TimeoutError("mine")
    for turn in range(3):
        reader, pinging = opened.spawn(ws.receive, timeout), opened.spawn(ws.ping, timeout)
        event = peer.receive()
        assert isinstance(event, Ping)
        steps(
            (0, partial(reader.kill, mine, block=False)),
            (0, partial(pinging.kill, mine, block=False)),
            (turn, partial(peer.sock.sendall, peer.frame("message") + pong_frame(event.payload))),
        )
        assert reader.value is mine
        assert pinging.value is mine
        assert ws.receive(timeout=1) == "message"


def test_the_end_is_told_once_and_then_raised(opened: Opener) -> None:
    ws, peer = opened()
    peer.sock.sendall(close_frame(1001, "leaving"))
    assert ws.receive() is None
    for _ in range(2):
        with pytest.raises(ConnectionClosed) as caught:
            ws.receive()
        assert (caught.value.code, caught.value.reason) == (1001, "leaving")
    assert list(ws) == []


def test_iteration_ends_with_the_connection(opened: Opener) -> None:
    ws, peer = opened()
    peer.sock.sendall(peer.frame("a") + peer.frame(b"b") + close_frame())
    assert list(ws) == ["a", b"b"]
    with pytest.raises(ConnectionClosed):
        ws.receive()


@pytest.mark.parametrize(
    "text", ['{"text":"\\ud83d"}', '["\\ude00\\ud83d", "é"]', '{"\\ud800":1}', "[1e300,-0.0]", "9" * 4000, '"\\u0000"']
)
def test_json_that_was_received_can_be_sent(opened: Opener, text: str) -> None:
    ws, peer = opened()
    peer.send(text)
    value = ws.receive_json()
    ws.send_json(value)
    answer = peer.receive()
    assert isinstance(answer, str)
    assert json.loads(answer) == value


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", "1e999", '{"a":-1e400}', "[" * 100_000])
def test_json_that_could_not_be_sent_is_refused_where_it_is_received(opened: Opener, text: str) -> None:
    ws, peer = opened()
    peer.send(text)
    with pytest.raises(ValueError):
        ws.receive_json()


def test_json_passes_both_ways(opened: Opener) -> None:
    ws, peer = opened()
    peer.send('{"a": [1, "é"]}', b"[2]", "{")
    assert [ws.receive_json(), ws.receive_json()] == [{"a": [1, "é"]}, [2]]
    with pytest.raises(ValueError, match="Expecting"):
        ws.receive_json()
    ws.send_json({"a": [1, "é"]})
    assert peer.receive() == '{"a":[1,"é"]}'
    for wrong in (float("nan"), object()):
        with pytest.raises((TypeError, ValueError)):
            ws.send_json(wrong)
    assert usable(ws, peer)


@pytest.mark.parametrize("message", [1, None, ["a"], "\ud800"])
def test_what_is_no_message_is_refused_and_nothing_sent(opened: Opener, message: Any) -> None:
    ws, peer = opened()
    with pytest.raises((TypeError, ValueError)):
        ws.send(message)
    assert usable(ws, peer)


def test_send_takes_all_kinds_of_bytes_and_the_views_word_for_the_type(opened: Opener) -> None:
    ws, peer = opened()
    for message in (b"a", bytearray(b"a"), memoryview(b"a")):
        ws.send(message)
        assert peer.receive() == b"a"
        ws.send(message, binary=False)
        assert peer.receive() == "a"
    ws.send("a", binary=True)
    assert peer.receive() == b"a"


# Nothing is left behind


def _closed_by_peer(ws: WebSocket, peer: Peer) -> None:
    peer.sock.sendall(close_frame())
    assert ws.receive() is None
    assert peer.read_all() == [Close(1000, "")]
    peer.sock.close()


def _closed_by_view(ws: WebSocket, peer: Peer) -> None:
    ws.close()
    assert peer.receive() == Close(1000, "")
    peer.sock.sendall(close_frame())
    assert peer.receive() is None
    peer.sock.close()


def _finished(ws: WebSocket, peer: Peer) -> None:
    finishing = gevent.spawn(ws.finish)
    _closed_by_view(ws, peer)
    finishing.get()


def _dropped(ws: WebSocket, peer: Peer) -> None:
    peer.sock.close()
    assert ws.receive() is None


def _reset(ws: WebSocket, peer: Peer) -> None:
    reader = gevent.spawn(ws.receive)
    settle()
    reset(peer.sock)
    assert reader.get() is None


def _failed(ws: WebSocket, peer: Peer) -> None:
    peer.sock.sendall(b"\xff\xff")
    assert ws.receive() is None
    assert isinstance(peer.receive(), Close)
    peer.sock.close()


def _dropped_while_blocked(ws: WebSocket, peer: Peer) -> None:
    sender = gevent.spawn(_suppressed, ws.send, bytes(2 * MEGABYTE))
    settle()
    peer.sock.close()
    sender.get()


def _killed_while_blocked(ws: WebSocket, peer: Peer) -> None:
    sender = gevent.spawn(_suppressed, ws.send, bytes(2 * MEGABYTE))
    settle()
    sender.kill()
    finishing = gevent.spawn(ws.finish)
    settle()
    finishing.kill()  # aborts
    peer.sock.close()


def _dropped_with_a_full_queue(ws: WebSocket, peer: Peer) -> None:
    peer.send(*["message"] * 20)
    settle()
    peer.sock.close()
    assert list(ws) == ["message"] * 20


def _aborted_by_keepalive_while_pinging(ws: WebSocket, peer: Peer) -> None:
    pinging = gevent.spawn(_suppressed, ws.ping)
    settle()
    peer.sock.close()
    pinging.get()


def _suppressed(function: Callable[..., object], *arguments: Any) -> None:
    with suppress(ConnectionClosed):
        function(*arguments)


WAYS = [
    _closed_by_peer,
    _closed_by_view,
    _finished,
    _dropped,
    _reset,
    _failed,
    _dropped_while_blocked,
    _killed_while_blocked,
    _dropped_with_a_full_queue,
    _aborted_by_keepalive_while_pinging,
]


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_view_may_say_several_things_to_a_peer_that_has_gone(opened: Opener) -> None:
    ws, peer = opened()
    ws.belongs_to(gevent.getcurrent())
    peer.send("one", "two")
    assert ws.receive() == "one"
    peer.sock.close()
    until_closed(ws, "the end of the peer")
    for message in ("two", None):
        for _ in range(OWN_DROPS):
            ws.send("to all members, of which the view is one")
        if message:
            assert ws.receive() == message
    with pytest.raises(ConnectionClosed):
        ws.send("by a view that only sends")


def test_a_thousand_connections_ended_in_every_way_leave_nothing(opened: Opener) -> None:
    def run(count: int) -> None:
        for number in range(count):
            kind = "tls" if number % 50 == 7 else "tcp"
            ws, peer = opened(kind, buffer=SMALL if number % 10 in {6, 7} else None)
            WAYS[number % len(WAYS)](ws, peer)
            # The client's own way to end must be all that it needs: nothing here helps the server's side.
            until_closed(ws, f"the end after {WAYS[number % len(WAYS)].__name__}")
            opened.forget()

    kinds = (WebSocket, Transport, gevent.Greenlet)
    run(100)  # what is made once, such as the hub's resolver and TLS sessions
    settle()
    objects = {id(item) for item in living(*kinds)}
    before = (_descriptors(), get_hub().loop.activecnt)
    run(1000)
    settle()
    assert [item for item in living(*kinds) if id(item) not in objects] == []
    assert (_descriptors(), get_hub().loop.activecnt) == before


def test_a_connection_that_ended_is_let_go_of_at_once(opened: Opener) -> None:
    """Its deadlines of many seconds hold it no longer."""
    settle()
    before = len(living(WebSocket))
    for way in WAYS:
        ws, peer = opened("tcp", buffer=SMALL, close_timeout=60)
        way(ws, peer)
        until_closed(ws, f"the end after {way.__name__}")
        opened.forget()
        del ws, peer
        settle()
        assert len(living(WebSocket)) == before, way.__name__


def test_a_connection_that_ended_is_freed_without_the_garbage_collector(opened: Opener) -> None:
    settle()
    gc.collect()
    gc.disable()
    try:
        for way in WAYS:
            ws, peer = opened("tcp", buffer=SMALL)
            way(ws, peer)
            until_closed(ws, f"the end after {way.__name__}")
            opened.forget()
            gone = weakref.ref(ws)
            del ws, peer
            settle()
            assert gone() is None, way.__name__
    finally:
        gc.enable()


def test_close_on_a_connection_that_breaks_under_it_leaves_no_deadline_behind(opened: Opener) -> None:
    before = len(living(WebSocket))
    ws, peer = opened(max_queue=1, close_timeout=60)
    peer.send("one")
    settle()  # the queue is full and nothing is read: the write finds out
    peer.sock.close()
    ws.close()
    until_closed(ws)
    opened.forget()
    del ws, peer
    settle()
    assert len(living(WebSocket)) == before


# Pings


def test_pings_are_answered_while_the_view_sleeps(opened: Opener) -> None:
    _, peer = opened()
    for number in range(3):
        peer.sock.sendall(ping_frame(b"%d" % number))
        assert peer.receive() == Pong(b"%d" % number)


@pytest.mark.parametrize("count", [2, 3])
def test_pings_are_answered_once_the_view_took_what_filled_the_queue(opened: Opener, count: int) -> None:
    """Law 2: from then on the view may sleep, or only ever send."""
    ws, peer = opened(max_queue=2)
    peer.send(*["message"] * count)
    settle()
    assert [ws.receive() for _ in range(count)] == ["message"] * count
    peer.sock.sendall(ping_frame(b"there?"))
    assert peer.receive() == Pong(b"there?")
    peer.sock.sendall(close_frame())
    assert peer.receive() == Close(1000, "")


@pytest.mark.parametrize("kind", KINDS)
def test_pings_are_answered_while_the_view_is_blocked_in_send(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind, buffer=SMALL)
    sender = opened.spawn(ws.send, bytes(2 * MEGABYTE))
    settle()
    assert not sender.ready()
    peer.sock.sendall(ping_frame(b"there?"))
    assert [peer.receive(), peer.receive()] == [bytes(2 * MEGABYTE), Pong(b"there?")]


def test_a_ping_in_the_same_bytes_as_the_request_is_answered_behind_the_101(opened: Opener) -> None:
    ws, peer = opened(leftover=ping_frame(b"early") + masked(TEXT, b"bird"), accept=False)
    ws.accept()
    assert peer.open().startswith("HTTP/1.1 101 ")
    assert peer.receive() == Pong(b"early")
    assert ws.receive() == "bird"


def test_a_ping_flood_by_a_peer_that_does_not_read_takes_bounded_memory(opened: Opener) -> None:
    ws, peer = opened(buffer=SMALL)
    settle()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        count = 20_000
        for start in range(0, count, 100):
            peer.sock.sendall(b"".join(ping_frame(b"%0100d" % number) for number in range(start, start + 100)))
        until(lambda: ws.bytes_received >= count * 106, "all pings")
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 300_000  # of 2 MB of pings
    ws.send("end")
    events = list(iter(peer.receive, "end"))
    if events[-1] != Pong(b"%0100d" % (count - 1)):
        events.append(peer.receive())  # the latest may come behind
    assert events[-1] == Pong(b"%0100d" % (count - 1))
    assert len(events) < 3000
    assert usable(ws, peer)


def test_ping_gives_the_time_of_its_round_trip(opened: Opener) -> None:
    ws, peer = opened()
    pinging = opened.spawn(ws.ping)
    event = peer.receive()
    assert isinstance(event, Ping)
    hold_hub(0.05)
    peer.sock.sendall(pong_frame(event.payload))
    pinging.join()
    assert 0.05 <= pinging.value == ws.latency


def test_ping_that_times_out_leaves_the_connection_usable(opened: Opener) -> None:
    ws, peer = opened()
    for timeout in (0.05, 0):
        with pytest.raises(TimeoutError, match="no pong"):
            ws.ping(timeout=timeout)
        event = peer.receive()
        assert isinstance(event, Ping)
        peer.sock.sendall(pong_frame(event.payload))  # too late
    assert usable(ws, peer)
    assert ws.latency is None
    opened.spawn(answer_pings, peer)
    assert ws.ping(timeout=WITHIN) < WITHIN


def test_ping_does_not_time_out_for_a_pong_that_came_while_the_hub_was_held_up(opened: Opener) -> None:
    ws, peer = opened()
    pinging = opened.spawn(ws.ping, 0.05)
    event = peer.receive()
    assert isinstance(event, Ping)
    peer.sock.sendall(pong_frame(event.payload))
    hold_hub(0.1)
    pinging.join()
    assert isinstance(pinging.value, float)


def test_several_pings_at_once_each_give_their_own_time(opened: Opener) -> None:
    ws, peer = opened()
    first = opened.spawn(ws.ping)
    one = peer.receive()
    hold_hub(0.1)
    second = opened.spawn(ws.ping)
    two = peer.receive()
    assert isinstance(one, Ping)
    assert isinstance(two, Ping)
    assert one.payload != two.payload
    peer.sock.sendall(pong_frame(one.payload) + pong_frame(two.payload))
    gevent.joinall([first, second])
    assert first.value >= 0.1
    assert second.value < first.value


def test_pongs_nobody_asked_for_change_nothing(opened: Opener) -> None:
    ws, peer = opened()
    pinging = opened.spawn(ws.ping)
    event = peer.receive()
    assert isinstance(event, Ping)
    peer.sock.sendall(pong_frame() + pong_frame(b"unasked"))
    settle()
    assert not pinging.ready()
    assert ws.latency is None
    peer.sock.sendall(pong_frame(event.payload) * 2)
    pinging.join()
    assert usable(ws, peer)


# Backpressure


def test_a_view_that_does_not_read_holds_the_peer_back_at_max_queue(opened: Opener) -> None:
    ws, peer = opened(buffer=SMALL, max_queue=4)
    frames = (peer.frame(str(number).zfill(500)) for number in itertools.count())
    taken = peer.send_until_blocked(frames)
    assert ws.messages_received == 4
    rest = taken.pop()
    sending = opened.spawn(peer.sock.sendall, rest + masked(TEXT, b"end"))
    got = list(iter(partial(ws.receive, WITHIN), "end"))
    assert got == [str(number).zfill(500) for number in range(len(got))]
    assert len(got) - len(taken) in {0, 1}
    sending.join()
    assert usable(ws, peer)


def test_a_view_that_does_not_read_holds_the_peer_back_at_max_message_size_bytes(opened: Opener) -> None:
    ws, peer = opened(buffer=SMALL, max_queue=1000, max_message_size=50_000)
    frames = (peer.frame(bytes(10_000)) for _ in itertools.count())
    taken = peer.send_until_blocked(frames)
    assert 5 <= ws.messages_received <= 7
    sending = opened.spawn(peer.sock.sendall, taken.pop())
    settle()
    for _ in range(len(taken)):
        assert ws.receive(timeout=WITHIN) == bytes(10_000)
    sending.join()


def test_queued_text_counts_by_its_bytes(opened: Opener) -> None:
    ws, peer = opened(max_queue=1000, max_message_size=40_000)
    message = "\N{GRINNING FACE}" * 2_500  # 10,000 bytes
    frames = (peer.frame(message) for _ in itertools.count())
    peer.send_until_blocked(frames)
    assert ws.messages_received <= 4 + 13  # what one read may bring on top


@pytest.mark.parametrize("kind", KINDS)
def test_many_messages_in_one_piece_come_in_order(opened: Opener, kind: str) -> None:
    ws, peer = opened(kind, max_queue=3)
    opened.spawn(peer.send, *map(str, range(5000)), "end")
    assert list(iter(ws.receive, "end")) == [str(number) for number in range(5000)]
    assert usable(ws, peer)


# Corking


@pytest.mark.usefixtures("quick")
def test_replies_to_waiting_requests_leave_in_few_system_calls_and_in_order(opened: Opener) -> None:
    ws, peer, sends = recording_pair(opened)
    peer.send(*map(str, range(16)))
    opened.spawn(echo, ws)
    assert [peer.receive() for _ in range(16)] == [str(number) for number in range(16)]
    assert len(sends) <= 2


def test_a_reply_leaves_at_once_when_nothing_else_waits(opened: Opener) -> None:
    ws, peer, sends = recording_pair(opened)
    peer.send("one")
    assert ws.receive() == "one"
    ws.send("reply")
    assert len(sends) == 1


@pytest.mark.usefixtures("quick")
def test_replies_leave_though_the_view_blocks_elsewhere(opened: Opener) -> None:
    ws, peer, sends = recording_pair(opened)
    peer.send("one", "two", "three")
    never = gevent.event.Event()

    def view() -> None:
        ws.send(f"re: {ws.receive()!s}")
        never.wait()

    opened.spawn(view)
    assert peer.receive() == "re: one"
    assert len(sends) == 1


@pytest.mark.usefixtures("quick")
def test_a_close_takes_along_the_replies_that_gathered(opened: Opener) -> None:
    ws, peer, sends = recording_pair(opened)
    peer.send("one", "two", "three")
    settle()
    for _ in range(2):
        ws.send(f"re: {ws.receive()!s}")
    assert sends == []
    ws.close()
    assert len(sends) == 1
    assert [peer.receive() for _ in range(3)] == ["re: one", "re: two", Close(1000, "")]


# Fairness: one pass serves one connection once


FLOODS = {
    "messages": masked(TEXT, b"x"),
    "messages between pings": masked(TEXT, b"x") + ping_frame() * 15,
    "pings": ping_frame(),
    "pongs": pong_frame(),
    "fragments": encode_frame(TEXT, b"x", fin=False, masking_key=bytes(4)) + masked(CONTINUATION, b"x"),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_does_not_starve_another_connection(opened: Opener, flood: str) -> None:
    flooded, attacker = opened(max_queue=16)
    opened.spawn(echo, flooded)
    piece = FLOODS[flood] * (60_000 // len(FLOODS[flood]))

    def attack() -> None:
        while True:
            attacker.sock.sendall(piece)

    def drain() -> None:
        while attacker.sock.recv(1 << 20):
            pass

    opened.spawn(attack)
    opened.spawn(drain)
    ws, peer = opened()
    opened.spawn(echo, ws)
    received = flooded.bytes_received
    worst = 0
    with Passes() as passes:
        for _ in range(30):
            start = passes.count
            peer.send("ping")
            assert peer.receive() == "ping"
            worst = max(worst, passes.count - start)
    assert flooded.bytes_received - received > 60_000, "there was no flood"
    assert worst <= 8


@pytest.mark.parametrize("flood", ["messages", "messages between pings", "fragments"])
def test_one_turn_serves_one_connection_once(opened: Opener, flood: str) -> None:
    """Between two turns of the hub's callbacks at most a queue full of messages is handled."""
    ws, peer = opened(max_queue=16)
    handled = most = 0

    def view() -> None:
        nonlocal handled
        for _ in ws:
            handled += 1

    running = True

    def turn() -> None:
        nonlocal handled, most
        most = max(most, handled)
        handled = 0
        if running:
            get_hub().loop.run_callback(turn)

    opened.spawn(view)
    settle()
    turn()
    piece = FLOODS[flood] * (60_000 // len(FLOODS[flood]))
    sending = opened.spawn(peer.sock.sendall, piece * 3 + close_frame())
    opened.spawn(lambda: peer.sock.recv(1 << 20))
    until(lambda: ws.closed, "the end of the flood")
    running = False
    sending.join()
    assert 0 < most <= 32


def test_a_failure_message_names_what_was_wrong(opened: Opener) -> None:
    ws, peer = opened(max_message_size=100)
    peer.sock.sendall(bytes([FIN | TEXT, 0x80 | 126, 1, 0]) + bytes(4))
    assert ws.receive() is None
    assert (ws.close_code, ws.close_reason) == (1009, "message of at least 256 bytes, limit 100")
    event = peer.receive()
    assert event == Close(1009, "message of at least 256 bytes, limit 100")
    assert not isinstance(event, Failure)


def test_nothing_but_pongs_leaves_without_the_view(opened: Opener) -> None:
    _, peer = opened()
    peer.sock.sendall(masked(TEXT, b"x") + masked(PONG))
    settle()
    assert not peer.has_data()


def test_receive_is_no_second_one_where_another_came_first_meanwhile(opened: Opener) -> None:
    ws, peer = opened()
    others: list[Any] = []

    def wait_first() -> None:
        ws.before_wait = None
        others.append(opened.spawn(ws.receive))
        settle()

    ws.before_wait = wait_first
    with pytest.raises(RuntimeError, match="another greenlet is waiting"):
        ws.receive()
    peer.send("for the other")
    others[0].join()
    assert others[0].value == "for the other"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux: how much memory the process has")
def test_no_memory_for_a_message_ends_its_connection_alone(opened: Opener) -> None:
    (ws, peer), (other, its) = opened(max_message_size=64 * MEGABYTE), opened()
    frame = peer.frame("x" * (48 * MEGABYTE) + "é")  # of ASCII alone, C has had all the memory before the end
    sending = opened.spawn(peer.sock.sendall, frame[:-1])
    until(lambda: ws.bytes_received == len(frame) - 1, "all but the last byte")
    sending.join()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 16 * MEGABYTE, limits[1]))
    ballast = []  # what tests before have left free
    try:
        with suppress(MemoryError):
            while True:
                ballast.append(bytearray(16 * MEGABYTE))
        peer.sock.sendall(frame[-1:])
        assert ws.receive() is None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert (ws.close_code, ws.close_reason) == (1006, "out of memory")
    assert usable(other, its)


# What is known of it


def test_request_is_known_before_the_handshake_and_the_connection_is_not(opened: Opener) -> None:
    ws, _ = opened(accept=False)
    assert (ws.path, ws.peer.partition("#")[0], ws.origin, ws.remote_address) == ("/path", "unix", None, None)
    assert (ws.accepted, ws.has_ended, ws.close_code, ws.close_reason, ws.latency) == (False, False, None, "", None)
    assert (ws.messages_received, ws.bytes_received, ws.bytes_sent) == (0, 0, 0)
    assert not ws.accepted, "asking has completed the handshake"


def test_path_and_address_are_those_that_the_server_gave(opened: Opener) -> None:
    ws, _ = opened(accept=False)
    ws.environ.update(SCRIPT_NAME="/app", PATH_INFO="/caf\xc3\xa9", REMOTE_ADDR="10.0.0.1", REMOTE_PORT="80")
    assert ws.path == "/app/café"
    assert ws.remote_address == ("10.0.0.1", 80)
    assert ws.peer == "10.0.0.1:80"


def test_what_is_known_cannot_be_set(opened: Opener) -> None:
    ws, _ = opened()
    with pytest.raises(AttributeError):
        ws.close_code = 1000  # type: ignore[misc]
