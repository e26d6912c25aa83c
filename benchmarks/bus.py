"""Rooms over a real Redis: geventws beside Flask-SocketIO with its message queue and Django Channels with its layers.

Some processes of one server and their Redis share a core. On another, rooms.c speaks to all rooms and hears all
members: how many messages there are, how late they come, and whether they come at all. The runs go round over the
servers; a figure is the median of its runs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import redis

from .broadcast import WentWrong, connect, quantile
from .clients import codec
from .crowd import CrowdFailed, allow, roomy
from .echo import machine, our_version
from .environment import HERE, Environment, prepare
from .load import Sample, Scenario, machine_seconds, own_seconds
from .report import Samples, load, save, spread, table
from .servers import (
    GEVENT_WEBSOCKET,
    GUNICORN,
    START_TIMEOUT,
    STOP_TIMEOUT,
    UVICORN,
    Server,
    ServerFailed,
    free_port,
    running,
)

RESULTS = Path(__file__).with_suffix(".md")
OURS = "geventws"
CHANNELS = "env BUS={bus} LAYER=channels_redis.%s " + UVICORN + "--ws websockets-sansio --ws-ping-interval 3600 "
CHANNELS += "--lifespan off benchmarks.servers.bus_channels:app"
SERVERS = (
    Server(
        OURS,
        "Flask, gunicorn",
        "env GEVENTWS_BUS={bus} GEVENTWS_PING_INTERVAL=off "
        + GUNICORN
        + "geventws.Worker benchmarks.servers.bus_flask_sockets:app",
    ),
    Server(
        "flask-socketio",
        "message_queue, Flask, gunicorn, gevent-websocket",
        "env BUS={bus} " + GEVENT_WEBSOCKET + "bus_flask_socketio:app",
        socketio=True,
    ),
    Server("channels-pubsub", "RedisPubSubChannelLayer, uvicorn, uvloop", CHANNELS % "pubsub.RedisPubSubChannelLayer"),
    Server("channels-core", "RedisChannelLayer, uvicorn, uvloop", CHANNELS % "core.RedisChannelLayer"),
)
SIZE = 200  # bytes of a message
GREETERS = 16  # threads that open connections
SPEAKERS = 8  # connections that speak, to all processes in turn
WARM_UP = 0.5  # seconds


@dataclass(frozen=True)
class Pace:
    """How fast the speakers speak."""

    name: str
    rate: float  # members that hear a message, a second
    ahead: int  # messages that some member may still lack when the next one is said


@dataclass(frozen=True)
class Shape:
    """How many members which rooms have on how many processes, among which the members of each are spread evenly."""

    rooms: int
    members: int  # of each room, on all processes
    processes: int

    @classmethod
    def parse(cls, text: str, processes: int) -> Shape:
        """Return what 1000x10 names. Raises ValueError for anything else."""
        rooms, members = map(int, text.split("x"))
        return cls(rooms, members, processes)

    def __str__(self) -> str:
        return f"{self.rooms}x{self.members}"

    @property
    def sockets(self) -> int:
        return self.rooms * self.members


CALM, FULL = PACES = (Pace("calm", 2_000, 64), Pace("full", 100_000_000, 64))
SHAPES = ("1000x10", "100x40")


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # a server that runs is ended on the way out
    servers = [server for server in SERVERS if not options.only or server.name in options.only]
    environment = prepare(options.upgrade)
    samples = load(options.json)
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="geventws-benchmarks-") as directory:
        build = Path(directory)
        compile_rooms(build)
        for run in range(options.runs):
            for shape in options.shapes:
                for server in servers:
                    print(f"run {run + 1} of {options.runs}: {shape}, {server.name}", file=sys.stderr)
                    try:
                        taken = take(server, shape, environment.python, build, options)
                    except (ServerFailed, CrowdFailed, WentWrong) as error:
                        failures[f"{server.name} in {shape}"] = f"{type(error).__name__}: {error}"
                        continue
                    for pace, sample in taken.items():
                        samples.setdefault(f"{shape} {shape.processes} {pace} {server.name}", []).append(sample)
                    save(options.json, samples)
    lines = list(report(samples, failures, environment))
    print(*lines, sep="\n")
    if options.write:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failures else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bus", description=__doc__)
    names = [server.name for server in SERVERS]
    parser.add_argument("--seconds", type=float, default=2.0, help="of each window")
    parser.add_argument("--windows", type=int, default=4, help="of each pace, in turn, in each run")
    parser.add_argument("--runs", type=int, default=5, help="of each server; 0 shows what the file of --json holds")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="ROOMSxMEMBERS", help=" ".join(SHAPES))
    parser.add_argument("--processes", type=int, default=4, help="of each server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every measurement goes, after those it holds")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {RESULTS.name} as well")
    parser.add_argument("--upgrade", action="store_true", help="bring the peers to their newest versions first")
    options = parser.parse_args()
    if options.seconds <= 0 or options.runs < 0 or options.windows < 1 or options.processes < 1:
        parser.error("--seconds is more than 0, --windows and --processes at least 1, --runs at least 0")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed: one for the servers and Redis, one for their clients")
    try:
        options.shapes = [Shape.parse(shape, options.processes) for shape in options.shapes]
    except ValueError:
        parser.error("a shape is a number of rooms, x, and how many members each has: 1000x10")
    return options


def compile_rooms(build: Path) -> None:
    subprocess.run(["cc", "-O2", "-o", build / "rooms", HERE / "rooms.c"], check=True)


# Redis, the servers and their clients


class Redis:
    """A redis-server of its own that writes nothing to disk."""

    def __init__(self, core: int) -> None:
        """Start it. Raises ServerFailed where it does not answer."""
        self.port = free_port()
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        try:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        except OSError as error:
            raise ServerFailed(f"redis-server: {error}") from error
        os.sched_setaffinity(self.process.pid, {core})
        self.client = redis.Redis(port=self.port)
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if time.monotonic() > deadline:
                self.close()
                raise ServerFailed(f"redis-server does not answer in {START_TIMEOUT:.0f} s")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(STOP_TIMEOUT)


class Gathering:
    """Processes of one server with their Redis, and the people in their rooms, whom rooms.c has taken over."""

    def __init__(self, bus: Redis, groups: Sequence[int], people: Any, shape: Shape) -> None:
        self.bus = bus
        self.workers = [pid for group in groups for pid in processes_of(group)]
        self._people = people
        self._shape = shape

    def window(self, pace: Pace, seconds: float) -> Any:
        """Return what rooms.c counted, and the processor time of all meanwhile. Raises WentWrong where it ended."""
        before = self._used()
        try:
            self._people.stdin.write(f"{pace.rate / self._shape.members} {pace.ahead} {seconds}\n".encode())
            self._people.stdin.flush()
            line = self._people.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise WentWrong(self._people.communicate()[1].decode().strip())
        window = json.loads(line)
        machine_used, window["server_cpu"], window["redis_cpu"], own_used = (
            end - begin for begin, end in zip(before, self._used(), strict=True)
        )
        others = machine_used - window["server_cpu"] - window["redis_cpu"] - own_used - window["client_cpu"]
        window["other_work"] = max(0.0, others)
        return window

    def _used(self) -> tuple[float, float, float, float]:
        return machine_seconds(), cpu_seconds(self.workers), cpu_seconds([self.bus.process.pid]), own_seconds()


@contextmanager
def gathering(server: Server, shape: Shape, python: Path, build: Path) -> Iterator[Gathering]:
    """Have people in all rooms from the begin of the block to its end. Raises ServerFailed, CrowdFailed, WentWrong."""
    allow(shape.sockets + SPEAKERS)
    core = max(os.sched_getaffinity(0))
    with ExitStack() as stack:
        bus = stack.enter_context(closing(Redis(core)))
        server = replace(server, command=server.command.replace("{bus}", bus.url))
        server = roomy(server, shape.sockets)
        processes = [stack.enter_context(running(server, python, build, core)) for _ in range(shape.processes)]
        plain = Scenario(str(shape), shape.sockets, 1, SIZE, "text")
        # A room's members are on neighbours: rooms with fewer members than there are processes use all of these too.
        places = [(i % shape.processes, "speaker") for i in range(SPEAKERS)]
        places += [
            ((r + m) % shape.processes, f"member/{r:06}") for r in range(shape.rooms) for m in range(shape.members)
        ]
        try:
            with ThreadPoolExecutor(GREETERS) as greeters:
                opened = greeters.map(lambda place: connect(server, processes[place[0]].port, plain, place[1]), places)
                clients = [stack.enter_context(closing(client)) for client in opened]
        except (OSError, codec.Misbehaved) as error:
            raise WentWrong(f"{type(error).__name__}: {error}") from error
        files = [client.fileno() for client in clients]
        command = [str(part) for part in (build / "rooms", SPEAKERS, shape.members, *files)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, pass_fds=files, stdin=pipe, stdout=pipe, stderr=pipe) as people:
            os.sched_setaffinity(people.pid, {min(os.sched_getaffinity(0))})
            assert people.stdin is not None and people.stdout is not None
            try:
                frame = spoken(server)
                people.stdin.write(len(frame).to_bytes(4, sys.byteorder) + frame)
                people.stdin.flush()
                if not people.stdout.readline():
                    raise WentWrong(people.communicate()[1].decode().strip())
                yield Gathering(bus, [process.pid for process in processes], people, shape)
            finally:
                people.kill()


def spoken(server: Server) -> bytes:
    """Return the frame of a speaker, in which rooms.c writes room, speaker and number."""
    text = "#room-- by number--" + "a message to a room".center(SIZE - 19, ".")
    payload = f'42["message",{json.dumps(text)}]' if server.socketio else text
    return codec.frame(codec.FIN | codec.TEXT, payload.encode(), key=bytes(4))


def processes_of(group: int) -> list[int]:
    """Return the processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[2]) == group:
                found.append(int(path.parent.name))
        except OSError:
            continue  # ended since the glob
    return found


