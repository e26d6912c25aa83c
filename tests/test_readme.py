"""README.md and the pages on websocket, running and options: what a reader is told to write, and to run, runs here."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import pytest
from websockets.sync.client import connect

from geventws import Options
from geventws.options import RequestLimits

from .servers import DEADLINE, ROOT, wait_for

pytestmark = pytest.mark.slow  # it starts servers or installs packages

README = (ROOT / "README.md").read_text()
OPTIONS = (ROOT / "docs" / "options.md").read_text()
PAGES = [README, OPTIONS, *((ROOT / "docs" / f"{name}.md").read_text() for name in ("websocket", "running"))]
INSTALLING = 600.0  # seconds for pip, on a slow line too


class Block(NamedTuple):
    """A fenced code block: its language, its text, and the line of its fence."""

    language: str
    code: str
    line: int

    @property
    def kind(self) -> str:
        """What a reader does with it: paste, run, app, settings or program; else "unknown"."""
        if self.language == "bash":
            return "paste" if self.code.startswith("python3 -m venv ") else "run"
        if self.language == "python":
            if self.code.startswith("# gunicorn.conf.py\n"):
                return "settings"
            return "app" if "\napp = Flask(__name__)\n" in self.code else "program"
        return "unknown"


def blocks(text: str) -> list[Block]:
    """Return the fenced code blocks of a Markdown text."""
    found = re.finditer(r"^( *)(```+|~~~+)([^\n]*)\n(.*?)^\1\2 *$", text, re.MULTILINE | re.DOTALL)
    return [Block(match[3].strip(), match[4], text.count("\n", 0, match.start()) + 1) for match in found]


BLOCKS = [block for page in PAGES for block in blocks(page)]


def of_kind(kind: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind == kind]


def each(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", of_kind(kind), ids=lambda block: f"line {block.line}")


# Running what a block says


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_port(text: str, port: int) -> str:
    """Return the text with a port that is free here for the reader's port 8000."""
    return re.sub(r'(127\.0\.0\.1(?::|", ))8000\b', rf"\g<1>{port}", text)


def server_command(line: str, port: int) -> list[str]:
    """Return a line of shell that starts a server as a command of this interpreter, on this port."""
    words = shlex.split(on_port(line, port))
    if words[0] == "gunicorn":
        words[:1] = ["python", "-m", "gunicorn"]
    if words[:2] != ["python", "-m"] or words[2] not in {"gunicorn", "geventws"}:
        pytest.fail(f"no test knows how to run {line!r}")
    if f"127.0.0.1:{port}" not in words:
        words += ["--bind", f"127.0.0.1:{port}"]
    return [sys.executable, *words[1:]]


@contextmanager
def running(
    directory: Path, command: list[str], port: int, *, env: Mapping[str, str] = os.environ, within: float = DEADLINE
) -> Iterator[None]:
    """Run a server in a directory until the block ends, from the moment it listens on the port."""
    private = {"HOME": str(directory), "XDG_RUNTIME_DIR": str(directory), "PYTHONPATH": str(ROOT)}
    log = directory / f"log-{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=directory, env={**env, **private}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )

    def listening() -> bool:
        assert process.poll() is None, f"{shlex.join(command)} ended:\n{log.read_text()}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(listening, f"start of {shlex.join(command)}", within)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"{shlex.join(command)} ignored SIGTERM:\n{log.read_text()}")


def echoes(port: int, path: str = "/echo", origin: str | None = None) -> None:
    """Talk to an echo view as a browser on a page of this origin would."""
    with connect(f"ws://127.0.0.1:{port}{path}", origin=origin, compression=None, open_timeout=DEADLINE) as ws:  # type: ignore[arg-type]
        for message in ("hello", b"\x00\xff", "é" * 1000):
            ws.send(message)
            assert ws.recv(DEADLINE) == message


def write_app(directory: Path) -> None:
    (directory / "app.py").write_text(of_kind("app")[0].code)


# The blocks


