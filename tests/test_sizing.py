"""The sizes that docs/rooms.md names are those that were measured, and the model behind them holds."""

from __future__ import annotations

import json

import pytest

from benchmarks import sizing

RECORDED = json.loads(sizing.RESULTS.read_text(encoding="utf-8"))


def test_the_page_has_the_figures_of_the_last_run() -> None:
    shown = sizing.PART.search(sizing.PAGE.read_text(encoding="utf-8"))
    assert shown is not None
    assert shown[0].splitlines() == list(sizing.part(RECORDED))


def test_the_model_foretells_the_run_that_it_was_not_made_from() -> None:
    assert abs(sizing.error(RECORDED)) < 0.2


@pytest.mark.parametrize("name", sizing.model(RECORDED["measured"]))
def test_everything_costs_something(name: str) -> None:
    assert sizing.model(RECORDED["measured"])[name] > 0


def test_a_message_costs_the_sum_of_its_parts() -> None:
    cost = {"say": 30.0, "hear": 40.0, "deliver": 10.0, "redis_say": 20.0, "redis_hear": 2.0}
    assert sizing.message_us(cost, workers=4, members=10) == 290
    assert sizing.redis_us(cost, workers=4) == 28
    assert sizing.of_workers(cost, 4) == pytest.approx(4 * 0.6e6 / 290)
    assert sizing.of_redis(cost, 4) == pytest.approx(0.6e6 / 28)
