"""docs/quickstart.md: its app echoes in a browser, by each of its commands, and its test passes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .servers import ROOT
from .test_chat import chromium as chromium  # a fixture
from .test_readme import blocks, free_port, running

pytestmark = pytest.mark.slow  # it starts servers and a browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAGE = (ROOT / "docs" / "quickstart.md").read_text()
BLOCKS = blocks(PAGE)
INSTALL, *RUN = [block.code.strip() for block in BLOCKS if block.language == "bash"]
PYTHON = ".venv/bin/python -m pytest"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with the files of the page."""
    for block in BLOCKS:
        if block.language == "python":
            (tmp_path / block.code.partition("\n")[0].removeprefix("# ")).write_text(block.code)
    return tmp_path


def test_every_block_has_a_test() -> None:
    assert [block.language for block in BLOCKS] == ["bash", "python", "bash", "bash", "python"]


def test_what_is_installed_has_the_extras_of_the_page() -> None:
    make, install = INSTALL.splitlines()
    assert make == "python3 -m venv .venv"
    extras = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    metadata = ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    assert extras <= set(metadata["options.extras_require"])
    assert shlex.split(install) == [".venv/bin/pip", "install", "/path/to/geventws[gunicorn,flask]", "pytest"]


@pytest.mark.parametrize("line", RUN)
def test_the_page_echoes_in_a_browser(line: str, project: Path, chromium: Browser) -> None:
    program, *words = shlex.split(line)
    port = free_port()
    command = [sys.executable, "-m", program.removeprefix(".venv/bin/"), *words, "--bind", f"127.0.0.1:{port}"]
    complaints: list[str] = []
    with running(project, command, port):
        page = chromium.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/")
        page.evaluate("ws.readyState === 1 || new Promise((resolve) => ws.onopen = resolve)")
        for text in ("hello", "<b>grüße</b>"):
            page.get_by_label("Message").fill(text)
            page.keyboard.press("Enter")
            page.locator("li", has_text=text).wait_for()
        page.close()
    assert complaints == []


def test_its_test_passes(project: Path) -> None:
    assert PYTHON in PAGE
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={project}"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
