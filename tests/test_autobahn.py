"""The Autobahn|Testsuite against both front ends: the quick cases, in less than a minute.

python -m tests.autobahn runs them all, which took 17 minutes on two cores: too long for each change. Needs CPython 2.7
(see autobahn/installation.py): without one these tests are skipped at home and fail where CI is set.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .autobahn import installation
from .autobahn.run import ALL, QUICK, Report, read_expected, run, select
from .servers import FRONT_ENDS, missing

pytestmark = pytest.mark.slow  # it starts servers or installs packages


@pytest.fixture(scope="module")
def client() -> str:
    try:
        return installation.fuzzing_client()
    except installation.NoPython27 as error:
        missing(str(error))


@pytest.fixture(scope="module")
def cases(client: str) -> list[str]:
    return select(client, QUICK)


@pytest.fixture(scope="module")
def reports(client: str, cases: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    # All at once: each client waits for its server as long as the server for its client.
    directory = tmp_path_factory.mktemp("autobahn")
    return {report.front_end: report for report in run(client, list(FRONT_ENDS), cases, directory)}


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_every_case_ends_as_expected(
    front_end: str, reports: dict[str, Report], cases: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = reports[front_end]
    with capsys.disabled():
        print(f"\nAutobahn, {len(cases)} of {len(read_expected())} cases:", report.summary())
    differences = report.differences(cases, read_expected())
    assert not differences, "\n".join(["", *differences, f"report and logs: {report.directory}"])


def test_every_case_of_the_suite_is_listed(client: str) -> None:
    assert list(read_expected()) == select(client, ALL)


def test_quick_cases_are_of_every_group(cases: list[str]) -> None:
    groups = {case.rpartition(".")[0] for case in read_expected()}
    assert {case.rpartition(".")[0] for case in cases} == groups


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
