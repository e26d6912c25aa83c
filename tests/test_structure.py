"""The house: each module stands on a floor, imports only from the floors below, and has tests of its own."""

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
    "shown": 0,
    "options": 0,
    "_fast": 0,
    "_inflate": 0,
    "_mask": 0,
    "fast": 1,
    "frames": 1,
    "permessage_deflate": 2,
    "handshake": 3,
    "message": 3,
    "connection": 4,
    "deadlines": 5,
    "loglines": 5,
    "signals": 5,
    "shared": 5,
    "threads": 5,
    "transport": 5,
    "turns": 5,
    "closing": 6,
    "ending": 6,
    "keepalive": 6,
    "late": 6,
    "lifetime": 6,
    "opening": 6,
    "rate": 6,
    "session": 6,
    "websocket": 6,
    "addresses": 6,
    "frameworks": 7,
    "rooms/address": 4,
    "rooms/bus": 4,
    "rooms/envelope": 4,
    "rooms/follower": 4,
    "rooms/log": 4,
    "rooms/presence": 4,
    "rooms/scripts": 4,
    "rooms/publisher": 6,
    "rooms/register": 6,
    "rooms/subscriber": 6,
    "rooms/redis": 6,
    "rooms/attended": 7,
    "rooms/engine": 7,
    "rooms/orders": 7,
    "rooms/member": 7,
    "rooms/lane": 7,
    "rooms/link": 7,
    "rooms/home": 7,
    "rooms/room": 7,
    "rooms/span": 7,
    "rooms/__init__": 8,
    "browser": 8,
    "gateway": 8,
    "listener": 8,
    "monitor": 8,
    "census": 9,
    "server": 9,
    "worker": 9,
    "flask": 9,
    "metrics": 9,
    "testing": 9,
    "command/__init__": 9,
    "command/systemd": 9,
    "compat": 10,
    "pytest_plugin": 10,
    "__init__": 10,
    "command/apps": 10,
    "command/listen": 10,
    "command/live": 10,
    "command/reload": 10,
    "command/tls": 10,
    "command/wire": 10,
    "command/arguments": 11,
    "command/diagnosis": 11,
    "command/serve": 12,
    "command/talk": 12,
    "command/doctor": 13,
    "command/check": 14,
    "__main__": 15,
}
# An option that is a close code asks errors which may travel.
# Transport, WebSocket and Room are each a floor of several files. GEVENTWS_COMPAT=1 has __init__ import compat.
# census asks the gateway, and each worker has it listen for those who ask.
NEIGHBOURS = {
    ("options", "errors"),
    ("transport", "deadlines"),
    ("rate", "session"),
    ("signals", "loglines"),
    ("session", "closing"),
    ("session", "ending"),
    ("session", "keepalive"),
    ("session", "lifetime"),
    ("websocket", "late"),
    ("websocket", "lifetime"),
    ("websocket", "opening"),
    ("websocket", "rate"),
    ("websocket", "session"),
    ("rooms/bus", "rooms/envelope"),
    ("rooms/follower", "rooms/envelope"),
    ("rooms/register", "rooms/publisher"),
    ("rooms/subscriber", "rooms/publisher"),
    ("rooms/home", "rooms/lane"),
    ("rooms/home", "rooms/link"),
    ("rooms/room", "rooms/link"),
    ("rooms/member", "rooms/lane"),
    ("rooms/room", "rooms/member"),
    ("rooms/span", "rooms/attended"),
    ("rooms/span", "rooms/link"),
    ("rooms/span", "rooms/orders"),
    ("rooms/room", "rooms/home"),
    ("rooms/room", "rooms/lane"),
    ("worker", "census"),
    ("__init__", "compat"),
}

# Where the tests of a module, or of all modules of a package, stand in a file of another name.
TESTED_IN = {"__init__": "test_package.py", "__main__": "test_command_line.py", "command": "test_command_line.py"}
# What makes rooms span processes works only together, on a Redis that runs.
TESTED_IN |= dict.fromkeys(
    [
        f"rooms/{name}"
        for name in ("attended", "bus", "engine", "link", "member", "orders", "publisher", "scripts", "span")
    ],
    "test_rooms_redis.py",
)
TESTED_IN |= dict.fromkeys([f"rooms/{name}" for name in ("register", "subscriber")], "test_rooms_faults.py")

UNSAFE = {"pickle", "marshal", "shelve", "dill", "eval", "exec"}

LAST_PURE = 4
GREENLETS_AND_CLOCKS = {"gevent", "socket", "select", "selectors", "ssl", "threading", "time", "asyncio"}

