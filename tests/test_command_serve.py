from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from .commands import APP, PATIENCE, closed_by, running, wait_for, write_files

pytestmark = pytest.mark.slow  # it starts servers or installs packages

PATCHED_APP = """
import socket
import good

good.answer = socket.socket.__module__
app = good.app
"""

FILES = {"good.py": APP % "good", "patched.py": PATCHED_APP}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_files(tmp_path, FILES)


def test_the_standard_library_is_patched_before_the_app_is_imported(directory: Path) -> None:
    with running(directory, "patched:app", "--bind", "127.0.0.1:0") as program:
        assert program.get().startswith("gevent.")


# Logs


def test_access_log_has_a_line_for_each_request_at_once(directory: Path) -> None:
    with running(directory, "good:app", "--bind", "127.0.0.1:0") as program:
        program.get()
        line = r'127\.0\.0\.1 - - \[[^]]+\] "GET / HTTP/1\.1" 200 \d+ \d+\.\d+\n'
        wait_for(lambda: re.fullmatch(line, program.out), "access log line")
        with program.websocket("/chat"):
            pass
        wait_for(lambda: '"GET /chat HTTP/1.1" 101 ' in program.out, "access log line of the WebSocket")


def test_no_access_log(directory: Path) -> None:
    with running(directory, "good:app", "--bind", "127.0.0.1:0", "--no-access-log") as program:
        program.get()
        assert program.end(signal.SIGTERM) == 0
        assert program.out == ""


def test_log_level(directory: Path) -> None:
    bind = ("--bind", "unix:server.sock")
    with running(directory, "good:app", *bind, "--log-level", "warning") as program:
        wait_for((directory / "server.sock").exists, "socket of the server")
        assert program.end(signal.SIGTERM) == 0
        assert program.err == ""
    with (
        running(directory, "good:app", *bind, "--log-level", "debug") as program,
        program.websocket(),
    ):
        wait_for(lambda: "[DEBUG]" in program.err, "debug line")


# The end


@pytest.mark.parametrize("arguments", [[], ["--reload"]], ids=["plain", "--reload"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_it_with_status_0(directory: Path, number: int, arguments: list[str]) -> None:
    with running(directory, "good:app", "--bind", "unix:server.sock", *arguments) as program:
        assert closed_by(program, number) == 1012
        assert program.process.wait(PATIENCE) == 0
        assert not (directory / "server.sock").exists()
        assert "Traceback" not in program.err


@pytest.mark.parametrize("arguments", [[], ["--reload"]], ids=["plain", "--reload"])
def test_nohup_keeps_it_when_the_terminal_is_gone(directory: Path, arguments: list[str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does, for what it starts
    try:
        with running(directory, "good:app", "--bind", "unix:server.sock", *arguments) as program:
            with program.websocket() as ws:
                program.process.send_signal(signal.SIGHUP)
                ws.send("still here")
                assert ws.recv(PATIENCE) == "still here"
            assert program.end(signal.SIGTERM) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
