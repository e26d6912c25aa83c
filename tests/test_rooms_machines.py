"""Rooms over machines: gunicorn masters with two workers each, and python -m geventws, that one Redis joins."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from .redis_servers import RedisServer
from .servers import DEADLINE, ROOT, Server, serve, wait_for
from .test_readme import blocks
from .test_rooms_live import ask, hear, say, state

pytestmark = pytest.mark.slow  # it starts servers

WITHIN = 40.0
LEASE = "2"


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


Machine = Callable[..., Server]


@pytest.fixture
def machine(redis_server: RedisServer, tmp_path: Path) -> Iterator[Machine]:
    """Starts machines that share a Redis."""
    with ExitStack() as stack, redis_server.client() as client:
        client.flushall()
        count = iter(range(100))

        def start(front_end: str = "worker", *more: str, **env: str) -> Server:
            directory = tmp_path / str(next(count))
            directory.mkdir()
            arguments = ["--workers", "2", "--graceful-timeout", "5"] if front_end == "worker" else []
            arguments += more
            env = {"GEVENTWS_BUS": redis_server.url, "LEASE": LEASE, **env}
            server = serve("tests.apps_rooms:app", directory, front_end=front_end, arguments=arguments, env=env)
            return stack.enter_context(server)

        yield start


class Client(threading.Thread):
    """A client in a chat, and all that it hears."""

    def __init__(self, server: Server, path: str) -> None:
        super().__init__(daemon=True)
        self._opened = ExitStack()
        self.connection = self._opened.enter_context(server.connect(path))
        self.welcome = hear(self.connection)
        self.heard: list[Any] = []
        self.code: int | None = None
        self.start()

    def run(self) -> None:
        try:
            for message in self.connection:
                self.heard.append(json.loads(message))
        except ConnectionClosed:
            pass
        self.code = self.connection.close_code

    def send(self, text: str) -> None:
        self.connection.send(text)

    @property
    def texts(self) -> list[str]:
        """What was said by people."""
        return [f"{message['from']} {message['text']}" for message in self.heard if "text" in message]

    def close(self) -> None:
        self._opened.close()
        self.join(DEADLINE)


def pids(clients: list[Client]) -> set[int]:
    return {client.welcome["pid"] for client in clients}


def spread(server: Server, path: str, workers: int = 2) -> list[Client]:
    """Return clients on all workers of a server, with users named by their number."""
    clients: list[Client] = []
    while len(clients) < 6 or len(pids(clients)) < workers:
        assert len(clients) < 200
        clients.append(Client(server, f"{path}?user={server.port}-{len(clients)}"))
    return clients


def test_all_workers_of_all_machines_are_one_room(machine: Machine) -> None:
    one, other, third = machine(), machine(), machine("server")
    clients = [*spread(one, "/chat/lobby"), *spread(other, "/chat/lobby"), *spread(third, "/chat/lobby", 1)]
    assert len(pids(clients)) == 5

    def talk(client: Client) -> None:
        for number in range(30):
            client.send(str(number))

    talkers = [threading.Thread(target=talk, args=(client,)) for client in clients]
    for talker in talkers:
        talker.start()
    for talker in talkers:
        talker.join()
    wanted = 30 * len(clients)
    wait_for(lambda: all(len(client.texts) >= wanted for client in clients), "hearing of all", WITHIN)
    assert all(client.heard == clients[0].heard for client in clients)
    assert len({message["id"] for message in clients[0].heard}) == wanted
    kept = json.loads(ask(other, "/history/lobby"))["messages"]
    assert [json.loads(message) for message in kept] == clients[0].heard
    everybody = json.loads(ask(third, "/users/lobby"))
    assert len(everybody) == len(clients)
    at = clients[0].heard[10]["at"]
    for server in (one, other, third):
        back = Client(server, f"/chat/lobby?since={at}")
        assert back.welcome["complete"] is True
        wait_for(lambda: len(back.heard) == wanted - 11, "catching up", WITHIN)  # noqa: B023
        assert back.heard == clients[0].heard[11:]
        back.close()
    for client in clients:
        client.close()


def test_workers_that_are_forked_from_an_app_that_has_said_something_are_processes_of_their_own(
    machine: Machine,
) -> None:
    listener = Client(machine("server"), "/chat/lobby?user=listener")
    one = machine("worker", "--preload", SAID_AT_IMPORT="hello")
    wait_for(lambda: listener.texts == ["import hello"], "hearing of what was said before the fork", WITHIN)
    clients = spread(one, "/chat/lobby")
    for client in clients:
        client.send("here")
    wanted = {f"{one.port}-{number} here" for number in range(len(clients))}
    for client in [*clients, listener]:
        wait_for(lambda: wanted <= set(client.texts), "hearing of all", WITHIN)  # noqa: B023
    assert len(listener.heard) == len(clients) + 1
    assert len({message["id"] for message in listener.heard}) == len(clients) + 1
    assert len(json.loads(ask(one, "/users/lobby"))) == len(clients) + 1
    for client in [*clients, listener]:
        client.close()


def test_a_form_view_of_a_worker_without_members_reaches_all(machine: Machine) -> None:
    one, other = machine(), machine()
    client = Client(other, "/chat/lobby?user=ann")
    for number in range(10):
        say(one, "lobby", str(number))
    wait_for(lambda: sorted(client.heard) == list(range(10)), "hearing")
    ask(one, "/kick/ann", "")
    wait_for(lambda: client.code == 4001, "kick")
    client.close()


def test_a_killed_worker_loses_its_members_and_nothing_else(machine: Machine) -> None:
    one, other = machine(), machine("server")
    clients, watchers = spread(one, "/chat/lobby"), spread(other, "/chat/lobby", 1)
    victim = clients[0].welcome["pid"]
    lost = {f"{one.port}-{number}" for number, client in enumerate(clients) if client.welcome["pid"] == victim}
    stop = threading.Event()

    def talk(client: Client) -> None:
        number = 0
        while not stop.wait(0.05):
            number += 1
            try:
                client.send(f"{number} ".ljust(2000, "x"))
            except ConnectionClosed:
                return

    talkers = [threading.Thread(target=talk, args=(client,)) for client in [*clients, *watchers]]
    for talker in talkers:
        talker.start()
    wait_for(lambda: len(watchers[0].heard) > 100, "talk", WITHIN)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: lost.isdisjoint(json.loads(ask(other, "/users/lobby"))), "end of the lease", WITHIN)
    stop.set()
    for talker in talkers:
        talker.join()
    left = {f"{user} left lobby" for user in lost}
    wait_for(lambda: left <= set(state(other)["events"]), "leaving", WITHIN)
    rest = [client for client in [*clients, *watchers] if client.welcome["pid"] != victim]
    say(other, "lobby", '"the end"')
    wait_for(lambda: all(client.heard[-1:] == ["the end"] for client in rest), "the end", WITHIN)
    events = state(other)["events"]
    assert all(events.count(event) == 1 for event in left)
    for client in rest:
        start = watchers[0].heard.index(client.heard[0])
        assert client.heard == watchers[0].heard[start:]
    kept = json.loads(ask(other, "/history/lobby"))["messages"]
    assert [json.loads(message) for message in kept][-len(watchers[0].heard) :] == watchers[0].heard
    for client in [*clients, *watchers]:
        client.close()


def test_a_worker_that_was_held_up_longer_than_its_lease_has_its_members_again(machine: Machine) -> None:
    one, other = machine(), machine("server")
    watcher = Client(other, "/chat/lobby?user=watcher")
    ann = Client(one, "/chat/lobby?user=ann")
    os.kill(ann.welcome["pid"], signal.SIGSTOP)
    wait_for(lambda: json.loads(ask(other, "/users/lobby")) == ["watcher"], "end of the lease", WITHIN)
    wait_for(lambda: "ann left lobby" in state(other)["events"], "leaving", WITHIN)
    say(other, "lobby", '"while it was held up"')
    os.kill(ann.welcome["pid"], signal.SIGCONT)
    wait_for(lambda: json.loads(ask(other, "/users/lobby")) == ["ann", "watcher"], "return", WITHIN)
    ann.send("here again")
    wait_for(lambda: ann.texts == watcher.texts == ["ann here again"], "hearing", WITHIN)
    assert "while it was held up" in ann.heard
    told = [event for event in state(other)["events"] if event.startswith("ann")]
    assert told == ["ann joined lobby", "ann left lobby", "ann joined lobby"]
    for client in (ann, watcher):
        client.close()


def test_a_deploy_makes_nobody_leave_who_comes_back(machine: Machine) -> None:
    other = machine("server", LINGER="4")
    watcher = Client(other, "/chat/lobby?user=watcher")
    one = machine(LINGER="4")
    clients = spread(one, "/chat/lobby")
    users = [f"{one.port}-{number}" for number in range(len(clients))]
    wait_for(lambda: set(users) <= set(json.loads(ask(other, "/users/lobby"))), "joining of all", WITHIN)
    one.process.terminate()
    wait_for(lambda: all(client.code == 1012 for client in clients), "end of the machine", WITHIN)
    again = [Client(other, f"/chat/lobby?user={user}") for user in users]
    one.process.wait(DEADLINE)
    gone = Client(other, "/chat/lobby?user=gone")
    gone.close()
    wait_for(lambda: "gone left lobby" in state(other)["events"], "leaving of one", WITHIN)
    # The machine is forgotten, its members with it.
    wait_for(lambda: len(members_of(other)) == len(users) + 1, "end of the machine's lease", WITHIN)
    assert not [event for event in state(other)["events"] if "left" in event and not event.startswith("gone")]
    for client in [*again, watcher]:
        client.close()


def members_of(server: Server) -> list[str]:
    names: list[str] = json.loads(ask(server, "/members/lobby"))
    return names


def test_several_workers_on_a_bus_are_not_warned_of(machine: Machine) -> None:
    one, alone = machine(), machine(GEVENTWS_BUS="")
    for server in (one, alone):
        Client(server, "/chat/lobby?user=ann").close()
    alone.wait_for_log(
        r"its rooms reach only the members on the same worker: GEVENTWS_BUS=redis://localhost joins them"
    )
    assert "its rooms reach only" not in one.log


def test_a_worker_without_the_package_says_what_to_install(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("raise ImportError('No module named redis')")
    command = [sys.executable, "-m", "geventws", "--bind", "127.0.0.1:0", "tests.apps_rooms:app"]
    env = {**os.environ, "GEVENTWS_BUS": "redis://localhost", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode
    assert re.search(r"pip install 'geventws\[redis\]'", done.stderr)


def test_the_page_goes_from_one_process_to_many(redis_server: RedisServer, tmp_path: Path) -> None:
    found = blocks((ROOT / "docs" / "rooms.md").read_text())
    for block in found:
        name = block.code.partition("\n")[0].removeprefix("# ")
        if name in ("app.py", "tasks.py"):
            with (tmp_path / name).open("a") as program:
                program.write(block.code)
    (shell,) = [block.code for block in found if block.language == "sh"]
    install, export, run = shell.splitlines()
    assert install == "pip install 'geventws[gunicorn,flask,redis]'"
    bus = redis_server.url
    run = f"{sys.executable} -m {run} --bind 127.0.0.1:0 --chdir {tmp_path}"
    command = ["bash", "-ec", f"{export}\nexport GEVENTWS_BUS={bus}\nexec {run}"]
    server = Server(command, "127.0.0.1:0", None, tmp_path / "log", {"PYTHONPATH": f"{ROOT}:{tmp_path}"})
    try:
        clients = [Client(server, "/chat/reports") for _ in range(8)]
        script = "import tasks; print(tasks.report_is_ready('ann', 7))"
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "GEVENTWS_BUS": bus}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: all(client.heard for client in clients), "hearing of the task", WITHIN)
        for client in clients:
            (message,) = client.heard
            assert (message["report"], message["at"]) == (7, done.stdout.strip())
            client.close()
    finally:
        server.stop()


def test_the_page_s_own_tests_pass_over_redis_as_well(redis_server: RedisServer, tmp_path: Path) -> None:
    for block in blocks((ROOT / "docs" / "rooms.md").read_text()):
        name = block.code.partition("\n")[0].removeprefix("# ")
        if name.endswith(".py"):
            with (tmp_path / name).open("a") as program:
                program.write(block.code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "GEVENTWS_BUS": redis_server.url.replace("/0", "/5")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
