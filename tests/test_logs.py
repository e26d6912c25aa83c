"""What a server writes: access lines, the logger geventws, and one clear line for each mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from gunicorn.config import make_settings
from websockets.exceptions import InvalidStatus

from .crowd import CLOSE, TEXT, Crowd, Member, frame, page
from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, get, serve, upgrade_request, wait_for

pytestmark = pytest.mark.slow  # it starts servers or installs packages

APP = "tests.apps:app"
PING = 0x89
GUNICORN = [sys.executable, "-m", "gunicorn", *(["--no-control-socket"] if "control_socket" in make_settings() else [])]
FORMAT = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s %(L)s'  # as python -m geventws has it
DATE = r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"


def arguments(front_end: str) -> list[str]:
    return ["--access-logformat", FORMAT] if front_end == "worker" else []


@pytest.fixture(scope="module", params=FRONT_ENDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp(request.param)
    with serve(APP, directory, front_end=request.param, arguments=arguments(request.param)) as server:
        yield server


def access_lines(server: Server, target: str) -> list[tuple[int, int, float]]:
    """Return status, bytes and duration of each access line of a target."""
    pattern = rf'^127\.0\.0\.1 - - {DATE} "GET {re.escape(target)} HTTP/1\.1" (\d+) (\d+) (\d+\.\d{{6}})$'
    return [(int(s), int(b), float(d)) for s, b, d in re.findall(pattern, server.log, re.MULTILINE)]


def access_line(server: Server, target: str) -> tuple[int, int, float]:
    """Return the one access line of a target; fail if there is none in time, or another."""
    wait_for(lambda: f'"GET {target} HTTP/1.1"' in server.log, f"access line of {target}")
    (line,) = access_lines(server, target)
    return line


# Access lines


def test_access_line_comes_at_the_end_with_true_bytes_and_duration(server: Server) -> None:
    target = "/echo?true=1"
    asked = time.monotonic()
    with Crowd(server) as crowd:
        (member,) = crowd.join(target)
        begun = time.monotonic()
        for size in (0, 1, 125):
            member.send(frame(TEXT, b"x" * size))
        member.send(frame(PING, b"ping"))
        crowd.wait(lambda: len(member.frames) == 4, "three echoes and a pong")
        crowd.wait(lambda: time.monotonic() > begun + 1.05, "passing of a second")
        assert "GET /echo?true=1 " not in server.log
        member.send(frame(CLOSE, b"\x03\xe8"))
        crowd.wait(lambda: member.ended_at > 0, "end of the stream")
    status, size, duration = access_line(server, target)
    assert (status, size) == (101, len(member.received))
    assert 1 <= duration <= time.monotonic() - asked


def vanish(member: Member) -> None:
    member.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    member.sock.close()


def vanish_from_a_sender(member: Member) -> None:
    member.send(frame(TEXT, b"go"))
    wait_for(lambda: len(member.sock.recv(1 << 16, socket.MSG_PEEK)) > 1000, "messages")
    vanish(member)


ENDINGS: dict[str, tuple[str, Callable[[Member], None], int, str]] = {
    "the view returns": ("/return", lambda member: None, 1000, "server"),
    "the view closes": ("/close/4001", lambda member: None, 4001, "server"),
    "a plain view raises": ("/raise", lambda member: member.send(frame(TEXT, b"go")), 1011, "view_failed"),
    "a Sockets view raises": ("/raise-sockets", lambda member: member.send(frame(TEXT, b"go")), 1011, "view_failed"),
    "a view calls sys.exit": ("/exit", lambda member: member.send(frame(TEXT, b"go")), 1011, "view_failed"),
    "the peer closes": ("/echo", lambda member: member.send(frame(CLOSE, b"\x0f\xa2bye")), 4002, "client"),
    "the peer breaks a rule": ("/echo", lambda member: member.send(b"\x81\x00"), 1002, "protocol"),
    "the peer ends the stream": ("/echo", lambda member: member.sock.shutdown(socket.SHUT_WR), 1006, "eof"),
    "the peer resets": ("/echo", vanish, 1006, "reset"),
    "the peer resets while the view sends": ("/closed", vanish_from_a_sender, 1006, "reset"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_each_ending_has_one_access_line_and_one_close_line(server: Server, ending: str) -> None:
    path, end, code, cause = ENDINGS[ending]
    target = f"{path}?{list(ENDINGS).index(ending)}"
    with Crowd(server) as crowd:
        (member,) = crowd.join(target)
        port = member.sock.getsockname()[1]
        end(member)
        if member.sock.fileno() != -1:
            crowd.wait(lambda: member.ended_at > 0, "end of the stream")
    status, size, _ = access_line(server, target)
    assert status == 101
    if path != "/closed":  # where nobody knows how much of it arrived
        assert size == len(member.received)
    # One greenlet writes the lines of the log: this one may come behind the access line.
    lines = wait_for(lambda: re.findall(rf"\[INFO\] 127\.0\.0\.1:{port} {path} (.*)", server.log), "the close line")
    assert len(lines) == 1
    assert re.match(rf"close {code} .*\({cause}, \d+\.\d s, \d+ messages and \d+ bytes in, ", lines[0])


REFUSALS = {
    "origin": (b"Host: localhost\r\n", b"Host: localhost\r\nOrigin: https://evil.example\r\n", 403, "origins"),
    "version": (b"Version: 13", b"Version: 8", 426, "Sec-WebSocket-Version"),
    "key": (b"dGhlIHNhbXBsZSBub25jZQ==", b"short", 400, "Sec-WebSocket-Key must"),
    "connection": (b"Connection: Upgrade", b"Connection: close", 400, "a proxy may have removed it"),
    "http-version": (b"HTTP/1.1\r\n", b"HTTP/1.0\r\n", 400, "HTTP/1.0"),
}


@pytest.mark.parametrize("rule", REFUSALS)
def test_refused_handshake_is_logged_once(server: Server, rule: str) -> None:
    old, new, status, word = REFUSALS[rule]
    target = f"/echo?refused={rule}"
    answer = server.exchange(upgrade_request(target).replace(old, new))
    assert answer.startswith((b"HTTP/1.1 %d " % status, b"HTTP/1.0 %d " % status))
    if rule != "http-version":
        assert access_line(server, target)[0] == status
    pattern = rf"\[WARNING\] 127\.0\.0\.1\S* /echo refused: {status} .*{re.escape(word)}.*$"
    lines = re.findall(pattern, server.log, re.MULTILINE)
    assert len(lines) == 1
    if rule == "origin":
        assert "https://evil.example" in lines[0]
        assert "proxy_set_header Host $http_host;" in lines[0]
        assert "ProxyPreserveHost On" in lines[0]
    if rule == "connection":
        assert "proxy_set_header Connection upgrade;" in lines[0]
    if rule == "http-version":
        assert "proxy_http_version 1.1;" in lines[0]
    assert f"\r\nGeventws-Refused: {rule}\r\n".encode() in answer


@pytest.mark.parametrize(("path", "status"), [("/unauthorized", 401), ("/login", 302), ("/no-such-page", 404)])
def test_view_that_answers_with_http_has_that_status_in_its_line(server: Server, path: str, status: int) -> None:
    target = f"{path}?answered"
    assert server.exchange(upgrade_request(target)).startswith(b"HTTP/1.1 %d " % status)
    assert access_line(server, target)[0] == status


# The logger


def test_subprotocols_of_which_none_is_chosen_are_told_once_for_each_route(server: Server) -> None:
    for path in ("/about", "/about", "/return", "/cookie"):
        with server.connect(path, subprotocols=["graphql-ws", "chat.v1"]) as ws:
            ws.recv(DEADLINE)
    server.wait_for_log("/cookie close")
    told = re.findall(r"WARNING\].* (/\w+) offers the subprotocols graphql-ws, chat\.v1 and none is chosen", server.log)
    assert told == ["/about", "/return"]


def test_end_is_logged_with_code_and_reason(server: Server) -> None:
    with server.connect("/echo") as ws:
        port = ws.local_address[1]
        ws.close(4003, "had enough")
    server.wait_for_log(rf"\[INFO\] 127\.0\.0\.1:{port} /echo close 4003 had enough \(client, ")


def test_frames_are_not_logged_at_info(server: Server) -> None:
    with server.connect("/echo") as ws:
        port = ws.local_address[1]
        ws.send("not for the log")
        assert ws.recv(DEADLINE) == "not for the log"
    server.wait_for_log(rf"127\.0\.0\.1:{port} /echo close 1000")
    assert "not for the log" not in server.log
    assert "DEBUG" not in server.log


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_frames_are_logged_at_debug(tmp_path: Path, front_end: str) -> None:
    with serve(APP, tmp_path, front_end=front_end, arguments=["--log-level", "debug"]) as server:
        with server.connect("/cookie", subprotocols=["chat.v1"]) as ws:
            assert ws.recv(DEADLINE) == "chat.v1"
        server.wait_for_log(r"\[DEBUG\] 127\.0\.0\.1:\d+ /cookie open, subprotocol chat\.v1$")
        with server.connect("/echo") as ws:
            port = ws.local_address[1]
            ws.send("for the log")
            assert ws.recv(DEADLINE) == "for the log"
            ws.send(b"\x00" * 1000)
            assert ws.recv(DEADLINE) == b"\x00" * 1000
        server.wait_for_log(rf"\[DEBUG\] 127\.0\.0\.1:{port} < text 'for the log'$")
        server.wait_for_log(rf"\[DEBUG\] 127\.0\.0\.1:{port} > text 'for the log'$")
        server.wait_for_log(rf"\[DEBUG\] 127\.0\.0\.1:{port} < binary .*\(1000\)$")
        server.wait_for_log(rf"\[DEBUG\] 127\.0\.0\.1:{port} [<>] .*[Cc]lose.*1000")
        assert max(len(line) for line in server.log.splitlines() if "binary" in line) < 400


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_peer_on_a_unix_socket_is_named_by_its_number(tmp_path: Path, front_end: str) -> None:
    with serve(APP, tmp_path, front_end=front_end, unix=True) as server:
        with server.connect("/echo") as ws:
            ws.close()
        server.wait_for_log(r"\[INFO\] unix#\d+ /echo close 1000")
        server.wait_for_log(r'"GET /echo HTTP/1\.1" 101 \d+ ')
        if front_end == "server":
            server.wait_for_log(rf'^- - - {DATE} "GET /echo HTTP/1\.1" 101 \d+ \d+\.\d{{6}}$')
        assert "Traceback" not in server.log


LEAVINGS: tuple[Callable[[Member], None], ...] = (
    vanish,
    lambda member: member.sock.close(),
    lambda member: member.sock.shutdown(socket.SHUT_WR),
    lambda member: member.send(frame(CLOSE, b"") + frame(TEXT, b"too late")),
    lambda member: member.send(b"\x81\xfe\x10"),  # half a frame
)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_ordinary_disconnects_leave_no_traceback(tmp_path: Path, front_end: str) -> None:
    with serve(APP, tmp_path, front_end=front_end) as server:
        ends = 0
        for path in ("/echo", "/environ", "/closed", "/wait-closed"):
            for leave in LEAVINGS:
                with Crowd(server) as crowd:
                    (member,) = crowd.join(path)
                    member.send(frame(TEXT, b"hello"))
                    leave(member)
                ends += 1
        wait_for(lambda: len(re.findall(r"\] 127\S+ /\S+ close ", server.log)) == ends, "a close line for each")
        assert not re.search(r"ERROR|CRITICAL|WARNING", server.log)
        for request in (b"", b"GET /echo HT", upgrade_request("/echo")[:-2]):
            with server.socket() as sock:
                sock.sendall(request)
        assert page(server) == "hello"
        assert "Traceback" not in server.log


@pytest.mark.parametrize("path", ["/raise", "/raise-sockets"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_exception_of_a_flask_view_is_logged_once(tmp_path: Path, front_end: str, path: str) -> None:
    with serve(APP, tmp_path, front_end=front_end) as server:
        with Crowd(server) as crowd:
            (member,) = crowd.join(path)
            member.send(frame(TEXT, b"go"))
            crowd.wait(lambda: member.ended_at > 0, "end of the stream")
            assert member.close_code == 1011
        wait_for(lambda: f'"GET {path} HTTP/1.1" 101' in server.log, "access line")
        assert server.log.count("Traceback") == 1
        assert len(re.findall("^KeyError: ", server.log, re.MULTILINE)) == 1
        assert re.search(rf"(Exception on|ERROR.*) {path}", server.log)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_exception_of_a_bare_view_is_logged_once_with_path_and_peer(tmp_path: Path, front_end: str) -> None:
    with serve("tests.apps_logs:app", tmp_path, front_end=front_end) as server:
        with Crowd(server) as crowd:
            (member,) = crowd.join("/early")
            assert member.status == 500
            wait_for(lambda: "before any use" in server.log, "the exception")
            with server.connect("/late") as ws:
                port = ws.local_address[1]
                ws.send("go")
                server.wait_for_log(rf"\[ERROR\] 127\.0\.0\.1:{port} /late view failed$")
        server.wait_for_log('"GET /late HTTP/1.1" 101 ')
        assert server.log.count("KeyError: 'before any use'") == 1
        assert server.log.count("KeyError: 'after the first message'") == 1
        assert server.log.count("Traceback") == 2


# Mistakes


def run(front_end: str, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Start a server that should not start; return its exit status and all it wrote."""
    command = [*GUNICORN, "-k", "geventws.Worker"] if front_end == "worker" else [sys.executable, "-m", "geventws"]
    done = subprocess.run(
        [*command, "--bind", "127.0.0.1:0", *arguments, APP],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return done.returncode, done.stdout


MISTAKES = {
    "GEVENTWS_PING_INTERVAL=soon": "GEVENTWS_PING_INTERVAL must be a number of seconds or off, not 'soon'",
    "GEVENTWS_MAX_QUEUE=0": "GEVENTWS_MAX_QUEUE must be at least 1, not 0",
    "GEVENTWS_SHUTDOWN_CODE=1006": "GEVENTWS_SHUTDOWN_CODE must be a close code that may be sent",
    "GEVENTWS_PING_INTERVALL=20": "PING_INTERVALL is no option of geventws; did you mean GEVENTWS_PING_INTERVAL?",
    "GEVENTWS_ORIGIN=*": "GEVENTWS_ORIGIN is no option of geventws; did you mean GEVENTWS_ORIGINS?",
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_wrong_variable_ends_the_start_with_one_clear_line(front_end: str, mistake: str) -> None:
    name, _, value = mistake.partition("=")
    status, output = run(front_end, env={name: value})
    assert status != 0
    lines = [line for line in output.splitlines() if MISTAKES[mistake] in line]
    assert len(lines) == 1
    assert "geventws" in lines[0]
    assert "Traceback" not in output


def configuration(directory: Path, text: str) -> list[str]:
    path = directory / "gunicorn.conf.py"
    path.write_text(f"import geventws\n\n{text}\n")
    return ["-c", str(path)]


def test_options_in_a_configuration_file_come_before_the_environment(tmp_path: Path) -> None:
    conf = configuration(tmp_path, "worker_class = geventws.Worker.with_options(max_connections=1)")
    command = [*GUNICORN, *conf, "--bind", "127.0.0.1:0", "--access-logfile", "-", APP]
    env = {"PYTHONPATH": str(ROOT), "GEVENTWS_MAX_CONNECTIONS": "5", "GEVENTWS_SHUTDOWN_CODE": "1001"}
    server = Server(command, "127.0.0.1:0", None, tmp_path / "log", env)
    try:
        with Crowd(server) as crowd:
            (first,) = crowd.join("/echo")
            (second,) = crowd.join("/echo")
            assert (first.status, second.status) == (101, 503)
            server.process.terminate()
            crowd.wait(lambda: first.ended_at > 0, "end of the first")
            assert first.close_code == 1001  # which only the environment sets
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("ping_intervall=10", "ping_intervall is no option of geventws; did you mean ping_interval?"),
        ("ping_interval=-1", "ping_interval must be more than 0 seconds"),
        ("max_queue='many'", "max_queue must be a whole number, not 'many'"),
    ],
)
def test_wrong_option_in_a_configuration_file_says_so(tmp_path: Path, option: str, message: str) -> None:
    conf = configuration(tmp_path, f"worker_class = geventws.Worker.with_options({option})")
    status, output = run("worker", *conf)
    assert status != 0
    assert message in output


