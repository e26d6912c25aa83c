"""docs/faq.md: each text that it names is one that the source has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from .servers import ROOT
from .test_conformance import tables

PAGE = (ROOT / "docs" / "faq.md").read_text()
TITLES = re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE)
ROWS = [row["text"].strip("`") for table in tables(PAGE) if "text" in table[0] for row in table]
GAP = "…"


def text_of(node: ast.AST) -> str | None:
    """Return a string of the source, with a gap for each value that is put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(\.\d)?[dfs]", GAP, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or GAP for part in node.values)
    return None


def strings() -> Iterator[str]:
    for path in (ROOT / "geventws").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        yield from filter(None, (text_of(node) for node in nodes if id(node) not in docstrings))


@cache
def source() -> str:
    return "\n".join(strings())


@pytest.mark.parametrize("text", [*TITLES, *ROWS])
def test_the_text_is_one_of_the_source(text: str) -> None:
    # At its ends it may have what another part of the source puts there, such as a name.
    assert text.removeprefix(f"{GAP} ").removesuffix(f" {GAP}") in source()


def test_no_text_stands_twice() -> None:
    assert len({*TITLES, *ROWS}) == len(TITLES) + len(ROWS) > 100
