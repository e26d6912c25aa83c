"""docs/migrating.md: what it tells a reader to write, and to run, is run here."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from websockets.exceptions import InvalidStatus

from .servers import ROOT, missing
from .test_legacy import check_upgrade
from .test_readme import blocks, echoes, free_port, running, server_command

pytestmark = pytest.mark.slow  # it starts servers or installs packages

PAGE = (ROOT / "docs" / "migrating.md").read_text()
COMMAND = re.compile(r"(\w+=\S+ )*(gunicorn|python) -")
NEEDED = ("bottle_websocket", "flask_socketio", "flask_sockets")  # packages that a program goes on to use

# For commands beside which the page shows no app: what must not be touched, where compat is the subject.
UNTOUCHED = """
import geventwebsocket
assert geventwebsocket.WebSocketError.__module__ == "geventws.errors"
def app(environ, start_response):
    ws = environ["wsgi.websocket"]
    while not ws.closed:
        ws.send(ws.receive())
    return []
"""


class Example(NamedTuple):
    """A block of the page: the heading above it, its line, and what the reader has before and after the change."""

    section: str
    line: int
    before: str
    after: str

    @property
    def kind(self) -> str:
        """What a reader does with it: command, settings, program (it serves by itself) or app."""
        if COMMAND.match(self.after):
            return "command"
        if self.after.startswith("# gunicorn.conf.py\n"):
            return "settings"
        return "program" if "serve_forever()" in self.after or "run(" in self.after else "app"

    @property
    def path(self) -> str:
        """Where it echoes."""
        prefix = re.search(r'url_prefix="(.*?)"', self.after)
        route = re.search(r'(?:route|get)\("(.*?)"', self.after)
        return (prefix[1] if prefix else "") + (route[1] if route else "/echo")


def examples() -> list[Example]:
    """Return the blocks of the page; a diff is two texts, any other is one that both have."""
    found = []
    for block in blocks(PAGE):
        section = re.findall(r"^## (.*)$", "\n".join(PAGE.splitlines()[: block.line]), re.MULTILINE)[-1:]
        texts = [block.code] * 2
        if block.language == "diff":
            for index, other in enumerate("+-"):
                lines = [line for line in block.code.splitlines() if not line.startswith(other)]
                texts[index] = "".join(f"{line[1:]}\n" for line in lines)
        else:
            assert block.language in {"bash", "python"}, f"no test knows what {block.language} on line {block.line} is"
            texts = ["".join(line.strip() + "\n" for line in block.code.splitlines())] * 2
        found.append(Example("".join(section), block.line, *texts))
    return found


EXAMPLES = examples()


def each(kind: str) -> pytest.MarkDecorator:
    chosen = [example for example in EXAMPLES if example.kind == kind]
    return pytest.mark.parametrize("example", chosen, ids=lambda example: f"line {example.line}")


def served(directory: Path, line: str, port: int) -> AbstractContextManager[None]:
    """Run a command line of the page, which may begin with variables, in a directory with an app.py."""
    words = shlex.split(line)
    variables = dict(word.split("=", 1) for word in words if "=" in word)
    command = server_command(shlex.join(word for word in words if "=" not in word), port)
    env: Mapping[str, str] = {**os.environ, **variables}
    return running(directory, command, port, env=env)


def answers(example: Example, port: int) -> None:
    """Talk to what the example serves, as its users would, and see that geventws serves it."""
    if "SocketIO" in example.after:
        path = "/socket.io/?EIO=4&transport=websocket"
        check_upgrade(port, "hello")
    else:
        path = example.path
        echoes(port, path)
    # None of the others answers a page of another host with 403.
    with pytest.raises(InvalidStatus, match="403"):
        echoes(port, path, origin="https://evil.example")


def need(example: Example) -> None:
    for package in NEEDED:
        if package in example.after and find_spec(package) is None:
            missing(f"{package} is not installed")


def app_for(command: Example) -> Example:
    """Return the app that a command serves: what must stay as it is, the app of its section, or any."""
    if command.section == "From gevent-websocket" and "COMPAT" in command.after:
        return command._replace(after=UNTOUCHED)
    apps = [example for example in EXAMPLES if "\napp = " in example.after]
    app = next((example for example in apps if example.section == command.section), apps[0])
    return app._replace(after=app.before) if "SocketIO" in app.after else app


def test_the_page_has_each_kind_for_each_package() -> None:
    assert {example.kind for example in EXAMPLES} == {"command", "settings", "program", "app"}
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert [heading for heading in headings if heading not in {example.section for example in EXAMPLES}] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"line {example.line}")
def test_both_sides_of_a_change_are_python_or_a_command(example: Example) -> None:
    for text in (example.before, example.after):
        if example.kind == "command":
            assert all(COMMAND.match(line) for line in text.splitlines())
        else:
            compile(text, "app.py", "exec")


@each("app")
def test_app_echoes_by_each_command_of_the_page(example: Example, tmp_path: Path) -> None:
    need(example)
    (tmp_path / "app.py").write_text(example.after)
    commands = EXAMPLES[0].after.splitlines()
    assert [shlex.split(command)[0] for command in commands] == ["gunicorn", "python"]
    for command in commands:
        port = free_port()
        with served(tmp_path, command, port):
            answers(example, port)


@each("program")
def test_program_answers(example: Example, tmp_path: Path) -> None:
    need(example)
    port = free_port()
    program = re.sub(r"\b8000\b", str(port), example.after)
    assert program != example.after, "it names no port 8000"
    (tmp_path / "program.py").write_text(program)
    with running(tmp_path, [sys.executable, "program.py"], port):
        answers(example, port)


@each("command")
def test_command_serves(example: Example, tmp_path: Path) -> None:
    app = app_for(example)
    need(app)
    (tmp_path / "app.py").write_text(app.after)
    for line in example.after.splitlines():
        port = free_port()
        with served(tmp_path, line, port):
            answers(app, port)


@each("settings")
def test_settings_make_the_old_command_serve(example: Example, tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(example.after)
    (tmp_path / "app.py").write_text(UNTOUCHED)
    [old] = [other.before for other in EXAMPLES if other.kind == "command" and "geventwebsocket" in other.before]
    port = free_port()
    with served(tmp_path, old.strip(), port):
        answers(example, port)


def test_the_lowest_versions_of_the_page_are_those_that_pip_asks_for() -> None:
    named = dict(re.findall(r"^\| (?:`([\w-]+)(?:\[.*?\])?`.*?|Python itself) \| ([\d.]+) \|$", PAGE, re.MULTILINE)[:4])
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lowest = dict(re.findall(r"^([\w-]+)(?:\[.*?\])?>=([\d.]+)$", "\n".join(required), re.MULTILINE))
    lowest[""] = config["options"]["python_requires"].removeprefix(">=")
    assert named.keys() == {"gevent", "gunicorn", "flask", ""}
    assert named == {name: lowest[name] for name in named}


def test_links_within_the_page_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#(.*?)\)", PAGE))
    assert links and links <= anchors
