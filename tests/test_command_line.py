from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .commands import APP, PATIENCE, assert_one_line, command, environment, run, running, write_files

pytestmark = pytest.mark.slow  # it starts servers or installs packages

FILES = {"good.py": APP % "good", "serve.py": APP % "serve", "things.py": "def create_app():\n    pass\n"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_files(tmp_path, FILES)


@pytest.mark.parametrize("words", [["good:app"], ["serve", "good:app"], ["serve:app"], ["serve", "serve"]])
def test_the_word_serve_may_be_left_out(directory: Path, words: list[str]) -> None:
    with running(directory, *words, "--bind", "127.0.0.1:0") as program:
        assert program.get().startswith(words[-1].removesuffix(":app"))


def test_the_help_of_serve_is_that_of_the_whole(tmp_path: Path) -> None:
    answer = run(tmp_path, "--help")
    assert answer.returncode == 0
    assert answer.stdout.startswith("usage: python -m geventws [serve] MODULE:APP ")
    assert run(tmp_path, "serve", "--help").stdout == answer.stdout


def test_every_line_of_the_help_fits_a_terminal(tmp_path: Path) -> None:
    text = run(tmp_path, "--help", COLUMNS="80").stdout
    assert max(map(len, text.splitlines())) <= 80


UNREAD = [
    ["check", "ws://127.0.0.1:1/"],
    ["check", "ws://127.0.0.1:1/", "--json"],
    ["live"],
    ["live", "--json"],
    ["live", "--json", "--watch", "0.01"],
]


@pytest.mark.parametrize("words", UNREAD, ids=shlex.join)
def test_a_command_whose_output_nobody_reads_ends_without_a_word(tmp_path: Path, words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    variables = environment({"GEVENTWS_LIVE": str(tmp_path / "live")})
    try:
        ended = subprocess.run(
            command(*words), env=variables, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=PATIENCE
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_serve_needs_an_app(directory: Path) -> None:
    assert_one_line(run(directory, "serve"), "required: MODULE:APP; see python -m geventws --help$")


@pytest.mark.parametrize(
    ("program", "app", "variables", "complaint"),
    [
        ("flask", "things", {"GEVENTWS_COMPAT": "maybe"}, "GEVENTWS_COMPAT must be on or off, not 'maybe'"),
        ("gunicorn", "good:app", {"GEVENTWS_COMPAT": "maybe"}, "GEVENTWS_COMPAT must be on or off, not 'maybe'"),
        ("gunicorn", "things:create_app", {}, r"things:create_app is no WSGI app: .*, write things:create_app\(\)"),
    ],
)
def test_flask_and_gunicorn_tell_a_mistake_in_one_line(
    directory: Path, program: str, app: str, variables: dict[str, str], complaint: str
) -> None:
    arguments = {
        "flask": ["--app", app, "geventws"],
        "gunicorn": ["-k", "geventws.Worker", "--bind", "127.0.0.1:0", app],
    }
    answer = subprocess.run(
        [sys.executable, "-m", program, *arguments[program]],
        cwd=directory,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert re.search(f"^geventws: {complaint}$", answer.stderr, re.MULTILINE), answer.stderr
    assert answer.stderr.count("geventws: ") == 1
    assert "Traceback" not in answer.stderr
    assert answer.returncode != 0
