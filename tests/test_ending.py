"""What is told of an end: its cause, and what a record and the signal say of the connection."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from geventws import signals
from geventws.websocket import WebSocket

from .pairs import KINDS, MEGABYTE, SMALL, Opener, Peer, close_frame, masked, settle, until, until_closed

pytestmark = pytest.mark.usefixtures("errors")

Heard = list[tuple[WebSocket, dict[str, Any]]]


@pytest.fixture
def heard() -> Iterator[Heard]:
    """What the signal closed tells."""
    told: Heard = []

    def receiver(ws: WebSocket, **fields: Any) -> None:
        told.append((ws, fields))

    with signals.closed.connected_to(receiver):
        yield told


def reset(ws: WebSocket, peer: Peer) -> None:
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.sock.close()


def flood(ws: WebSocket, peer: Peer) -> None:
    ws.post(bytes(4 * MEGABYTE))


def close_and_break_a_rule(ws: WebSocket, peer: Peer) -> None:
    ws.close(4001, "ours")
    peer.sock.sendall(masked(0x3))


def leave_behind_a_close(ws: WebSocket, peer: Peer) -> None:
    ws.close(4001, "ours")
    peer.sock.close()


def read_to_the_end(peer: Peer) -> None:
    peer.read_all()
    peer.sock.close()


def stay_silent(ws: WebSocket, peer: Peer) -> None:
    pass


ENDINGS: dict[str, tuple[Callable[[WebSocket, Peer], None], dict[str, Any], int]] = {
    "client": (lambda ws, peer: peer.sock.sendall(close_frame(4002, "bye")), {}, 4002),
    "server": (lambda ws, peer: ws.close(4001, "ours"), {"close_timeout": 0.05}, 4001),
    "server, and the peer breaks a rule": (close_and_break_a_rule, {}, 4001),
    "server, and the peer leaves": (leave_behind_a_close, {}, 4001),
    "protocol": (lambda ws, peer: peer.sock.sendall(masked(0x3)), {"close_timeout": 0.05}, 1002),
    "eof": (lambda ws, peer: peer.sock.close(), {}, 1006),
    "reset": (reset, {}, 1006),
    "ping_timeout": (stay_silent, {"ping_interval": 0.05, "ping_timeout": 0.05}, 1006),
    "send_timeout": (flood, {"send_timeout": 0.05, "max_outbox": SMALL, "ping_interval": None}, 1006),
    "shutdown": (lambda ws, peer: ws.session.close(1012, "", "shutdown"), {"close_timeout": 0.05}, 1012),
}


@pytest.mark.parametrize(
    ("kind", "ending"),
    # A Unix socket has no reset, and a TLS peer says its end before one.
    [(kind, ending) for kind in KINDS for ending in ENDINGS if ending != "reset" or kind == "tcp"],
)
def test_cause_of_an_end_is_what_began_it(
    opened: Opener, caplog: pytest.LogCaptureFixture, heard: Heard, kind: str, ending: str
) -> None:
    caplog.set_level(logging.INFO, "geventws")
    end, options, code = ENDINGS[ending]
    ws, peer = opened(kind, buffer=SMALL, **options)
    end(ws, peer)
    if ending in {"client", "protocol", "server, and the peer breaks a rule"}:
        opened.spawn(read_to_the_end, peer)
    until(lambda: caplog.records, "the line")
    (record,) = caplog.records
    until(lambda: heard, "the signal")
    ((sender, fields),) = heard
    cause = ending.partition(",")[0]
    assert sender is ws
    assert (fields["cause"], fields["code"]) == (cause, code)
    assert f" close {code} " in record.getMessage() and f"({cause}, " in record.getMessage()
    assert {name: getattr(record, name) for name in fields} == fields


def test_record_and_signal_of_an_end_say_what_the_connection_was(
    opened: Opener, caplog: pytest.LogCaptureFixture, heard: Heard
) -> None:
    caplog.set_level(logging.INFO, "geventws")
    ws, peer = opened()
    peer.send("one", "two")
    ws.send(ws.receive() or "")
    peer.sock.sendall(close_frame(4002, "bye"))
    assert list(ws) == ["two"]
    read_to_the_end(peer)
    until_closed(ws)
    until(lambda: heard, "the signal")
    ((_, fields),) = heard
    seconds = fields.pop("seconds")
    assert 0 <= seconds < 60
    assert fields == {
        "id": ws.id,
        "path": "/path",
        "route": None,
        "code": 4002,
        "reason": "bye",
        "cause": "client",
        "messages": {"received": 2, "sent": 1},
        "bytes": {"received": ws.bytes_received, "sent": ws.bytes_sent},
    }
    assert caplog.messages == [
        f"{ws.peer} /path close 4002 bye "
        f"(client, {seconds:.1f} s, 2 messages and {ws.bytes_received} bytes in, 1 and {ws.bytes_sent} out)"
    ]


def test_a_clock_that_is_set_back_makes_no_negative_duration(opened: Opener, heard: Heard) -> None:
    ws, peer = opened()
    assert ws.opened_at is not None
    ws.opened_at += 1000
    peer.sock.close()
    until(lambda: heard, "the signal")
    assert heard[0][1]["seconds"] == 0


def test_end_that_nobody_wants_to_know_of_is_not_told(opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "geventws")
    ws, peer = opened()
    peer.sock.close()
    until_closed(ws)
    settle()
    assert caplog.records == []


def test_receiver_of_an_end_may_wait_and_holds_nobody_up(opened: Opener) -> None:
    waited = []

    def slow(ws: WebSocket, **fields: Any) -> None:
        gevent.sleep(0.05)
        waited.append(ws)

    with signals.closed.connected_to(slow):
        ws, peer = opened()
        reader = opened.spawn(ws.receive)
        settle()
        peer.sock.close()
        until(reader.ready, "the end of receive()")
        assert waited == []
        until(lambda: waited == [ws], "the receiver")
