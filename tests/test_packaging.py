from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

import geventws

from .servers import ROOT, missing

pytestmark = pytest.mark.slow  # it starts servers or installs packages

PATIENCE = 300.0  # seconds for pip, on a slow line too

PROGRAM = """
from collections.abc import Callable, Iterable
from typing import Any

import geventws


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    ws: geventws.WebSocket = environ["wsgi.websocket"]
    message: str | bytes | None = ws.receive(timeout=5)
    if message is not None:
        ws.send(message)
    ws.close(geventws.CloseCode.GOING_AWAY, "bye")
    return []


options = geventws.Options(ping_interval=None)
server = geventws.WebSocketServer(("127.0.0.1", 0), app, options=options)
"""

FLASK_PROGRAM = """
import geventws
from flask import Flask, abort
from geventws.flask import Sockets

app = Flask(__name__)
sockets = Sockets(app)


@sockets.route("/echo/<name>")
def echo(ws: geventws.WebSocket, name: str) -> None:
    if not name:
        abort(404)
    for message in ws:
        ws.send(message)


worker_class: type[geventws.Worker] = geventws.Worker.with_options(ping_interval=10)
"""

RIGHT_PROGRAM = """
import geventws


def view(ws: geventws.WebSocket) -> None:
    ws.user = "ann"
    if ws.user == "ann":
        ws.send(f"hello {ws.user}")
"""

WRONG_PROGRAM = """
import geventws


def view(ws: geventws.WebSocket) -> None:
    ws.send(1)
    number: int = ws.receive()
    ws.no_such_method()
    geventws.Options(ping_interval="often")
    geventws.Wroker
"""


class Packages(NamedTuple):
    sdist: Path
    wheel: Path


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that must succeed; return what it wrote to stdout."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def fails(*command: str | Path) -> str:
    """Run a command that must fail; return the last line of its error."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The sdist of the checkout and the wheel that `build` makes of that sdist, not of the checkout."""
    if find_spec("build") is None:
        missing("the package `build`")
    directory = tmp_path_factory.mktemp("packages")
    probe = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(directory / "probe"), "setuptools"]
    if subprocess.run(probe, capture_output=True, timeout=PATIENCE).returncode != 0:
        missing("a package index that pip can reach")
    clone = directory / "checkout"
    # As others get it: without what .gitignore names, which setuptools could take in.
    files = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, files):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--outdir", directory / "dist", clone)
    [sdist] = (directory / "dist").glob("*.tar.gz")
    [wheel] = (directory / "dist").glob("*.whl")
    return Packages(sdist, wheel)


def venv(directory: Path, requirement: str) -> Path:
    """Return the Python of a new virtual environment with this installed."""
    run(sys.executable, "-m", "venv", directory)
    python = directory / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", requirement)
    return python


@pytest.fixture(scope="module")
def bare(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment where the wheel is, without extras."""
    return venv(tmp_path_factory.mktemp("bare") / "venv", str(packages.wheel))


@pytest.fixture(scope="module")
def full(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment where the wheel is, with gunicorn and Flask."""
    return venv(tmp_path_factory.mktemp("full") / "venv", f"{packages.wheel}[gunicorn,flask]")


@pytest.fixture(scope="module")
def metadata(packages: Packages) -> Message:
    with zipfile.ZipFile(packages.wheel) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(wheel.read(name).decode())


# What is in them


def test_wheel_holds_the_package_and_nothing_else(packages: Packages) -> None:
    with zipfile.ZipFile(packages.wheel) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        licences = [name for name in wheel.namelist() if name.endswith("LICENSE")]
    sources = {".py", ".pyi", ".typed", ".js"}
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "geventws").rglob("*") if path.suffix in sources}
    modules = ["_inflate", "_mask", *["_fast"] * (sys.platform == "linux")]
    assert set(names) == expected | {f"geventws/{name}.abi3.so" for name in modules}
    assert "-cp310-abi3-" in packages.wheel.name  # one for all Pythons
    assert "geventws/py.typed" in names
    assert len(licences) == 1


def test_sdist_holds_what_a_build_and_its_reader_need(packages: Packages) -> None:
    with tarfile.open(packages.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names >= {"LICENSE", "README.md", "CHANGELOG.md", "setup.cfg", "setup.py", "pyproject.toml"}
    assert names >= {"geventws/py.typed", "geventws/static/geventws.js"}
    assert names >= {f"geventws/{name}" for name in ("_fast.c", "_frame.h", "_inflate.c", "_mask.c")}
    # All tests or none: setuptools takes the files named test_*.py by itself, which are of no use alone.
    tests = {name for name in names if name.startswith("tests/")}
    assert tests == set() or {"tests/servers.py", "tests/conftest.py", "tests/apps.py"} <= tests


def test_metadata(metadata: Message) -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert metadata["Version"] == geventws.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert set(metadata.get_all("Provides-Extra") or []) == set(setup["options.extras_require"])
    assert {"gunicorn", "flask", "test"} <= set(metadata.get_all("Provides-Extra") or [])
    always = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert [line.partition(">")[0] for line in always] == ["gevent"]
    assert str(metadata.get_payload()).startswith("# geventws")


# Without extras


def test_bare_import_needs_gevent_alone(bare: Path) -> None:
    program = (
        "import sys, geventws, geventws.__main__\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'gunicorn', 'flask', 'werkzeug', 'redis'}))"
    )
    assert run(bare, "-c", program).split() == []
    installed = {line.partition("==")[0] for line in run(bare, "-m", "pip", "list", "--format=freeze").split()}
    assert installed - {"pip", "setuptools"} == {"geventws", "gevent", "greenlet", "zope.event", "zope.interface"}


def test_import_of_the_front_door_leaves_gunicorn_and_flask_alone(full: Path) -> None:
    program = "import sys, geventws; print(*sorted({'gunicorn', 'flask', 'werkzeug'} & set(sys.modules)))"
    assert run(full, "-c", program).split() == []


@pytest.mark.parametrize(
    ("statement", "cure"),
    [
        ("from geventws import Worker", "pip install 'gunicorn[gevent]'"),
        ("import geventws; geventws.Worker", "pip install 'gunicorn[gevent]'"),
        ("import geventws.flask", "pip install 'geventws[flask]'"),
    ],
)
def test_a_missing_package_is_told_with_the_pip_command(bare: Path, statement: str, cure: str) -> None:
    assert fails(bare, "-c", statement).endswith(cure)


def test_the_command_line_works_bare(bare: Path) -> None:
    told = run(bare, "-m", "geventws", "--version")
    assert told.startswith(f"geventws {geventws.__version__} ")  # then what is in C
    assert len(told.splitlines()) == 1
    assert "pip install werkzeug" in fails(bare, "-m", "geventws", "app:app", "--reload")


# With extras


def test_worker_is_found_by_gunicorn(full: Path) -> None:
    program = "from gunicorn.util import load_class; print(load_class('geventws.Worker').__module__)"
    assert run(full, "-c", program) == "geventws.worker\n"


@pytest.mark.parametrize("program", [PROGRAM, FLASK_PROGRAM], ids=["wsgi", "flask"])
def test_a_program_is_typed_strictly(full: Path, program: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(program)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", str(full)]
    assert "Success" in run(*mypy, "program.py", cwd=tmp_path)


def test_a_program_that_sets_attributes_has_good_types(full: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(RIGHT_PROGRAM)
    run(
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--python-executable",
        full,
        "program.py",
        cwd=tmp_path,
    )


def test_a_wrong_program_is_found_by_its_types(full: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(WRONG_PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", str(full), "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert [int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line] == [6, 7, 8, 9, 10]
