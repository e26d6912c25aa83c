"""What a room, a member and a message of geventws cost over Redis, as a model that a run of another shape checks.

The figures go into sizing.json, and from there into the part "Sizing" of docs/rooms.md. Servers, Redis and clients are
those of benchmarks.bus.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from .broadcast import WentWrong
from .bus import FULL, OURS, SERVERS, SIZE, WARM_UP, Gathering, Shape, compile_rooms, gathering
from .crowd import CrowdFailed
from .echo import machine, our_version
from .environment import prepare
from .report import load, save, table
from .servers import ServerFailed

RESULTS = Path(__file__).with_suffix(".json")
PAGE = RESULTS.parents[1] / "docs" / "rooms.md"
PART = re.compile(r"(?<=<!-- from benchmarks/sizing.json -->\n).*?(?=<!-- end -->)", re.DOTALL)
SHAPES = {
    "few": Shape(250, 4, 4),
    "many": Shape(1000, 4, 4),
    "crowded": Shape(250, 20, 4),
    "alone": Shape(1000, 4, 1),
    "check": Shape(500, 8, 2),
}
USED = 0.6  # of a core: beyond that whoever says something waits for others
FILLED = 200  # messages said in each room on average, of which it keeps 100
STILL = 0.002  # by which part memory may change in a second
ROOMS_OF = 10  # members, in the examples

Figures = Mapping[str, float]


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # a server that runs is ended on the way out
    server = next(server for server in SERVERS if server.name == OURS)
    environment = prepare(False)
    samples = load(options.json)
    with tempfile.TemporaryDirectory(prefix="geventws-benchmarks-") as directory:
        build = Path(directory)
        compile_rooms(build)
        for run in range(options.runs):
            for name, shape in SHAPES.items():
                print(f"run {run + 1} of {options.runs}: {name}", file=sys.stderr)
                if options.tenth:
                    shape = replace(shape, rooms=shape.rooms // 10)
                try:
                    with gathering(server, shape, environment.python, build) as people:
                        samples.setdefault(name, []).append(measured(people, shape, options, fills=name == "few"))
                except (ServerFailed, CrowdFailed, WentWrong) as error:
                    print(f"{type(error).__name__}: {error}", file=sys.stderr)
                    return 1
                save(options.json, samples)
    middle = {name: {key: median(run[key] for run in runs) for key in runs[0]} for name, runs in samples.items()}
    about = f"{machine()}; {our_version(environment.python)}, {min(map(len, samples.values()))} runs"
    recorded = {"about": about, "measured": middle}
    lines = list(part(recorded))
    print(*lines, sep="\n")
    if options.write:
        RESULTS.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(PART.sub(lambda _: "\n".join(lines) + "\n", text), encoding="utf-8")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizing", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each window")
    parser.add_argument("--windows", type=int, default=3, help="in each run")
    parser.add_argument("--runs", type=int, default=5, help="of each shape; 0 shows what the file of --json holds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every measurement goes, after those it holds")
    parser.add_argument("--write", action="store_true", help=f"put the figures into {RESULTS.name} and {PAGE.name}")
    parser.add_argument("--tenth", action="store_true", help="a tenth of the rooms: does it work?")
    options = parser.parse_args()
    if options.tenth and (options.write or options.json):
        parser.error("the figures of --tenth are not kept")
    if options.seconds <= 0 or options.runs < 0 or options.windows < 1:
        parser.error("--seconds is more than 0, --windows at least 1, --runs at least 0")
    return options


# Measuring


def measured(people: Gathering, shape: Shape, options: argparse.Namespace, *, fills: bool) -> dict[str, float]:
    """Return memory with everybody there, what messages cost, and if it fills each room, what those take that it keeps.

    Raises WentWrong.
    """
    before = settled(people)
    people.window(FULL, WARM_UP)
    stats = calls(people)
    windows = [people.window(FULL, options.seconds) for _ in range(options.windows)]
    said = sum(window["said"] for window in windows)
    commands, scripts = ((after - begin) / said for begin, after in zip(stats, calls(people), strict=True))
    sample = {"memory": before[0], "redis_memory": before[1], "commands": commands, "scripts": scripts}
    for name, key in (("worker_us", "server_cpu"), ("redis_us", "redis_cpu")):
        sample[name] = 1e6 * sum(window[key] for window in windows) / said
    if fills:
        while said < FILLED * shape.rooms:
            said += people.window(FULL, options.seconds)["said"]
        full = settled(people)
        sample["history"] = (full[0] - before[0]) / shape.rooms / shape.processes
        sample["redis_history"] = (full[1] - before[1]) / shape.rooms
    return sample


def settled(people: Gathering) -> tuple[float, float]:
    """Return the bytes that servers and Redis have, once they no longer change: Redis keeps buffers for a while."""
    last = 0.0, 0.0
    for _ in range(10):
        now = worker_bytes(people), redis_bytes(people)
        if all(abs(new - old) < STILL * old for new, old in zip(now, last, strict=True)):
            break
        last = now
        time.sleep(1)
    return now


def worker_bytes(people: Gathering) -> float:
    """Return the memory of the servers; of pages that they share each has its part."""
    total = 0
    for process in people.workers:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024.0


def redis_bytes(people: Gathering) -> float:
    return float(people.bus.client.info("memory")["used_memory"])


def calls(people: Gathering) -> tuple[int, int]:
    """Return how many commands Redis has done, those of scripts too, and how many scripts."""
    stats = people.bus.client.info("commandstats")
    scripts = sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))
    return sum(each["calls"] for each in stats.values()), scripts


# The model


def model(measured: Mapping[str, Figures]) -> dict[str, float]:
    """Return what each thing costs: processor time in µs, memory in bytes."""
    few, many, crowded, alone = (measured[name] for name in ("few", "many", "crowded", "alone"))
    members = SHAPES["crowded"].sockets - SHAPES["few"].sockets
    rooms, more = SHAPES["many"].rooms - SHAPES["few"].rooms, SHAPES["many"].sockets - SHAPES["few"].sockets
    cost: dict[str, float] = {}
    cost["deliver"] = (crowded["worker_us"] - few["worker_us"]) / (SHAPES["crowded"].members - SHAPES["few"].members)
    processes = SHAPES["many"].processes
    cost["hear"] = (many["worker_us"] - alone["worker_us"]) / (processes - 1)
    cost["say"] = alone["worker_us"] - cost["hear"] - SHAPES["alone"].members * cost["deliver"]
    cost["redis_hear"] = (many["redis_us"] - alone["redis_us"]) / (processes - 1)
    cost["redis_say"] = alone["redis_us"] - cost["redis_hear"]
    cost["member"] = (crowded["memory"] - few["memory"]) / members
    cost["room"] = (many["memory"] - few["memory"] - more * cost["member"]) / rooms / processes
    cost["redis_member"] = (crowded["redis_memory"] - few["redis_memory"]) / members
    cost["redis_room"] = (many["redis_memory"] - few["redis_memory"] - more * cost["redis_member"]) / rooms
    return cost | {"history": few["history"], "redis_history": few["redis_history"], "commands": many["commands"]}


def message_us(cost: Figures, workers: int, members: int) -> float:
    """Return the processor time of all servers for a message that so many of them hear for so many members."""
    return cost["say"] + workers * cost["hear"] + members * cost["deliver"]


def redis_us(cost: Figures, workers: int) -> float:
    """Return the processor time of Redis for a message that so many workers hear."""
    return cost["redis_say"] + workers * cost["redis_hear"]


def error(recorded: Mapping[str, Any]) -> float:
    """Return by which part the model is wrong about the shape that it was not made from."""
    shape, figures = SHAPES["check"], recorded["measured"]["check"]
    predicted = message_us(model(recorded["measured"]), shape.processes, shape.members)
    return predicted / float(figures["worker_us"]) - 1


# The page


def part(recorded: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines of Markdown: the model, and what follows from it."""
    cost = model(recorded["measured"])
    yield ""
    yield from table(
        ("what it costs", "a worker", "Redis"),
        (
            ("a member, with WebSocket and view", size(cost["member"]), size(cost["redis_member"])),
            ("a room, in each worker that has members of it", size(cost["room"]), f"{size(cost['redis_room'])}, once"),
            (
                f"its history of 100 messages of {SIZE} bytes",
                f"{size(cost['history'])}, in each",
                size(cost["redis_history"]),
            ),
            ("to say a message", us(cost["say"]), f"{us(cost['redis_say'])}, {cost['commands']:.0f} commands"),
            ("to hear it, in each worker that has members of the room", us(cost["hear"]), us(cost["redis_hear"])),
            ("to deliver it, to each member", us(cost["deliver"]), "nothing"),
        ),
    )
    yield ""
    yield f"From it follows what cores bear that are busy for {USED:.0%} of the time, each worker on its own:"
    yield ""
    yield from table(
        (
            f"rooms of {ROOMS_OF} members, each on all workers",
            "messages a second they bear",
            "one Redis bears",
        ),
        (
            (
                f"{workers} worker{'s'[: workers > 1]}",
                rounded(of_workers(cost, workers)),
                rounded(of_redis(cost, workers)),
            )
            for workers in (1, 2, 4, 8)
        ),
    )
    yield ""


def of_workers(cost: Figures, workers: int) -> float:
    """Return how many messages a second the workers can bear together, each on a core of its own."""
    return USED * 1e6 * workers / message_us(cost, workers, ROOMS_OF)


def of_redis(cost: Figures, workers: int) -> float:
    """Return how many messages a second one Redis can bear."""
    return USED * 1e6 / redis_us(cost, workers)


def rounded(number: float) -> str:
    """Return a number by its two leading digits; what is behind them changes from run to run."""
    return f"{float(f'{number:.1e}'):,.0f}"


def us(microseconds: float) -> str:
    return f"{rounded(microseconds)} µs"


def size(number: float) -> str:
    return f"{float(f'{number:.1e}') / 1000:g} KB" if number >= 1000 else f"{rounded(number)} B"


if __name__ == "__main__":
    sys.exit(main())
