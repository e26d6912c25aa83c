"""The example chat on several workers, which a real Redis joins."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from .redis_servers import RedisServer, free_port
from .servers import ROOT, Server, wait_for
from .test_chat import EXAMPLE, GUNICORN, Chat, Tab, Visitor, add_room, serve_chat
from .test_chat import chromium as chromium  # a fixture
from .test_chat import fresh as fresh
from .test_chat import instance as instance

# A browser beside other browsers, on two cores, may be held up for longer than a page waits.
pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=2)]

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


class Workers(NamedTuple):
    """One chat on two ports, so that one knows which worker a page is on."""

    one: Server
    two: Server
    instance: Path


@pytest.fixture(scope="module")
def workers(fresh: Path, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    instance = shutil.copytree(fresh, tmp_path_factory.mktemp("workers") / "instance")
    env = {"GEVENTWS_BUS": redis.url}
    with serve_chat(instance, env=env) as one, serve_chat(instance, env=env, log="log of two") as two:
        yield Workers(one, two, instance)


@pytest.fixture
def people(chromium: Browser, workers: Workers, request: pytest.FixtureRequest) -> Iterator[tuple[Tab, Tab]]:
    """Mara on the one worker and Jonas on the other, in a room of their own."""
    number = add_room(workers.one, request.node.name[:40])
    yield Tab(chromium, Chat(workers.one, number), "Mara"), Tab(chromium, Chat(workers.two, number), "Jonas")
    for context in chromium.contexts:
        context.close()


def workers_of(server: Server) -> list[int]:
    """Return the processes of the workers of gunicorn."""
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def announce(instance: Path, redis: RedisServer, text: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CHAT_INSTANCE": str(instance), "GEVENTWS_BUS": redis.url}
    command = [sys.executable, "-m", "flask", "--app", "app", "announce", text]
    subprocess.run(command, cwd=EXAMPLE, env=env, check=True)


def test_two_people_on_two_workers_are_in_one_room(
    chromium: Browser, people: tuple[Tab, Tab], workers: Workers, redis: RedisServer
) -> None:
    mara, jonas = people
    mara.wait_for("#people bdi", "Jonas")
    jonas.wait_for("#people bdi", "Mara")
    mara.say("across")
    jonas.wait_for(".message", "across")
    jonas.page.get_by_label("Message", exact=True).press_sequentially("Hi")
    mara.wait_for("#typing", "Jonas is typing…")
    announce(workers.instance, redis, "Tea is ready")
    for tab in (mara, jonas):
        tab.wait_for(".announcement", "Tea is ready")
    number = int(mara.page.url.rpartition("/")[2])
    again = Tab(chromium, Chat(workers.two, number), "Mara")
    mara.wait_for("#end", "You have come in elsewhere.")
    again.say("from the other side")
    jonas.wait_for(".message", "from the other side")
    again.wait_for_end_of(".pending")
    assert again.texts(".words") == jonas.texts(".words") == ["across", "Tea is ready", "from the other side"]


def test_announcement_stands_in_every_room_though_redis_is_away(instance: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CHAT_INSTANCE": str(instance)}
    command = [sys.executable, "-m", "flask", "--app", "app", "announce", "Tea is ready"]
    env["GEVENTWS_BUS"] = f"redis://127.0.0.1:{free_port()}"
    done = subprocess.run(command, cwd=EXAMPLE, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "kept, and not told" in done.stderr
    with closing(sqlite3.connect(instance / "chat.db")) as database:
        rooms = database.execute("SELECT room_id FROM message WHERE text = 'Tea is ready'").fetchall()
    assert rooms == [(1,), (2,)]


def test_worker_that_is_killed_costs_no_message(people: tuple[Tab, Tab], workers: Workers) -> None:
    mara, jonas = people
    mara.say("before")
    jonas.wait_for(".message", "before")
    [worker] = workers_of(workers.one)
    os.kill(worker, signal.SIGKILL)
    mara.say("meanwhile")
    jonas.say("meanwhile too")
    for tab in people:
        for text in ("meanwhile", "meanwhile too"):
            tab.wait_for(".message:not(.pending) .words", re.compile(f"^{text}$"))
    mara.say("after")
    jonas.wait_for(".message", "after")
    for tab in people:
        tab.wait_for_end_of(".pending")
        assert sorted(tab.texts(".words")) == ["after", "before", "meanwhile", "meanwhile too"]


def test_restart_of_redis_costs_no_message(people: tuple[Tab, Tab], redis: RedisServer) -> None:
    mara, jonas = people
    mara.say("before")
    jonas.wait_for(".message", "before")
    redis.stop()
    mara.say("in the dark")
    jonas.say("in the dark too")
    redis.start()
    for tab in people:
        for text in ("in the dark", "in the dark too"):
            tab.wait_for(".message:not(.pending) .words", re.compile(f"^{text}$"))
    mara.say("after")
    jonas.wait_for(".message", "after")
    for tab in people:
        tab.wait_for_end_of(".pending")
        assert sorted(tab.texts(".words")) == ["after", "before", "in the dark", "in the dark too"]
        assert tab.complaints == []


def test_all_sockets_of_two_workers_hear_one_order(instance: Path, redis: RedisServer) -> None:
    env = {"GEVENTWS_BUS": redis.url, "CHAT_ONE_LOGIN": "false"}
    with serve_chat(instance, [*GUNICORN, "-w", "2"], env=env) as server:
        wait_for(lambda: len(workers_of(server)) == 2, "start of two workers")
        visitors = [Visitor(server, name) for name in ("Mara", "Jonas") * 4]
        for number, visitor in enumerate(visitors):
            visitor.say(f"message {number}")
        heard = [[visitor.hear("said")["html"] for _ in visitors] for visitor in visitors]
        assert all(heard[0] == other for other in heard)
        for visitor in visitors:
            visitor.ws.shutdown()
