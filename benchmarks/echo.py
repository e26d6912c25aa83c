"""WebSocket echo of geventws beside its peers, in one run: messages a second, latency, and the ratios between them.

Every server runs alone, one process on one core; load.c, on another core, sends and checks. The runs go round over the
servers, so that what else the machine does meets all of them alike; a figure is the median of its runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from . import plots
from .environment import Environment, compile_programs, prepare
from .load import Sample, Scenario, WrongEcho, measure
from .report import table
from .servers import SERVERS, VARIANTS, Running, Server, ServerFailed, running

RESULTS = Path(__file__).with_suffix(".md")
README = RESULTS.with_name("README.md")
SUMMARY = re.compile(r"(?<=<!-- summary of echo.md -->\n).*?(?=<!-- end -->)", re.DOTALL)
LONGEST = 15.0  # seconds; load.c answers no Ping, and the strictest peer gives a silent client up after 20
DISTURBANCE = 0.05  # share of the machine's time that, taken by anything else, has a measurement repeated
TRIES = 3
LIMITS, OURS = ("gevent", "c-epoll"), "geventws"
AS_SMALL = 1.01  # an echo that is up to so many times as large on the wire counts as equally large

SCENARIOS = (
    Scenario("small", 64, 1, 64, "text"),
    Scenario("pipelined", 64, 16, 64, "text"),
    Scenario("browser", 64, 1, 64, "deflated"),
    Scenario("large", 16, 1, 65536, "binary"),
    Scenario("large-text", 16, 1, 65536, "text"),
    Scenario("huge", 4, 1, 1 << 20, "binary"),
    Scenario("huge-text", 4, 1, 1 << 20, "text"),
    Scenario("compressed", 64, 1, 4096, "json"),
)


class Results:
    """Samples by server and scenario, and why some are missing."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, str], list[Sample]] = {}
        self.failures: dict[tuple[str, str], str] = {}

    def load(self, path: Path) -> None:
        for entry in json.loads(path.read_text())["results"]:
            self.samples[entry["server"], entry["scenario"]] = entry["runs"]

    def save(self, path: Path, environment: Environment) -> None:
        results = [{"server": server, "scenario": name, "runs": runs} for (server, name), runs in self.samples.items()]
        about = {"machine": machine(), "versions": environment.versions, "not_installed": environment.missing}
        failures = [{"server": server, "scenario": name, "why": why} for (server, name), why in self.failures.items()]
        path.write_text(json.dumps({**about, "failures": failures, "results": results}, indent=1) + "\n")

    def runs(self, server: str, scenario: Scenario) -> list[Sample]:
        return self.samples.get((server, scenario.name), [])

    def median(self, key: str, server: str, scenario: Scenario) -> float:
        """Return 0 where nothing was measured."""
        runs = self.runs(server, scenario)
        return median(sample[key] for sample in runs) if runs else 0.0

    def rate(self, server: str, scenario: Scenario) -> float:
        return self.median("rate", server, scenario)


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # a server that runs is ended on the way out
    scenarios = [scenario for scenario in SCENARIOS if not options.scenarios or scenario.name in options.scenarios]
    servers = [server for server in (*SERVERS, *VARIANTS) if not options.only or server.name in options.only]
    environment = prepare(options.upgrade)
    results = Results()
    if options.json and options.json.exists():
        results.load(options.json)
    with tempfile.TemporaryDirectory(prefix="geventws-benchmarks-") as directory:
        build = Path(directory)
        compile_programs(build)
        for run in range(options.runs):
            for server in servers:
                print(f"run {run + 1} of {options.runs}: {server.name}", file=sys.stderr)
                wanted = [each for each in scenarios if not server.scenarios or each.name in server.scenarios]
                take(results, server, wanted, environment.python, build, options.seconds)
                if options.json:
                    results.save(options.json, environment)
    for line in (*about(results, environment), *summary(results)):
        print(line)
    for scenario in SCENARIOS:
        if results.runs(OURS, scenario) or scenario in scenarios:
            print(*section(results, scenario), sep="\n")
    if options.write:
        write(results, environment)
    return 1 if results.failures else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.echo", description=__doc__)
    names = [server.name for server in (*SERVERS, *VARIANTS)]
    scenarios = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--seconds", type=float, default=1.5, help=f"of each measurement, at most {LONGEST:g}")
    parser.add_argument("--runs", type=int, default=5, help="of each server; 0 shows what the file of --json holds")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--scenarios", nargs="+", choices=scenarios, metavar="NAME", help=f"of {', '.join(scenarios)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every measurement goes, after those it holds")
    parser.add_argument("--write", action="store_true", help=f"put tables and plots into {RESULTS.name} as well")
    parser.add_argument("--upgrade", action="store_true", help="bring the peers to their newest versions first")
    options = parser.parse_args()
    if not 0 < options.seconds <= LONGEST or options.runs < 0:
        parser.error(f"--seconds is more than 0 and at most {LONGEST:g}, --runs at least 0")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed: one for the server, one for the load")
    return options


def take(
    results: Results, server: Server, scenarios: Sequence[Scenario], python: Path, build: Path, seconds: float
) -> None:
    """Start one server, add a sample of each scenario but those that failed before, end it."""
    core = max(os.sched_getaffinity(0))
    try:
        with running(server, python, build, core) as process:
            for scenario in scenarios:
                if (server.name, scenario.name) in results.failures:
                    continue
                try:
                    sample = least_disturbed(build / "load", server, process, scenario, seconds)
                except WrongEcho as error:
                    results.failures[server.name, scenario.name] = str(error)
                else:
                    results.samples.setdefault((server.name, scenario.name), []).append(sample)
    except ServerFailed as error:
        results.failures |= {(server.name, scenario.name): str(error) for scenario in scenarios}


def least_disturbed(load: Path, server: Server, process: Running, scenario: Scenario, seconds: float) -> Sample:
    core = min(os.sched_getaffinity(0))
    tries = [measure(load, core, server, process, scenario, seconds)]
    while tries[-1]["other_work"] > DISTURBANCE and len(tries) < TRIES:
        tries.append(measure(load, core, server, process, scenario, seconds))
    return min(tries, key=lambda sample: sample["other_work"])


def write(results: Results, environment: Environment) -> None:
    """Write RESULTS and the plots it shows, and the summary in README."""
    measured = [scenario for scenario in SCENARIOS if results.rate(OURS, scenario)]
    lines = ["# How many messages a second they echo\n"]
    lines += ["Written by `python -m benchmarks.echo --write`; the README beside it tells how it measures.\n"]
    lines += [*about(results, environment), *summary(results)]
    for scenario in measured:
        lines += section(results, scenario, f"\n![messages a second](echo-{scenario.name}.png)")
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    short = "\n".join([*about(results, environment), *summary(results)])
    README.write_text(SUMMARY.sub(lambda _: f"\n{short}\n\n", README.read_text(encoding="utf-8")), encoding="utf-8")
    plots.draw(environment.python, [chart(results, scenario) for scenario in measured])


def about(results: Results, environment: Environment) -> Iterator[str]:
    """Yield lines on what was measured, and how often."""
    yield from setting(our_version(environment.python), *versions(environment))
    if results.samples:
        fewest, most = (choose(map(len, results.samples.values())) for choose in (min, max))
        seconds = median(sample["seconds"] for runs in results.samples.values() for sample in runs)
        runs = str(most) if fewest == most else f"{fewest} to {most}"
        yield f"Runs of each: {runs}, of {seconds:.1f} s; figures are medians."
    for requirement, why in environment.missing.items():
        yield f"Not installed: {requirement}: {why}"


def our_version(python: Path) -> str:
    """Tell what the servers run: this checkout, and what of it is in C."""
    ask = [str(python), "-m", "geventws", "--version"]
    return subprocess.run(ask, check=True, cwd=RESULTS.parents[1], capture_output=True, text=True).stdout.strip()


def summary(results: Results) -> Iterator[str]:
    """Yield the lines of a Markdown table: every server in every scenario."""
    yield f"\nMessages a second, and how many times as many as {OURS}:\n"
    rows = []
    for server in (*SERVERS, *VARIANTS):
        rates = [(results.rate(server.name, scenario), results.rate(OURS, scenario)) for scenario in SCENARIOS]
        if any(rate for rate, _ in rates):
            cells = [f"{rate:,.0f}" + (f" ({rate / ours:.2f})" if ours else "") if rate else "" for rate, ours in rates]
            rows.append([f"{server.name} ({server.settings})", *cells])
    yield from table(["server", *(scenario.name for scenario in SCENARIOS)], rows)


def section(results: Results, scenario: Scenario, picture: str = "") -> Iterator[str]:
    """Yield lines of Markdown on one scenario: picture, table, and what stands out."""
    yield f"\n## {scenario}"
    if picture:
        yield picture
    heads = ["server", "messages/s", "lowest to highest", "MiB/s", "p50 ms", "p99 ms", "max ms"]
    heads += ["server CPU µs/message", "load CPU", "other work", *(f"ratio to {name}" for name in (*LIMITS, OURS))]
    if scenario.kind == "json":
        heads += ["bytes on the wire", f"{OURS} as small, ratio"]
    yield ""
    rows = [row(results, scenario, server) for server in (*SERVERS, *VARIANTS)]
    yield from table(heads, [[*cells, *[""] * (len(heads) - len(cells))] for cells in rows if cells])
    for (server, name), why in results.failures.items():
        if name == scenario.name:
            yield f"\nmissing: {server}: {why}"
    epoll, load_cpu = results.rate("c-epoll", scenario), results.median("load_cpu", "c-epoll", scenario)
    if epoll:
        yield (
            f"\nWith c-epoll the load takes {load_cpu:.0%} of its core: its own ceiling is at some "
            f"{epoll / load_cpu:,.0f} messages a second."
        )
    ours = results.rate(OURS, scenario)
    if ours:
        named = [f"{name} ({ours / results.rate(name, scenario):.2f})" for name in fastest_peers(results, scenario)[:3]]
        which = "peers that compress" if scenario.kind == "json" else "peers"
        yield f"\nThe fastest {which}, and how many times as many {OURS} echoes: {', '.join(named)}."


def row(results: Results, scenario: Scenario, server: Server) -> list[str]:
    """Return the cells of one server; none where it was not tried."""
    runs = results.runs(server.name, scenario)
    if not runs:
        failed = (server.name, scenario.name) in results.failures
        return [f"{server.name} ({server.settings})", "missing"] if failed else []
    middle = {key: median(sample[key] for sample in runs) for key in runs[0]}
    each = [sample["rate"] for sample in runs]
    cells = [f"{server.name} ({server.settings})", f"{middle['rate']:,.0f}", f"{min(each):,.0f} to {max(each):,.0f}"]
    cells += [f"{middle['rate'] * scenario.size / 2**20:,.0f}"]
    times = (middle["p50_us"], middle["p99_us"], max(sample["max_us"] for sample in runs))
    cells += [f"{value / 1000:.2f}" for value in times]
    cells += [f"{middle['server_us']:.1f}", f"{middle['load_cpu']:.0%}", f"{middle['other_work']:.0%}"]
    others = [results.rate(name, scenario) for name in (*LIMITS, OURS)]
    cells += [f"{middle['rate'] / other:.2f}" if other else "" for other in others]
    if scenario.kind == "json":
        rival = ours_as_small(results, scenario, server)
        cells += [f"{middle['wire']:,.0f}", f"{rival / middle['rate']:.2f}" if rival else ""]
    return cells


def compresses(results: Results, scenario: Scenario, server: Server) -> bool:
    return not server.raw and 0 < results.median("wire", server.name, scenario) < scenario.size


def fastest_peers(results: Results, scenario: Scenario) -> list[str]:
    """Return those that speak WebSocket and, where it is about compression, compress."""
    peers = [server for server in SERVERS if not server.raw and server.name != OURS]
    if scenario.kind == "json":
        peers = [server for server in peers if compresses(results, scenario, server)]
    names = [server.name for server in peers if results.rate(server.name, scenario)]
    return sorted(names, key=lambda name: -results.rate(name, scenario))


def ours_as_small(results: Results, scenario: Scenario, server: Server) -> float:
    """Return the rate of our fastest setting with echoes as small as those of a peer; 0 for none."""
    if not compresses(results, scenario, server) or server.name.startswith(OURS):
        return 0.0
    most = AS_SMALL * results.median("wire", server.name, scenario)
    names = [OURS, *(server.name for server in VARIANTS)]
    fit = [name for name in names if 0 < results.median("wire", name, scenario) <= most]
    return max((results.rate(name, scenario) for name in fit), default=0.0)


def chart(results: Results, scenario: Scenario) -> plots.Chart:
    bars = []
    for server in (*SERVERS, *VARIANTS):
        each = [sample["rate"] for sample in results.runs(server.name, scenario)]
        if each:
            kind = "limit" if server.raw else "ours" if server.name.startswith(OURS) else "peer"
            plain = scenario.kind == "json" and not server.raw and not compresses(results, scenario, server)
            label = f"{server.name}, not compressed" if plain else server.name
            bars.append(plots.Bar(label, median(each), min(each), max(each), kind))
    bars.sort(key=lambda bar: -bar.value)
    return plots.Chart(f"echo-{scenario.name}", str(scenario), "messages a second", bars)


def versions(environment: Environment) -> list[str]:
    """Return the names and versions of all that the environment has."""
    return [f"{name} {version}" for name, version in environment.versions.items()]


def setting(*versions: str) -> Iterator[str]:
    """Yield the lines of a Markdown table: the machine, and the versions of what ran on it."""
    yield f"| machine | {machine()} |"
    yield "|---|---|"
    yield f"| versions | {', '.join(versions)} |\n"


def machine() -> str:
    """Return one line: processor, cores, kernel, Python."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    processor = model[1] if model else platform.machine()
    kernel = platform.release().partition("-")[0]
    return f"{processor}, {os.cpu_count()} cores, Linux {kernel}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
