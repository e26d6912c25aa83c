"""docs/tutorial.md: each of its steps is a state that runs, and its test passes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from .servers import ROOT, Server
from .test_chat import GUNICORN, Chat, serve_chat
from .test_chat import chromium as chromium  # a fixture
from .test_chat import fresh as fresh
from .test_chat import instance as instance
from .test_chat_story import NEW
from .test_chat_story import before as before  # a fixture
from .test_readme import Block, blocks

pytestmark = pytest.mark.slow  # it starts servers and a browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGE = (ROOT / "docs" / "tutorial.md").read_text()


class Step(NamedTuple):
    """A section of the page."""

    title: str
    blocks: list[Block]

    def of(self, language: str) -> list[str]:
        return [block.code for block in self.blocks if block.language == language]


STEPS = [
    Step(title, blocks(text))
    for title, text in re.findall(r"^## (\d\. .*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
]


@pytest.fixture(scope="module")
def states(before: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The app after each step."""
    made = [before]
    for step in STEPS:
        example = shutil.copytree(made[-1], tmp_path_factory.mktemp("step") / "flask_chat")
        for diff in step.of("diff"):
            subprocess.run(["git", "apply", "-"], cwd=example, input=diff, text=True, check=True)
        [test] = step.of("python")
        (example / "test_live.py").write_text(test)
        made.append(example)
    return made[1:]


def test_page_has_seven_steps_and_says_what_to_remove() -> None:
    assert [step.title[0] for step in STEPS] == list("1234567")
    assert f"rm {' '.join(NEW)}\n" in PAGE


@pytest.mark.parametrize("index", range(len(STEPS)), ids=[step.title for step in STEPS])
def test_step_runs_and_its_test_passes(index: int, states: list[Path], tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # what is installed here for other tests takes a second to load
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={states[index]}"]
    tests = [str(states[index] / "test_live.py"), f"{states[index] / 'test_app.py'}::test_two_people_talk"]
    done = subprocess.run([*command, *tests], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def last(states: list[Path], instance: Path) -> Iterator[Server]:
    command = [str(states[-1]) if word == "examples/flask_chat" else word for word in GUNICORN]
    with serve_chat(instance, command) as server:
        yield server


def test_last_step_is_live_in_a_browser(chromium: Browser, last: Server) -> None:
    def come_in(name: str) -> Page:
        page = chromium.new_context().new_page()
        page.goto(Chat(last).url)
        page.get_by_role("button", name=name).click()
        page.locator("#here", has_text=name).wait_for()
        return page

    def say(page: Page, text: str) -> None:
        page.get_by_label("Message", exact=True).press_sequentially(text)
        page.get_by_role("button", name="Send", exact=True).click()

    mara, jonas = come_in("Mara"), come_in("Jonas")
    mara.locator("#here", has_text="Mara, Jonas").wait_for()
    say(mara, "hello")
    jonas.locator(".words", has_text="hello").wait_for()
    mara.context.set_offline(True)
    mara.locator("#state", has_text="Reconnecting…").wait_for()
    say(jonas, "meanwhile")
    say(mara, "from away")
    jonas.locator(".words", has_text="meanwhile").wait_for()
    mara.context.set_offline(False)
    jonas.locator(".words", has_text="from away").wait_for()
    mara.locator(".own .words", has_text="from away").wait_for()
    for page in (mara, jonas):
        assert page.locator(".words").all_inner_texts() == ["hello", "meanwhile", "from away"]
    come_in("Mara")
    mara.locator("#state", has_text="You have come in elsewhere.").wait_for()
