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
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .environment import compile_programs, prepare
from .servers import SERVERS, Running, Server, ServerFailed, running

WARM_UP = 1.0  # seconds
LONGEST = 15.0  # seconds; load.c answers no Ping, and the strictest peer gives a silent client up after 20
DISTURBANCE = 0.05  # share of the machine's time that, taken by anything else, has a measurement repeated
TRIES = 3
BASELINE, OURS = "gevent", "geventws"


@dataclass(frozen=True)
class Scenario:
    name: str
    connections: int
    in_flight: int
    size: int  # bytes
    kind: str  # text or binary

    def __str__(self) -> str:
        size = f"{self.size // 1024} KiB" if self.size >= 1024 else f"{self.size} bytes"
        return f"{self.name}: {self.kind} of {size}, {self.connections} connections, {self.in_flight} in flight on each"


SCENARIOS = (
    Scenario("small", 64, 1, 64, "text"),
    Scenario("pipelined", 64, 16, 64, "text"),
    Scenario("large", 16, 1, 65536, "binary"),
)

Sample = dict[str, float]
Samples = dict[tuple[str, str], list[Sample]]  # by server and scenario


class WrongEcho(Exception):
    """A server answered with something else than the echo; the message says with what."""


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # a server that runs is ended on the way out
    servers = [server for server in SERVERS if not options.only or server.name in options.only]
    scenarios = [scenario for scenario in SCENARIOS if not options.scenarios or scenario.name in options.scenarios]
    environment = prepare(options.upgrade)
    samples: Samples = {}
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="geventws-benchmarks-") as directory:
        build = Path(directory)
        compile_programs(build)
        for run in range(options.runs):
            for server in servers:
                if server.name not in failures:
                    print(f"run {run + 1} of {options.runs}: {server.name}", file=sys.stderr)
                    try:
                        take(samples, server, scenarios, environment.python, build, options.seconds)
                    except (ServerFailed, WrongEcho) as error:
                        failures[server.name] = f"{type(error).__name__}: {error}"
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    print(f"{machine()}; {versions}.\n{options.runs} runs of {options.seconds:g} s each; figures are medians.")
    for scenario in scenarios:
        print(f"\n### {scenario}\n", *table(servers, scenario, samples), sep="\n")
    for name, reason in environment.missing.items():
        print(f"\nnot installed: {name}: {reason}")
    for name, reason in failures.items():
        print(f"\nmissing: {name}: {reason}")
    if options.json:
        results = [{"server": server, "scenario": name, "runs": runs} for (server, name), runs in samples.items()]
        about = {"machine": machine(), "versions": environment.versions}
        reasons = {"not_installed": environment.missing, "failures": failures}
        options.json.write_text(json.dumps({**about, **reasons, "results": results}, indent=1) + "\n")
    return 1 if failures else 0


def take(
    samples: Samples, server: Server, scenarios: Sequence[Scenario], python: Path, build: Path, seconds: float
) -> None:
    """Start one server, add its least disturbed sample of each scenario, end it."""
    cores = sorted(os.sched_getaffinity(0))
    with running(server, python, build, core=cores[-1]) as process:
        for scenario in scenarios:
            tries = [measure(build / "load", cores[0], server, process, scenario, seconds)]
            while tries[-1]["other_work"] > DISTURBANCE and len(tries) < TRIES:
                tries.append(measure(build / "load", cores[0], server, process, scenario, seconds))
            sample = min(tries, key=lambda sample: sample["other_work"])
            samples.setdefault((server.name, scenario.name), []).append(sample)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.echo", description=__doc__)
    names, scenarios = [server.name for server in SERVERS], [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--seconds", type=float, default=3.0, help=f"of each measurement, at most {LONGEST:g}")
    parser.add_argument("--runs", type=int, default=3, help="of each server")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--scenarios", nargs="+", choices=scenarios, metavar="NAME", help=f"of {', '.join(scenarios)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every single measurement goes")
    parser.add_argument("--upgrade", action="store_true", help="bring the peers to their newest versions first")
    options = parser.parse_args()
    if not 0 < options.seconds <= LONGEST or options.runs < 1:
        parser.error(f"--seconds is more than 0 and at most {LONGEST:g}, --runs at least 1")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed: one for the server, one for the load")
    return options


def measure(load: Path, core: int, server: Server, process: Running, scenario: Scenario, seconds: float) -> Sample:
    """Raises WrongEcho when a reply is not the echo, or does not come."""
    shape = (process.port, scenario.connections, scenario.in_flight, scenario.size, scenario.kind)
    command = [str(part) for part in (load, *shape, "raw" if server.raw else "websocket", WARM_UP, seconds)]
    before = time.monotonic(), machine_seconds(), process.cpu_seconds(), children_seconds()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        os.sched_setaffinity(client.pid, {core})
        result, reason = client.communicate()
    if client.returncode:
        raise WrongEcho(f"{scenario.name}: {reason.strip()}")
    after = time.monotonic(), machine_seconds(), process.cpu_seconds(), children_seconds()
    wall, machine_used, server_used, load_used = (end - begin for begin, end in zip(before, after, strict=True))
    sample: Sample = json.loads(result)
    sample["rate"] = sample["messages"] / sample["seconds"]
    sample["server_us"] = 1e6 * server_used / sample["messages_in_all"]
    sample["other_work"] = max(0.0, machine_used - server_used - load_used) / (wall * (os.cpu_count() or 1))
    return sample


def machine_seconds() -> float:
    """Return the processor time that anything on the machine used, or that its host took, since it started."""
    user, nice, system, _idle, _iowait, *others = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    return sum(map(int, (user, nice, system, *others))) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def table(servers: Sequence[Server], scenario: Scenario, samples: Samples) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    runs = {server.name: samples.get((server.name, scenario.name), []) for server in servers}
    rates = {name: median(sample["rate"] for sample in taken) for name, taken in runs.items() if taken}
    heads = ["server", "messages/s", "lowest to highest", "MiB/s", "p50 ms", "p99 ms", "max ms"]
    heads += ["server CPU µs/message", "load CPU", "other work", f"ratio to {BASELINE}", f"ratio to {OURS}"]
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{'---:|' * (len(heads) - 1)}"
    for server in servers:
        taken = runs[server.name]
        cells = [f"{server.name} ({server.settings})"]
        if not taken:
            cells += ["missing", *[""] * (len(heads) - 2)]
        else:
            rate, each = rates[server.name], [sample["rate"] for sample in taken]
            middle = {key: median(sample[key] for sample in taken) for key in taken[0]}
            slowest = max(sample["max_us"] for sample in taken)
            cells += [f"{rate:,.0f}", f"{min(each):,.0f} to {max(each):,.0f}", f"{rate * scenario.size / 2**20:,.0f}"]
            cells += [f"{value / 1000:.2f}" for value in (middle["p50_us"], middle["p99_us"], slowest)]
            cells += [f"{middle['server_us']:.1f}", f"{middle['load_cpu']:.0%}", f"{middle['other_work']:.0%}"]
            cells += [f"{rate / rates[other]:.2f}" if other in rates else "" for other in (BASELINE, OURS)]
        yield f"| {' | '.join(cells)} |"


def machine() -> str:
    """Return one line: processor, cores, kernel, Python."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    processor = model[1] if model else platform.machine()
    kernel = platform.release().partition("-")[0]
    return f"{processor}, {os.cpu_count()} cores, Linux {kernel}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
