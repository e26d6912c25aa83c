"""Lifetime: when a connection ends by itself, and what moves that moment."""

from __future__ import annotations

import math
import threading
from time import monotonic, time
from typing import Any

import pytest

from geventws import Options, lifetime
from geventws.connection import Close
from geventws.lifetime import JITTER, Lifetime
from geventws.websocket import WebSocket

from .pairs import WITHIN, Opener, settle, until

pytestmark = pytest.mark.usefixtures("errors")


class Clock:
    """The clock on the wall, which somebody sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0  # seconds
        monkeypatch.setattr(lifetime, "time", lambda: time() + self.ahead)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def accepted(opened: Opener, **choices: Any) -> tuple[WebSocket, Any]:
    ws, peer = opened(accept=False)
    ws.accept(**choices)
    peer.open()
    return ws, peer


def test_connection_closes_at_the_moment_that_accept_names(opened: Opener) -> None:
    end = time() + 0.2
    ws, peer = accepted(opened, expires_at=end)
    assert peer.receive() == Close(4401, "expired")
    assert time() >= end
    assert ws.closed


def test_view_that_waits_is_told_of_the_end(opened: Opener) -> None:
    ws, _ = accepted(opened, expires_at=time() + 0.05, expiry_code=4001)
    assert ws.receive(WITHIN) is None
    assert (ws.close_code, ws.close_reason) == (4001, "expired")


def test_moment_that_has_passed_is_now(opened: Opener) -> None:
    _, peer = accepted(opened, expires_at=1)
    assert peer.receive() == Close(4401, "expired")


@pytest.mark.parametrize("end", [10**400, 1e300, 1e18, math.inf, None], ids=["10**400", "1e300", "1e18", "inf", "None"])
def test_moment_that_is_far_away_is_never(opened: Opener, end: Any) -> None:
    ws, _ = accepted(opened, expires_at=end)
    ws.extend(end)
    settle()
    assert ws.close_code is None


@pytest.mark.parametrize("end", [-(10**400), -math.inf, -1, 0], ids=["-10**400", "-inf", "-1", "0"])
def test_moment_before_all_others_is_now(opened: Opener, end: Any) -> None:
    _, peer = accepted(opened, expires_at=end)
    assert peer.receive() == Close(4401, "expired")


def test_extend_moves_the_moment_both_ways_and_from_any_thread(opened: Opener) -> None:
    ws, peer = accepted(opened, expires_at=time() + 0.05)
    ws.extend(time() + 3600)
    until(lambda: time() > (ws.opened_at or math.inf) + 0.2, "passing of the first moment")
    assert ws.close_code is None
    ws.extend(None)
    settle()
    assert ws.close_code is None
    thread = threading.Thread(target=ws.extend, args=(time(),))
    thread.start()
    assert peer.receive() == Close(4401, "expired")
    until(lambda: not thread.is_alive(), "the other thread's return")


def test_extend_is_a_first_use(opened: Opener) -> None:
    ws, peer = opened(accept=False)
    ws.extend(time() + 0.05)
    assert ws.accepted
    peer.open()
    assert peer.receive() == Close(4401, "expired")


def test_extend_behind_the_end_does_nothing(opened: Opener) -> None:
    ws, peer = opened()
    peer.sock.close()
    until(lambda: ws.has_ended, "the end")
    ws.extend(1)
    settle()
    assert ws.close_code == 1006


@pytest.mark.parametrize("wrong", ["soon", True, math.nan])
def test_what_is_no_moment_is_refused_before_anything_is_sent(opened: Opener, wrong: Any) -> None:
    ws, _ = opened(accept=False)
    with pytest.raises((TypeError, ValueError), match="expires_at must be seconds since the epoch or None, not"):
        ws.accept(expires_at=wrong)
    with pytest.raises((TypeError, ValueError), match="expires_at must be seconds since the epoch or None, not"):
        ws.extend(wrong)
    assert not ws.accepted


def test_connection_closes_when_its_lifetime_is_over_whatever_extend_says(opened: Opener) -> None:
    begun = monotonic()
    ws, peer = opened(max_lifetime=0.2, shutdown_code=1001)
    ws.extend(None)
    assert peer.receive() == Close(1001, "max_lifetime is over")
    assert monotonic() - begun >= 0.2 * (1 - JITTER)


def test_those_that_began_together_do_not_end_together() -> None:
    lives = [Lifetime(Options(max_lifetime=1000), print) for _ in range(200)]
    ends = [life._ends_at - monotonic() for life in lives]
    for life in lives:
        life.cancel()
    assert 1000 * (1 - JITTER) - WITHIN < min(ends) < max(ends) <= 1000
    assert max(ends) - min(ends) > 100


def test_clock_that_is_set_back_ends_nothing_early(opened: Opener, clock: Clock) -> None:
    ws, peer = accepted(opened, expires_at=time() + 0.1)
    clock.ahead = -3600
    until(lambda: time() > (ws.opened_at or math.inf) + 0.3, "passing of the first moment")
    assert ws.close_code is None
    clock.ahead = 0
    ws.extend(time())
    assert peer.receive() == Close(4401, "expired")


def test_clock_that_is_set_forward_is_seen_within_a_look(
    opened: Opener, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime, "LOOK", 0.05)
    _, peer = accepted(opened, expires_at=time() + 3600)
    clock.ahead = 3601
    assert peer.receive() == Close(4401, "expired")


def test_connection_without_an_end_carries_no_lifetime(opened: Opener) -> None:
    ws, _ = opened()
    assert ws.session._lifetime is None
    ws.extend(time() + 3600)
    session = ws.session
    assert session._lifetime is not None
    session.transport.abort()
    assert session._lifetime is None