# Missing packages


@pytest.fixture
def without(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Return an environment in which a package cannot be imported."""

    def hide(package: str) -> dict[str, str]:
        (tmp_path / f"{package}.py").write_text(
            f"raise ModuleNotFoundError(\"No module named '{package}'\", name={package!r})\n"
        )
        return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    return hide


def test_missing_packaging_names_the_pip_command(without: Callable[[str], dict[str, str]]) -> None:
    status, output = run("worker", env=without("packaging"))
    assert status != 0
    assert "geventws.Worker needs gunicorn (No module named 'packaging'): pip install 'gunicorn[gevent]'" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("package", "code", "command"),
    [
        ("gunicorn", "import geventws; geventws.Worker", "pip install 'gunicorn[gevent]'"),
        ("gunicorn", "from geventws import Worker", "pip install 'gunicorn[gevent]'"),
        ("flask", "import geventws.flask", "pip install 'geventws[flask]'"),
    ],
)
def test_missing_package_names_the_pip_command(
    without: Callable[[str], dict[str, str]], package: str, code: str, command: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **without(package)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode != 0
    assert f"No module named '{package}'" in done.stderr.splitlines()[-1]
    assert command in done.stderr.splitlines()[-1]


def test_server_runs_without_gunicorn_and_packaging(tmp_path: Path, without: Callable[[str], dict[str, str]]) -> None:
    without("gunicorn")
    with (
        serve(APP, tmp_path, front_end="server", env=without("packaging")) as server,
        server.connect("/echo") as ws,
    ):
        ws.send("alone")
        assert ws.recv(DEADLINE) == "alone"


SILENCED = """
import logging.config
from tests.apps import app
logging.config.dictConfig({"version": 1, "root": {"level": "INFO", "handlers": ["console"]},
    "handlers": {"console": {"class": "logging.StreamHandler"}}})
def fails(environ, start_response):
    raise KeyError("in plain WSGI")
"""


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_no_dictconfig_of_an_app_silences_the_server(tmp_path: Path, front_end: str) -> None:
    (tmp_path / "silenced.py").write_text(SILENCED)
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    with serve("silenced:app", tmp_path, front_end=front_end, env=env) as server:
        with server.connect("/echo") as ws:
            ws.send("hello")
        server.wait_for_log("/echo close 1000")
        with pytest.raises(InvalidStatus):
            server.connect("/echo", origin="https://evil.example")
        server.wait_for_log("/echo refused: 403 .*add it to the option origins")
    with serve("silenced:fails", tmp_path, front_end=front_end, env=env) as server:
        server.get("/").close()
        server.wait_for_log("KeyError: 'in plain WSGI'")


LATE = """
import io, logging.config
from tests.apps import app as served
SAID = {"version": 1, "root": {"level": "INFO", "handlers": ["console"]},
    "handlers": {"console": {"class": "logging.StreamHandler"}}}
FILE = "[loggers]\\nkeys=root\\n[handlers]\\nkeys=console\\n[formatters]\\nkeys=\\n[logger_root]\\nlevel=INFO\\n" \\
    "handlers=console\\n[handler_console]\\nclass=StreamHandler\\nargs=()\\n"
def app(environ, start_response):
    if environ["PATH_INFO"] == "/dict":
        logging.config.dictConfig(SAID)
    if environ["PATH_INFO"] == "/file":
        logging.config.fileConfig(io.StringIO(FILE))
    return served(environ, start_response)
"""


@pytest.mark.parametrize("how", ["dict", "file"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_no_configuration_of_the_log_while_the_app_runs_silences_the_server(
    tmp_path: Path, front_end: str, how: str
) -> None:
    (tmp_path / "late.py").write_text(LATE)
    with serve("late:app", tmp_path, front_end=front_end, env={"PYTHONPATH": f"{ROOT}:{tmp_path}"}) as server:
        get(server, f"/{how}")
        with server.connect("/echo") as ws:
            ws.send("hello")
        server.wait_for_log("/echo close 1000 ")


PROXIED = """
from werkzeug.middleware.proxy_fix import ProxyFix
from tests.apps import app as served
app = ProxyFix(served)
"""


def visit(server: Server, forwarded_for: str) -> None:
    """Open a WebSocket as a proxy does, and close it."""
    with server.connect("/echo", additional_headers={"X-Forwarded-For": forwarded_for}):
        pass


CLIENT = "10.9.9.9, 203.0.113.7"


@pytest.mark.parametrize("unix", [True, False])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_address_that_proxyfix_trusts_is_shown_with_the_number_of_the_connection(
    tmp_path: Path, front_end: str, unix: bool
) -> None:
    (tmp_path / "proxied.py").write_text(PROXIED)
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    with serve("proxied:app", tmp_path, front_end=front_end, unix=unix, env=env) as server:
        visit(server, CLIENT)
        server.wait_for_log(r"\] 203\.0\.113\.7#\d+ /echo close 1000 ")


@pytest.mark.parametrize("unix", [True, False])
@pytest.mark.parametrize("trusted", ["127.0.0.1", "10.0.0.1"])
def test_address_is_shown_that_gunicorn_trusts_a_proxy_to_name(tmp_path: Path, unix: bool, trusted: str) -> None:
    arguments = ["--forwarded-allow-ips", trusted]
    with serve(APP, tmp_path, front_end="worker", unix=unix, arguments=arguments) as server:
        visit(server, CLIENT)
        with pytest.raises(InvalidStatus):
            server.connect("/echo", additional_headers={"X-Forwarded-For": CLIENT}, origin="https://evil.example")
        is_shown = unix or trusted == "127.0.0.1"
        end, refusal = (r"203\.0\.113\.7#\d+", r"203\.0\.113\.7") if is_shown else 2 * (r"127\.0\.0\.1:\d+",)
        server.wait_for_log(rf"\] {end} /echo close 1000 ")
        server.wait_for_log(rf"\] {refusal} /echo refused: 403 ")
        visit(server, "a name")
        wait_for(lambda: server.log.count("/echo close") == 2, "the second end")
        assert "a name" not in server.log


def test_a_server_without_gunicorn_believes_no_header(tmp_path: Path) -> None:
    with serve(APP, tmp_path, front_end="server", unix=True) as server:
        visit(server, CLIENT)
        server.wait_for_log(r"\] unix#\d+ /echo close 1000 ")


def test_log_of_the_docs_is_json(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "observing.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "dictConfig" in block]
    (tmp_path / "logs.py").write_text(block)
    with serve("logs:app", tmp_path, front_end="worker", env={"PYTHONPATH": f"{ROOT}:{tmp_path}"}) as server:
        with server.connect("/echo") as ws:
            ws.send("hello")
            assert ws.recv(DEADLINE) == "hello"
        with pytest.raises(InvalidStatus):
            server.connect("/echo", origin="https://evil.example")
        for line in (r"/echo close 1000 .*\}$", r"/echo refused.*\}$"):  # in any order
            server.wait_for_log(line)
        lines = [json.loads(line) for line in server.log.splitlines() if line.startswith('{"time": ')]
    by_level = {line["level"]: line for line in lines if line["logger"] == "geventws"}
    end, refusal = by_level["INFO"], by_level["WARNING"]
    assert (end["path"], end["route"], end["code"], end["cause"]) == ("/echo", "/echo", 1000, "client")
    assert end["messages"] == {"received": 1, "sent": 1}
    assert end["bytes"]["received"] > 0 and end["seconds"] >= 0 and end["id"]
    assert (refusal["status"], refusal["rule"], refusal["path"]) == (403, "origin", "/echo")


FOREIGN_LOGGER = """
class Foreign:
    def __init__(self, cfg): pass
    def access(self, *unused): pass
    def reopen_files(self): pass
    def close_on_exec(self): pass
    def _say(self, message, *values, **unused): print("foreign", message % values if values else message, flush=True)
    critical = error = warning = info = debug = exception = _say
    def log(self, level, message, *values, **unused): self._say(message, *values)
logger_class = Foreign
"""


def test_logger_class_of_another_make_serves(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text(FOREIGN_LOGGER)
    arguments = ["-c", str(tmp_path / "conf.py")]
    with (
        serve(APP, tmp_path, front_end="worker", arguments=arguments) as server,
        server.connect("/echo") as ws,
    ):
        ws.send("hello")
        assert ws.recv(DEADLINE) == "hello"


def test_quotes_of_a_peer_do_not_end_a_field_of_the_access_line(tmp_path: Path) -> None:
    with serve(APP, tmp_path, front_end="server") as server:
        with server.socket() as sock:
            sock.sendall(b'GET /"-" HTTP/1.1\r\nHost: localhost\r\n\r\n')
            sock.recv(100)
        server.wait_for_log(r'"GET /\\"-\\" HTTP/1\.1" \d')


@pytest.mark.parametrize("closed", [">&-", "<&-", ">&- <&-"])
def test_server_starts_without_a_standard_stream(tmp_path: Path, closed: str) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "geventws", "--bind", "127.0.0.1:0", APP]
    server = Server(command, "127.0.0.1:0", None, tmp_path / "log", {"PYTHONPATH": str(ROOT)})
    try:
        assert page(server) == "hello"
    finally:
        server.stop()
    assert "Traceback" not in server.log


BLOCKED = """
import logging, time
from tests.apps import app

class Handler(logging.Handler):
    def emit(self, record):
        time.sleep(3600)

logging.getLogger().addHandler(Handler())
logging.getLogger().setLevel("INFO")
logging.getLogger("gunicorn.error").addHandler(Handler())
"""


def test_worker_whose_master_was_killed_ends_beside_a_handler_that_blocks(tmp_path: Path) -> None:
    (tmp_path / "blocked.py").write_text(BLOCKED)
    arguments = ["--pythonpath", str(tmp_path), "--graceful-timeout", "2"]
    with serve("blocked:app", tmp_path, front_end="worker", arguments=arguments) as server:
        pid = int(server.wait_for_log(r"Booting worker with pid: (\d+)")[1])
        server.stop(signal.SIGKILL)
        try:
            wait_for(lambda: not is_running(pid), "end of the worker")
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie that nobody waits for."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
