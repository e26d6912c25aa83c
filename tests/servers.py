"""Real servers for the tests: gunicorn and python -m geventws, on TCP and Unix sockets, plain and TLS."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
from websockets.sync.client import ClientConnection, unix_connect

ROOT = Path(__file__).resolve().parent.parent
FRONT_ENDS = ("worker", "server")
DEADLINE = 60.0  # seconds behind which a thing that should happen at once hangs; a busy machine needs less

T = TypeVar("T")


def missing(reason: str) -> NoReturn:
    """Skip at home, where a service or browser may be missing; fail in CI, which must have it."""
    if os.environ.get("CI"):
        pytest.fail(f"CI needs it: {reason}")
    pytest.skip(reason)


def node_modules() -> Path:
    """Return where the newest packages of tests/package.json are, installed by the first who asks."""
    directory = ROOT / "tests" / "node_modules"
    if not shutil.which("node") or not shutil.which("npm"):
        missing("node and npm")
    wanted = json.loads((ROOT / "tests" / "package.json").read_text())["dependencies"]
    if not all((directory / name).exists() for name in wanted):
        command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=directory.parent, capture_output=True, text=True)
        if done.returncode:
            missing(f"npm cannot install {', '.join(wanted)}: {done.stderr}")
    return directory


def wait_for(condition: Callable[[], T | None], what: str, within: float = DEADLINE) -> T:
    """Return the first true result of condition; fail naming what was awaited when the time is over."""
    end = time.monotonic() + within
    while not (result := condition()):
        if time.monotonic() > end:
            pytest.fail(f"{what} did not happen within {within:g} s")
        time.sleep(0.01)
    return result


class Server:
    """A server process that serves an app of the tests."""

    def __init__(
        self, command: Sequence[str], address: str, tls: ssl.SSLContext | None, log: Path, env: dict[str, str]
    ):
        self.tls = tls
        self.log_path = log
        self._unix = address.removeprefix("unix:") if address.startswith("unix:") else None
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        ready = r"(?:Listening at:|serves .* on) (?:https?://127\.0\.0\.1:(\d+)|unix:)"
        try:
            wait_for(lambda: re.search(ready, self.log) or self.process.poll() is not None, "start of the server")
            found = re.search(ready, self.log)
            assert found, f"the server ended at its start:\n{self.log}"
            self.port = int(found[1] or 0)
            if "gunicorn" in command:
                self.wait_for_log(r"Booting worker with pid")
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    @property
    def log(self) -> str:
        """All it wrote to stdout and stderr."""
        return self.log_path.read_text(errors="replace")

    def wait_for_log(self, pattern: str, within: float = DEADLINE) -> re.Match[str]:
        """Return the first match of pattern in the log."""
        return wait_for(lambda: re.search(pattern, self.log, re.MULTILINE), f"log line {pattern!r}", within)

    def socket(self, timeout: float = DEADLINE, tls_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> socket.socket:
        """Return a connected socket, with TLS up to this version where the server has it."""
        if self._unix:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout)
            sock.connect(self._unix)
        else:
            sock = socket.create_connection(("127.0.0.1", self.port), timeout)
        if not self.tls:
            return sock
        self.tls.maximum_version = tls_version
        try:
            return self.tls.wrap_socket(sock, server_hostname="localhost")
        finally:
            self.tls.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED

    def url(self, path: str) -> str:
        """Return the ws or wss URL of a path."""
        return f"{'wss' if self.tls else 'ws'}://localhost:{self.port}{path}"

    def connect(self, path: str, **options: Any) -> ClientConnection:
        """Return a client of the websockets package, connected; it offers no compression unless told to."""
        patience = {"open_timeout": DEADLINE, "close_timeout": DEADLINE, "ping_timeout": DEADLINE}
        options = {"compression": None, **patience, **options}
        # This client reads and writes in two threads, which the session tickets of TLS 1.3 make hang now and then.
        sock = self.socket(tls_version=ssl.TLSVersion.TLSv1_2)
        sock.settimeout(None)
        client: ClientConnection = unix_connect(uri=f"ws://localhost{path}", sock=sock, **options)
        return client

    def get(self, path: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
        """Return the answer to a GET request, its body still unread."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.socket()
        connection.request("GET", path, headers={"Connection": "close", **(headers or {})})
        return connection.getresponse()

    def exchange(self, request: bytes) -> bytes:
        """Send bytes as they are and return all that comes until the server closes."""
        with self.socket() as sock:
            sock.sendall(request)
            answer = b""
            try:
                while data := sock.recv(65536):
                    answer += data
            except ConnectionResetError:
                pass
            return answer

    def stop(self, number: int = signal.SIGTERM, within: float = DEADLINE) -> int:
        """Send a signal and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the server ignored signal {number} for {within:g} s:\n{self.log}")


App = Callable[..., Server]
COMPAT = {"GEVENTWS_COMPAT": "1"}


@contextmanager
def serve(
    app: str,
    directory: Path,
    *,
    front_end: str,
    unix: bool = False,
    certificate: tuple[str, str, ssl.SSLContext] | None = None,
    arguments: Sequence[str] = (),
    env: dict[str, str] | None = None,
) -> Iterator[Server]:
    """Serve an app such as "tests.apps:app" with a front end, "worker" or "server", until the block ends.

    certificate holds the names of certificate and key file and a client's context that trusts them.
    """
    address = f"unix:{directory / 'server.sock'}" if unix else "127.0.0.1:0"
    if front_end == "worker":
        command = [sys.executable, "-m", "gunicorn", "-k", "geventws.Worker", "--access-logfile", "-"]
        command += ["--no-control-socket"] if _has_control_socket() else []
    else:
        command = [sys.executable, "-m", "geventws"]
    command += ["--bind", address, *arguments]
    if certificate:
        command += ["--certfile", certificate[0], "--keyfile", certificate[1]]
    variables = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(env or {})}
    server = Server([*command, app], address, certificate[2] if certificate else None, directory / "log", variables)
    try:
        yield server
    finally:
        server.stop()


def _has_control_socket() -> bool:
    from gunicorn.config import make_settings

    return "control_socket" in dict(make_settings())


def process_id(server: Server) -> int:
    """Return the id of the process that serves: gunicorn's worker, or the server itself."""
    found = re.search(r"Booting worker with pid: (\d+)", server.log)
    return int(found[1]) if found else server.process.pid


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def plain_socket(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), DEADLINE)


def get(server: Server, path: str) -> tuple[int, str]:
    """Return status and body of the answer to a plain GET."""
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def log_after(server: Server, pattern: str, action: Callable[[], None]) -> str:
    """Do something that makes the server write a line which matches pattern; return what it wrote since."""
    before = len(server.log)
    action()
    wait_for(lambda: pattern in server.log[before:], f"log line {pattern!r}")
    return server.log[before:]


@contextmanager
def legacy_apps(front_end: str, make_directory: Callable[[str], Path]) -> Iterator[App]:
    """Give a function that returns the server of an app of tests/legacy, started at its first use."""
    servers: dict[tuple[str, str], Server] = {}
    with ExitStack() as stack:

        def start(name: str, env: dict[str, str] | None = None) -> Server:
            key = (name, repr(env))
            if key not in servers:
                target = f"tests.legacy.{name}" if ":" in name else f"tests.legacy.{name}:app"
                servers[key] = stack.enter_context(
                    serve(target, make_directory("legacy"), front_end=front_end, env=env)
                )
            return servers[key]

        yield start


UPGRADE = (
    b"GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def upgrade_request(path: str) -> bytes:
    """Return the handshake of RFC 6455 §1.3 for a path."""
    return UPGRADE % path.encode()
