"""What the environs of many WebSockets share."""

from __future__ import annotations

import pytest

from geventws import shared


def made(text: str) -> str:
    """Return a string of its own, as each request has it."""
    return "".join(list(text))


@pytest.fixture(autouse=True)
def strings(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    kept: dict[str, str] = {}
    monkeypatch.setattr(shared, "_strings", kept)
    return kept


def test_strings_that_peers_choose_are_shared_within_a_bound(strings: dict[str, str]) -> None:
    assert shared.one(made("websocket")) is shared.one(made("websocket"))
    for number in range(2000):
        shared.one(f"agent {number}")
        shared.one("x" * 1000 + str(number))
    assert len(strings) == shared.MOST
    assert max(map(len, strings)) <= shared.LONGEST


def test_names_and_usual_values_of_two_environs_are_one() -> None:
    first, second = (
        shared.shared({made("HTTP_HOST"): made("app.example"), made("HTTP_COOKIE"): made("id=1")}) for _ in range(2)
    )
    assert first == second
    assert [a is b for a, b in zip(first, second, strict=True)] == [True, True]
    assert first["HTTP_HOST"] is second["HTTP_HOST"]
    assert first["HTTP_COOKIE"] is not second["HTTP_COOKIE"]


def test_an_input_that_all_share_cannot_be_closed() -> None:
    shared.EMPTY.close()
    assert shared.EMPTY.read() == b""
