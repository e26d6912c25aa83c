"""docs/security.md: its app refuses whom the page says it does, and each limit it names has its test and its option."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import pytest

from geventws import Options
from geventws.testing import Refused, connect

from .servers import ROOT
from .test_conformance import TEST, names, tables
from .test_readme import blocks

PAGE = (ROOT / "docs" / "security.md").read_text()
CODE = "".join(block.code for block in blocks(PAGE))
LIMITS = next(table for table in tables(PAGE) if "proof" in table[0])
HOME = "ws://app.example"


@pytest.fixture
def app() -> Any:
    namespace: dict[str, Any] = {"__name__": "app"}
    exec(CODE, namespace)
    return namespace["app"]


def ticket(app: Any) -> str:
    return str(app.test_client().get("/ticket?user=ada", base_url="http://app.example").json["ticket"])


def test_every_block_is_a_part_of_the_app() -> None:
    assert {(block.language, block.code.partition("\n")[0]) for block in blocks(PAGE)} == {("python", "# app.py")}


def test_a_page_of_another_site_is_refused_before_the_view_runs(app: Any) -> None:
    with pytest.raises(Refused, match="403"):
        connect(app, f"{HOME}/feed?ticket={ticket(app)}", origin="https://evil.example")
    with connect(app, f"{HOME}/feed?ticket={ticket(app)}", origin="http://app.example") as ws:
        assert ws.receive() == "hello ada"


@pytest.mark.skipif(version("flask") < "3.1", reason="TRUSTED_HOSTS came with Flask 3.1")
def test_another_name_of_the_server_is_refused(app: Any) -> None:
    rebound = f"ws://evil.example/feed?ticket={ticket(app)}"
    with pytest.raises(Refused, match="400"):
        connect(app, rebound, origin="http://evil.example")


def test_the_option_that_lets_in_everyone_does(app: Any) -> None:
    path = f"{HOME}/feed?ticket={ticket(app)}"
    with connect(app, path, origin="https://evil.example", options={"origins": "*"}) as ws:
        assert ws.receive() == "hello ada"


@pytest.mark.parametrize("wrong", ["", "?ticket=", "?ticket=forged"])
def test_a_ticket_that_is_not_signed_gets_401(app: Any, wrong: str) -> None:
    with pytest.raises(Refused, match="401"):
        connect(app, f"{HOME}/feed{wrong}")


def test_a_ticket_is_good_for_30_seconds(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from itsdangerous import TimestampSigner

    path = f"{HOME}/feed?ticket={ticket(app)}"
    now = TimestampSigner(b"any").get_timestamp()
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda signer: now + 32)
    with pytest.raises(Refused, match="401"):
        connect(app, path)


@pytest.mark.parametrize("is_good", [True, False])
def test_the_first_message_may_bring_the_ticket(app: Any, is_good: bool) -> None:
    with connect(app, f"{HOME}/inbox") as ws:
        ws.send(ticket(app) if is_good else "forged")
        assert list(ws) == (["hello ada"] if is_good else [])
    assert (ws.close_code, ws.close_reason) == ((1000, "") if is_good else (1008, "no ticket"))


@pytest.mark.parametrize("row", LIMITS, ids=lambda row: row["a client that"])
def test_each_limit_has_a_test_and_its_options_exist(row: dict[str, str]) -> None:
    [(file, name)] = re.findall(TEST, row["proof"])
    assert name in names(ROOT / "tests" / file)
    assert set(re.findall(r"`([a-z]\w+)`", row["meets"])) <= {field.name for field in fields(Options)}
