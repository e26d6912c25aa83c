from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

import geventws
from geventws.command.arguments import version

from .commands import APP, Answers, answers_to, assert_one_line, run, running, write_files

pytestmark = pytest.mark.slow  # it starts servers or installs packages

# What the process holds by then is what its command line made of it.
SETTINGS_APP = """
import dataclasses, gc, json
import geventws

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    servers = [found for found in gc.get_objects() if isinstance(found, geventws.WebSocketServer)]
    options = [dataclasses.asdict(server.gateway.options) for server in servers]
    return [json.dumps(options).encode()]
"""


FILES = {"good.py": APP % "good", "settings.py": SETTINGS_APP}


OPTIONS = {
    "max_message_size": ("2048", 2048),
    "max_queue": ("3", 3),
    "max_message_rate": ("100", 100),
    "max_outbox": ("4096", 4096),
    "send_timeout": ("7.5", 7.5),
    "ping_interval": ("off", None),
    "ping_timeout": ("8", 8.0),
    "close_timeout": ("2.5", 2.5),
    "max_connections": ("11", 11),
    "max_connections_per_address": ("7", 7),
    "accept_after": ("0.5", 0.5),
    "origins": ("same-host, https://app.example", ["same-host", "https://app.example"]),
    "hosts": ("loopback, app.example", ["loopback", "app.example"]),
    "subprotocols": ("chat.v2 chat.v1", ["chat.v2", "chat.v1"]),
    "deflate": ("off", False),
    "deflate_threshold": ("512", 512),
    "deflate_level": ("1", 1),
    "deflate_window_bits": ("12", 12),
    "deflate_memory_level": ("5", 5),
    "deflate_context_takeover": ("on", True),
    "shutdown_code": ("1001", 1001),
    "shutdown_reason": ("back at noon, we hope", "back at noon, we hope"),
    "closes_per_second": ("50", 50),
    "max_lifetime": ("1800", 1800.0),
    "expiry_code": ("4001", 4001),
    "hub_warning": ("2", 2.0),
}


MISTAKES: dict[tuple[str, ...], str] = {
    (): "required: MODULE:APP; see python -m geventws --help$",
    ("run", "good:app"): "arguments: good:app; run is no command, .*: write python -m geventws serve MODULE:APP;",
    ("serve", "good:app"): "serve is no command, or does not stand first: write python -m geventws serve MODULE:APP;",
    ("good:app", "good:app"): "unrecognized arguments: good:app; see",
    ("--port", "9000", "good:app"): "arguments: --port good:app; for --port write --bind HOST:PORT; see",
    ("good:app", "--ping-interval", "often"): "--ping-interval must be a number of seconds or off, not 'often'",
    ("good:app", "--ping-interval", "-5"): "--ping-interval must be .*-5",
    ("good:app", "--ping-interval", "0"): r"--ping-interval must be .*\boff\b",
    ("good:app", "--ping-interval", "nan"): "--ping-interval must be .*nan",
    ("good:app", "--close-timeout", "off"): "--close-timeout must be .*off",
    ("good:app", "--max-queue", "0"): "--max-queue must be at least 1, not 0",
    ("good:app", "--max-queue", "1.5"): "--max-queue must be a whole number, not '1.5'",
    ("good:app", "--max-queue", "off"): "--max-queue must be a whole number, not 'off'",
    ("good:app", "--max-message-size", "1MiB"): "--max-message-size must be a whole number",
    ("good:app", "--shutdown-code", "1006"): "--shutdown-code must be a close code",
    ("good:app", "--origins", "https://app.example/"): "--origins: 'https://app.example/'",
    ("good:app", "--ping-interval"): "--ping-interval",
    ("good:app", "--log-level", "loud"): "--log-level",
    ("good:app", "--max-conections", "3"): "--max-conections",
    ("good:app", "--port", "9000"): "arguments: --port 9000; for --port write --bind HOST:PORT;",
    ("good:app", "--cert=cert.pem"): "arguments: --cert=cert.pem; for --cert write --certfile FILE;",
}


WRONG_VARIABLES = {
    "GEVENTWS_PING_INTERVAL": ("often", "GEVENTWS_PING_INTERVAL must be a number of seconds or off, not 'often'"),
    "GEVENTWS_PING_TIMEOUT": ("-1", "GEVENTWS_PING_TIMEOUT must be .*-1"),
    "GEVENTWS_COMPAT": ("maybe", "GEVENTWS_COMPAT must be on or off, not 'maybe'"),
    "GEVENTWS_PING_INTERVALL": ("5", "GEVENTWS_PING_INTERVALL .* did you mean GEVENTWS_PING_INTERVAL?"),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_files(tmp_path, FILES)


# What it says


def test_help_explains_every_flag(tmp_path: Path) -> None:
    text = run(tmp_path, "--help").stdout
    for flag in re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.MULTILINE):
        found = re.search(rf"^  (?:-h, )?{flag}(?: \S+)?\s+(.*)", text, re.MULTILINE)
        assert found and re.search(r"[a-z]{3} .*[a-z]{3}", found[1].partition("(default")[0]), f"{flag} has no text"


