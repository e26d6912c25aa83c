"""What an idle connection costs in memory: of the server process, for geventws and its peers, and piece by piece.

Thousands of clients connect, have one message echoed and stay; the figure is what the server's processes grew by,
divided by them. --breakdown only takes the share of geventws to pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .crowd import OURS, VARIANTS, CrowdFailed, allow, compile_crowd, idle, roomy, visit
from .echo import setting, versions
from .environment import Environment, compile_programs, prepare
from .report import Samples, load, save, spread, table
from .servers import GUNICORN, ROOT, SERVERS, Running, Server, ServerFailed, running

RESULTS = Path(__file__).with_suffix(".md")
BREAKDOWN = "\n## Piece by piece"
OURS_RUNS = 5  # at least, as against those of the peers
TRACED = 2000  # connections
SHOWN = 64  # bytes from which a module, or a line of it, stands in a table by itself
SETTLED = 0.001  # share of the memory by which it may still change in a pause
PAUSE = 0.5  # seconds
AGE = 4.0  # seconds of the youngest connection when it is taken to pieces: more than accept_after

HELD = Server("held", "Flask, gunicorn", GUNICORN + "geventws.Worker benchmarks.servers.held_app:app")
# A thread for each connection, a protocol of its own, no memory at all: not to be compared.
OTHERS = ("flask-sock-threads", "websockets-sync", "flask-socketio", "c-epoll")
MEASURED = (*VARIANTS, *(server for server in SERVERS if server is not OURS and server.name not in OTHERS))


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # a server that runs is ended on the way out
    servers = [server for server in MEASURED if not options.only or server.name in options.only]
    environment = prepare(options.upgrade)
    allow(max(options.connections, TRACED))
    samples = load(options.json)
    failures: dict[str, str] = {}
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="geventws-benchmarks-") as directory:
        build = Path(directory)
        compile_programs(build)
        compile_crowd(build)
        if not options.breakdown:
            for run in range(max(options.runs, OURS_RUNS) if options.runs else 0):
                for server in servers:
                    if server.name not in failures and (run < options.runs or server in VARIANTS):
                        print(f"run {run + 1}: {server.name}", file=sys.stderr)
                        try:
                            kib = share(server, environment.python, build, options.connections)
                            samples.setdefault(server.name, []).append(kib)
                        except (ServerFailed, CrowdFailed) as error:
                            failures[server.name] = f"{type(error).__name__}: {error}"
            save(options.json, samples)
            lines += report(servers, samples, failures, environment, options.connections)
        try:
            lines += breakdown(environment.python, build)
        except (ServerFailed, CrowdFailed) as error:
            failures["breakdown"] = f"{type(error).__name__}: {error}"
            print(f"breakdown: {error}", file=sys.stderr)
    print(*lines, sep="\n")
    if options.write:
        kept = RESULTS.read_text().partition(BREAKDOWN)[0] if options.breakdown else ""
        RESULTS.write_text(kept + "\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failures else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    names = [server.name for server in MEASURED]
    parser.add_argument("--connections", type=int, default=10_000, help="that stay idle")
    parser.add_argument(
        "--runs", type=int, default=3, help=f"of each peer; geventws has {OURS_RUNS} at least; 0 is none"
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every measurement goes, after those it holds")
    parser.add_argument("--breakdown", action="store_true", help="only take a connection of geventws to pieces")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {RESULTS.name} as well")
    parser.add_argument("--upgrade", action="store_true", help="bring the peers to their newest versions first")
    options = parser.parse_args()
    if options.connections < 1 or options.runs < 0:
        parser.error("--connections is at least 1, --runs at least 0")
    return options


def share(server: Server, python: Path, build: Path, connections: int) -> float:
    """Return the KiB that each of so many idle connections costs a fresh server. Raises ServerFailed, CrowdFailed."""
    with running(roomy(server, connections), python, build, core=max(os.sched_getaffinity(0))) as process:
        visit(build, server, process, 16, 0.5)  # what is loaded and cached with the first connections is not theirs
        before = settled_memory(process)
        with idle(build, server, process, connections):
            after = settled_memory(process)
    return (after - before) / connections / 1024


def settled_memory(process: Running) -> int:
    """Return the bytes of its processes once they change no more: pages that they share count in parts (PSS)."""
    last, now = 0, memory(process)
    while abs(now - last) > SETTLED * now:
        time.sleep(PAUSE)
        last, now = now, memory(process)
    return now


def memory(process: Running) -> int:
    kib = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(path.name)) == process.pid:
                found = re.search(r"^Pss: +(\d+) kB", (path / "smaps_rollup").read_text(), re.MULTILINE)
                kib += int(found[1]) if found else 0
        except OSError:
            continue  # ended since the glob
    return 1024 * kib


def breakdown(python: Path, build: Path) -> Iterator[str]:
    """Yield a section of Markdown. Raises ServerFailed, CrowdFailed."""
    whole = 1024 * share(OURS, python, build, TRACED)
    with running(HELD, python, build, core=max(os.sched_getaffinity(0))) as process:
        visit(build, HELD, process, 16, 0.5)
        get(process, "/trace")
        with idle(build, HELD, process, TRACED):
            time.sleep(AGE)
            held = json.loads(get(process, f"/held?connections={TRACED}"))
    modules: dict[str, dict[int, float]] = defaultdict(dict)
    for line, size in held["lines"].items():
        filename, _, number = line.rpartition(":")
        modules[module(filename)][int(number)] = size
    sizes = {name: sum(lines.values()) for name, lines in modules.items()}
    packages: dict[str, float] = defaultdict(float)
    for name, size in sizes.items():
        packages[name.partition("/")[0]] += size
    known = held["data_stack"] + held["c_stack"] + sum(sizes.values())
    yield f"{BREAKDOWN}\n"
    yield f"Of geventws through Flask and gunicorn, {TRACED} connections; bytes each. Written by"
    yield "`python -m benchmarks.memory --breakdown --write`.\n"
    rows = [
        ["all that the process grew by", f"{whole:,.0f}"],
        [
            f"data stack, for Python's frames: the pages once touched; {held['data_stack_used']:,.0f} are in use",
            f"{held['data_stack']:,.0f}",
        ],
        ["C stack, which greenlet copies to the heap", f"{held['c_stack']:,.0f}"],
    ]
    rows += [[f"objects made by {name}", f"{size:,.0f}"] for name, size in ranked(packages)]
    rows += [["objects made by others", f"{sum(size for size in packages.values() if size < SHOWN):,.0f}"]]
    rows += [["room in the allocators, and what no line is known of", f"{whole - known:,.0f}"]]
    yield from table(["piece", "bytes"], rows)
    yield "\nBy the line of Python that runs when an object is made:\n"
    rows = [
        [name, f"{size:,.0f}", ", ".join(f"{number}: {part:,.0f}" for number, part in ranked(modules[name]))]
        for name, size in ranked(sizes)
    ]
    yield from table(["module", "bytes", "by line"], rows)


def ranked(sizes: dict[Any, float]) -> list[tuple[Any, float]]:
    """Return those worth showing, the largest first."""
    return sorted((item for item in sizes.items() if item[1] >= SHOWN), key=lambda item: -item[1])


def module(filename: str) -> str:
    """Return the file with the name of its package before it."""
    path = Path(filename)
    if "site-packages" in path.parts:
        return "/".join(path.parts[path.parts.index("site-packages") + 1 :])
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    return f"Python/{path.name}"


def get(process: Running, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{process.port}{path}", timeout=60) as response:
        body: bytes = response.read()
        return body


def report(
    servers: Sequence[Server],
    samples: Samples,
    failures: dict[str, str],
    environment: Environment,
    connections: int,
) -> Iterator[str]:
    """Yield lines of Markdown."""
    yield "# What an idle connection costs in memory\n"
    yield "Written by `python -m benchmarks.memory --write`; the README beside it tells how it measures.\n"
    yield from setting(*versions(environment))
    yield f"{connections:,} idle connections, KiB each; a figure is the median of its runs.\n"
    rows = []
    for server in servers:
        runs = samples.get(server.name)
        cells = ["missing", "", "", ""]
        if runs:
            ratio = f"{median(runs) / median(samples[OURS.name]):.2f}" if OURS.name in samples else ""
            cells = [*spread(runs, 1), str(len(runs)), ratio]
        rows.append([f"{server.name} ({server.settings})", *cells])
    yield from table(["server", "KiB", "lowest to highest", "runs", f"ratio to {OURS.name}"], rows)
    for name, reason in (environment.missing | failures).items():
        yield f"\nmissing: {name}: {reason}"


if __name__ == "__main__":
    sys.exit(main())
