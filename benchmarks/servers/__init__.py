"""The servers that are compared: how each is started, awaited and ended. Knows nothing of what is measured."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 20.0  # seconds
STOP_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class Server:
    name: str
    settings: str
    command: str
    raw: bool = False  # echoes bytes and speaks no WebSocket
    socketio: bool = False  # speaks Socket.IO over its WebSocket
    scenarios: tuple[str, ...] = ()  # in which alone it is measured


@dataclass(frozen=True)
class Running:
    pid: int  # also the id of its process group
    port: int

    def cpu_seconds(self) -> float:
        """Return the processor time that its processes have used so far."""
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                after_name = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # ended since the glob
            if int(after_name[2]) == self.pid:
                ticks += int(after_name[11]) + int(after_name[12])
        return ticks / os.sysconf("SC_CLK_TCK")


class ServerFailed(Exception):
    """It did not start, or ended by itself; the message is its own last word."""


PYTHON = "{python} -m benchmarks.servers."
GUNICORN = "{python} -m gunicorn --bind 127.0.0.1:{port} --worker-class "
GEVENTWS = GUNICORN + "geventws.Worker benchmarks.servers.flask_sockets:app"
GEVENT_WEBSOCKET = GUNICORN + "geventwebsocket.gunicorn.workers.GeventWebSocketWorker benchmarks.servers."
FLASK_SOCK = "benchmarks.servers.flask_sock:app"
UVICORN = "{python} -m uvicorn --host 127.0.0.1 --port {port} --loop uvloop --http httptools --log-level warning "

SERVERS = (
    Server("c-epoll", "TCP echo in C", "{build}/echo {port}", raw=True),
    Server("gevent", "TCP echo on StreamServer", PYTHON + "gevent_tcp {port}", raw=True),
    Server("geventws", "Flask, gunicorn", GEVENTWS),
    Server("gevent-websocket", "Flask, gunicorn, wsaccel", GEVENT_WEBSOCKET + "flask_environ:app"),
    Server("gevent-ws", "Flask, gevent.pywsgi", PYTHON + "gevent_ws {port}"),
    Server("flask-sock", "Flask, gunicorn -k gevent", GUNICORN + "gevent " + FLASK_SOCK),
    Server("flask-sock-threads", "Flask, gunicorn -k gthread", GUNICORN + "gthread --threads 100 " + FLASK_SOCK),
    Server(
        "flask-socketio", "Flask, gunicorn, gevent-websocket", GEVENT_WEBSOCKET + "flask_socketio:app", socketio=True
    ),
    Server("websockets", "asyncio", PYTHON + "websockets {port} asyncio"),
    Server("websockets-uvloop", "asyncio, uvloop", PYTHON + "websockets {port} uvloop"),
    Server("websockets-sync", "threads", PYTHON + "websockets {port} sync"),
    Server("aiohttp", "asyncio, uvloop", PYTHON + "aiohttp {port}"),
    Server("picows", "callbacks, uvloop", PYTHON + "picows {port}"),
    Server(
        "uvicorn",
        "ASGI, uvloop, httptools, websockets",
        UVICORN + "--ws websockets-sansio --lifespan off benchmarks.servers.asgi:app",
    ),
    Server("tornado", "asyncio", PYTHON + "tornado {port}"),
    Server("ws", "Node, bufferutil", "node benchmarks/servers/ws.js {port}"),
)
RECEIVE = GEVENTWS.replace("flask_sockets", "flask_environ")
WITHOUT_ZLIB_NG = GEVENTWS.replace("-m gunicorn", "-m benchmarks.servers.without zlib_ng gunicorn")
VARIANTS = (
    Server("geventws-receive", "ws.receive()", RECEIVE, scenarios=("small", "pipelined")),
    # As small on the wire as those peers that compress harder than geventws does by itself, and as those that do less.
    Server("geventws-1", "deflate_level 1", f"env GEVENTWS_DEFLATE_LEVEL=1 {GEVENTWS}", scenarios=("compressed",)),
    Server("geventws-5", "deflate_level 5", f"env GEVENTWS_DEFLATE_LEVEL=5 {GEVENTWS}", scenarios=("compressed",)),
    Server("geventws-zlib", "without zlib-ng", WITHOUT_ZLIB_NG, scenarios=("compressed",)),
)


@contextmanager
def running(server: Server, python: Path, build: Path, core: int) -> Iterator[Running]:
    """Run one server on one core of its own, from its first answer to the end of the block.

    Raises ServerFailed when it does not answer within START_TIMEOUT.
    """
    port = free_port()
    command = server.command.format(python=python, build=build, port=port).split()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environ["NODE_PATH"] = str(python.parents[1] / "node_modules")
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            os.sched_setaffinity(process.pid, {core})
            deadline = time.monotonic() + START_TIMEOUT
            while not answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise ServerFailed(last_word(log.read()) or f"no answer in {START_TIMEOUT:.0f} s")
                time.sleep(0.05)
            yield Running(process.pid, port)
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Tell whether a request gets any byte back: gunicorn listens before its worker has loaded the app."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return connection.recv(1) != b""
    except OSError:
        return False


def last_word(log: str) -> str:
    """Return the last line that names an error, else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors or lines or [""])[-1]
