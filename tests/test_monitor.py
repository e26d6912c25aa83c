"""Monitor: what blocked the hub is told, by place and once a minute, and drivers that will are named at the start."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .commands import running, write_files
from .servers import DEADLINE, FRONT_ENDS, Server, get, serve, wait_for

APP = "tests.apps_monitor:app"


def run(program: str, directory: Path) -> str:
    """Return what a program says whose hub is watched for 0.2 s."""
    (directory / "program.py").write_text(f"import logging, time, gevent\nfrom geventws import monitor\n{program}")
    command = [sys.executable, "-c", "import logging; logging.basicConfig(); import program"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_block_is_told_with_its_stack_and_counted(tmp_path: Path) -> None:
    said = run(
        "def query():\n    time.sleep(1)\n"
        "monitor.watch(0.2)\n"
        "gevent.spawn(query).join()\n"
        "gevent.sleep(0.01)\n"
        "assert monitor.monitor.blocks == 1 and monitor.monitor.blocked_seconds > 0.9\n",
        tmp_path,
    )
    (told,) = re.findall(r"^WARNING:geventws:(.*)$", said, re.MULTILINE)
    assert re.fullmatch(r"query\(\) in .*/program\.py, line 4, blocked the hub for \d+\.\d s, .*", told)
    assert 'program.py", line 4, in query\n    time.sleep(1)' in said
    assert "appears to be blocked" not in said  # gevent's own report of 80 columns


def test_a_place_is_told_once_a_minute_and_another_place_too(tmp_path: Path) -> None:
    said = run(
        "def one():\n    time.sleep(1)\n"
        "def other():\n    time.sleep(1)\n"
        "monitor.watch(0.2)\n"
        "for block in (one, one, other, one):\n    gevent.spawn(block).join()\n    gevent.sleep(0.01)\n"
        "assert monitor.monitor.blocks == 4\n"
        "clock = monitor.monotonic\n"
        "monitor.monotonic = lambda: clock() + 61\n"
        "gevent.spawn(one).join()\ngevent.sleep(0.01)\n",
        tmp_path,
    )
    assert re.findall(r"(\w+)\(\) in .* blocked the hub", said) == ["one", "other", "one"]


def test_all_that_blocks_in_one_pass_of_the_loop_is_told_with_the_time_of_the_pass(tmp_path: Path) -> None:
    said = run(
        "def one():\n    time.sleep(1)\n"
        "def other():\n    time.sleep(1)\n"
        "monitor.watch(0.2)\n"
        "gevent.joinall([gevent.spawn(one), gevent.spawn(other)])\ngevent.sleep(0.01)\n"
        "assert monitor.monitor.blocks == 1\n",
        tmp_path,
    )
    told = re.findall(r"(\w+)\(\) in .* blocked the hub for (\d+\.\d) s", said)
    assert [place for place, _ in told] == ["one", "other"]
    assert all(float(seconds) > 1.9 for _, seconds in told)


def test_a_hub_that_waits_for_its_sockets_is_not_blocked(tmp_path: Path) -> None:
    said = run(
        "monitor.watch(0.2)\nmonitor.watch(0.1)\ngevent.sleep(1)\nassert monitor.monitor.blocks == 0\n", tmp_path
    )
    assert said == ""


def test_a_shorter_block_is_none(tmp_path: Path) -> None:
    said = run(
        "monitor.watch(30)\n"
        "gevent.config.max_blocking_time = 0.05\n"  # it is seen, and judged by its whole length
        "gevent.spawn(time.sleep, 1).join()\ngevent.sleep(0.01)\nassert monitor.monitor.blocks == 0\n",
        tmp_path,
    )
    assert said == ""


def test_a_hub_that_never_comes_back_is_told_on_stderr_once(tmp_path: Path) -> None:
    said = run(
        "def deadlock():\n    time.sleep(1.5)\n"
        "monitor.PATIENCE = 0.5\n"
        "monitor.watch(0.2)\n"
        "gevent.spawn(deadlock).join()\n",
        tmp_path,
    )
    assert said.count("\ngeventws: deadlock() in ") + said.startswith("geventws: deadlock() in ") == 1
    assert "in deadlock\n    time.sleep(1.5)" in said


def test_a_hub_that_is_destroyed_is_watched_no_more(tmp_path: Path) -> None:
    said = run(
        "monitor.watch(0.2)\ngevent.sleep(0.01)\nhub = gevent.get_hub()\nhub.destroy()\ntime.sleep(1)\n", tmp_path
    )
    assert said == ""


DRIVERS = {
    "psycopg2": ("import psycopg2.extensions", "psycopg2 blocks"),
    "psycogreen": ("from psycogreen.gevent import patch_psycopg; patch_psycopg()", None),
    # Stand-ins: mysqlclient needs MySQL's own library to be built. PyMySQL takes its name so.
    "mysqlclient": ("import sys; sys.modules['MySQLdb'] = sys.modules['MySQLdb._mysql'] = sys", "mysqlclient blocks"),
    "PyMySQL": ("import sys; sys.modules['MySQLdb'] = sys.modules['_mysql'] = sys", None),
}


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_that_blocks_is_named(driver: str, tmp_path: Path) -> None:
    statement, told = DRIVERS[driver]
    said = run(f"{statement}\nmonitor.watch(None)\nassert monitor.monitor is None\n", tmp_path)
    assert told in said and "docs/gevent.md" in said if told else said == ""


# On servers


@pytest.fixture(params=FRONT_ENDS, scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    variables = {"GEVENTWS_HUB_WARNING": "0.3"}
    with serve(APP, tmp_path_factory.mktemp("monitor"), front_end=request.param, env=variables) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("view", ["block", "compute"])
def test_a_view_that_blocks_is_named(server: Server, view: str) -> None:
    before = json.loads(get(server, "/counted")[1])
    with server.connect("/echo") as ws:
        assert get(server, f"/{view}/1.0")[0] == 200
        ws.send("still there")
        assert ws.recv(DEADLINE) == "still there"
    told = server.wait_for_log(rf"^.*\b{view}\(\) in .*/tests/apps_monitor\.py, line \d+, blocked the hub for .*$")
    assert "WARN" in told[0]
    server.wait_for_log(rf'apps_monitor\.py", line \d+, in {view}$')
    after = json.loads(get(server, "/counted")[1])
    assert after[0] > before[0] and after[1] >= before[1] + 0.9


@pytest.mark.slow
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_nothing_watches_where_the_option_is_off(front_end: str, tmp_path: Path) -> None:
    with serve(APP, tmp_path, front_end=front_end) as server:
        assert get(server, "/counted") == (200, "null")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "seconds"), [((), 0.5), (("--hub-warning", "0.2"), 0.2), (("--hub-warning=off",), None)]
)
def test_debug_watches_unless_it_is_told_otherwise(
    arguments: tuple[str, ...], seconds: float | None, tmp_path: Path
) -> None:
    app = (
        "from geventws import monitor\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [str(monitor.monitor and monitor.monitor.seconds).encode()]\n"
    )
    write_files(tmp_path, {"app.py": app})
    with running(tmp_path, "app:app", "--bind=127.0.0.1:0", "--debug", *arguments) as program:
        wait_for(lambda: program.address(), "start")
        assert program.get() == str(seconds)
