"""docs/frameworks.md: its apps answer, refuse and echo, on both front ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from .servers import DEADLINE, FRONT_ENDS, ROOT, get, missing, serve
from .test_readme import blocks, server_command

pytestmark = pytest.mark.slow  # it starts servers

PAGE = (ROOT / "docs" / "frameworks.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
APPS = {name: code for name, text in SECTIONS.items() for code in [b.code for b in blocks(text)]}
LOOP = re.compile(r"^( *)for message in ws:\n +ws\.send\(message\)\n", re.MULTILINE)
# Shows the code with which the connection of a view ends whose client has left.
LEAVE = """
from geventws.testing import connect
from app import app
with connect(app, "/echo", cookies={"user": "ada"}) as ws:
    assert list(ws) == []
print(ws.close_code)
"""


def app_of(name: str, directory: Path) -> str:
    """Write app.py, and return its code."""
    package = name.lower().removeprefix("plain wsgi")
    if package and find_spec(package) is None:
        missing(f"{package} is not installed")
    (directory / "app.py").write_text(APPS[name])
    return APPS[name]


def test_the_table_has_each_framework() -> None:
    rows = re.findall(r"^\| ([\w ]+) \| `(.*\(\"wsgi\.websocket\"\))` \|$", PAGE, re.MULTILINE)
    assert {name.lower() for name, _ in rows} == {name.lower() for name in APPS}
    by_name = {name.lower(): code for name, code in APPS.items()}
    assert [name for name, expression in rows if f"ws = {expression}\n" not in by_name[name.lower()]] == []


def test_the_commands_are_those_of_the_front_ends() -> None:
    lines = blocks(PAGE)[0].code.splitlines()
    assert [server_command(line, 8000)[1:3] for line in lines] == [["-m", "gunicorn"], ["-m", "geventws"]]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("name", APPS)
def test_the_app_answers_refuses_and_echoes(name: str, front_end: str, tmp_path: Path) -> None:
    app_of(name, tmp_path)
    variables = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    with serve("app:app", tmp_path, front_end=front_end, env=variables) as server:
        assert get(server, "/") == (200, "a page")
        assert get(server, "/echo")[0] == 426
        with pytest.raises(InvalidStatus, match="401"):
            server.connect("/echo")
        cookie = {"Cookie": "user=ada"}
        with server.connect("/echo", additional_headers=cookie, origin="http://localhost") as client:
            for message in ("hello", b"\x00\xff"):
                client.send(message)
                assert client.recv(DEADLINE) == message
        with pytest.raises(InvalidStatus, match="403"):
            server.connect("/echo", additional_headers=cookie, origin="https://evil.example")
        assert "Traceback" not in server.log


@pytest.mark.parametrize("is_suppressed", [True, False])
@pytest.mark.parametrize("name", APPS)
def test_a_client_that_has_left_is_no_error_of_the_view(name: str, is_suppressed: bool, tmp_path: Path) -> None:
    code = app_of(name, tmp_path)
    code, count = LOOP.subn(r"\1from geventws import ConnectionClosed as Left; ws.accept(); raise Left(1001)\n", code)
    assert count == 1
    needs_it = "suppress(ConnectionClosed)" in code
    if not is_suppressed:
        code = code.replace("suppress(ConnectionClosed)", "suppress(KeyError)")
    (tmp_path / "app.py").write_text(code)
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", LEAVE], env=environ, capture_output=True, text=True)
    told = "1011" if needs_it and not is_suppressed else "1000"
    assert done.stdout == f"{told}\n", done.stderr
