"""Late sends: which of them are dropped."""

from __future__ import annotations

import pytest

from geventws import late
from geventws.late import NEWS_TAKES, OWN_DROPS, LateSends


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(late, "monotonic", lambda: now[0])
    return now


def test_sends_of_others_are_dropped_for_a_time() -> None:
    sends = LateSends()
    assert sends.may_drop_others()


def test_sends_of_others_are_an_error_once_the_view_had_its_time(clock: list[float]) -> None:
    sends = LateSends()
    clock[0] += NEWS_TAKES - 0.001
    assert sends.may_drop_others()
    clock[0] += 0.001
    assert not sends.may_drop_others()


@pytest.mark.parametrize("waiting", [0, 3])
def test_so_many_sends_of_the_views_own_are_dropped(waiting: int) -> None:
    sends = LateSends()
    assert [sends.may_drop_own(waiting) for _ in range(OWN_DROPS + 2)] == [True] * OWN_DROPS + [False] * 2


def test_a_message_received_allows_the_view_as_many_again() -> None:
    sends = LateSends()
    for waiting in (2, 1, 0):
        assert [sends.may_drop_own(waiting) for _ in range(OWN_DROPS + 1)] == [True] * OWN_DROPS + [False]
