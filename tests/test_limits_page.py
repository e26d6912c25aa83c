"""docs/limits.md: its blocks are one app, which counts the clients that a proxy names."""

from __future__ import annotations

from typing import Any

import pytest

from geventws.testing import Refused, connect

from .servers import ROOT
from .test_readme import blocks

PAGE = (ROOT / "docs" / "limits.md").read_text()
CODE = "".join(block.code for block in blocks(PAGE))


@pytest.fixture
def app() -> Any:
    namespace: dict[str, Any] = {"__name__": "app"}
    exec(CODE, namespace)
    return namespace["app"]


def test_every_block_is_a_part_of_the_app() -> None:
    assert {(block.language, block.code.partition("\n")[0]) for block in blocks(PAGE)} == {("python", "# app.py")}


def test_clients_are_counted_by_the_address_that_the_proxy_names(app: Any) -> None:
    options = {"max_connections_per_address": 1}
    ann, bob = ({"X-Forwarded-For": address} for address in ("192.0.2.1", "192.0.2.2"))
    with connect(app, "/echo", headers=ann, options=options) as ws:
        ws.send("ann")
        assert ws.receive() == "ann"
        with pytest.raises(Refused, match="429"):
            connect(app, "/echo", headers=ann, options=options)
        with connect(app, "/echo", headers=bob, options=options) as other:
            other.send("bob")
            assert other.receive() == "bob"


def test_messages_of_five_seconds_may_come_at_once(app: Any) -> None:
    with connect(app, "/chat") as ws:
        for number in range(100):
            ws.send(str(number))
        assert [ws.receive() for _ in range(100)] == [str(number) for number in range(100)]