def test_every_block_has_a_test() -> None:
    assert [block for block in BLOCKS if block.kind == "unknown"] == []
    assert {block.kind for block in BLOCKS} == {"paste", "run", "app", "settings", "program"}


@pytest.mark.parametrize(
    "text", ["```sh\nls\n```", "```\nls\n```", "~~~yaml\na: 1\n~~~", "- list:\n  ```js\n  1\n  ```"]
)
def test_a_block_of_another_language_is_unknown(text: str) -> None:
    assert [block.kind for block in blocks(f"words\n\n{text}\n\nwords\n")] == ["unknown"]


def test_a_command_of_another_program_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match="no test knows"):
        server_command("uvicorn app:app", 8000)


@each("app")
def test_app_echoes_under_gunicorn(block: Block, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(block.code)
    port = free_port()
    with running(tmp_path, server_command("gunicorn -k geventws.Worker app:app", port), port):
        echoes(port, origin=f"http://127.0.0.1:{port}")


@each("run")
def test_command_serves_the_app(block: Block, tmp_path: Path) -> None:
    write_app(tmp_path)
    for line in block.code.splitlines():
        port = free_port()
        with running(tmp_path, server_command(line, port), port):
            echoes(port)


@each("settings")
def test_settings_serve_the_app(block: Block, tmp_path: Path) -> None:
    write_app(tmp_path)
    (tmp_path / "gunicorn.conf.py").write_text(block.code)
    line = "gunicorn app:app" if "worker_class" in block.code else "gunicorn -k geventws.Worker app:app"
    if "monkey" in block.code:
        line += " --preload"
    port = free_port()
    with running(tmp_path, server_command(line, port), port):
        echoes(port)
        for origin in re.findall(r"https://[\w.]+", block.code):
            echoes(port, origin=origin)


@each("program")
def test_program_echoes(block: Block, tmp_path: Path) -> None:
    port = free_port()
    program = on_port(block.code, port)
    assert program.startswith("from gevent import monkey\n\nmonkey.patch_all()\n")  # before anything else is imported
    assert program != block.code, "it names no address on port 8000"
    (tmp_path / "program.py").write_text(program)
    with running(tmp_path, [sys.executable, "program.py"], port):
        echoes(port)


# The two commands that a newcomer pastes


@each("paste")
def test_pasted_command_is_one_line_that_installs_and_runs(block: Block) -> None:
    [line] = block.code.splitlines()
    make, install, start = (shlex.split(part) for part in line.split(" && "))
    assert make == ["python3", "-m", "venv", ".venv"]
    assert install[:2] == [".venv/bin/pip", "install"]
    found = re.fullmatch(r"\.\[([\w,]+)\]", install[-1])
    assert found
    metadata = ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    assert set(found[1].split(",")) <= set(metadata["options.extras_require"])
    assert start[0] in {".venv/bin/gunicorn", ".venv/bin/pytest"}
    if "--chdir" in start:
        assert (ROOT / start[start.index("--chdir") + 1] / "app.py").is_file()
        assert "127.0.0.1:8000" in README[: README.index(line)].rpartition("\n\n")[0].rpartition("\n\n")[2]


@pytest.mark.parametrize("block", [block for block in of_kind("paste") if "gunicorn" in block.code], ids=["chat"])
def test_pasted_command_opens_the_chat(block: Block, tmp_path: Path) -> None:
    if not os.environ.get("CI"):
        pytest.skip("downloads packages: in CI only")
    clone, port = tmp_path / "geventws", free_port()
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "node_modules", "build", "*.egg-info"))
    install, _, start = block.code.strip().rpartition(" && ")
    command = ["bash", "-ec", f"{install} && exec {start} --bind 127.0.0.1:{port}"]
    with running(clone, command, port, within=INSTALLING), urlopen(f"http://127.0.0.1:{port}/") as page:
        assert b"<html" in page.read()


def test_table_of_limits_names_every_option() -> None:
    table = OPTIONS.partition("## Limits and defaults")[2].partition("\n\n")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))))
    assert named >= {field.name for field in fields(Options)}
    assert all(field.name in OPTIONS for field in fields(RequestLimits))
