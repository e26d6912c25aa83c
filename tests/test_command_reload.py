from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from .commands import (
    APP,
    PATIENCE,
    Answers,
    answers_to,
    assert_one_line,
    closed_by,
    run,
    running,
    wait_for,
    write_files,
)

pytestmark = pytest.mark.slow  # it starts servers or installs packages

FILES = {
    "good.py": APP % "good",
    "raises.py": "raise KeyError('DATABASE_URL')\n",
    "exits.py": "import sys\nsys.exit('DATABASE_URL is not set')\n",
}


MISTAKES: dict[tuple[str, ...], str] = {
    ("good:app", "--keyfile", "key.pem", "--reload"): "--keyfile needs --certfile",
    ("good:app", "--ping-interval", "often", "--reload"): "--ping-interval must be",
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


@pytest.mark.parametrize("flag", ["--reload", "--debug"])
def test_reload_and_debug_without_werkzeug_name_the_pip_command(directory: Path, flag: str) -> None:
    (directory / "werkzeug.py").write_text("raise ImportError('not installed here')\n")
    assert_one_line(run(directory, "good:app", flag), f"{flag} needs Werkzeug: pip install werkzeug")


def test_reload_serves_what_the_file_says_now(directory: Path) -> None:
    app = directory / "good.py"
    with running(directory, "good:app", "--bind", "127.0.0.1:0", "--reload") as program:
        assert program.get().startswith("good ")
        with program.websocket() as ws:
            app.write_text(APP % "changed")
            with pytest.raises(ConnectionClosed) as caught:
                ws.recv(PATIENCE)
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
        assert program.get(start=2).startswith("changed ")
        app.write_text("def app(:\n")
        wait_for(lambda: re.search(r"^geventws: .*SyntaxError.*waiting", program.err, re.MULTILINE), "complaint")
        app.write_text(APP % "mended")
        assert program.get(start=3).startswith("mended ")
        assert "Traceback" not in program.err


def test_reload_waits_for_an_app_that_exits_to_change(directory: Path) -> None:
    with running(directory, "exits:app", "--bind", "127.0.0.1:0", "--reload") as program:
        wait_for(lambda: "DATABASE_URL is not set" in program.err, "complaint")
        (directory / "exits.py").write_text(APP % "mended")
        assert program.get().startswith("mended ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_reload_ends_with_its_child(directory: Path, number: int) -> None:
    with running(directory, "good:app", "--bind", "unix:server.sock", "--reload") as program:
        child = int(program.get().split()[1])
        assert child != program.process.pid
        code = closed_by(program, number)
        assert program.process.wait(PATIENCE) == 0
        wait_for(lambda: not alive(child), "end of the child process")
        assert "Traceback" not in program.err
        assert code == 1012
        assert not (directory / "server.sock").exists()


def test_ctrl_c_ends_a_reloader_that_waits_for_a_change(directory: Path) -> None:
    with running(directory, "raises:app", "--bind", "127.0.0.1:0", "--reload") as program:
        wait_for(lambda: "waiting for a change" in program.err, "complaint")
        parent = program.process.pid
        child = int(Path(f"/proc/{parent}/task/{parent}/children").read_text())
        for pid in (child, parent):  # as a terminal does; the parent tells the child once more
            os.kill(pid, signal.SIGINT)
        program.process.wait(PATIENCE)
        wait_for(lambda: not alive(child), "end of the child process")
        assert program.err.count("Traceback") == 1  # of the app


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