def cpu_seconds(processes: Sequence[int]) -> float:
    """Return the processor time that the threads of these processes have used so far; to the nanosecond."""
    used = 0
    for process in processes:
        for path in Path(f"/proc/{process}/task").glob("*/schedstat"):
            used += int(path.read_text().split()[0])
    return used / 1e9


# Measuring


def take(server: Server, shape: Shape, python: Path, build: Path, options: argparse.Namespace) -> dict[str, Sample]:
    """Return a sample of each pace, of fresh servers. Raises ServerFailed, CrowdFailed, WentWrong."""
    with gathering(server, shape, python, build) as people:
        for pace in PACES:
            people.window(pace, WARM_UP)
        taken: dict[Pace, list[Any]] = {pace: [] for pace in PACES}
        for _ in range(options.windows):
            for pace, windows in taken.items():
                windows.append(people.window(pace, options.seconds))
    return {pace.name: judged(windows, shape) for pace, windows in taken.items()}


def judged(windows: Sequence[Any], shape: Shape) -> Sample:
    """Return the figures of all windows of one pace."""
    keys = (
        "said",
        "heard",
        "lost",
        "again",
        "disorder",
        "seconds",
        "client_cpu",
        "server_cpu",
        "redis_cpu",
        "other_work",
    )
    total = {key: sum(window[key] for window in windows) for key in keys}
    deliveries = [each for window in windows for each in window["delivery_us"]]
    if not deliveries:
        raise WentWrong(f"none of {total['said']} messages reached all members")
    heard = total["heard"] / shape.members  # as if some had reached all members, and the others none
    return {
        "rate": heard / total["seconds"],
        "p50_ms": quantile(deliveries, 0.5) / 1000,
        "p99_ms": quantile(deliveries, 0.99) / 1000,
        "server_us": 1e6 * total["server_cpu"] / heard,
        "redis_us": 1e6 * total["redis_cpu"] / heard,
        "lost": total["lost"] / (total["said"] * shape.members),
        "again": total["again"] / (total["said"] * shape.members),
        "disorder": total["disorder"] / (len(windows) * shape.rooms),
        "servers": total["server_cpu"] / total["seconds"],
        "redis": total["redis_cpu"] / total["seconds"],
        "client_cpu": total["client_cpu"] / total["seconds"],
        "other_work": total["other_work"] / (total["seconds"] * (os.cpu_count() or 1)),
    }


