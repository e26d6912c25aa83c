"""The house: each module stands on a floor, and imports only from the floors below."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import geventws

PACKAGE = Path(geventws.__file__).parent

FLOORS = {
    "errors": 0,
    "options": 0,
    "_mask": 0,
    "frames": 1,
    "permessage_deflate": 2,
    "handshake": 3,
    "message": 3,
    "connection": 4,
    "deadlines": 5,
    "loglines": 5,
    "threads": 5,
    "transport": 5,
    "turns": 5,
    "closing": 6,
    "keepalive": 6,
    "opening": 6,
    "websocket": 6,
    "frameworks": 7,
    "rooms": 7,
    "bus": 8,
    "gateway": 8,
    "listener": 8,
    "server": 9,
    "worker": 9,
    "flask": 9,
    "testing": 9,
    "compat": 10,
    "pytest_plugin": 10,
    "__main__": 10,
    "__init__": 10,
}
# An option that is a close code asks errors which may travel; Python itself runs __init__ before __main__.
# Transport and WebSocket are each a floor of several files. GEVENTWS_COMPAT=1 has __init__ import compat.
NEIGHBOURS = {
    ("options", "errors"),
    ("transport", "deadlines"),
    ("websocket", "closing"),
    ("websocket", "keepalive"),
    ("websocket", "opening"),
    ("__main__", "__init__"),
    ("__init__", "compat"),
}

LAST_PURE = 4
GREENLETS_AND_CLOCKS = {"gevent", "socket", "select", "selectors", "ssl", "threading", "time", "asyncio"}

THIRD_PARTIES = {
    "bus": {"redis"},
    "worker": {"gunicorn"},
    "flask": {"click", "flask", "werkzeug"},
    "pytest_plugin": {"pytest"},
    "__main__": {"werkzeug"},
}


def imports(source: str) -> Iterator[str]:
    """Yield what source imports, at its top or inside: "ssl", and ".frames" for a module of ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module == "geventws"):
            # "from . import x" is the module x, or a name of the front door.
            path = "" if node.module in (None, "geventws") else f"{node.module}"
            names = [f".{path or alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}"]
        else:
            continue
        for name in names:
            if name == "geventws" or name.startswith("geventws."):
                name = f".{name.partition('.')[2] or '__init__'}"
            own = name.startswith(".")
            name = name.lstrip(".").partition(".")[0]
            yield (f".{name}" if name in FLOORS else ".__init__") if own else name


def faults(module: str, source: str) -> list[str]:
    """Return what module imports though its floor may not."""
    if module not in FLOORS:
        return [f"{module} stands on no floor"]
    floor = FLOORS[module]
    found = []
    for name in imports(source):
        if name.startswith("."):
            if FLOORS[name[1:]] >= floor and (module, name[1:]) not in NEIGHBOURS:
                found.append(f"{module} of floor {floor} imports {name[1:]} of floor {FLOORS[name[1:]]}")
        elif floor <= LAST_PURE and name in GREENLETS_AND_CLOCKS:
            found.append(f"{module} of floor {floor} imports {name}")
        elif name not in sys.stdlib_module_names and name != "gevent" and name not in THIRD_PARTIES.get(module, ()):
            found.append(f"{module} imports {name}, which is not its own to import")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_floors_below_its_own(path: Path) -> None:
    assert faults(str(path.relative_to(PACKAGE).with_suffix("")), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("frames", "from .errors import ProtocolError\nimport struct"),
        ("options", "from .errors import may_travel"),
        ("connection", "from . import frames, handshake"),
        ("transport", "import ssl, time\nfrom gevent import socket"),
        (
            "server",
            "from gevent.pywsgi import WSGIServer\nfrom geventws.gateway import Gateway\nimport geventws.websocket",
        ),
        ("worker", "from gunicorn.workers.ggevent import GeventWorker"),
        ("flask", "from flask import Flask\nimport werkzeug.routing"),
    ],
)
def test_checker_lets_a_good_import_pass(module: str, source: str) -> None:
    assert faults(module, source) == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("utils", "", "utils stands on no floor"),
        ("rooms/index", "", "rooms/index stands on no floor"),
        ("frames", "from .connection import Connection", "frames of floor 1 imports connection of floor 4"),
        ("frames", "from . import connection", "frames of floor 1 imports connection of floor 4"),
        ("frames", "import geventws.connection", "frames of floor 1 imports connection of floor 4"),
        ("frames", "from geventws.connection import OPEN", "frames of floor 1 imports connection of floor 4"),
        ("frames", "from geventws import connection", "frames of floor 1 imports connection of floor 4"),
        ("frames", "from . import Options", "frames of floor 1 imports __init__ of floor 10"),
        ("frames", "import geventws", "frames of floor 1 imports __init__ of floor 10"),
        ("errors", "from .options import Options", "errors of floor 0 imports options of floor 0"),
        ("server", "def f():\n    from .worker import Worker", "server of floor 9 imports worker of floor 9"),
        ("connection", "from time import monotonic", "connection of floor 4 imports time"),
        ("connection", "import gevent.event as event", "connection of floor 4 imports gevent"),
        ("handshake", "if True:\n    import socket", "handshake of floor 3 imports socket"),
        ("websocket", "import gunicorn", "websocket imports gunicorn, which is not its own to import"),
        ("worker", "import flask", "worker imports flask, which is not its own to import"),
        ("gateway", "from werkzeug import routing", "gateway imports werkzeug, which is not its own to import"),
        ("transport", "import numpy.random", "transport imports numpy, which is not its own to import"),
    ],
)
def test_checker_names_a_bad_import(module: str, source: str, fault: str) -> None:
    assert faults(module, source) == [fault]
