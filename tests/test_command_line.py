from __future__ import annotations

import dataclasses
import http.client
import json
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect, unix_connect

import geventws

from .servers import DEADLINE, ROOT, missing, wait_for

pytestmark = pytest.mark.slow  # it starts servers or installs packages

APP = """
import os

def app(environ, start_response):
    ws = environ.get("wsgi.websocket")
    if ws is not None:
        for message in ws:
            ws.send(message)
        return []
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{answer} {os.getpid()}".encode()]

answer = %r
"""

# What the process holds by then is what its command line made of it.
SETTINGS_APP = """
import dataclasses, gc, json, socket
import geventws

patched = socket.socket.__module__

def create_app():
    return app

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    servers = [found for found in gc.get_objects() if isinstance(found, geventws.WebSocketServer)]
    options = [dataclasses.asdict(server.gateway.options) for server in servers]
    return [json.dumps({"patched": patched, "options": options}).encode()]
"""

# Its page ends when a file named leave is there.
SLOW_APP = """
import os, time

def app(environ, start_response):
    print("asked", flush=True)
    while not os.path.exists("leave"):
        time.sleep(0.01)
    start_response("204 No Content", [])
    return []
"""

FILES = {
    "good.py": APP % "good",
    "slow.py": SLOW_APP,
    "settings.py": SETTINGS_APP,
    "imports_what_is_missing.py": "import no_such_library\n",
    "raises.py": "raise KeyError('DATABASE_URL')\n",
    "misuses.py": "import json\n\njson.loads('no json')\n",
    "exits.py": "import sys\nsys.exit('DATABASE_URL is not set')\n",
    "misspelt.py": "def app(:\n",
    "imports_misspelt.py": "import misspelt\n",
    "imports_others.py": "from importlib import import_module\nimport_module('raises')\n",
    "chained.py": "try:\n    {}['x']\nexcept KeyError:\n    raise RuntimeError('no settings\\nat all')\n",
    "lazy.py": "def __getattr__(name):\n    raise RuntimeError('no database')\n",
    "package/__init__.py": "",
    "package/wrong.py": "from .absent import name\n",
    "things.py": (
        "number = 3\n\ndef fails():\n    raise RuntimeError('no database')\n\n"
        "def leaves():\n    raise SystemExit('no database')\n\ndef gives_nothing():\n    pass\n\n"
        "def create_app():\n    pass\n\ndef configured(settings=None, testing=False):\n    pass\n\n"
        "async def asgi(scope, receive, send):\n    pass\n\n"
        "class Application:\n    def __call__(self, environ, start_response):\n        pass\n"
    ),
    "regular-file": "",
    "junk.pem": "junk\n",
}

OPTIONS = {
    "max_message_size": ("2048", 2048),
    "max_queue": ("3", 3),
    "max_outbox": ("4096", 4096),
    "send_timeout": ("7.5", 7.5),
    "ping_interval": ("off", None),
    "ping_timeout": ("8", 8.0),
    "close_timeout": ("2.5", 2.5),
    "max_connections": ("11", 11),
    "accept_after": ("0.5", 0.5),
    "origins": ("same-host, https://app.example", ["same-host", "https://app.example"]),
    "subprotocols": ("chat.v2 chat.v1", ["chat.v2", "chat.v1"]),
    "deflate": ("off", False),
    "deflate_threshold": ("512", 512),
    "deflate_level": ("1", 1),
    "deflate_window_bits": ("12", 12),
    "deflate_memory_level": ("5", 5),
    "deflate_context_takeover": ("on", True),
    "shutdown_code": ("1001", 1001),
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "geventws", *arguments]


def environment(variables: dict[str, str]) -> dict[str, str]:
    ours = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GEVENTWS_", "PYTHON"))}
    return {**inherited, **ours, **variables}


