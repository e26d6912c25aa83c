"""docs/gevent.md: every block that a reader can run is run here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from .servers import DEADLINE, FRONT_ENDS, ROOT, get, serve, wait_for
from .test_readme import blocks, free_port, running, server_command

pytestmark = pytest.mark.slow  # it starts servers or installs packages

PAGE = (ROOT / "docs" / "gevent.md").read_text()
BLOCKS = blocks(PAGE)
RUN = [block for block in BLOCKS if block.language == "bash"]


def python(begin: str) -> list[str]:
    """Return the blocks of Python that begin so."""
    return [block.code for block in BLOCKS if block.language == "python" and block.code.startswith(begin)]


BLOCKING, POOLED = python("# app.py\n")
(SETTINGS,) = python("# gunicorn.conf.py\n")
(PATCH_LINES,) = python("from psycogreen")
(LOOP,) = python("import gevent\n")
(SAID,) = (block.code for block in BLOCKS if block.language == "text")


def test_every_block_of_python_has_a_test() -> None:
    told = [BLOCKING, POOLED, SETTINGS, PATCH_LINES, LOOP]
    assert sorted(told) == sorted(block.code for block in BLOCKS if block.language == "python")


def commands() -> list[str]:
    return [line for block in RUN for line in block.code.splitlines()]


@pytest.mark.parametrize("line", commands())
def test_the_command_names_what_blocked(line: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(BLOCKING)
    variable, _, command = line.partition(" ")
    name, _, seconds = variable.partition("=")
    port = free_port()
    with running(tmp_path, server_command(command, port), port, env={**os.environ, name: seconds}):
        with urlopen(f"http://127.0.0.1:{port}/report", timeout=DEADLINE) as answer:
            assert len(answer.read()) == 64
        log = tmp_path / f"log-{port}"
        wait_for(lambda: "in report\n" in log.read_text(), "line about the block")
    head, source = SAID.splitlines()[0], SAID.splitlines()[-2:]
    pattern = re.escape(head).replace("/srv", ".*").replace(r"1\.6", r"\d+\.\d")
    assert re.search(pattern, log.read_text())
    assert "\n".join(source).replace("/srv", str(tmp_path)) in log.read_text()


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_the_thread_pool_blocks_nothing(front_end: str, tmp_path: Path) -> None:
    (tmp_path / "pooled.py").write_text(POOLED)
    variables = {"GEVENTWS_HUB_WARNING": "0.5", "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    with serve("pooled:app", tmp_path, front_end=front_end, env=variables) as server:
        status, body = get(server, "/report")
        assert (status, len(body)) == (200, 64)
        assert "report() in" not in server.log


QUERYING = """
import psycopg2
from tests.apps import app
"""


@pytest.mark.parametrize("is_patched", [False, True])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_psycopg2_is_warned_of_until_it_is_patched(front_end: str, is_patched: bool, tmp_path: Path) -> None:
    arguments = []
    app = QUERYING
    if is_patched and front_end == "worker":
        (tmp_path / "gunicorn.conf.py").write_text(SETTINGS)
        arguments = ["--config", str(tmp_path / "gunicorn.conf.py")]
    elif is_patched:
        app = PATCH_LINES + QUERYING
    (tmp_path / "querying.py").write_text(app)
    variables = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    with serve("querying:app", tmp_path, front_end=front_end, arguments=arguments, env=variables) as server:
        assert get(server, "/")[0] == 200
        assert ("psycopg2 blocks all connections" in server.log) is not is_patched


def test_the_loop_lets_others_run() -> None:
    import gevent

    namespace: dict[str, Any] = {}
    exec(LOOP, namespace)
    ran: list[str] = []
    other = gevent.spawn(ran.append, "other")
    assert namespace["total"](range(3000)) == sum(range(3000))
    assert ran == ["other"]
    other.join(DEADLINE)
