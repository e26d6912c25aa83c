"""Broadcast to the members of a room: geventws beside a send loop in C, websockets and Flask-SocketIO.

Every server runs alone on one core; audience.c, on another, has a speaker say messages to thousands of members who
read everything, and an outsider whose echoes it times. Windows in which nothing is said alternate with those in which
something is, on the same connections. The runs go round over the servers; a figure is the median of its runs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

from .clients import codec
from .crowd import CrowdFailed, allow, roomy
from .echo import machine, our_version
from .environment import HERE, Environment, prepare
from .load import (
    OFFER,
    RawConnection,
    Sample,
    Scenario,
    SocketIOConnection,
    WebSocketConnection,
    machine_seconds,
    messages,
    own_seconds,
)
from .report import Samples, load, save, spread, table
from .servers import GEVENT_WEBSOCKET, GUNICORN, PYTHON, Running, Server, ServerFailed, running

RESULTS = Path(__file__).with_suffix(".md")
OURS, LIMIT = "geventws", "c-loop"
SERVERS = (
    Server(LIMIT, "send() in a loop, TCP", "{build}/broadcast {port}", raw=True),
    Server(
        OURS,
        "Flask, gunicorn",
        f"env GEVENTWS_PING_INTERVAL=off {GUNICORN}geventws.Worker benchmarks.servers.room_flask_sockets:app",
    ),
    Server("websockets", "broadcast(), asyncio", PYTHON + "room_websockets {port} asyncio"),
    Server("websockets-uvloop", "broadcast(), uvloop", PYTHON + "room_websockets {port} uvloop"),
    Server(
        "flask-socketio",
        "Flask, gunicorn, gevent-websocket",
        GEVENT_WEBSOCKET + "room_flask_socketio:app",
        socketio=True,
    ),
)
WARM_UP = 0.3  # seconds


@dataclass(frozen=True)
class Pace:
    """How fast the speaker speaks."""

    name: str
    rate: float  # members that hear a message, a second
    ahead: int  # messages that some member may still lack when the next one is said


QUIET = Pace("quiet", 0, 1)
PACES = (Pace("single", 20_000, 1), Pace("busy", 100_000, 8))
SCENARIOS = (
    Scenario("1000", 1000, 1, 200, "text"),
    Scenario("5000", 5000, 1, 200, "text"),
    Scenario("1000-compressed", 1000, 1, 400, "json"),
    Scenario("5000-compressed", 5000, 1, 400, "json"),
)


class WentWrong(Exception):
    """A member, or the outsider, got something else than it should; the message says what."""


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # a server that runs is ended on the way out
    servers = [server for server in SERVERS if not options.only or server.name in options.only]
    scenarios = [scenario for scenario in SCENARIOS if not options.scenarios or scenario.name in options.scenarios]
    environment = prepare(options.upgrade)
    samples = load(options.json)
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="geventws-benchmarks-") as directory:
        build = Path(directory)
        compile_audience(build)
        for run in range(options.runs):
            for scenario in scenarios:
                for server in servers:
                    print(f"run {run + 1} of {options.runs}: {scenario.name}, {server.name}", file=sys.stderr)
                    try:
                        taken = take(server, scenario, environment.python, build, options)
                    except (ServerFailed, CrowdFailed, WentWrong) as error:
                        failures[f"{server.name} in {scenario.name}"] = f"{type(error).__name__}: {error}"
                        continue
                    for pace, sample in taken.items():
                        samples.setdefault(f"{scenario.name} {pace} {server.name}", []).append(sample)
                    save(options.json, samples)
    lines = list(report(samples, failures, environment))
    print(*lines, sep="\n")
    if options.write:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failures else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.broadcast", description=__doc__)
    names, scenarios = [server.name for server in SERVERS], [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--seconds", type=float, default=1.0, help="of each window")
    parser.add_argument("--windows", type=int, default=4, help="of each pace, in turn, in each run")
    parser.add_argument("--runs", type=int, default=5, help="of each server; 0 shows what the file of --json holds")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--scenarios", nargs="+", choices=scenarios, metavar="NAME", help=f"of {', '.join(scenarios)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every measurement goes, after those it holds")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {RESULTS.name} as well")
    parser.add_argument("--upgrade", action="store_true", help="bring the peers to their newest versions first")
    options = parser.parse_args()
    if options.seconds <= 0 or options.runs < 0 or options.windows < 1:
        parser.error("--seconds is more than 0, --windows at least 1, --runs at least 0")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed: one for the server, one for the audience")
    return options


def compile_audience(build: Path) -> None:
    for name in ("audience", "broadcast"):
        subprocess.run(["cc", "-O2", "-pthread", "-o", build / name, HERE / f"{name}.c"], check=True)


# The clients, up to where audience.c takes them over


class RawClient(RawConnection):
    """Says by a byte what it is, and then frames as a WebSocket's client would."""

    def __init__(self, port: int, offer: str, role: str) -> None:
        super().__init__(port, offer)
        self._socket.sendall(role[:1].encode())
        self._socket.recv(1)

    def say(self, message: str | bytes) -> bytes:
        """Return the bytes that were sent."""
        frame = self._frame(message)
        self._socket.sendall(frame)
        return frame

    def hear(self, message: str | bytes) -> bytes:
        """Return the bytes that came, of this message. Raises Misbehaved for another."""
        wanted = self._frame(message)
        if (heard := self._socket.recv(1 << 16)) != wanted:
            raise codec.Misbehaved("not what was said", repr(heard))
        return heard


