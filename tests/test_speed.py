"""Speed may not be lost unseen: the processor time of an echo beside that of raw gevent, and of a broadcast beside C.

Nor memory: that of an idle WebSocket of one front end beside the other's. Both of a pair are measured in the same run.
Not wall time: what else the machine does makes that longer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import pytest

from benchmarks import broadcast, memory
from benchmarks.crowd import OURS, VARIANTS, compile_crowd
from benchmarks.environment import compile_programs
from benchmarks.load import Sample, Scenario, measure
from benchmarks.servers import SERVERS, Running, Server, running

from .servers import missing
from .test_capacity import descriptor_limit

pytestmark = pytest.mark.slow  # it starts servers or installs packages

RAW = next(server for server in SERVERS if server.name == "gevent")
ROUNDS = 5
SECONDS = 0.1  # of a measurement behind its warm-up, whose processor time counts too


class Pair:
    """Both servers on one core."""

    def __init__(self, load: Path, processes: dict[Server, Running]) -> None:
        self._load = load
        self._processes = processes

    def ratios(self, scenario: Scenario) -> list[float]:
        """Return the processor time of our echo beside that of raw gevent's, measured in turn."""
        rounds = [[self._measure(server, scenario) for server in (OURS, RAW)] for _ in range(ROUNDS)]
        return [ours["server_us"] / raw["server_us"] for ours, raw in rounds]

    def _measure(self, server: Server, scenario: Scenario) -> Sample:
        core = min(os.sched_getaffinity(0))
        return measure(self._load, core, server, self._processes[server], scenario, SECONDS)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if not shutil.which("cc"):
        missing("a C compiler, for the load")
    build = tmp_path_factory.mktemp("build")
    compile_programs(build)
    core = max(os.sched_getaffinity(0))
    with ExitStack() as stack:
        start = stack.enter_context
        yield Pair(
            build / "load",
            {server: start(running(server, Path(sys.executable), build, core)) for server in (RAW, OURS)},
        )


@pytest.mark.parametrize(("in_flight", "bound"), [(1, 1.25), (16, 5.0)], ids=["one in flight", "sixteen in flight"])
def test_an_echo_takes_little_more_processor_time_than_that_of_raw_gevent(
    pair: Pair, in_flight: int, bound: float
) -> None:
    ratios = pair.ratios(Scenario("small", 64, in_flight, 64, "text"))
    assert median(ratios) < bound, f"in {ROUNDS} rounds {ratios}"


def test_a_broadcast_takes_little_more_processor_time_than_a_send_loop_in_c(tmp_path: Path) -> None:
    if not shutil.which("cc"):
        missing("a C compiler, for the audience")
    broadcast.compile_audience(tmp_path)
    room = Scenario("room", 200, 1, 200, "text")
    options = argparse.Namespace(seconds=0.3, windows=2)
    servers = {server.name: server for server in broadcast.SERVERS}

    def measured(name: str) -> dict[str, Sample]:
        return broadcast.take(servers[name], room, Path(sys.executable), tmp_path, options)

    rounds = [(measured(broadcast.OURS), measured(broadcast.LIMIT)) for _ in range(3)]
    for pace, bound in (("single", 2.2), ("busy", 1.5)):
        ratios = [ours[pace]["member_us"] / limit[pace]["member_us"] for ours, limit in rounds]
        assert median(ratios) < bound, f"{pace}: {ratios}"


def test_an_idle_websocket_of_pywsgi_takes_little_more_memory_than_one_of_gunicorn(tmp_path: Path) -> None:
    if not shutil.which("cc"):
        missing("a C compiler, for the crowd")
    compile_crowd(tmp_path)
    alone = next(server for server in VARIANTS if server.name == "geventws-alone")
    with descriptor_limit(4096):
        kib = [memory.share(server, Path(sys.executable), tmp_path, 2000) for server in (alone, OURS)]
    assert kib[0] - kib[1] < 7.5, f"one more page of 4 KiB for Python's frames: {kib}"
