"""The front door: `import geventws` and the names it has."""

from __future__ import annotations

import os
import pydoc
import re
import subprocess
import sys

import pytest

import geventws

from .servers import DEADLINE


def fresh(program: str) -> str:
    """Return what a new process prints, in which nothing was imported before: not even what measures coverage."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=DEADLINE)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize("module", ["geventws", "geventws.pytest_plugin"])
def test_an_import_leaves_gevent_for_later(module: str) -> None:
    assert fresh(f"import sys, {module}; print('gevent' in sys.modules)") == "False"


def test_names_that_are_not_loaded_yet_are_listed() -> None:
    assert fresh("import geventws; print(set(geventws.__all__) - set(dir(geventws)))") == "set()"


def test_a_star_import_has_all_names() -> None:
    program = "import geventws; from geventws import *; print(set(geventws.__all__) - set(globals()))"
    assert fresh(program) == "set()"


def test_each_name_is_what_it_says_and_stays_so() -> None:
    for name in geventws.__all__:
        found = getattr(geventws, name)
        assert found.__name__ == name
        assert vars(geventws)[name] is found


def test_a_name_that_does_not_exist_is_an_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'geventws' has no attribute 'Wroker'"):
        geventws.Wroker  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(geventws, "Wroker")


WITHOUT_POSIX = """
import sys
sys.modules.update(dict.fromkeys(["fcntl", "resource", "termios"]))  # as on Windows
import geventws.__main__
from flask import Flask
from geventws.flask import Sockets
from geventws.testing import connect
app = Flask("app")

@Sockets(app).route("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)

with connect(app, "/echo") as ws:
    ws.send("hello")
    assert ws.receive() == "hello"
"""


def test_development_needs_no_module_that_only_posix_has() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_POSIX], check=True, timeout=60)


def test_help_shows_what_is_for_views() -> None:
    text = pydoc.plain(pydoc.render_doc(geventws.WebSocket))
    # A name of a method or attribute stands behind one bar, its text further in.
    shown = {found[1] for found in re.finditer(r"^ \|  ([a-z]\w*)(?:\(|$)", text, re.MULTILINE)}
    methods = {"accept", "close", "extend", "ping", "post", "receive", "receive_json", "send", "send_json"}
    known = {
        "accepted",
        "close_code",
        "close_reason",
        "closed",
        "id",
        "latency",
        "origin",
        "path",
        "peer",
        "remote_address",
    }
    counted = {"bytes_received", "bytes_sent", "messages_received", "messages_sent", "opened_at"}
    assert shown == methods | known | counted | {"before_wait", "environ", "protocol", "subprotocol", "version"}
