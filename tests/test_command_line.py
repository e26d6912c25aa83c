from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .commands import APP, environment, write_files
from .servers import DEADLINE

pytestmark = pytest.mark.slow  # it starts servers or installs packages

FILES = {"good.py": APP % "good", "things.py": "def create_app():\n    pass\n"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_files(tmp_path, FILES)


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
        timeout=DEADLINE,
    )
    assert re.search(f"^geventws: {complaint}$", answer.stderr, re.MULTILINE), answer.stderr
    assert answer.stderr.count("geventws: ") == 1
    assert "Traceback" not in answer.stderr
    assert answer.returncode != 0
