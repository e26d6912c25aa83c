"""The documentation as a site: Sphinx makes it without a warning, and the API reference has every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import pytest

import geventws
import geventws.flask
import geventws.rooms
import geventws.testing

from .servers import ROOT, missing

pytestmark = pytest.mark.slow  # it runs Sphinx

CLASSES: dict[str, type] = {
    **{f"geventws.{name}": value for name in geventws.__all__ if isinstance(value := getattr(geventws, name), type)},
    **{f"geventws.rooms.{name}": getattr(geventws.rooms, name) for name in geventws.rooms.__all__ if name != "Rooms"},
    "geventws.flask.Sockets": geventws.flask.Sockets,
    "geventws.testing.Client": geventws.testing.Client,
    "geventws.testing.Refused": geventws.testing.Refused,
}
# Public methods that only the package itself, gunicorn or gevent calls.
INTERNAL = {
    "Client": "connection_lost data_received drained eof_received",
    "LiveConnection": ".*",  # docs/observing.md has its attributes
    "Member": "control hold left",
    "Options": "(?!replace|from_environ).*",  # these are in the table of options
    "Prepared": "forget_frames frame",
    "Room": "attendance begin gone hear home lane link name topic",
    "User": "disconnect",
    "WebSocketHandler": ".*",
    "WebSocketServer": "begin_stop handler_class",
    "Worker": "(?!with_options).*",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("sphinx", "furo", "myst_parser", "sphinxcontrib.mermaid"):
        if find_spec(package.partition(".")[0]) is None or find_spec(package) is None:
            missing(f"{package} is not installed")
    made = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-c", "docs", ".", str(made)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return made


@pytest.fixture(scope="module")
def inventory(site: Path) -> set[str]:
    """The names that the API reference has."""
    content = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(content).decode().splitlines()
    return {line.split()[0] for line in lines if line.split()[1].startswith("py:")}


def test_the_command_of_the_page_makes_the_site() -> None:
    told = re.search(r"sphinx-build (.*) build/site$", (ROOT / "docs" / "conf.py").read_text(), re.MULTILINE)
    assert told and told[1] == "-W -n -c docs ."


def test_each_page_of_the_repository_is_a_page_of_the_site(site: Path) -> None:
    pages = [path.relative_to(ROOT) for path in sorted(ROOT.glob("docs/*.md"))]
    assert [page for page in pages if not (site / page).with_suffix(".html").is_file()] == []
    assert 'url=docs/index.html"' in (site / "index.html").read_text()


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^):]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_reference_has_every_name_of_the_front_door(inventory: set[str]) -> None:
    names = {f"geventws.{name}" for name in geventws.__all__}
    assert names | {"geventws.testing.connect", "geventws.testing.join"} <= inventory


@pytest.mark.parametrize("name", CLASSES)
def test_the_reference_has_every_public_name_of_a_class(name: str, inventory: set[str]) -> None:
    assert name in inventory
    cls = CLASSES[name]
    internal = re.compile(INTERNAL.get(cls.__name__, "").replace(" ", "|"))
    shown = dir(cls) if cls is geventws.WebSocket else vars(cls)  # as help() shows it
    public = [known for known in shown if not known.startswith("_") and not internal.fullmatch(known)]
    assert [known for known in public if f"{name}.{known}" not in inventory] == []
