from __future__ import annotations

import shlex
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from .commands import APP, PATIENCE, Answers, answers_to, assert_one_line, run, running, wait_for, write_files
from .servers import missing

pytestmark = pytest.mark.slow  # it starts servers or installs packages

# Its page ends when a file named leave is there.
SLOW_APP = """
import os, time

def app(environ, start_response):
    print("asked", flush=True)
    while not os.path.exists("leave"):
        time.sleep(0.01)
    start_response("204 No Content", [])
    return []
"""


FILES = {"good.py": APP % "good", "slow.py": SLOW_APP, "package/__init__.py": "", "regular-file": ""}


MISTAKES: dict[tuple[str, ...], str] = {
    ("good:app", "--bind", "8000"): "--bind must be HOST:PORT or unix:PATH, not '8000'",
    ("good:app", "--bind", "127.0.0.1:"): "--bind must be HOST:PORT",
    ("good:app", "--bind", "127.0.0.1:http"): "--bind must be HOST:PORT",
    ("good:app", "--bind", "127.0.0.1:70000"): "--bind must be HOST:PORT",
    ("good:app", "--bind", "127.0.0.1:²"): "--bind must be HOST:PORT",
    ("good:app", "--bind", ""): "--bind must be HOST:PORT or unix:PATH, not ''$",
    ("good:app", "--bind", "unix:"): "--bind must be HOST:PORT or unix:PATH, not 'unix:'",
    ("good:app", "--bind", "unix:regular-file"): "cannot listen on unix:regular-file: it exists and is no socket",
    ("good:app", "--bind", "unix:package"): "cannot listen on unix:package: it exists and is no socket",
    ("good:app", "--bind", "unix:regular-file/socket"): "cannot listen on unix:regular-file/socket: Not a directory",
    ("good:app", "--bind", "unix:absent/socket"): "cannot listen on unix:absent/socket: No such file or directory",
    ("good:app", "--bind", "192.0.2.1:0"): "cannot listen on 192.0.2.1:0: Cannot assign requested address",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_files(tmp_path, FILES)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return answers_to(MISTAKES, write_files(tmp_path_factory.mktemp("mistakes"), FILES))


@pytest.mark.parametrize("made", MISTAKES, ids=shlex.join)
def test_a_mistake_gets_one_line_and_status_2(answers: Answers, made: tuple[str, ...]) -> None:
    assert_one_line(answers[made], MISTAKES[made])


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "localhost:0", ":0", "[::1]:0", "unix:server.sock"])
def test_address(directory: Path, bind: str) -> None:
    if "::" in bind and not has_ipv6():
        missing("IPv6 on the loopback interface")
    with running(directory, "good:app", "--bind", bind) as program:
        assert program.get().startswith("good")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("kind", ["port", "unix"])
def test_an_address_in_use_stays_with_its_owner(directory: Path, kind: str) -> None:
    with running(directory, "good:app", "--bind", "127.0.0.1:0" if kind == "port" else "unix:server.sock") as owner:
        address = owner.address().removeprefix("http://")
        answer = run(directory, "good:app", "--bind", address)
        assert_one_line(answer, f"cannot listen on {address}: Address already in use")
        assert owner.get().startswith("good")


def test_an_address_whose_owner_accepts_no_more_is_in_use(directory: Path) -> None:
    path = str(directory / "server.sock")
    with socket.socket(socket.AF_UNIX) as owner, socket.socket(socket.AF_UNIX) as client:
        owner.bind(path)
        owner.listen(0)
        client.connect(path)  # which fills its backlog
        assert_one_line(run(directory, "good:app", "--bind", "unix:server.sock"), "Address already in use$")


def test_the_socket_of_a_killed_server_is_taken_over(directory: Path) -> None:
    with running(directory, "good:app", "--bind", "unix:server.sock") as program:
        program.address()
        assert program.end(signal.SIGKILL) == -signal.SIGKILL
        assert (directory / "server.sock").exists()
    with running(directory, "good:app", "--bind", "unix:server.sock") as program:
        assert program.get().startswith("good")


def test_a_server_that_ends_leaves_the_socket_of_its_successor(directory: Path, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("run") / "server.sock"
    with running(directory, "slow:app", "--bind", f"unix:{path}") as old, old.socket() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: "asked" in old.out, "the request")
        old.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in old.err, "the beginning of the stop")
        successor = directory / "successor"
        successor.mkdir()
        (successor / "good.py").write_text(APP % "good")
        with running(successor, "good:app", "--bind", f"unix:{path}") as new:
            assert new.get().startswith("good")
            (directory / "leave").touch()
            assert old.process.wait(PATIENCE) == 0
            assert new.get().startswith("good")


def test_a_reloader_that_waits_leaves_the_socket_of_another_server(directory: Path, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("run") / "server.sock"
    with running(directory, "good:app", "--bind", f"unix:{path}") as owner:
        assert owner.get().startswith("good")
        second = directory / "second"
        second.mkdir()
        (second / "good.py").write_text(APP % "good")
        with running(second, "good:app", "--bind", f"unix:{path}", "--reload") as waiting:
            wait_for(lambda: "Address already in use; waiting for a change" in waiting.err, "complaint")
            assert waiting.end(signal.SIGTERM) == 0
        assert owner.get().startswith("good")
