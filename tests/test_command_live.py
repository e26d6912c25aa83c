"""python -m geventws live: all processes of a machine in one list, and each WebSocket closed by its ID."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from .commands import PATIENCE, environment
from .servers import DEADLINE, FRONT_ENDS, Server, get, serve, wait_for

pytestmark = pytest.mark.slow  # it starts servers or installs packages

APP = "tests.apps_watched:app"


@pytest.fixture
def where() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:  # pytest's own are too long for the name of a Unix socket
        yield Path(directory, "live")


def live(where: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "geventws", "live", *arguments],
        env=environment({"GEVENTWS_LIVE": str(where)}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def seen(where: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(live(where, "--json").stdout)
    return found


def join(server: Server, user: str, stack: ExitStack) -> tuple[str, ClientConnection]:
    """Return the ID of a new client of the app, and the client, which ends with the stack."""
    client = stack.enter_context(server.connect(f"/chat/lobby?user={user}"))
    return str(client.recv(DEADLINE)), client


def sockets(where: Path) -> set[str]:
    return {path.name for path in where.glob("*")}


def workers(server: Server, count: int) -> list[int]:
    """Return the ids of gunicorn's workers once so many have begun."""
    pattern = r"Booting worker with pid: (\d+)"
    wait_for(lambda: len(re.findall(pattern, server.log)) == count, f"start of {count} workers")
    return [int(found) for found in re.findall(pattern, server.log)]


def test_all_processes_are_in_one_list_and_one_of_their_sockets_is_closed_by_its_id(
    tmp_path: Path, where: Path
) -> None:
    env = {"GEVENTWS_LIVE": str(where)}
    with ExitStack() as stack:
        servers = []
        for front_end in FRONT_ENDS:
            directory = tmp_path / front_end
            directory.mkdir()
            arguments = ["--workers", "2"] if front_end == "worker" else []
            servers.append(
                stack.enter_context(serve(APP, directory, front_end=front_end, env=env, arguments=arguments))
            )
        pids = [*workers(servers[0], 2), servers[1].process.pid]
        wait_for(lambda: sockets(where) == {f"{pid}.sock" for pid in pids}, "a socket of each process")
        assert where.stat().st_mode & 0o777 == 0o700
        clients = dict(join(server, f"user{number}", stack) for number, server in enumerate([*servers, *servers]))
        found = seen(where)
        assert [each["id"] for each in found] == list(clients)
        assert [each["attributes"] for each in found] == [{"user": f"user{number}"} for number in range(4)]
        assert {each["route"] for each in found} == {"/chat/<room>"}
        table = live(where).stdout
        assert table.splitlines()[-1] == "4 WebSockets in 3 processes"
        assert re.search(r"^\d+-\d+ +\d+s +\d+s .* 127\.0\.0\.1:\d+ .* /chat/lobby +user=user0$", table, re.MULTILINE)
        assert "not to be shown" not in table
        for name, client in clients.items():
            assert live(where, "--close", name, "--code", "4001", "--reason", "by hand").returncode == 0
            with pytest.raises(ConnectionClosed) as caught:
                client.recv(DEADLINE)
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "by hand")
        again = live(where, "--close", name)
        assert (again.returncode, again.stderr) == (1, f"geventws: no WebSocket {name} is open\n")
    assert sockets(where) == set(), "a process that ends by itself leaves no socket"
    assert live(where).stdout == "0 WebSockets in 0 processes\n"


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_an_app_closes_all_of_a_user_by_itself(tmp_path: Path, front_end: str) -> None:
    with serve(APP, tmp_path, front_end=front_end, env={"GEVENTWS_LIVE": "off"}) as server, ExitStack() as stack:
        clients = [join(server, user, stack)[1] for user in ("ann", "bob", "ann")]
        assert get(server, "/count") == (200, "3")
        assert get(server, "/logout/ann") == (200, "2")
        for client in (clients[0], clients[2]):
            with pytest.raises(ConnectionClosed, match="4001"):
                client.recv(DEADLINE)
        clients[1].send("hello")
        assert clients[1].recv(DEADLINE) == "hello"


def test_socket_of_a_killed_worker_is_ignored_and_removed(tmp_path: Path, where: Path) -> None:
    with serve(APP, tmp_path, front_end="worker", env={"GEVENTWS_LIVE": str(where)}) as server:
        (first,) = workers(server, 1)
        wait_for(lambda: sockets(where) == {f"{first}.sock"}, "its socket")
        os.kill(first, signal.SIGKILL)
        first, second = workers(server, 2)
        wait_for(lambda: sockets(where) == {f"{first}.sock", f"{second}.sock"}, "the next one's socket")
        assert live(where, "--close", f"{first}-1").returncode == 1
        assert sockets(where) == {f"{second}.sock"}
        assert live(where).stdout == "0 WebSockets in 1 processes\n"