def run(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command line that ends by itself."""
    return subprocess.run(
        command(*arguments),
        cwd=directory,
        env=environment(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        start_new_session=True,  # without a terminal
    )


class Program:
    """A command line that serves: its process, and what it wrote so far."""

    def __init__(self, directory: Path, arguments: Sequence[str], variables: dict[str, str]) -> None:
        self.directory = directory
        self._out, self._err = directory / "stdout", directory / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command(*arguments),
                cwd=directory,
                env=environment(variables),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def address(self, start: int = 1) -> str:
        """Return the address it serves on, waiting for that; start counts the restarts too."""

        def ready() -> Any:
            assert self.process.poll() is None, f"it ended at its start:\n{self.err}"
            return re.findall(r" serves \S+ on (\S+)", self.err)[start - 1 :]

        found: list[str] = wait_for(ready, f"start {start} of the server")
        return found[0]

    def socket(self, start: int = 1) -> socket.socket:
        """Return a socket connected to it."""
        address = self.address(start)
        if address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(self.directory / address.removeprefix("unix:")))
            return sock
        host, _, port = address.partition("://")[2].rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), DEADLINE)

    @contextmanager
    def websocket(self, path: str = "/") -> Iterator[ClientConnection]:
        """Give a WebSocket that the app has answered on."""
        connecting = unix_connect if self.address().startswith("unix:") else connect
        with self.socket() as sock, connecting(uri=f"ws://localhost{path}", sock=sock, compression=None) as ws:
            ws.send("hello")
            assert ws.recv(DEADLINE) == "hello"
            yield ws

    def get(self, start: int = 1, tls: ssl.SSLContext | None = None) -> str:
        """Return the body of the answer to GET /."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.socket(start)
        connection.sock.settimeout(DEADLINE)
        if tls:
            connection.sock = tls.wrap_socket(connection.sock, server_hostname="localhost")
        connection.request("GET", "/")
        try:
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def end(self, number: int) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)