class WebSocketClient(WebSocketConnection):
    def __init__(self, port: int, offer: str, role: str) -> None:
        self.path = self._path_of(role)
        super().__init__(port, offer)
        self._take_welcome()

    def _path_of(self, role: str) -> str:
        return f"/{role}"

    def _take_welcome(self) -> None:
        self._receive()

    def say(self, message: str | bytes) -> bytes:
        """Return the bytes that were sent."""
        frames = b"".join(map(self._frame, self._wrap(message)))
        self._socket.sendall(frames)
        return frames

    def hear(self, message: str | bytes) -> bytes:
        """Return the bytes that came, of this message. Raises Misbehaved for another."""
        frames = b""
        for wanted in self._wrap(message):
            heard, more = self._receive()
            if heard != wanted:
                raise codec.Misbehaved("not what was said", repr(heard))
            frames += more
        return frames


class SocketIOClient(WebSocketClient, SocketIOConnection):
    def _path_of(self, role: str) -> str:
        return f"{SocketIOConnection.path}&role={role}"

    def _take_welcome(self) -> None:
        """Nothing more comes than the answer of the namespace."""


Client = RawClient | WebSocketClient


def connect(server: Server, port: int, scenario: Scenario, role: str) -> Client:
    kind = RawClient if server.raw else SocketIOClient if server.socketio else WebSocketClient
    return kind(port, OFFER if scenario.kind == "json" else "", role)


# Measuring


def take(
    server: Server, scenario: Scenario, python: Path, build: Path, options: argparse.Namespace
) -> dict[str, Sample]:
    """Return a sample of each pace, of a fresh server. Raises ServerFailed, CrowdFailed, WentWrong."""
    allow(scenario.connections)
    core = max(os.sched_getaffinity(0))
    with running(roomy(server, scenario.connections), python, build, core) as process, ExitStack() as stack:
        try:
            speaker, outsider, witness = (
                stack.enter_context(closing(connect(server, process.port, scenario, role)))
                for role in ("speaker", "outsider", "member")
            )
            exchanges = [outsider.exchange("o" * 64)]
            for message in messages(scenario):
                exchanges.append((speaker.say(message), witness.hear(message)))
            witness.close()
            members = [
                stack.enter_context(closing(connect(server, process.port, scenario, "member")))
                for _ in range(scenario.connections)
            ]
        except (OSError, codec.Misbehaved) as error:
            raise WentWrong(f"{type(error).__name__}: {error}") from error
        files = [client.fileno() for client in (speaker, outsider, *members)]
        plan = b"".join(struct.pack("=II", len(sent), len(heard)) + sent + heard for sent, heard in exchanges)
        windows = attend(build, process, files, plan + bytes(8), scenario, options)
        return {pace.name: judged(windows[pace], windows[QUIET], scenario) for pace in PACES}


class Windows:
    """What was counted in all windows of one pace."""

    def __init__(self) -> None:
        self.said = 0
        self.seconds = 0.0
        self.server_cpu = 0.0  # seconds
        self.client_cpu = 0.0  # seconds
        self.other_work = 0.0  # seconds of processor time
        self.echoes: list[int] = []  # µs each
        self.deliveries: list[int] = []  # µs until the last member had a message

    def add(self, window: Any, used: Sequence[float]) -> None:
        """Add what audience.c counted, and the processor time of machine, server and this process meanwhile."""
        machine_used, server_used, own_used = used
        self.said += window["said"]
        self.seconds += window["seconds"]
        self.server_cpu += server_used
        self.client_cpu += window["client_cpu"]
        self.other_work += max(0.0, machine_used - server_used - own_used - window["client_cpu"])
        self.echoes += window["echo_us"]
        self.deliveries += window["delivery_us"]


def attend(
    build: Path, process: Running, files: list[int], plan: bytes, scenario: Scenario, options: argparse.Namespace
) -> dict[Pace, Windows]:
    command = [str(part) for part in (build / "audience", *files)]
    pipe = subprocess.PIPE
    windows = {pace: Windows() for pace in (QUIET, *PACES)}
    with subprocess.Popen(command, pass_fds=files, stdin=pipe, stdout=pipe, stderr=pipe) as audience:
        os.sched_setaffinity(audience.pid, {min(os.sched_getaffinity(0))})
        assert audience.stdin is not None and audience.stdout is not None
        try:
            audience.stdin.write(plan)
            audience.stdin.flush()
            if audience.stdout.readline():
                open_window(audience.stdin, audience.stdout, PACES[0], scenario, WARM_UP)
                for _ in range(options.windows):
                    for pace, counted in windows.items():
                        before = machine_seconds(), process.cpu_seconds(), own_seconds()
                        window = open_window(audience.stdin, audience.stdout, pace, scenario, options.seconds)
                        after = machine_seconds(), process.cpu_seconds(), own_seconds()
                        counted.add(window, [end - begin for begin, end in zip(before, after, strict=True)])
        except (BrokenPipeError, EOFError):
            pass  # it tells why
        except BaseException:
            audience.kill()
            raise
        _, reason = audience.communicate()
    if audience.returncode or not windows[PACES[-1]].said:
        raise WentWrong(reason.decode().strip())
    return windows