# The report


def report(samples: Samples, failures: dict[str, str], environment: Environment) -> Iterator[str]:
    """Yield lines of Markdown."""
    yield "# Rooms over Redis\n"
    yield "Written by `python -m benchmarks.bus --write`; the README beside it tells how it measures.\n"
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    yield f"{machine()}; {our_version(environment.python)}, {redis_version()}, {versions}."
    if samples:
        fewest, most = (choose(map(len, samples.values())) for choose in (min, max))
        yield f"Runs of each: {most if fewest == most else f'{fewest} to {most}'}; figures are medians."
    kinds = dict.fromkeys(tuple(key.split()[:3]) for key in samples)
    for sizes, processes, name in kinds:
        shape = Shape.parse(sizes, int(processes))
        pace = next(pace for pace in PACES if pace.name == name)
        taken = {server: samples.get(f"{sizes} {processes} {name} {server.name}", []) for server in SERVERS}
        yield from section(shape, pace, {server: runs for server, runs in taken.items() if runs})
    for what, reason in (environment.missing | failures).items():
        yield f"\nmissing: {what}: {reason}"


def redis_version() -> str:
    try:
        line = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
    except OSError:
        return "no Redis"
    return next(word for word in line.split() if word.startswith("v=")).replace("v=", "Redis ")