def test_help_shows_unit_and_default_of_every_option(tmp_path: Path) -> None:
    text = run(tmp_path, "--help").stdout
    units = {"bytes": "BYTES", "seconds": "SECONDS", "count": "N", "code": "CODE", "switch": "on|off", "text": "TEXT"}
    switch = {True: "on", False: "off"}
    for field in dataclasses.fields(geventws.Options):
        unit = units.get(field.metadata["kind"], "LIST")
        line = re.search(rf"--{field.name.replace('_', '-')} {re.escape(unit)}\s+(.*)", text)
        assert line, f"{field.name} is missing"
        default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        default = switch[default] if isinstance(default, bool) else default
        assert default in (None, "") or f"(default: {default})" in line[1]


def test_version_tells_what_runs_in_c(tmp_path: Path) -> None:
    ours = ("_fast", "_mask", "_inflate")
    parts = {f"geventws.{name}": name for name in ours} | {"zlib_ng": r"zlib-ng \d\S+"}
    found = [part for module, part in parts.items() if find_spec(module)]
    in_c = f"with {', '.join(found)}" if found else "in pure Python"
    for pure, expected in (("", in_c), ("1", "in pure Python")):
        answer = run(tmp_path, "--version", GEVENTWS_PURE=pure)
        assert answer.returncode == 0
        assert re.fullmatch(rf"geventws {re.escape(geventws.__version__)} {expected}\n", answer.stdout)


def test_program_of_a_run_in_pure_python_is_in_pure_python(tmp_path: Path) -> None:
    told = run(tmp_path, "--version").stdout
    assert told == f"{version()}\n"
    if os.environ.get("GEVENTWS_PURE"):
        assert told.endswith(" in pure Python\n")


# Mistakes


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return answers_to(MISTAKES, write_files(tmp_path_factory.mktemp("mistakes"), FILES))


@pytest.mark.parametrize("made", MISTAKES, ids=shlex.join)
def test_a_mistake_gets_one_line_and_status_2(answers: Answers, made: tuple[str, ...]) -> None:
    assert_one_line(answers[made], MISTAKES[made])


@pytest.mark.parametrize("name", WRONG_VARIABLES)
def test_a_wrong_variable_gets_one_line_and_status_2(directory: Path, name: str) -> None:
    value, complaint = WRONG_VARIABLES[name]
    assert_one_line(run(directory, "good:app", "--bind", "127.0.0.1:0", **{name: value}), complaint)


# Options


def test_every_option_is_tried_below() -> None:
    assert list(OPTIONS) == [field.name for field in dataclasses.fields(geventws.Options)]


@pytest.mark.parametrize("way", ["flags", "variables", "flags before variables"])
def test_every_option_reaches_the_server(directory: Path, way: str) -> None:
    flags = [part for name, (text, _) in OPTIONS.items() for part in (f"--{name.replace('_', '-')}", text)]
    variables = {f"GEVENTWS_{name.upper()}": text for name, (text, _) in OPTIONS.items()}
    if way == "flags before variables":
        variables |= {"GEVENTWS_MAX_QUEUE": "99", "GEVENTWS_ORIGINS": "*", "GEVENTWS_PING_INTERVAL": "9"}
    arguments = [] if way == "variables" else flags
    with running(
        directory, "settings:app", "--bind", "127.0.0.1:0", *arguments, **({} if way == "flags" else variables)
    ) as program:
        assert json.loads(program.get()) == [{name: value for name, (_, value) in OPTIONS.items()}]


@pytest.mark.parametrize(
    ("bind", "arguments", "variables", "hosts"),
    [
        ("127.0.0.1:0", ["--debug"], {}, ["loopback"]),
        ("localhost:0", ["--debug"], {}, ["loopback"]),
        ("127.0.0.1:0", [], {}, ["*"]),  # a proxy on this machine asks for the site's own name
        ("0.0.0.0:0", ["--debug"], {}, ["*"]),
        ("unix:server.sock", ["--debug"], {}, ["*"]),
        ("127.0.0.1:0", ["--debug"], {"GEVENTWS_HOSTS": "app.test"}, ["app.test"]),
        ("127.0.0.1:0", ["--debug", "--hosts", "*"], {"GEVENTWS_HOSTS": "app.test"}, ["*"]),
    ],
)
def test_debug_on_a_loopback_address_is_for_loopback_names(
    directory: Path, bind: str, arguments: list[str], variables: dict[str, str], hosts: list[str]
) -> None:
    with running(directory, "settings:app", "--bind", bind, *arguments, **variables) as program:
        (options,) = json.loads(program.get())
        assert options["hosts"] == hosts
