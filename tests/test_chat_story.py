"""The README of the example chat tells by which lines an ordinary app was made live: those lines, and no others.

`python -m tests.test_chat_story` writes the lines that are marked now into the README.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path

import pytest

from .servers import ROOT
from .test_chat import EXAMPLE

pytestmark = pytest.mark.slow  # it runs the tests of the example

MARK = re.compile(r"(# live|\{# live #\})$")
README = EXAMPLE / "README.md"
NEW = ("live.py", "test_live.py", "templates/live.html", "static/live.css", "static/live.js", "static/upload.js")
OLD = ("app.py", "people.py", "talk.py", "templates/room.html")  # that were there, and changed
COMMAND = "git apply -R --directory=examples/flask_chat examples/flask_chat/README.md"


def change_of(name: str) -> str:
    """Return what was done to a file, as a diff."""
    after = (EXAMPLE / name).read_text().splitlines(keepends=True)
    before = [line for line in after if not MARK.search(line.rstrip())]
    return "".join(unified_diff(before, after, f"a/{name}", f"b/{name}", n=1))


def told(readme: str) -> dict[str, str]:
    """Return the diffs of a README by the names of their files."""
    blocks = re.findall(r"^```diff\n(--- a/(\S+)\n.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    return {name: diff for diff, name in blocks}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app before, made as the README says."""
    clone = tmp_path_factory.mktemp("before")
    leave_out = shutil.ignore_patterns("instance", "__pycache__", ".*")
    example = shutil.copytree(EXAMPLE, clone / "examples" / "flask_chat", ignore=leave_out)
    assert f"\n{COMMAND}\n" in README.read_text()
    subprocess.run(COMMAND.split(), cwd=clone, check=True, env={**os.environ, "GIT_CEILING_DIRECTORIES": str(clone)})
    for name in NEW:
        (example / name).unlink()
    return example


def test_readme_tells_all_lines_that_are_marked() -> None:
    assert told(README.read_text()) == {name: change_of(name) for name in OLD}, "run python -m tests.test_chat_story"


def test_no_other_file_has_a_mark() -> None:
    files = [*EXAMPLE.glob("*.py"), *EXAMPLE.glob("templates/*"), *EXAMPLE.glob("static/*")]
    marked = {
        str(file.relative_to(EXAMPLE)) for file in files if re.search(MARK.pattern, file.read_text(), re.MULTILINE)
    }
    assert marked == set(OLD)


def test_readme_counts_the_lines() -> None:
    added = sum(line.startswith("+") for name in OLD for line in change_of(name).splitlines()[2:])
    assert f"{added} lines" in README.read_text()


def test_app_before_knows_nothing_of_what_is_live(before: Path) -> None:
    for file in (*before.glob("[!t]*.py"), before / "talk.py", *before.glob("templates/*")):
        assert not re.search(r"geventws|\blive\b|<script", file.read_text()), file


def test_app_passes_its_own_tests_before_and_after(before: Path, tmp_path: Path) -> None:
    runs: list[subprocess.Popen[bytes]] = []
    for directory in (before, EXAMPLE):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={directory}"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        with (tmp_path / str(len(runs))).open("wb") as log:
            runs.append(subprocess.Popen([*command, str(directory)], cwd=tmp_path, env=env, stdout=log, stderr=log))
    assert [run.wait() for run in runs] == [0, 0], [(tmp_path / str(number)).read_text() for number in range(2)]


def write() -> None:
    text = README.read_text()
    for name, diff in told(text).items():
        text = text.replace(diff, change_of(name))
    README.write_text(text)


if __name__ == "__main__":
    write()
