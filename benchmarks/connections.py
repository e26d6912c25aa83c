"""New connections a second: geventws beside its peers.

Every server runs alone on one core; crowd.c, on another, keeps visitors coming: each connects, shakes hands, has one
message echoed, says Close and goes when the server has answered and ended the connection. The runs go round over the
servers; a figure is the median of its runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from .crowd import OURS, VARIANTS, CrowdFailed, allow, compile_crowd, roomy, visit
from .echo import DISTURBANCE, TRIES, setting, versions
from .environment import Environment, compile_programs, prepare
from .load import Sample
from .report import Samples, load, save, spread, table
from .servers import SERVERS, Server, ServerFailed, running

RESULTS = Path(__file__).with_suffix(".md")
PARALLEL = 32  # visitors at a time
MEASURED = (*VARIANTS, *(server for server in SERVERS if server is not OURS and not server.socketio))


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # a server that runs is ended on the way out
    servers = [server for server in MEASURED if not options.only or server.name in options.only]
    environment = prepare(options.upgrade)
    allow(PARALLEL)
    samples = load(options.json)
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="geventws-benchmarks-") as directory:
        build = Path(directory)
        compile_programs(build)
        compile_crowd(build)
        for run in range(options.runs):
            for server in servers:
                if server.name not in failures:
                    print(f"run {run + 1} of {options.runs}: {server.name}", file=sys.stderr)
                    try:
                        sample = take(server, environment.python, build, options.seconds)
                        samples.setdefault(server.name, []).append(sample)
                    except (ServerFailed, CrowdFailed) as error:
                        failures[server.name] = f"{type(error).__name__}: {error}"
    save(options.json, samples)
    lines = list(report(servers, samples, failures, environment, options))
    print(*lines, sep="\n")
    if options.write:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failures else 0


def take(server: Server, python: Path, build: Path, seconds: float) -> Sample:
    """Return the least disturbed sample of a fresh server. Raises ServerFailed, CrowdFailed."""
    with running(roomy(server, PARALLEL), python, build, core=max(os.sched_getaffinity(0))) as process:
        samples: list[Sample] = []
        while not samples or (samples[-1]["other_work"] > DISTURBANCE and len(samples) < TRIES):
            samples.append(visit(build, server, process, PARALLEL, seconds))
    return min(samples, key=lambda sample: sample["other_work"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.connections", description=__doc__)
    names = [server.name for server in MEASURED]
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--runs", type=int, default=5, help="of each server; 0 shows what the file of --json holds")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every measurement goes, after those it holds")
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name} as well")
    parser.add_argument("--upgrade", action="store_true", help="bring the peers to their newest versions first")
    options = parser.parse_args()
    if options.seconds <= 0 or options.runs < 0:
        parser.error("--seconds is more than 0, --runs at least 0")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed: one for the server, one for the visitors")
    return options


def report(
    servers: Sequence[Server],
    samples: Samples,
    failures: dict[str, str],
    environment: Environment,
    options: argparse.Namespace,
) -> Iterator[str]:
    """Yield lines of Markdown."""
    yield "# New connections a second\n"
    yield "Written by `python -m benchmarks.connections --write`; the README beside it tells how it measures.\n"
    yield from setting(*versions(environment))
    yield f"Runs of {options.seconds:g} s, {PARALLEL} visitors at a time; figures are medians.\n"
    heads = [
        "server",
        "connections/s",
        "lowest to highest",
        "runs",
        "p50 ms",
        "p99 ms",
        "server CPU µs each",
        "client CPU",
    ]
    heads += ["other work", f"ratio to {OURS.name}"]
    ours = median(sample["rate"] for sample in samples[OURS.name]) if OURS.name in samples else None
    rows = []
    for server in servers:
        cells = ["missing", *[""] * (len(heads) - 2)]
        if runs := samples.get(server.name):
            rates = [sample["rate"] for sample in runs]
            middle = {key: median(sample[key] for sample in runs) for key in runs[0]}
            cells = [*spread(rates), str(len(runs)), f"{middle['p50_us'] / 1000:.1f}", f"{middle['p99_us'] / 1000:.1f}"]
            cells += [f"{middle['server_us']:.0f}", f"{middle['load_cpu']:.0%}", f"{middle['other_work']:.0%}"]
            cells += [f"{median(rates) / ours:.2f}" if ours else ""]
        rows.append([f"{server.name} ({server.settings})", *cells])
    yield from table(heads, rows)
    for name, reason in (environment.missing | failures).items():
        yield f"\nmissing: {name}: {reason}"


if __name__ == "__main__":
    sys.exit(main())
