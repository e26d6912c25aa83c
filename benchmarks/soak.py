"""A soak: thousands of connections for many minutes on one server process, every byte checked, every leak counted.

Client processes hold the connections, end and replace them all the time, and are killed themselves; a probe times a
small echo meanwhile. What the server holds is read before, each minute, and when everybody has left.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import http.client
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import quantiles
from time import monotonic, sleep

from .clients import PATIENCE, Plan, Tally
from .echo import machine
from .load import machine_seconds
from .servers import ROOT, START_TIMEOUT, STOP_TIMEOUT, Running, ServerFailed, answers, free_port, last_word

FOREIGN = 0.1  # share of the connections that the websockets package holds
PER_PROCESS = 600  # connections, at most
SHORTEST = 5.0  # seconds that a connection lives on average, at least
WARM_UP = 30.0  # seconds, at most
KILL_EVERY = 30.0  # seconds, at most
READ_EVERY = 60.0  # seconds, at most
LEAVE_TIMEOUT = 3 * PATIENCE  # seconds for the clients to leave
SETTLE_TIMEOUT = 60.0  # seconds for the server to let go of everything after that
DESCRIPTORS = 200  # that a process may need beside its connections
MIB = 1 << 20
UNREACHABLE = (OSError, ValueError, http.client.HTTPException)

FRONT_ENDS = {
    # gunicorn cuts who sends no request for --keep-alive seconds, by default 2: as long as a busy machine may make a
    # client wait for its turn.
    "worker": "gunicorn --worker-class geventws.Worker --keep-alive 30",
    "server": "geventws",
}
MISHAP = re.compile(r"^.*(?:Traceback|Exception ignored|\[(?:ERROR|CRITICAL)\]|Warning:)", re.MULTILINE)
EXCERPT = 3000  # characters of the log that are shown
HEADS = (
    *("time", "rss MiB", "fds", "greenlets", "WebSockets", "objects"),
    *("messages/s", "MiB/s", "ended/s", "server CPU", "machine CPU", "probe p50 ms", "p99 ms", "worst ms", "errors"),
)


@dataclass(frozen=True)
class State:
    """What the server's process holds, as its route /state tells."""

    pid: int
    rss: int  # bytes
    fds: int
    greenlets: int
    websockets: int  # WebSocket objects, open or not freed yet
    objects: int  # that the garbage collector knows
    waits: int  # sends so far that waited for a slow peer

    def cells(self) -> list[str]:
        return [f"{self.rss / MIB:.1f}", *(f"{n:,}" for n in (self.fds, self.greenlets, self.websockets, self.objects))]

    def leaks(self, before: State) -> list[str]:
        """Return what it holds more than before, but for memory."""
        held = ((name, getattr(self, name), getattr(before, name)) for name in ("fds", "greenlets", "websockets"))
        return [f"{now} {name}, {then} before" for name, now, then in held if now > then]


class Server:
    """The server that is soaked."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def state(self, *, collect: bool = False) -> State:
        """Raises OSError, HTTPException."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", "/state?collect" if collect else "/state", headers={"Connection": "close"})
            return State(**json.load(connection.getresponse()))
        finally:
            connection.close()

    def cpu_seconds(self) -> float:
        return Running(self.process.pid, self.port).cpu_seconds()


