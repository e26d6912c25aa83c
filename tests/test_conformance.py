"""What docs/conformance.md claims: every function, test and case it names exists, and its counts are those expected."""

from __future__ import annotations

import ast
import fnmatch
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from .autobahn.installation import AUTOBAHN
from .autobahn.run import read_expected
from .servers import FRONT_ENDS, ROOT

DOCUMENT = (ROOT / "docs" / "conformance.md").read_text()
FUNCTION = r"`(\w+):([\w.]+)`"
TEST = r"`(test_\w+\.py)::(\w+)`"
CASES = r"`(\d+\.[\d.*]+)`"


def tables(text: str) -> Iterator[list[dict[str, str]]]:
    """Yield the tables of a Markdown text, each row by the names of the columns."""
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        yield [dict(zip(names, row, strict=True)) for row in rows]


TABLES = list(tables(DOCUMENT))
RULES = [row for table in TABLES if "proof" in table[0] for row in table]


def of(column: str) -> list[dict[str, str]]:
    """Return the rows of the one table with this column."""
    (table,) = (table for table in TABLES if column in table[0])
    return table


@cache
def names(path: Path) -> frozenset[str]:
    """Return what a module defines: functions, classes, their methods, and variables."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(found)


@pytest.mark.parametrize(("module", "name"), sorted(set(re.findall(FUNCTION, DOCUMENT))))
def test_function_exists(module: str, name: str) -> None:
    assert name in names(ROOT / "geventws" / f"{module}.py")


@pytest.mark.parametrize(("file", "name"), sorted(set(re.findall(TEST, DOCUMENT))))
def test_test_exists(file: str, name: str) -> None:
    assert name in names(ROOT / "tests" / file)


@pytest.mark.parametrize("pattern", sorted(set(re.findall(CASES, DOCUMENT))))
def test_case_exists(pattern: str) -> None:
    assert fnmatch.filter(read_expected(), pattern)


@pytest.mark.parametrize("row", RULES, ids=[f"{row['§']} {row['rule']}" for row in RULES])
def test_rule_names_a_function_and_a_test(row: dict[str, str]) -> None:
    where, proof = row["where"].split(), row["proof"].split()
    assert all(re.fullmatch(FUNCTION, name) for name in where)
    assert all(re.fullmatch(f"{TEST}|{CASES}", name) for name in proof)
    assert where
    assert re.search(TEST, row["proof"])


def test_both_rfcs_have_rules() -> None:
    assert len(RULES) > 50


def test_counts_are_those_of_the_expected_outcomes() -> None:
    expected = read_expected()
    judged = dict(zip(("behaviour", "closing"), zip(*expected.values(), strict=True), strict=True))
    rows = of("judged")
    assert [(row.pop("front end"), row.pop("judged")) for row in map(dict, rows)] == [
        (front_end, what) for front_end in FRONT_ENDS for what in judged
    ]
    for row in rows:
        counts = {label: int(count) for label, count in row.items() if label.isupper() and int(count)}
        assert counts == Counter(judged[row["judged"]])
        assert int(row["cases"]) == len(expected)
    assert f"Version {AUTOBAHN}, all {len(expected)} cases" in DOCUMENT


def test_every_case_that_is_not_ok_is_explained() -> None:
    others = [case for case, outcome in read_expected().items() if set(outcome) != {"OK"}]
    assert [row["case"].strip("`") for row in of("case")] == others