THIRD_PARTIES = {
    "permessage_deflate": {"zlib_ng"},
    "worker": {"gunicorn"},
    "browser": {"flask"},
    "metrics": {"prometheus_client"},
    "signals": {"blinker"},
    "rooms/redis": {"redis"},
    "flask": {"click", "flask", "werkzeug"},
    "pytest_plugin": {"pytest"},
    "command/apps": {"werkzeug"},
    "command/reload": {"werkzeug"},
}


def imports(module: str, source: str) -> Iterator[str]:
    """Yield what a module imports, at its top or inside: "ssl", and ".frames" or ".rooms/log" for a module of ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            paths = [alias.name.split(".") for alias in node.names]
            yield from (_own(path[1:]) if path[0] == "geventws" else path[0] for path in paths)
        elif isinstance(node, ast.ImportFrom):
            path = node.module.split(".") if node.module else []
            if node.level:
                path = ["geventws", *module.split("/")[: -node.level], *path]
            yield from (_own([*path[1:], alias.name]) if path[0] == "geventws" else path[0] for alias in node.names)


def _own(path: list[str]) -> str:
    """Return the module of ours that a path names: "from .x import y" is the module x/y, or a name in x."""
    candidates = [
        "/".join(path),
        "/".join(path[:-1]),
        "/".join([*path, "__init__"]),
        "/".join([*path[:-1], "__init__"]),
    ]
    return "." + next((candidate for candidate in candidates if candidate in FLOORS), "__init__")


def faults(module: str, source: str) -> list[str]:
    """Return what module imports though its floor may not."""
    if module not in FLOORS:
        return [f"{module} stands on no floor"]
    floor = FLOORS[module]
    found = []
    for name in imports(module, source):
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
        ("rooms/log", "from ..message import Prepared"),
        (
            "rooms/__init__",
            "from .. import handshake\nfrom . import room\nfrom .log import Log\nimport geventws.frames",
        ),
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
        ("websocket", "from .rooms import Room", "websocket of floor 6 imports rooms/__init__ of floor 8"),
        ("websocket", "from .rooms.lane import Lane", "websocket of floor 6 imports rooms/lane of floor 7"),
        ("rooms/log", "from . import lane", "rooms/log of floor 4 imports rooms/lane of floor 7"),
        ("rooms/log", "from ..rooms.lane import Lane", "rooms/log of floor 4 imports rooms/lane of floor 7"),
        ("rooms/lane", "from ..server import Handler", "rooms/lane of floor 7 imports server of floor 9"),
        ("rooms/lane", "from .. import Options", "rooms/lane of floor 7 imports __init__ of floor 10"),
        ("rooms/log", "from gevent import sleep", "rooms/log of floor 4 imports gevent"),
        ("errors", "from .options import Options", "errors of floor 0 imports options of floor 0"),
        ("server", "def f():\n    from .worker import Worker", "server of floor 9 imports worker of floor 9"),
        ("connection", "from time import monotonic", "connection of floor 4 imports time"),
        ("connection", "import gevent.event as event", "connection of floor 4 imports gevent"),
        ("handshake", "if True:\n    import socket", "handshake of floor 3 imports socket"),
        ("websocket", "import gunicorn", "websocket imports gunicorn, which is not its own to import"),
        ("worker", "import flask", "worker imports flask, which is not its own to import"),
        ("gateway", "from werkzeug import routing", "gateway imports werkzeug, which is not its own to import"),
        ("rooms/span", "import redis", "rooms/span imports redis, which is not its own to import"),
        ("transport", "import numpy.random", "transport imports numpy, which is not its own to import"),
    ],
)
def test_checker_names_a_bad_import(module: str, source: str, fault: str) -> None:
    assert faults(module, source) == [fault]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_bytes_that_come_from_outside_can_run(path: Path) -> None:
    """What comes on a bus, a wire or a Unix socket is JSON: a pickle of somebody else's would run his code."""
    module = str(path.relative_to(PACKAGE).with_suffix(""))
    assert not UNSAFE & set(imports(module, path.read_text()))
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not UNSAFE & {function.id for function in calls if isinstance(function, ast.Name)}


def file_of_tests(module: str) -> str:
    """Return the name of the file that has the tests of a module: test_rooms_log.py for rooms/log."""
    name = module.removesuffix("/__init__").strip("_").replace("/", "_")
    return TESTED_IN.get(module) or TESTED_IN.get(module.partition("/")[0], f"test_{name}.py")


MODULES = {str(path.relative_to(PACKAGE).with_suffix("")) for path in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.c")]}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_has_a_test_file_of_its_name(module: str) -> None:
    path = Path(__file__).parent / file_of_tests(module)
    assert path.exists() and "\ndef test_" in path.read_text()


if __name__ == "__main__":  # for coverage: the files of floors 0 to 6; rooms show only on a Redis, and what is in C
    modules = [name for name, floor in FLOORS.items() if floor <= 6 and not name.startswith(("rooms/", "_"))]
    print(",".join(f"geventws/{name}.py" for name in modules))
