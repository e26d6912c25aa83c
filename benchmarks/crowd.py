"""Crowds of clients: crowd.c as Python sees it, and what servers need to hold or greet one.

Knows descriptors and connections; knows nothing of what is measured.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .environment import HERE
from .load import WARM_UP, Sample, machine_seconds, own_seconds
from .servers import GEVENTWS, GUNICORN, SERVERS, Running, Server

MARGIN = 1000  # descriptors and connections besides those of the crowd

OURS = next(server for server in SERVERS if server.command == GEVENTWS)
VARIANTS = (
    OURS,
    Server(
        "geventws-wsgi", "plain WSGI view, gunicorn", GUNICORN + "geventws.Worker benchmarks.servers.wsgi_environ:app"
    ),
    Server(
        "geventws-alone",
        "Flask, python -m geventws",
        "{python} -m geventws --bind 127.0.0.1:{port} benchmarks.servers.flask_sockets:app",
    ),
)


class CrowdFailed(Exception):
    """A client was refused, lost its connection, or got something else than its echo; the message says what."""


def compile_crowd(build: Path) -> None:
    subprocess.run(["cc", "-O2", "-o", build / "crowd", HERE / "crowd.c"], check=True)


def allow(connections: int) -> None:
    """Let this process and those it starts have so many connections. Raises CrowdFailed where the system forbids it."""
    wanted = connections * 5 // 4 + MARGIN  # of its limit geventws keeps a tenth for everything else
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise CrowdFailed(f"{wanted} file descriptors are needed, ulimit -Hn allows {hard}")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def roomy(server: Server, connections: int) -> Server:
    """Return the server with room for so many connections; with geventws.Worker a WebSocket needs no such room."""
    if "-m gunicorn" not in server.command or "geventws.Worker" in server.command:
        return server
    return replace(server, command=f"{server.command} --worker-connections {connections + MARGIN}")


@contextmanager
def idle(build: Path, server: Server, process: Running, count: int) -> Iterator[None]:
    """Have count clients connected, each with one echo behind it, from the begin of the block to its end.

    Raises CrowdFailed when one is refused or lost.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        _command(build, server, process, "idle", count), stdin=pipe, stdout=pipe, stderr=pipe
    ) as crowd:
        os.sched_setaffinity(crowd.pid, {min(os.sched_getaffinity(0))})
        os.setpriority(os.PRIO_PROCESS, crowd.pid, 10)  # its Pongs may wait for those whose echo is timed
        assert crowd.stdout is not None
        try:
            if crowd.stdout.readline():
                yield
            result, reason = crowd.communicate()
        except BaseException:
            crowd.kill()
            raise
    if crowd.returncode:
        raise CrowdFailed(reason.decode().strip())
    assert json.loads(result)["connections"] == count


def visit(build: Path, server: Server, process: Running, parallel: int, seconds: float) -> Sample:
    """Return what crowd.c counted, with the visits a second, and the processor time of server and others.

    Raises CrowdFailed when a visit is not as it must be.
    """
    command = _command(build, server, process, "visit", parallel, WARM_UP, seconds)
    before = time.monotonic(), machine_seconds(), process.cpu_seconds(), own_seconds()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as crowd:
        os.sched_setaffinity(crowd.pid, {min(os.sched_getaffinity(0))})
        result, reason = crowd.communicate()
    after = time.monotonic(), machine_seconds(), process.cpu_seconds(), own_seconds()
    if crowd.returncode:
        raise CrowdFailed(reason.decode().strip())
    wall, machine_used, server_used, crowd_used = (end - begin for begin, end in zip(before, after, strict=True))
    sample: Sample = json.loads(result)
    sample["rate"] = sample["visits"] / sample["seconds"]
    sample["server_us"] = 1e6 * server_used / sample["visits_in_all"]
    sample["other_work"] = max(0.0, machine_used - server_used - crowd_used) / (wall * (os.cpu_count() or 1))
    return sample


def _command(build: Path, server: Server, process: Running, *arguments: object) -> list[str]:
    mode, count, *times = arguments
    kind = "raw" if server.raw else "websocket"
    return [str(part) for part in (build / "crowd", process.port, mode, count, kind, *times)]