def open_window(into: IO[bytes], out: IO[bytes], pace: Pace, scenario: Scenario, seconds: float) -> Any:
    """Return what audience.c counted. Raises EOFError where it ended instead."""
    into.write(f"{pace.rate / scenario.connections} {pace.ahead} {seconds}\n".encode())
    into.flush()
    if not (line := out.readline()):
        raise EOFError
    return json.loads(line)


def judged(spoken: Windows, quiet: Windows, scenario: Scenario) -> Sample:
    """Return the figures of a pace. What the outsider's echoes took while nothing was said is taken off."""
    heard = spoken.said * scenario.connections
    echo = quiet.server_cpu / len(quiet.echoes)
    return {
        "rate": spoken.said / spoken.seconds,
        "member_us": 1e6 * (spoken.server_cpu - echo * len(spoken.echoes)) / heard,
        "server_cpu": spoken.server_cpu / spoken.seconds,
        "client_cpu": spoken.client_cpu / spoken.seconds,
        "other_work": spoken.other_work / (spoken.seconds * (os.cpu_count() or 1)),
        "delivery_ms": median(spoken.deliveries) / 1000,
        "p50_ms": quantile(spoken.echoes, 0.5) / 1000,
        "p99_ms": quantile(spoken.echoes, 0.99) / 1000,
        "quiet_p50_ms": quantile(quiet.echoes, 0.5) / 1000,
        "quiet_p99_ms": quantile(quiet.echoes, 0.99) / 1000,
    }


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


# The report


def report(samples: Samples, failures: dict[str, str], environment: Environment) -> Iterator[str]:
    """Yield lines of Markdown."""
    yield "# Broadcast to a room\n"
    yield "Written by `python -m benchmarks.broadcast --write`; the README beside it tells how it measures.\n"
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    yield f"{machine()}; {our_version(environment.python)}, {versions}."
    if samples:
        fewest, most = (choose(map(len, samples.values())) for choose in (min, max))
        yield f"Runs of each: {most if fewest == most else f'{fewest} to {most}'}; figures are medians."
    for scenario in SCENARIOS:
        for pace in PACES:
            taken = {server: samples.get(f"{scenario.name} {pace.name} {server.name}", []) for server in SERVERS}
            if any(taken.values()):
                yield from section(scenario, pace, {server: runs for server, runs in taken.items() if runs})
    for what, reason in (environment.missing | failures).items():
        yield f"\nmissing: {what}: {reason}"


def section(scenario: Scenario, pace: Pace, taken: dict[Server, list[Sample]]) -> Iterator[str]:
    """Yield a table of the servers at one pace."""
    kind = "compressed JSON" if scenario.kind == "json" else "text"
    limit = "one message" if pace.ahead == 1 else f"at most {pace.ahead} messages"
    yield f"\n## {scenario.connections:,} members, {pace.rate / scenario.connections:g} messages a second, {kind}\n"
    yield f"Messages of {scenario.size} bytes, {limit} on the way.\n"
    heads = ["server", "messages/s", "CPU µs a member", "lowest to highest", f"ratio to {LIMIT}", f"ratio to {OURS}"]
    heads += ["all have it, ms", "outsider p50 ms", "p99 ms", "p99, ratio to quiet", "lowest to highest"]
    heads += ["server CPU", "client CPU", "other work"]
    cost = {server.name: median(sample["member_us"] for sample in runs) for server, runs in taken.items()}
    rows = []
    for server, runs in taken.items():
        middle = {key: median(sample[key] for sample in runs) for key in runs[0]}
        cells = [f"{server.name} ({server.settings})", f"{middle['rate']:.1f}"]
        cells += spread([sample["member_us"] for sample in runs], 1)
        cells += [f"{cost[server.name] / cost[name]:.2f}" if name in cost else "" for name in (LIMIT, OURS)]
        cells += [f"{middle[key]:.2f}" for key in ("delivery_ms", "p50_ms", "p99_ms")]
        cells += spread([sample["p99_ms"] / sample["quiet_p99_ms"] for sample in runs], 1)
        cells += [f"{middle[key]:.0%}" for key in ("server_cpu", "client_cpu", "other_work")]
        rows.append(cells)
    yield from table(heads, rows)


if __name__ == "__main__":
    sys.exit(main())