def test_process_that_does_not_answer_is_told_and_hides_no_other(tmp_path: Path, where: Path) -> None:
    env = {"GEVENTWS_LIVE": str(where)}
    with serve(APP, tmp_path, front_end="server", env=env) as server:
        wait_for(lambda: sockets(where), "its socket")
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            answers = [live(where, "--json"), live(where, "--close", f"{server.process.pid}-1")]
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        for answer in answers:
            assert answer.returncode == 1
            assert f"process {server.process.pid} does not answer, its hub may be blocked" in answer.stderr
        assert answers[0].stdout == "[]\n"


def test_what_else_is_in_the_directory_is_left_alone(tmp_path: Path, where: Path) -> None:
    with serve(APP, tmp_path, front_end="server", env={"GEVENTWS_LIVE": str(where)}) as server, ExitStack() as stack:
        wait_for(lambda: sockets(where), "its socket")
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(where / "app.sock"))
        listener.listen()  # it takes who comes, and never answers
        for name in ("redis.sock", "0.sock"):
            (where / name).write_text("precious")
        answer = live(where)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert answer.stdout == "0 WebSockets in 1 processes\n"
        assert sockets(where) == {"app.sock", "redis.sock", "0.sock", f"{server.process.pid}.sock"}


def test_process_that_answers_nonsense_hides_no_other(tmp_path: Path, where: Path) -> None:
    with serve(APP, tmp_path, front_end="server", env={"GEVENTWS_LIVE": str(where)}):
        wait_for(lambda: sockets(where), "its socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(where / "1.sock"))
            listener.listen()

            def answer() -> None:
                client, _ = listener.accept()
                with client:
                    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    client.recv(4096)

            thread = threading.Thread(target=answer)
            thread.start()
            told = live(where)
            thread.join(PATIENCE)
        assert (told.returncode, told.stdout) == (1, "0 WebSockets in 1 processes\n")
        assert told.stderr.startswith("geventws: process 1 does not answer")


def test_reason_is_cut_to_what_a_close_may_hold(tmp_path: Path, where: Path) -> None:
    with serve(APP, tmp_path, front_end="server", env={"GEVENTWS_LIVE": str(where)}) as server, ExitStack() as stack:
        name, client = join(server, "ann", stack)
        assert live(where, "--close", name, "--reason", "é" * 5000).returncode == 0
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(DEADLINE)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.reason == "é" * 61


def test_watch_looks_again_until_it_is_interrupted(tmp_path: Path, where: Path) -> None:
    command = [sys.executable, "-m", "geventws", "live", "--watch", "0.05", "--json"]
    process = subprocess.Popen(
        command, env=environment({"GEVENTWS_LIVE": str(where)}), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(3)] == ["[]\n"] * 3
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


def test_each_mistake_is_told_in_one_line(tmp_path: Path) -> None:
    mistakes = {
        ("--code", "1006", "--close", "1-1"): "--code must be a close code that may be sent",
        ("--close", ""): "--close needs the ID of a WebSocket",
        ("--watch", "0"): "--watch must be a number of seconds above 0",
        ("--watch", "nan"): "--watch must be a number of seconds above 0",
        ("--cloze", "1-1"): "unrecognized arguments: --cloze 1-1; see python -m geventws live --help",
    }
    for arguments, complaint in mistakes.items():
        answer = live(tmp_path, *arguments)
        assert answer.returncode == 2
        assert answer.stderr.startswith(f"geventws: {complaint}")
        assert answer.stderr.count("\n") == 1
    assert live("off").stderr == "geventws: GEVENTWS_LIVE is off\n"
    tmp_path.chmod(0o755)
    assert "must be a directory of this user alone" in live(tmp_path).stderr


def test_what_strangers_wrote_is_shown_and_not_obeyed() -> None:
    from geventws.command.live import _as_table

    line: dict[str, Any] = {
        **dict.fromkeys(("messages_received", "messages_sent", "bytes_received", "bytes_sent"), 0),
        "id": "1-1",
        "since": 0,
        "idle": 90,
        "latency": 0.0123,
        "outbox": 3 << 20,
        "blocked": True,
        "peer": "unix",
        "forwarded_for": "\x1b[2J",
        "path": "/\n",
        "attributes": {},
        "route": None,
        "close_code": None,
    }
    table = _as_table([{**line, "bytes_received": 5 << 30, "idle": 7265}, line], 1)
    assert "\x1b" not in table
    assert table.count("\n") == 3
    assert "3MiB blocked" in table
    assert " 12ms " in table
    assert " 5.0GiB" in table
    assert (" 1m30s " in table, " 2h01m " in table) == (True, True)
