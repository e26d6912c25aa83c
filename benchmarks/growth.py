"""What a crowd of idle connections costs the active ones: echo beside 15,000 idle connections and beside none.

Each run starts a server twice, without the crowd and with it, kept alive by pings that it answers. Both times 64 active
clients are echoed, as in the benchmark of the echo, and the processor time of the server is taken while they are not.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from geventws.options import Options

from .crowd import OURS, CrowdFailed, allow, compile_crowd, idle
from .echo import SCENARIOS, least_disturbed, setting
from .environment import Environment, compile_programs, prepare
from .load import Sample, WrongEcho
from .report import Samples, load, save, spread, table
from .servers import Running, ServerFailed, running

RESULTS = Path(__file__).with_suffix(".md")
SCENARIO = SCENARIOS[0]
INTERVALS = 2  # of keepalive, over which processor time is taken
BEFORE = 5.0  # seconds over which that of a server without connections is taken
ROUNDS = 3  # measurements of the echo on each server
AROUND = "lowest to highest"
SHOWN = {"rate": "messages/s", "p50_us": "p50 µs", "p99_us": "p99 µs", "server_us": "server CPU µs/message"}


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # a server that runs is ended on the way out
    environment = prepare(options.upgrade)
    samples = load(options.json)
    try:
        allow(options.connections)
        with tempfile.TemporaryDirectory(prefix="geventws-benchmarks-") as directory:
            build = Path(directory)
            compile_programs(build)
            compile_crowd(build)
            for run in range(options.runs):
                for crowd in (0, options.connections):
                    print(f"run {run + 1} of {options.runs}: beside {crowd} idle connections", file=sys.stderr)
                    sample = take(crowd, environment.python, build, options.seconds)
                    samples.setdefault(str(crowd), []).append(sample)
    except (ServerFailed, CrowdFailed, WrongEcho) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    save(options.json, samples)
    lines = list(report(samples, environment, options))
    print(*lines, sep="\n")
    if options.write:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--connections", type=int, default=15_000, help="that stay idle")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of the echo")
    parser.add_argument(
        "--runs", type=int, default=5, help="with the crowd and without; 0 shows what the file of --json holds"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every measurement goes, after those it holds")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {RESULTS.name} as well")
    parser.add_argument("--upgrade", action="store_true", help="bring the peers to their newest versions first")
    options = parser.parse_args()
    if options.connections < 1 or options.seconds <= 0 or options.runs < 0:
        parser.error("--connections is at least 1, --seconds more than 0, --runs at least 0")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed: one for the server, one for the clients")
    return options


def take(crowd: int, python: Path, build: Path, seconds: float) -> Sample:
    """Return the medians of what a fresh server does beside so many idle connections.

    Raises ServerFailed, CrowdFailed, WrongEcho.
    """
    with running(OURS, python, build, core=max(os.sched_getaffinity(0))) as process, ExitStack() as stack:
        if crowd:
            stack.enter_context(idle(build, OURS, process, crowd))
        echoes = [least_disturbed(build / "load", OURS, process, SCENARIO, seconds) for _ in range(ROUNDS)]
        sample = {key: median(each[key] for each in echoes) for key in echoes[0]}
        sample["idle_cpu"] = idle_cpu(process, INTERVALS * (Options().ping_interval or 0) if crowd else BEFORE)
    return sample


def idle_cpu(process: Running, seconds: float) -> float:
    """Return the share of a core that the server uses by itself."""
    before, begin = process.cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    return (process.cpu_seconds() - before) / (time.monotonic() - begin)


def report(samples: Samples, environment: Environment, options: argparse.Namespace) -> Iterator[str]:
    """Yield lines of Markdown."""
    beside = {crowd: samples[str(crowd)] for crowd in (0, options.connections)}
    yield "# What idle connections cost\n"
    yield "Written by `python -m benchmarks.growth --write`; the README beside it tells how it measures.\n"
    yield from setting(*(f"{name} {environment.versions[name]}" for name in ("flask", "gevent", "gunicorn")))
    yield f"{len(beside[0])} runs with and without; figures are medians, with their spread.\n"
    yield f"## {SCENARIO}\n"
    rows = []
    for key, name in SHOWN.items():
        without, with_crowd = ([sample[key] for sample in taken] for taken in beside.values())
        digits = 1 if key == "server_us" else 0
        ratios = [one / other for one, other in zip(with_crowd, without, strict=True)]
        cells = [cell for values in (without, with_crowd) for cell in spread(values, digits)]
        rows.append([name, *cells, *spread(ratios, 2)])
    heads = [head for name in ("beside none", f"beside {options.connections:,}", "ratio") for head in (name, AROUND)]
    yield from table(["", *heads], rows)
    yield "\n## Keepalive\n"
    rows = [
        [f"{crowd:,}", *spread([100 * sample["idle_cpu"] for sample in taken], 2)] for crowd, taken in beside.items()
    ]
    yield from table(["idle connections", "% of a core", AROUND], rows)


if __name__ == "__main__":
    sys.exit(main())
