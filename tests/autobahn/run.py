"""One run: an echo server of each front end, the fuzzing client's cases against it, what came out.

Knows the client's specification and report; knows nothing of how the client got here.
"""

from __future__ import annotations

import fnmatch
import json
import subprocess
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..servers import serve
from . import installation

EXPECTED = Path(__file__).with_name("expected.json")
ALL = ("*",)
# All but most of compression, which takes nearly all of the time: of each of its twelve sets of messages those of
# 1 KiB, and those of 8 KiB that come in fragments of 256 bytes.
QUICK = ("[1-9].*", "10.*", "1[23].*.4", "1[23].*.11")
LARGEST_MESSAGE = 16 << 20  # bytes, cases 9.1.6 and 9.2.6
CASE_TIMEOUT = 10.0  # seconds on average: most take milliseconds, the largest compressed ones as long as this
# How long the client waits for the end of a handshake. Its own 5, 1 and 1 s are short for a busy machine; that a
# server never came to the end is told in any case.
PATIENCE = {"openHandshakeTimeout": 30, "closeHandshakeTimeout": 10, "serverConnectionDropTimeout": 10}  # seconds

Outcome = tuple[str, str]  # the behaviour, the behaviour in the closing handshake
NOT_RUN = ("NOT RUN", "NOT RUN")
NOT_LISTED = ("NOT LISTED", "NOT LISTED")


@dataclass(frozen=True)
class Report:
    """What one front end did, with the client's files about it."""

    front_end: str
    directory: Path
    outcomes: dict[str, Outcome]
    seconds: float

    def summary(self) -> str:
        """Return one line: how many cases, how long, how often each behaviour."""
        behaviors = _counts(behavior for behavior, _ in self.outcomes.values())
        closes = _counts(close for _, close in self.outcomes.values())
        cases = f"{len(self.outcomes)} cases in {self.seconds:.0f} s"
        return f"{self.front_end}: {cases}; behaviour {behaviors}; closing {closes}"

    def differences(self, cases: Iterable[str], expected: Mapping[str, Outcome]) -> list[str]:
        """Return a paragraph for each of cases whose outcome is not the expected one."""
        listing = []
        for case in cases:
            outcome, wanted = self.outcomes.get(case, NOT_RUN), expected.get(case, NOT_LISTED)
            if outcome != wanted:
                heading = f"{self.front_end} {case}: {' / '.join(outcome)}, expected {' / '.join(wanted)}"
                # The directory may still hold what an earlier run said of a case that did not run now.
                listing.append(heading + (self._account(case) if case in self.outcomes else ""))
        return listing

    def _account(self, case: str) -> str:
        try:
            told = json.loads((self.directory / f"{self.front_end}_case_{case.replace('.', '_')}.json").read_text())
        except FileNotFoundError:
            return ""
        lines = {
            "expectation": " ".join(told["expectation"].split()),
            "result": told["result"],
            "expected": told["expected"],
            "received": told["received"],
            "closing": f"{told['resultClose']}; code {told['remoteCloseCode']}, reason {told['remoteCloseReason']!r}",
        }
        return "".join("\n    " + textwrap.shorten(f"{name}: {text}", 400) for name, text in lines.items())


def _counts(labels: Iterable[str]) -> str:
    return ", ".join(f"{count} {label}" for label, count in Counter(labels).most_common())


def read_expected() -> dict[str, Outcome]:
    """Return the committed outcome of every case."""
    return {case: (behavior, close) for case, (behavior, close) in json.loads(EXPECTED.read_text()).items()}


def write_expected(outcomes: Mapping[str, Outcome]) -> None:
    """Make outcomes the committed ones, one line a case."""
    lines = (f"  {json.dumps(case)}: {json.dumps(outcomes[case])}" for case in sorted(outcomes, key=_numbers))
    EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def select(client: str, patterns: Sequence[str]) -> list[str]:
    """Return the client's cases that match any of patterns, such as 6.* or 9.1.6.

    Raises ValueError for a pattern that matches none: given no case, the client waits for ever.
    """
    program = "from autobahntestsuite.case import Cases; print(' '.join(case.__name__[4:] for case in Cases))"
    names = subprocess.check_output((client, "-c", program), env=installation.environ(), text=True, timeout=60.0)
    cases = names.replace("_", ".").split()
    chosen: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(cases, pattern)
        if not matching:
            raise ValueError(f"no case matches {pattern!r}")
        chosen.update(matching)
    return sorted(chosen, key=_numbers)


def run(client: str, front_ends: Sequence[str], cases: Sequence[str], directory: Path) -> list[Report]:
    """Run cases against all front_ends at once; keep the client's report and the logs under directory.

    Raises RuntimeError with the client's log when it wrote no report.
    """
    with ThreadPoolExecutor(len(front_ends)) as pool:
        return list(pool.map(lambda front_end: _run(client, front_end, cases, directory / front_end), front_ends))


def _run(client: str, front_end: str, cases: Sequence[str], directory: Path) -> Report:
    directory.mkdir(parents=True, exist_ok=True)
    index = directory / "index.json"
    # A report of an earlier run must not stand in for one the client did not write.
    index.unlink(missing_ok=True)
    specification = directory / "specification.json"
    limit = {"GEVENTWS_MAX_MESSAGE_SIZE": str(LARGEST_MESSAGE)}
    client_log = directory / "client.log"
    with (
        serve("tests.autobahn.echo:app", directory, front_end=front_end, env=limit) as server,
        client_log.open("w") as log,
    ):
        servers = [{"agent": front_end, "url": server.url("/"), "options": PATIENCE}]
        specification.write_text(json.dumps({"outdir": str(directory), "servers": servers, "cases": cases}))
        started = time.monotonic()
        subprocess.run(
            (client, Path(client).with_name("wstest"), "-m", "fuzzingclient", "-s", specification),
            env=installation.environ(),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=60.0 + CASE_TIMEOUT * len(cases),
        )
        seconds = time.monotonic() - started
    if not index.is_file():
        raise RuntimeError(f"the fuzzing client wrote no report:\n{client_log.read_text()[-4000:]}")
    told = json.loads(index.read_text()).get(front_end, {})
    outcomes = {case: (told[case]["behavior"], told[case]["behaviorClose"]) for case in told}
    return Report(front_end, directory, outcomes, seconds)


def _numbers(case: str) -> list[int]:
    return [int(number) for number in case.split(".")]
