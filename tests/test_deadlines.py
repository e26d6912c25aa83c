"""Deadlines: each runs at its moment, and one timer serves all of a hub."""

from __future__ import annotations

import gc
import math
import random
import weakref
from functools import partial
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import get_hub

from geventws.deadlines import Deadline

from .pairs import Passes, hold_hub, until

pytestmark = pytest.mark.usefixtures("errors")


def test_deadline_runs_once_when_it_is_due() -> None:
    ran: list[float] = []
    deadline = Deadline(lambda: ran.append(monotonic()))
    due = monotonic() + 0.05
    deadline.set(due)
    until(lambda: ran, "the callback")
    gevent.sleep(0.05)  # time for a second run
    assert len(ran) == 1
    assert due <= ran[0]
    assert deadline.when == math.inf


@pytest.mark.parametrize("first", [0.03, 0.3, math.inf])
@pytest.mark.parametrize("second", [0.03, 0.12])
def test_deadline_moved_runs_at_its_last_time_only(first: float, second: float) -> None:
    ran: list[float] = []
    deadline = Deadline(lambda: ran.append(monotonic()))
    start = monotonic()
    deadline.set(start + first)
    deadline.set(start + second)
    other: list[float] = []
    end = Deadline(lambda: other.append(monotonic()))
    end.set(start + 0.35)
    until(lambda: other, "the other deadline")
    assert len(ran) == 1
    assert ran[0] - start >= second
    assert ran[0] < other[0]


def test_deadline_moved_to_never_does_not_run() -> None:
    ran: list[str] = []
    deadline, other = Deadline(lambda: ran.append("moved")), Deadline(lambda: ran.append("other"))
    deadline.set(monotonic() + 0.02)
    other.set(monotonic() + 0.06)
    deadline.set(math.inf)
    until(lambda: ran, "the other deadline")
    assert ran == ["other"]


def test_deadline_may_set_itself_and_others_from_its_callback() -> None:
    ran: list[str] = []

    def again() -> None:
        ran.append("again")
        if len(ran) < 4:
            deadline.set(monotonic() + 0.001)
            other.set(monotonic())

    deadline, other = Deadline(again), Deadline(lambda: ran.append("other"))
    deadline.set(monotonic())
    until(lambda: ran.count("again") + ran.count("other") >= 4, "four runs")
    assert {"again", "other"} == set(ran)


def test_any_sequence_of_sets_runs_each_deadline_at_its_last_time() -> None:
    chance = random.Random(1)
    start = monotonic()
    ran: dict[int, list[float]] = {number: [] for number in range(100)}
    last: dict[int, float] = {}
    deadlines = [Deadline(lambda number=number: ran[number].append(monotonic())) for number in ran]  # type: ignore[misc]
    for _ in range(600):
        number = chance.randrange(len(deadlines))
        last[number] = chance.choice([math.inf, *(start + 0.05 + step / 20 for step in range(4))])
        deadlines[number].set(last[number])
    cancelled = chance.sample(sorted(last), 10)
    for number in cancelled:
        deadlines[number].cancel()
        last[number] = math.inf
    end: list[float] = []
    final = Deadline(lambda: end.append(monotonic()))
    final.set(start + 0.3)
    until(lambda: end, "the last deadline")
    for number, when in last.items():
        assert len(ran[number]) == (when < math.inf)
        assert all(when <= moment <= end[0] for moment in ran[number])


def test_cancelled_deadlines_are_freed_long_before_they_are_due() -> None:
    class Counted(Deadline):
        """With room for a weak reference."""

    ran: list[str] = []
    kept = Deadline(lambda: ran.append("kept"))
    kept.set(monotonic() + 0.05)
    cancelled = []
    for _ in range(2000):
        deadline = Counted(lambda: ran.append("cancelled"))
        deadline.set(monotonic() + 3600)
        deadline.set(monotonic() + 1800)
        deadline.cancel()
        deadline.cancel()
        cancelled.append(weakref.ref(deadline))
    del deadline
    assert sum(ref() is not None for ref in cancelled) <= 110
    until(lambda: ran, "the deadline that was kept")
    assert ran == ["kept"]


def test_a_thousand_deadlines_share_one_timer() -> None:
    loop = get_hub().loop
    timer = type(loop.timer(1))

    def running() -> int:
        return sum(item.active for item in gc.get_objects() if type(item) is timer)

    before = running()
    ran: list[int] = []
    deadlines = [Deadline(partial(ran.append, number)) for number in range(1000)]
    start = monotonic() + 0.1
    for number, deadline in enumerate(deadlines):
        deadline.set(start + number / 20_000)
    assert running() <= before + 1
    with Passes() as passes:
        until(lambda: len(ran) == 1000, "a thousand deadlines")
        # 2 ms between two looks of until() itself, at most 10 ms between two of the clock.
        assert passes.count < 500
    assert ran == sorted(ran)
    assert running() <= before + 1


def test_cancelled_deadline_lets_go_of_its_callback() -> None:
    class Holder:
        def run(self) -> None:
            raise AssertionError("a cancelled deadline ran")

    holder = Holder()
    deadline = Deadline(holder.run)
    deadline.set(monotonic() + 60)
    gone = weakref.ref(holder)
    deadline.cancel()
    del holder
    assert gone() is None


def test_deadlines_alone_do_not_keep_a_program_running() -> None:
    deadline = Deadline(lambda: None)
    active = get_hub().loop.activecnt
    deadline.set(monotonic() + 60)
    assert get_hub().loop.activecnt == active
    deadline.cancel()


def test_a_callback_that_fails_does_not_stop_other_deadlines(errors: Any) -> None:
    ran: list[str] = []

    def fail() -> None:
        raise RuntimeError("callback failed")

    failing, other, later = Deadline(fail), Deadline(lambda: ran.append("other")), Deadline(lambda: ran.append("later"))
    now = monotonic()
    failing.set(now + 0.01)
    other.set(now + 0.02)
    try:
        until(lambda: "callback failed" in errors.getvalue(), "the error in the hub")
        errors.truncate(0)
        later.set(monotonic() + 0.01)
        until(lambda: len(ran) == 2, "the other deadlines")
    finally:
        _repair_clock()


def _repair_clock() -> None:
    """Let the next deadline begin with a fresh clock, whatever this one suffered."""
    from geventws import deadlines

    deadlines._clocks.clear()


def test_a_hub_held_up_does_not_run_a_deadline_early() -> None:
    ran: list[float] = []
    deadline = Deadline(lambda: ran.append(monotonic()))
    due = monotonic() + 0.1
    deadline.set(due)
    hold_hub(0.05)
    until(lambda: ran, "the callback")
    assert ran[0] >= due


def test_cancelled_deadline_runs_nothing_though_it_is_set_again() -> None:
    ran: list[str] = []
    cancelled, other = Deadline(lambda: ran.append("cancelled")), Deadline(lambda: ran.append("other"))
    cancelled.cancel()
    cancelled.set(monotonic())
    other.set(monotonic() + 0.05)
    until(lambda: ran, "the other deadline")
    assert ran == ["other"]