@contextmanager
def serving(front_end: str, log: Path) -> Iterator[Server]:
    """Run the server until the block ends. Raises ServerFailed when it does not start."""
    port = free_port()
    arguments = FRONT_ENDS[front_end].split()
    command = [sys.executable, "-m", *arguments, "--bind", f"127.0.0.1:{port}", "benchmarks.servers.soak_app:app"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    server = Server(process, port)
    try:
        deadline = monotonic() + START_TIMEOUT
        while not answers(port):
            if process.poll() is not None or monotonic() > deadline:
                raise ServerFailed(last_word(log.read_text(errors="replace")) or f"no answer in {START_TIMEOUT:g} s")
            sleep(0.05)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Client:
    """A client process."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, plan: Plan, total: Tally) -> None:
        self.name = name
        self.plan = plan
        self.live = 0  # connections, by its last report
        self._process = process
        self._total = total
        self._told = False
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, name: str, plan: Plan, total: Tally) -> Client:
        command = (sys.executable, "-m", f"{__package__}.clients.{name}", plan.as_argument())
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe, limit=MIB)
        return cls(process, name, plan, total)

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            report = json.loads(line)
            self._total.add(report)
            self.live = report["live"]
        status = await self._process.wait()
        if status or not self._told:
            self._total.error("client process ended", f"{self.name}, status {status}")

    async def leave(self) -> None:
        """Have it close its connections and end."""
        self._told = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(asyncio.shield(self._listener), LEAVE_TIMEOUT)
        except asyncio.TimeoutError:
            self._total.error("client process does not leave", f"{self.name}, {self.live} connections")
            await self.kill()

    async def kill(self) -> None:
        """End it by SIGKILL."""
        self._listener.cancel()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


class Soak:
    """The clients of one server, and what came of them."""

    def __init__(self, server: Server, options: argparse.Namespace) -> None:
        self.failures: list[str] = []
        self._server = server
        self._options = options
        self._total = Tally()
        self._clients: list[Client] = []
        self._seeds = count()
        self._kills: list[int] = []  # how many connections went with each

    async def run(self) -> None:
        """Print what comes to pass; what is not as it must be goes to `failures`."""
        seconds = 60 * self._options.minutes
        print(row(HEADS), f"|---|{'---:|' * (len(HEADS) - 1)}", sep="\n", flush=True)
        try:
            fresh = await asyncio.to_thread(self._server.state, collect=True)
            print(row(["fresh", *fresh.cells()]), flush=True)
            await self._hold(min(WARM_UP, seconds / 2), probed=False)
            before = await self._settle(fresh)
            print(row(["start", *before.cells()]), flush=True)
            self._total = Tally(errors=self._total.errors, examples=self._total.examples)
            began = monotonic()
            await self._hold(seconds, probed=True)
            seconds = monotonic() - began
            after = await self._settle(before)
            print(row(["end", *after.cells()]), "", *self._summary(seconds, before, after), sep="\n", flush=True)
            if after.pid != fresh.pid:
                self.failures.append(f"the server's process was {fresh.pid} and is {after.pid} now")
            self.failures += [f"not given back: {leak}" for leak in before.leaks(fresh) + after.leaks(before)]
        except UNREACHABLE as exc:
            self.failures.append(f"the server does not tell its state: {exc!r}")
        finally:
            for client in self._clients:
                await client.kill()
            for kind, number in self._total.errors.most_common():
                self.failures += [f"{number:,} of: {kind}", *(f"    {line}" for line in self._total.examples[kind])]

    async def _hold(self, seconds: float, *, probed: bool) -> None:
        """Have the connections for this long, and end them."""
        for name, plan in self._plans():
            self._clients.append(await Client.start(name, plan, self._total))
        if probed:
            self._clients.append(await Client.start("probe", Plan(self._server.port), self._total))
        interval = Interval(self._server, self._total)
        now = began = monotonic()
        end = now + seconds
        kill_every, read_every = min(KILL_EVERY, seconds / 4), min(READ_EVERY, seconds / 4)
        kill_at, read_at = now + kill_every, now + read_every
        while now < end and self._server.process.poll() is None:
            await asyncio.sleep(min(kill_at, read_at, end) - now)
            now = monotonic()
            if now >= read_at and probed:
                try:
                    cells = (await asyncio.to_thread(self._server.state)).cells()
                except UNREACHABLE as exc:
                    self._total.error("state of the server not told", repr(exc))
                    cells = [""] * 5
                print(row([clock(now - began), *cells, *interval.cells()]), flush=True)
                interval = Interval(self._server, self._total)
                read_at += read_every
            if now >= kill_at and probed and now < end:
                await self._replace_one()
                kill_at += kill_every
        await asyncio.gather(*(client.leave() for client in self._clients))
        self._clients.clear()

    def _plans(self) -> Iterator[tuple[str, Plan]]:
        connections, options = self._options.connections, self._options
        foreign = round(connections * FOREIGN)
        lifetime = max(connections / options.churn, SHORTEST)
        for name, share in (("raw", connections - foreign), ("foreign", foreign)):
            processes = math.ceil(share / PER_PROCESS)
            for number in range(processes):
                own = share // processes + (number < share % processes)
                rate = options.rate * own / connections
                yield name, Plan(self._server.port, own, rate, lifetime, next(self._seeds))

    async def _replace_one(self) -> None:
        """Kill the oldest client process, and start another in its place."""
        client = next(client for client in self._clients if client.name != "probe")
        self._clients.remove(client)
        self._kills.append(client.live)
        await client.kill()
        plan = dataclasses.replace(client.plan, seed=next(self._seeds))
        self._clients.append(await Client.start(client.name, plan, self._total))

    async def _settle(self, before: State) -> State:
        """Return the state once nothing is held that was not before, or when it is time."""
        end = monotonic() + SETTLE_TIMEOUT
        while (state := await asyncio.to_thread(self._server.state, collect=True)).leaks(before) and monotonic() < end:
            await asyncio.sleep(0.5)
        return state

    def _summary(self, seconds: float, before: State, after: State) -> Iterator[str]:
        """Yield the lines of a Markdown list."""
        counts, trips = self._total.counts, self._total.round_trips
        p50, p99, worst = spread(trips)
        volume, growth = counts["bytes"] / (1 << 30), (after.rss - before.rss) / MIB
        ends = ", ".join(f"{number:,} {kind}" for kind, number in sorted(counts.items()) if kind.startswith("ended "))
        yield f"- {counts['messages']:,} messages echoed and checked, {volume:.1f} GiB each way, in {seconds:.0f} s"
        yield (
            f"- of those of the raw clients {counts['sent fragmented']:,} were sent in fragments, "
            f"{counts['sent compressed']:,} sent and {counts['received compressed']:,} received compressed"
        )
        yield f"- {counts['opened']:,} connections, {counts['opened with deflate']:,} with permessage-deflate: {ends}"
        yield f"- {len(self._kills)} client processes killed, with {sum(self._kills):,} connections"
        yield f"- {counts['unanswered']:,} messages were on their way when their connection was told to end"
        yield f"- {after.waits - before.waits:,} sends of the view waited for a slow peer"
        yield f"- {counts['pings answered']:,} keepalive pings answered by raw clients"
        yield (
            f"- probe: {len(trips):,} round trips, p50 {p50:.2f} ms, p99 {p99:.2f} ms, worst {worst:.1f} ms; "
            f"at worst it was woken {1000 * self._total.late:.1f} ms too late itself"
        )
        yield (
            f"- memory: {before.rss / MIB:.1f} MiB at the start, {after.rss / MIB:.1f} MiB at the end, "
            f"{growth:+.1f} MiB and {after.objects - before.objects:+,} objects of Python"
        )


class Interval:
    """What was counted since the last row of the table."""

    def __init__(self, server: Server, total: Tally) -> None:
        self._server = server
        self._total = total
        self._counts = Counter(total.counts)
        self._trips = len(total.round_trips)
        self._cpu = server.cpu_seconds()
        self._machine = machine_seconds()
        self._began = monotonic()

    def cells(self) -> list[str]:
        seconds = monotonic() - self._began
        counts = self._total.counts - self._counts
        ended = sum(number for kind, number in counts.items() if kind.startswith("ended "))
        cells = [f"{number / seconds:,.0f}" for number in (counts["messages"], counts["bytes"] / MIB, ended)]
        cells.append(f"{(self._server.cpu_seconds() - self._cpu) / seconds:.0%}")
        cells.append(f"{(machine_seconds() - self._machine) / seconds / (os.cpu_count() or 1):.0%}")
        cells += [f"{value:.1f}" for value in spread(self._total.round_trips[self._trips :])]
        return [*cells, str(self._total.errors.total())]


def spread(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return median, 99th percentile and maximum in ms; zeros of nothing."""
    if len(seconds) < 2:
        return 0.0, 0.0, 0.0
    percentiles = quantiles(seconds, n=100, method="inclusive")
    return 1000 * percentiles[49], 1000 * percentiles[98], 1000 * max(seconds)


def row(cells: Sequence[str]) -> str:
    """Return a row of the table, as wide as its heads."""
    return f"| {' | '.join([*cells, *[''] * (len(HEADS) - len(cells))])} |"


def clock(seconds: float) -> str:
    return "{}:{:02}".format(*divmod(round(seconds), 60))


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # the server is ended on the way out
    allow_descriptors(options.connections + DESCRIPTORS)
    print(
        f"{machine()}.\n"
        f"{FRONT_ENDS[options.front_end]}: {options.connections} connections, {options.minutes:g} minutes, "
        f"at most {options.rate:g} messages and {options.churn:g} ended connections a second.\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="geventws-soak-") as directory:
        log = options.log or Path(directory) / "log"
        failures: list[str] = []
        try:
            with serving(options.front_end, log) as server:
                soak = Soak(server, options)
                asyncio.run(soak.run())
                failures += soak.failures
            if server.process.returncode:
                failures.append(f"the server ended with status {server.process.returncode}")
        except ServerFailed as exc:
            failures.append(f"the server did not start: {exc}")
        text = log.read_text(errors="replace")
        mishaps = [text[match.start() : match.start() + EXCERPT] for match in MISHAP.finditer(text)]
        if mishaps:
            failures.append(f"{len(mishaps)} mishaps in the server's log, of which the first:\n{mishaps[0]}")
    print("\npassed" if not failures else "\nFAILED:\n" + "\n".join(failures))
    return 1 if failures else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="of load, after a warm-up (default: 20)")
    parser.add_argument("--connections", type=int, default=3000, help="held at any time (default: 3000)")
    parser.add_argument("--front-end", choices=FRONT_ENDS, default="worker", help="(default: worker)")
    parser.add_argument("--rate", type=float, default=1000.0, help="messages a second, at most (default: 1000)")
    parser.add_argument(
        "--churn", type=float, default=40.0, help="connections that end a second, at most (default: 40)"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="where the server's log is kept")
    options = parser.parse_args()
    if options.minutes <= 0 or options.connections < 1 / FOREIGN or options.rate <= 0 or options.churn <= 0:
        parser.error(f"at least {1 / FOREIGN:g} connections are needed, and everything is more than 0")
    return options


def allow_descriptors(number: int) -> None:
    """Have this process, and all it starts, open this many files. Ends the program where that is forbidden."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        if hard != resource.RLIM_INFINITY and hard < number:
            sys.exit(f"{number} file descriptors are needed, the hard limit is {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


if __name__ == "__main__":
    sys.exit(main())