@contextmanager
def running(directory: Path, *arguments: str, **variables: str) -> Iterator[Program]:
    program = Program(directory, arguments, variables)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.end(signal.SIGTERM)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with apps, right and wrong ones."""
    write_files(tmp_path)
    return tmp_path


def write_files(directory: Path) -> None:
    for name, text in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)


# What it says


def test_help_explains_every_flag(tmp_path: Path) -> None:
    text = run(tmp_path, "--help").stdout
    for flag in re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.MULTILINE):
        found = re.search(rf"^  (?:-h, )?{flag}(?: \S+)?\s+(.*)", text, re.MULTILINE)
        assert found and re.search(r"[a-z]{3} .*[a-z]{3}", found[1].partition("(default")[0]), f"{flag} has no text"


def test_help_shows_unit_and_default_of_every_option(tmp_path: Path) -> None:
    text = run(tmp_path, "--help").stdout
    units = {"bytes": "BYTES", "seconds": "SECONDS", "count": "N", "code": "CODE", "switch": "on|off"}
    switch = {True: "on", False: "off"}
    for field in dataclasses.fields(geventws.Options):
        unit = units.get(field.metadata["kind"], "LIST")
        line = re.search(rf"--{field.name.replace('_', '-')} {re.escape(unit)}\s+(.*)", text)
        assert line, f"{field.name} is missing"
        default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        default = switch[default] if isinstance(default, bool) else default
        assert default in (None, "") or f"(default: {default})" in line[1]


def test_version(tmp_path: Path) -> None:
    answer = run(tmp_path, "--version")
    assert (answer.returncode, answer.stdout) == (0, f"geventws {geventws.__version__}\n")


# Mistakes

MISTAKES: dict[tuple[str, ...], str] = {
    ("no_such_module:app",): "there is no module no_such_module in",
    ("package.absent:app",): "there is no module package.absent in",
    ("good:absent",): "module good has no attribute absent",
    (":app",): "MODULE:APP",
    ("",): "MODULE:APP",
    ("good:()",): "MODULE:APP",
    ("good.py:app",): "good:app",
    ("exits:app",): "importing exits failed: .*DATABASE_URL is not set",
    ("things:number",): "things:number is no WSGI app: it is int",
    ("things:leaves()",): r"calling things:leaves\(\) failed: .*no database",
    ("things:gives_nothing()",): r"things:gives_nothing\(\) is no WSGI app: it is NoneType",
    ("things:create_app",): r"things:create_app is no WSGI app: .*; if it makes the app, write things:create_app\(\)$",
    ("things:configured",): r"things:configured is no WSGI app: .*; if it makes the app, write things:configured\(\)$",
    ("things:Application",): r"things:Application is no WSGI app: .* write things:Application\(\)$",
    ("things:asgi",): "things:asgi is no WSGI app: it cannot be called with environ and start_response$",
    ("good:app()",): r"calling good:app\(\) failed: TypeError",
    (): "MODULE:APP",
    ("good:app", "--bind", "8000"): "--bind must be HOST:PORT or unix:PATH, not '8000'",
    ("good:app", "--bind", "127.0.0.1:"): "--bind must be HOST:PORT",
    ("good:app", "--bind", "127.0.0.1:http"): "--bind must be HOST:PORT",
    ("good:app", "--bind", "127.0.0.1:70000"): "--bind must be HOST:PORT",
    ("good:app", "--bind", "127.0.0.1:²"): "--bind must be HOST:PORT",
    ("good:app", "--bind", "unix:"): "--bind must be HOST:PORT or unix:PATH, not 'unix:'",
    ("good:app", "--bind", "unix:regular-file"): "cannot listen on unix:regular-file: it exists and is no socket",
    ("good:app", "--bind", "unix:package"): "cannot listen on unix:package: it exists and is no socket",
    ("good:app", "--bind", "unix:absent/socket"): "cannot listen on unix:absent/socket: No such file or directory",
    ("good:app", "--bind", "192.0.2.1:0"): "cannot listen on 192.0.2.1:0: Cannot assign requested address",
    ("good:app", "--keyfile", "key.pem"): "--keyfile needs --certfile",
    ("good:app", "--certfile", "absent.pem"): "absent.pem: No such file or directory",
    ("good:app", "--certfile", "junk.pem"): "junk.pem is no PEM file",
    ("good:app", "--certfile", "cert.pem"): "cert.pem.*private key.*--keyfile",
    ("good:app", "--certfile", "cert.pem", "--keyfile", "absent.pem"): "absent.pem: No such file or directory",
    ("good:app", "--certfile", "cert.pem", "--keyfile", "junk.pem"): "junk.pem",
    ("good:app", "--certfile", "cert.pem", "--keyfile", "other.pem"): "other.pem is not the private key of cert.pem",
    ("good:app", "--certfile", "cert.pem", "--keyfile", "secret.pem"): (
        "secret.pem has a passphrase, and there is no terminal .* openssl pkey -in secret.pem -out plain.pem"
    ),
    ("good:app", "--certfile", "secret-too.pem"): "secret-too.pem has a passphrase, and there is no terminal",
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
    ("good:app", "--keyfile", "key.pem", "--reload"): "--keyfile needs --certfile",
    ("good:app", "--ping-interval", "often", "--reload"): "--ping-interval must be",
}

# What its app raises, by file and line of the first frame that the traceback shows.
FAILURES = {
    "imports_what_is_missing:app": ("imports_what_is_missing.py", 1, "ModuleNotFoundError: .*no_such_library"),
    "package.wrong:app": ("package/wrong.py", 1, "ModuleNotFoundError: .*package.absent"),
    "imports_others:app": ("imports_others.py", 2, "KeyError: 'DATABASE_URL'"),
    "raises:app": ("raises.py", 1, "KeyError: 'DATABASE_URL'"),
    "misuses:app": ("misuses.py", 3, r"JSONDecodeError: .* \(misuses.py, line 3\)"),
    "chained:app": ("chained.py", 2, "RuntimeError: no settings"),
    "misspelt:app": ("misspelt.py", 1, "SyntaxError: .*misspelt.py, line 1"),
    "imports_misspelt:app": ("imports_misspelt.py", 1, "SyntaxError: .*misspelt.py, line 1"),
    "lazy:app": ("lazy.py", 2, "RuntimeError: no database"),
    "things:fails()": ("things.py", 4, "RuntimeError: no database"),
}

WRONG_VARIABLES = {
    "GEVENTWS_PING_INTERVAL": ("often", "GEVENTWS_PING_INTERVAL must be a number of seconds or off, not 'often'"),
    "GEVENTWS_PING_TIMEOUT": ("-1", "GEVENTWS_PING_TIMEOUT must be .*-1"),
    "GEVENTWS_COMPAT": ("maybe", "GEVENTWS_COMPAT must be on or off, not 'maybe'"),
    "GEVENTWS_PING_INTERVALL": ("5", "GEVENTWS_PING_INTERVALL .* did you mean GEVENTWS_PING_INTERVAL?"),
}

Answer = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """The answers to all mistakes, which are made at the same time: most of it is waiting for imports."""
    directory = tmp_path_factory.mktemp("mistakes")
    write_files(directory)
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    authority.issue_cert("localhost").private_key_pem.write_to_path(directory / "other.pem")
    lock(directory / "key.pem", directory / "secret.pem")
    both = (directory / "secret.pem").read_text() + (directory / "cert.pem").read_text()
    (directory / "secret-too.pem").write_text(both)

    with ThreadPoolExecutor(4) as pool:
        made_of_app = [(app,) for app in FAILURES]
        answers = {made: pool.submit(run, directory, "--bind=127.0.0.1:0", *made) for made in [*MISTAKES, *made_of_app]}
        for name, (value, _) in WRONG_VARIABLES.items():
            answers[(name,)] = pool.submit(run, directory, "good:app", "--bind", "127.0.0.1:0", **{name: value})
    return lambda *made: answers[made].result()


def lock(key: Path, locked: Path) -> None:
    """Write a private key again, with the passphrase open sesame."""
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    how = serialization.BestAvailableEncryption(b"open sesame")
    locked.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))


@pytest.mark.parametrize("made", MISTAKES, ids=shlex.join)
def test_a_mistake_gets_one_line_and_status_2(answer: Answer, made: tuple[str, ...]) -> None:
    assert_one_line(answer(*made), MISTAKES[made])


@pytest.mark.parametrize("app", FAILURES)
def test_an_exception_of_the_app_shows_its_traceback_from_its_own_frames_on(answer: Answer, app: str) -> None:
    file, line, text = FAILURES[app]
    shown, complaint = answer(app).stderr[:-1].rsplit("\n", 1)
    frames = re.findall(r'^  File "(.+)", line (\d+)', shown, re.MULTILINE)
    assert frames[0][0].endswith(f"/{file}") and int(frames[0][1]) == line, shown
    doing = "calling" if app.endswith("()") else "importing"
    assert re.match(f"geventws: {doing} {re.escape(app.removesuffix(':app'))}(:app)? failed: {text}", complaint)
    assert answer(app).returncode == 2


@pytest.mark.parametrize("name", WRONG_VARIABLES)
def test_a_wrong_variable_gets_one_line_and_status_2(answer: Answer, name: str) -> None:
    assert_one_line(answer(name), WRONG_VARIABLES[name][1])


def assert_one_line(answer: subprocess.CompletedProcess[str], pattern: str) -> None:
    assert answer.stdout == ""
    assert re.fullmatch(r"geventws: .+\n", answer.stderr), answer.stderr
    assert re.search(pattern, answer.stderr), answer.stderr
    assert answer.returncode == 2


@pytest.mark.parametrize(
    ("program", "app", "variables", "complaint"),
    [
        ("flask", "things", {"GEVENTWS_COMPAT": "maybe"}, "GEVENTWS_COMPAT must be on or off, not 'maybe'"),
        ("gunicorn", "good:app", {"GEVENTWS_COMPAT": "maybe"}, "GEVENTWS_COMPAT must be on or off, not 'maybe'"),
        ("gunicorn", "things:create_app", {}, r"things:create_app is no WSGI app: .*, write things:create_app\(\)"),
    ],
)
def test_flask_and_gunicorn_tell_a_mistake_in_one_line(
    directory: Path, program: str, app: str, variables: dict[str, str], complaint: str
) -> None:
    arguments = {
        "flask": ["--app", app, "geventws"],
        "gunicorn": ["-k", "geventws.Worker", "--bind", "127.0.0.1:0", app],
    }
    answer = subprocess.run(
        [sys.executable, "-m", program, *arguments[program]],
        cwd=directory,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert re.search(f"^geventws: {complaint}$", answer.stderr, re.MULTILINE), answer.stderr
    assert answer.stderr.count("geventws: ") == 1
    assert "Traceback" not in answer.stderr
    assert answer.returncode != 0


@pytest.mark.parametrize("kind", ["port", "unix"])
def test_an_address_in_use_stays_with_its_owner(directory: Path, kind: str) -> None:
    with running(directory, "good:app", "--bind", "127.0.0.1:0" if kind == "port" else "unix:server.sock") as owner:
        address = owner.address().removeprefix("http://")
        answer = run(directory, "good:app", "--bind", address)
        assert_one_line(answer, f"cannot listen on {address}: Address already in use")
        assert owner.get().startswith("good")


def test_reload_without_werkzeug_names_the_pip_command(directory: Path) -> None:
    (directory / "werkzeug.py").write_text("raise ImportError('not installed here')\n")
    assert_one_line(run(directory, "good:app", "--reload"), "pip install werkzeug")


# Serving


def test_the_standard_library_is_patched_before_the_app_is_imported(directory: Path) -> None:
    with running(directory, "settings:app", "--bind", "127.0.0.1:0") as program:
        assert json.loads(program.get())["patched"].startswith("gevent.")


@pytest.mark.parametrize("app", ["good:app", "good", "settings:create_app()"])
def test_the_app_comes_from_the_current_directory(directory: Path, app: str) -> None:
    with running(directory, app, "--bind", "127.0.0.1:0") as program:
        assert "good" in program.get() or "patched" in program.get()
        assert f" serves {app} on " in program.err


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
        assert json.loads(program.get())["options"] == [{name: value for name, (_, value) in OPTIONS.items()}]


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "localhost:0", ":0", "[::1]:0", "unix:server.sock"])
def test_address(directory: Path, bind: str) -> None:
    if "::" in bind and not has_ipv6():
        missing("IPv6 on the loopback interface")
    with running(directory, "good:app", "--bind", bind) as program:
        assert program.get().startswith("good")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("files", ["one", "two"])
def test_tls(directory: Path, certificate: tuple[str, str, ssl.SSLContext], files: str) -> None:
    certfile, keyfile, context = certificate
    arguments = ["--certfile", certfile, "--keyfile", keyfile]
    if files == "one":
        both = directory / "both.pem"
        both.write_text(Path(keyfile).read_text() + Path(certfile).read_text())
        arguments = ["--certfile", str(both)]
    with running(directory, "good:app", "--bind", "127.0.0.1:0", *arguments) as program:
        assert program.address().startswith("https://")
        assert program.get(tls=context).startswith("good")


def test_a_passphrase_may_come_by_stdin_where_there_is_no_terminal(
    directory: Path, certificate: tuple[str, str, ssl.SSLContext]
) -> None:
    lock(Path(certificate[1]), directory / "secret.pem")
    arguments = ["good:app", "--bind=127.0.0.1:0", "--certfile", certificate[0], "--keyfile", "secret.pem"]

    def start(passphrase: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command(*arguments),
            cwd=directory,
            env=environment({}),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(f"{passphrase}\n")
        process.stdin.close()
        return process

    with start("open sesame") as process:
        assert process.stderr is not None
        assert "serves good:app on https://" in process.stderr.readline()
        process.terminate()
    with start("wrong") as process:
        assert process.stderr is not None
        assert re.match("geventws: the passphrase does not open secret.pem", process.stderr.readline())


# Logs


def test_access_log_has_a_line_for_each_request_at_once(directory: Path) -> None:
    with running(directory, "good:app", "--bind", "127.0.0.1:0") as program:
        program.get()
        line = r'127\.0\.0\.1 - - \[[^]]+\] "GET / HTTP/1\.1" 200 \d+ \d+\.\d+\n'
        wait_for(lambda: re.fullmatch(line, program.out), "access log line")
        with program.websocket("/chat"):
            pass
        wait_for(lambda: '"GET /chat HTTP/1.1" 101 ' in program.out, "access log line of the WebSocket")


def test_no_access_log(directory: Path) -> None:
    with running(directory, "good:app", "--bind", "127.0.0.1:0", "--no-access-log") as program:
        program.get()
        assert program.end(signal.SIGTERM) == 0
        assert program.out == ""


def test_log_level(directory: Path) -> None:
    bind = ("--bind", "unix:server.sock")
    with running(directory, "good:app", *bind, "--log-level", "warning") as program:
        wait_for((directory / "server.sock").exists, "socket of the server")
        assert program.end(signal.SIGTERM) == 0
        assert program.err == ""
    with (
        running(directory, "good:app", *bind, "--log-level", "debug") as program,
        program.websocket(),
    ):
        wait_for(lambda: "[DEBUG]" in program.err, "debug line")


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_with_status_0(directory: Path, number: int) -> None:
    with running(directory, "good:app", "--bind", "unix:server.sock") as program:
        assert closed_by(program, number) == 1012
        assert program.process.wait(DEADLINE) == 0
        assert not (directory / "server.sock").exists()
        assert "Traceback" not in program.err


def test_the_socket_of_a_killed_server_is_taken_over(directory: Path) -> None:
    with running(directory, "good:app", "--bind", "unix:server.sock") as program:
        program.address()
        assert program.end(signal.SIGKILL) == -signal.SIGKILL
        assert (directory / "server.sock").exists()
    with running(directory, "good:app", "--bind", "unix:server.sock") as program:
        assert program.get().startswith("good")


def test_a_server_that_ends_leaves_the_socket_of_its_successor(directory: Path, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("run") / "server.sock"
    with running(directory, "slow:app", "--bind", f"unix:{path}") as old, old.socket() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: "asked" in old.out, "the request")
        old.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in old.err, "the beginning of the stop")
        successor = directory / "successor"
        successor.mkdir()
        (successor / "good.py").write_text(APP % "good")
        with running(successor, "good:app", "--bind", f"unix:{path}") as new:
            assert new.get().startswith("good")
            (directory / "leave").touch()
            assert old.process.wait(DEADLINE) == 0
            assert new.get().startswith("good")


def test_a_reloader_that_waits_leaves_the_socket_of_another_server(directory: Path, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("run") / "server.sock"
    with running(directory, "good:app", "--bind", f"unix:{path}") as owner:
        assert owner.get().startswith("good")
        second = directory / "second"
        second.mkdir()
        (second / "good.py").write_text(APP % "good")
        with running(second, "good:app", "--bind", f"unix:{path}", "--reload") as waiting:
            wait_for(lambda: "Address already in use; waiting for a change" in waiting.err, "complaint")
            assert waiting.end(signal.SIGTERM) == 0
        assert owner.get().startswith("good")


def closed_by(program: Program, number: int) -> int | None:
    """Send a signal while a WebSocket is open and return the close code it gets."""
    with program.websocket() as ws:
        program.process.send_signal(number)
        with pytest.raises(ConnectionClosed) as caught:
            ws.recv(DEADLINE)
        return caught.value.rcvd.code if caught.value.rcvd else None


# Reloading


def test_reload_serves_what_the_file_says_now(directory: Path) -> None:
    app = directory / "good.py"
    with running(directory, "good:app", "--bind", "127.0.0.1:0", "--reload") as program:
        assert program.get().startswith("good ")
        with program.websocket() as ws:
            app.write_text(APP % "changed")
            with pytest.raises(ConnectionClosed) as caught:
                ws.recv(DEADLINE)
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
        assert program.get(start=2).startswith("changed ")
        app.write_text("def app(:\n")
        wait_for(lambda: re.search(r"^geventws: .*SyntaxError.*waiting", program.err, re.MULTILINE), "complaint")
        app.write_text(APP % "mended")
        assert program.get(start=3).startswith("mended ")
        assert "Traceback" not in program.err


def test_reload_waits_for_an_app_that_exits_to_change(directory: Path) -> None:
    with running(directory, "exits:app", "--bind", "127.0.0.1:0", "--reload") as program:
        wait_for(lambda: "DATABASE_URL is not set" in program.err, "complaint")
        (directory / "exits.py").write_text(APP % "mended")
        assert program.get().startswith("mended ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_reload_ends_with_its_child(directory: Path, number: int) -> None:
    with running(directory, "good:app", "--bind", "unix:server.sock", "--reload") as program:
        child = int(program.get().split()[1])
        assert child != program.process.pid
        code = closed_by(program, number)
        assert program.process.wait(DEADLINE) == 0
        wait_for(lambda: not alive(child), "end of the child process")
        assert "Traceback" not in program.err
        assert code == 1012
        assert not (directory / "server.sock").exists()


def test_ctrl_c_ends_a_reloader_that_waits_for_a_change(directory: Path) -> None:
    with running(directory, "raises:app", "--bind", "127.0.0.1:0", "--reload") as program:
        wait_for(lambda: "waiting for a change" in program.err, "complaint")
        parent = program.process.pid
        child = int(Path(f"/proc/{parent}/task/{parent}/children").read_text())
        for pid in (child, parent):  # as a terminal does; the parent tells the child once more
            os.kill(pid, signal.SIGINT)
        program.process.wait(DEADLINE)
        wait_for(lambda: not alive(child), "end of the child process")
        assert program.err.count("Traceback") == 1  # of the app


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