def section(shape: Shape, pace: Pace, taken: dict[Server, list[Sample]]) -> Iterator[str]:
    """Yield a table of the servers at one pace."""
    said = f"{pace.rate / shape.members:g} messages a second" if pace is CALM else "as many messages as there can be"
    yield f"\n## {shape.rooms:,} rooms, {shape.members} members each, {shape.processes} processes, {said}\n"
    yield f"{shape.sockets:,} WebSockets. Text of {SIZE} bytes, at most {pace.ahead} messages on the way.\n"
    heads = ["server", "messages/s", "lowest to highest", f"{OURS} to it", "all have it, p50 ms", "p99 ms"]
    heads += ["CPU µs a message", "lowest to highest", f"{OURS} to it", "of Redis, µs", f"{OURS} to it"]
    heads += ["lost", "again", "rooms in disorder", "servers CPU", "Redis CPU", "client CPU", "other work"]
    middles = {
        server: {key: median(sample[key] for sample in runs) for key in runs[0]} for server, runs in taken.items()
    }
    ours = next((middle for server, middle in middles.items() if server.name == OURS), None)
    rows = []
    for server, runs in taken.items():
        middle = middles[server]
        to_it = {key: f"{ours[key] / middle[key]:.2f}" if ours else "" for key in ("rate", "server_us", "redis_us")}
        cells = [f"{server.name} ({server.settings})", *spread([sample["rate"] for sample in runs]), to_it["rate"]]
        cells += [f"{middle[key]:.1f}" for key in ("p50_ms", "p99_ms")]
        cells += [*spread([sample["server_us"] for sample in runs]), to_it["server_us"]]
        cells += [f"{middle['redis_us']:,.0f}", to_it["redis_us"]]
        cells += [f"{max(sample[key] for sample in runs):.2%}" for key in ("lost", "again")]
        cells += [f"{middle[key]:.0%}" for key in ("disorder", "servers", "redis", "client_cpu", "other_work")]
        rows.append(cells)
    yield from table(heads, rows)


if __name__ == "__main__":
    sys.exit(main())
