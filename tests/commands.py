"""Command lines for the tests: to run one that ends, or one that serves, in a directory with apps of its own."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect, unix_connect

from . import servers
from .servers import ROOT, T

# Seconds until a program counts as hung. It starts Python, twice for --reload, on a machine that may be busy.
PATIENCE = 120.0

APP = """
import os

def app(environ, start_response):
    ws = environ.get("wsgi.websocket")
    if ws is not None:
        for message in ws:
            ws.send(message)
        return []
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{answer} {os.getpid()}".encode()]

answer = %r
"""


Answers = dict[tuple[str, ...], "subprocess.CompletedProcess[str]"]


def wait_for(condition: Callable[[], T | None], what: str) -> T:
    """Return the first true result of condition; fail naming what was awaited when all patience is spent."""
    return servers.wait_for(condition, what, PATIENCE)


def write_files(directory: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "geventws", *arguments]


def environment(variables: dict[str, str]) -> dict[str, str]:
    """Return what a program has of our environment: no option, but whether it runs in C."""
    ours = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GEVENTWS_", "PYTHON"))}
    pure = {name: os.environ[name] for name in ("GEVENTWS_PURE",) if name in os.environ}
    return {**inherited, **pure, **ours, **variables}


def run(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command line that ends by itself."""
    return subprocess.run(
        command(*arguments),
        cwd=directory,
        env=environment(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        start_new_session=True,  # without a terminal
    )


def assert_one_line(answer: subprocess.CompletedProcess[str], pattern: str) -> None:
    assert answer.stdout == ""
    assert re.fullmatch(r"geventws: .+\n", answer.stderr), answer.stderr
    assert re.search(pattern, answer.stderr), answer.stderr
    assert answer.returncode == 2


def answers_to(mistakes: Iterable[tuple[str, ...]], directory: Path) -> Answers:
    """Make all mistakes at the same time, as most of it is waiting for imports; return the answers."""
    with ThreadPoolExecutor(4) as pool:
        answers = {made: pool.submit(run, directory, "--bind=127.0.0.1:0", *made) for made in mistakes}
    return {made: answer.result() for made, answer in answers.items()}


class Program:
    """A command line that serves: its process, and what it wrote so far."""

    def __init__(self, directory: Path, arguments: Sequence[str], variables: dict[str, str]) -> None:
        self.directory = directory
        self._out, self._err = directory / "stdout", directory / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command(*arguments),
                cwd=directory,
                env=environment(variables),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def address(self, start: int = 1) -> str:
        """Return the address it serves on, waiting for that; start counts the restarts too."""

        def ready() -> Any:
            assert self.process.poll() is None, f"it ended at its start:\n{self.err}"
            return re.findall(r" serves \S+ on (\S+)", self.err)[start - 1 :]

        found: list[str] = wait_for(ready, f"start {start} of the server")
        return found[0]

    def socket(self, start: int = 1) -> socket.socket:
        """Return a socket connected to it."""
        address = self.address(start)
        if address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(self.directory / address.removeprefix("unix:")))
            return sock
        host, _, port = address.partition("://")[2].rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), PATIENCE)

    @contextmanager
    def websocket(self, path: str = "/") -> Iterator[ClientConnection]:
        """Give a WebSocket that the app has answered on."""
        connecting = unix_connect if self.address().startswith("unix:") else connect
        uri = f"ws://localhost{path}"
        with self.socket() as sock, connecting(uri=uri, sock=sock, compression=None, open_timeout=PATIENCE) as ws:
            ws.send("hello")
            assert ws.recv(PATIENCE) == "hello"
            yield ws

    def get(self, start: int = 1, tls: ssl.SSLContext | None = None) -> str:
        """Return the body of the answer to GET /."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.socket(start)
        connection.sock.settimeout(PATIENCE)
        if tls:
            connection.sock = tls.wrap_socket(connection.sock, server_hostname="localhost")
        connection.request("GET", "/")
        try:
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def end(self, number: int) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def running(directory: Path, *arguments: str, **variables: str) -> Iterator[Program]:
    program = Program(directory, arguments, variables)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.end(signal.SIGTERM)


def closed_by(program: Program, number: int) -> int | None:
    """Send a signal while a WebSocket is open and return the close code it gets."""
    with program.websocket() as ws:
        program.process.send_signal(number)
        with pytest.raises(ConnectionClosed) as caught:
            ws.recv(PATIENCE)
        return caught.value.rcvd.code if caught.value.rcvd else None
