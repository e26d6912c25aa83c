"""The Autobahn|Testsuite's core groups against both front ends; python -m tests.autobahn is the same by hand.

Needs CPython 2.7 (see autobahn/installation.py): without one these tests are skipped at home and fail where CI is set.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .autobahn import installation
from .autobahn.run import CORE, Report, read_expected, run, select
from .servers import FRONT_ENDS, missing


@pytest.fixture(scope="module")
def client() -> str:
    try:
        return installation.fuzzing_client()
    except installation.NoPython27 as error:
        missing(str(error))


@pytest.fixture(scope="module")
def cases(client: str) -> list[str]:
    return select(client, CORE)


@pytest.fixture(scope="module")
def reports(client: str, cases: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    # Half of the time the client only waits, so the front ends share it.
    directory = tmp_path_factory.mktemp("autobahn")
    return {report.front_end: report for report in run(client, list(FRONT_ENDS), cases, directory)}


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_every_case_ends_as_expected(front_end: str, reports: dict[str, Report], cases: list[str]) -> None:
    report = reports[front_end]
    differences = report.differences(cases, read_expected())
    assert not differences, "\n".join(["", *differences, f"report and logs: {report.directory}"])


def test_nothing_less_than_strict_is_expected() -> None:
    lax = {case: outcome for case, outcome in read_expected().items() if set(outcome) - {"OK", "INFORMATIONAL"}}
    assert lax == {}


def test_a_case_that_differs_was_not_run_or_is_not_listed_is_told() -> None:
    report = Report("worker", Path("nowhere"), {"1.1.1": ("NON-STRICT", "OK"), "1.1.3": ("OK", "OK")}, seconds=1.0)
    expected = {"1.1.1": ("OK", "OK"), "1.1.2": ("OK", "OK")}
    assert report.differences(["1.1.1", "1.1.2", "1.1.3"], expected) == [
        "worker 1.1.1: NON-STRICT / OK, expected OK / OK",
        "worker 1.1.2: NOT RUN / NOT RUN, expected OK / OK",
        "worker 1.1.3: OK / OK, expected NOT LISTED / NOT LISTED",
    ]
