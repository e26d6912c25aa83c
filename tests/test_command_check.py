"""python -m geventws check: what it tells of a server that is well, of one that is not, and of a mistake."""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import trustme

from geventws import handshake
from geventws.command import check, doctor, talk

from . import broken
from .broken import free_port
from .commands import PATIENCE, assert_one_line, environment, run
from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, serve, wait_for

pytestmark = pytest.mark.slow  # it starts servers

APP = "tests.apps:app"
NAMES = [
    *("name", "TCP", "TLS", "handshake", "compression", "own origin", "foreign origin", "subprotocol"),
    *("echo", "ping", "close", "three at once", "idle"),
]


@pytest.fixture(scope="module", params=FRONT_ENDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(APP, tmp_path_factory.mktemp("app"), front_end=request.param) as server:
        yield server


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    broken.be_patient(monkeypatch)


Check = Callable[..., tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def checked(capsys: pytest.CaptureFixture[str]) -> Check:
    """Checks a URL; returns the exit status, and what was found by the names of the checks."""

    def run(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
        status = check.main([*arguments, "--json"])
        found = json.loads(capsys.readouterr().out)
        assert [each["name"] for each in found["checks"]] == NAMES
        assert found["ok"] == (status == 0)
        return status, {each["name"]: each for each in found["checks"]}

    return run


def told(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: each["cause"] for name, each in found.items() if each["cause"]}


# A server that is well


def test_a_server_that_is_well_has_a_line_for_each_check_and_a_count(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    status = check.main([server.url("/echo")])
    written = capsys.readouterr()
    lines = written.out.splitlines()
    assert lines[0] == f"ws://localhost:{server.port}/echo"
    assert [line[2:18].rstrip() for line in lines[1:14]] == NAMES
    assert [line[0] for line in lines[1:14]] == list("✓✓·✓✓✓✓·✓✓✓✓·")
    assert lines[14:] == ["", "10 passed, 3 not checked"]
    assert (status, written.err) == (0, "")


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_tls_is_checked_by_the_authorities_that_the_system_knows(
    tmp_path: Path, front_end: str, checked: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = issued(tmp_path, "localhost")
    with serve(APP, tmp_path, front_end=front_end, certificate=certificate) as server:
        status, found = checked(server.url("/echo"))
        assert (status, found["TLS"]["result"]) == (1, "failed")
        assert "self-signed certificate in certificate chain" in found["TLS"]["cause"] or "issuer" in told(found)["TLS"]
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        status, found = checked(server.url("/echo"))
        assert (status, told(found)) == (0, {})
        assert "TLSv1.3" in found["TLS"]["detail"]
        status, found = checked(f"wss://127.0.0.1:{server.port}/echo")
        assert "IP address mismatch" in told(found)["TLS"]
        assert "a certificate for 127.0.0.1" in found["TLS"]["cure"]
        status, found = checked(f"ws://localhost:{server.port}/echo")
        assert (status, told(found)) == (1, {"handshake": "this port speaks TLS"})
        assert "wss://" in found["handshake"]["cure"]


@pytest.mark.parametrize(
    ("days", "mark", "cause"),
    [(-1, "failed", "certificate has expired"), (5, "risky", "the certificate ends soon")],
)
def test_a_certificate_that_ends_is_told(
    tmp_path: Path, checked: Check, monkeypatch: pytest.MonkeyPatch, days: int, mark: str, cause: str
) -> None:
    certificate = issued(tmp_path, "localhost", days)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with serve(APP, tmp_path, front_end="server", certificate=certificate) as server:
        status, found = checked(server.url("/echo"))
    assert (status, found["TLS"]["result"]) == (int(mark == "failed"), mark)
    assert cause in found["TLS"]["cause"]
    assert "renew" in found["TLS"]["cure"]


def issued(directory: Path, name: str, days: int = 300) -> tuple[str, str, ssl.SSLContext]:
    """Return a certificate that an authority of its own has issued, whose file is ca.pem."""
    authority = trustme.CA()
    certificate = authority.issue_cert(name, not_after=datetime.now(timezone.utc) + timedelta(days=days))
    authority.cert_pem.write_to_path(directory / "ca.pem")
    for number, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(directory / "cert.pem", append=number > 0)
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return str(directory / "cert.pem"), str(directory / "key.pem"), context


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_via_connects_elsewhere_and_asks_for_the_host_of_the_url(
    tmp_path: Path, front_end: str, checked: Check
) -> None:
    with serve(APP, tmp_path, front_end=front_end) as server:
        status, found = checked("wss://app.example/echo", "--via", f"127.0.0.1:{server.port}")
    assert (status, told(found)) == (0, {})
    assert found["own origin"]["detail"] == "https://app.example"
    assert found["TLS"]["result"] == "skipped"
    with serve(APP, tmp_path, front_end=front_end, unix=True) as server:
        status, found = checked("wss://app.example/echo", "--via", f"unix:{tmp_path / 'server.sock'}")
    assert (status, told(found)) == (0, {})
    status, found = checked("wss://app.example/echo", "--via", f"unix:{tmp_path / 'nothing.sock'}")
    assert (status, list(told(found))) == (1, ["TCP"])


def test_headers_subprotocol_and_idle_are_as_asked_for(server: Server, checked: Check) -> None:
    arguments = ["--header", "X-One: 1", "--header", "Cookie: session=é", "--subprotocol", "chat.v1", "--idle", "5"]
    status, found = checked(server.url("/cookie"), *arguments)
    assert (status, found["subprotocol"]["detail"], told(found)) == (0, "chat.v1", {})
    assert found["echo"]["detail"] == "the view ended by itself"
    assert found["idle"]["detail"] == "the view ended by itself after 0 s"


def test_a_silent_connection_lives_on(server: Server, checked: Check) -> None:
    status, found = checked(server.url("/environ"), "--idle", "0.3")
    assert (status, told(found)) == (0, {})
    assert found["idle"]["detail"] == "0.3 s, in which the server sent 0 Pings"


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_pings_of_the_server_are_answered_and_counted(tmp_path: Path, front_end: str, checked: Check) -> None:
    env = {"GEVENTWS_PING_INTERVAL": "0.2", "GEVENTWS_PING_TIMEOUT": "30"}
    with serve(APP, tmp_path, front_end=front_end, env=env) as server:
        status, found = checked(server.url("/echo"), "--idle", "1.5")
    assert (status, told(found)) == (0, {})
    assert re.search(r"sent [2-9] Pings", found["idle"]["detail"])


# What a view does


VIEWS = {
    "/unauthorized": ("handshake", "failed", "a login is wanted"),
    "/login": ("handshake", "failed", "redirected to /login-page"),
    "/nothing-here": ("handshake", "failed", "the app has no such route"),
    "/": ("handshake", "failed", "the view answered 200 and did not use the WebSocket"),
    "/exit-early": ("handshake", "failed", "the view failed before it used the WebSocket"),
    "/raise-sockets": ("echo", "failed", "closed with 1011: the view failed"),
    "/close/1008": ("echo", "risky", "closed with 1008 (closed with 1008): by the app"),
    "/close/4001": ("echo", "risky", "closed with 4001 (closed with 4001): by the app"),
    "/return": ("echo", "skipped", None),
    "/wait-closed": ("echo", "skipped", None),
}


@pytest.mark.parametrize("path", VIEWS)
def test_what_a_view_does_is_told(server: Server, checked: Check, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    name, mark, cause = VIEWS[path]
    if path == "/wait-closed":  # which echoes nothing
        monkeypatch.setattr(talk, "ECHO_WAIT", 0.2)
    status, found = checked(server.url(path))
    assert (status, found[name]["result"]) == (int(mark == "failed"), mark)
    assert cause is None or cause in found[name]["cause"]
    assert list(told(found)) == ([name] if cause else [])


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_view_that_uses_its_websocket_late_is_told(
    tmp_path: Path, front_end: str, checked: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SLOW", 0.4)
    monkeypatch.setattr(talk, "ECHO_WAIT", 0.2)
    with serve(APP, tmp_path, front_end=front_end, env={"GEVENTWS_ACCEPT_AFTER": "0.5"}) as server:
        status, found = checked(server.url("/idle-unused"))
    assert (status, found["handshake"]["result"]) == (0, "risky")
    assert "ws.accept() first" in found["handshake"]["cure"]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_view_that_never_stops_to_send_holds_no_check_up(
    tmp_path: Path, front_end: str, checked: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talk, "ECHO_WAIT", 0.2)
    with serve("tests.apps_check:app", tmp_path, front_end=front_end) as server:
        status, found = checked(server.url("/flood"), "--idle", "0.5")
        assert (status, told(found)) == (0, {})
        assert found["echo"]["detail"] == "the view did not send the message back"
        monkeypatch.setattr(talk, "ECHO_WAIT", 10.0)
        status, found = checked(server.url("/cookies"), "--header", "Cookie: a=1", "--header", "Cookie: b=2")
        assert (status, told(found)) == (0, {})


LIMITS = {
    "max_connections": ("GEVENTWS_MAX_CONNECTIONS", "2", "three at once", "failed", "as many WebSockets as it may"),
    "max_message_size": ("GEVENTWS_MAX_MESSAGE_SIZE", "70000", "echo", "risky", "larger than max_message_size"),
    "origins": ("GEVENTWS_ORIGINS", "*", "foreign origin", "risky", "a page of any site may connect"),
}


@pytest.mark.parametrize("option", LIMITS)
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_what_an_option_of_the_server_does_is_told(tmp_path: Path, front_end: str, checked: Check, option: str) -> None:
    variable, value, name, mark, cause = LIMITS[option]
    with serve(APP, tmp_path, front_end=front_end, env={variable: value}) as server:
        status, found = checked(server.url("/echo"))
    assert (status, list(told(found))) == (int(mark == "failed"), [name])
    assert cause in found[name]["cause"]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_full_server_is_told(tmp_path: Path, front_end: str, checked: Check) -> None:
    env = {"GEVENTWS_MAX_CONNECTIONS": "1"}
    with serve(APP, tmp_path, front_end=front_end, env=env) as server, server.connect("/echo"):
        status, found = checked(server.url("/echo"))
    assert (status, told(found)) == (1, {"handshake": "the server has as many WebSockets as it may"})


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_route_with_origins_of_its_own_names_its_refusal_too(tmp_path: Path, front_end: str, checked: Check) -> None:
    with serve("tests.apps_check:own_origins", tmp_path, front_end=front_end) as server:
        status, found = checked(server.url("/partners"), "--origin", "https://partner.example")
        assert (status, told(found)) == (0, {})
        status, found = checked(server.url("/partners"))
    assert (status, list(told(found))) == (1, ["own origin"])
    assert "lets no page of" in found["own origin"]["cause"]


def test_reload_of_caddy_is_told_by_its_1001(tmp_path: Path, server: Server, tmp_path_factory: Any) -> None:
    port = free_port()
    text = f"http://127.0.0.1:{port} {{\nbind 127.0.0.1\nreverse_proxy 127.0.0.1:{server.port}\n}}\n"
    with broken.caddy(tmp_path, text, [port]) as reload:
        command = [sys.executable, "-m", "geventws", "check", f"ws://127.0.0.1:{port}/echo", "--idle", "60"]
        process = subprocess.Popen(command, env=environment({}), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while "three at once" not in lines[-1]:
            lines.append(process.stdout.readline())
        opened = len(re.findall(r"/echo open$", server.log, re.MULTILINE))
        wait_for(lambda: len(re.findall(r"/echo open$", server.log, re.MULTILINE)) >= opened, "the idle one")
        reload()
        rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert re.search(r"^✗ idle +closed after \d+ s$", rest, re.MULTILINE), rest
    assert "closed with 1001: a proxy or the server was stopped or reloaded, as Caddy does" in rest


# Peers that are no WebSocket servers


@contextmanager
def peer(serve_one: Callable[[socket.socket, bytes], None]) -> Iterator[int]:
    """Run a server that reads a request head and does with it what serve_one() does; give its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        request = b""
        try:
            while b"\r\n\r\n" not in request and (data := connection.recv(65_536)):
                request += data
            if request:  # and not only a look whether the port is open
                serve_one(connection, request)
        except OSError:
            pass

    def accept() -> None:
        try:
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threads.append(threading.Thread(target=one, args=(connection,)))
                threads[-1].start()
        except OSError:
            pass  # closed

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(DEADLINE)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for each in threads:
            each.join(DEADLINE)
        for connection in connections:
            connection.close()


def switching(request: bytes, accept: str | None = None) -> bytes:
    """Return the 101 that answers a request."""
    found = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
    assert found
    key = accept or handshake.accept_key(found[1].decode())
    head = "HTTP/1.1 101 Switching\x1b[2J\r\nServer: \x1b[2Jnginx\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    return f"{head}Sec-WebSocket-Accept: {key}\r\n\r\n".encode()


def wait_for_eof(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


def deaf(connection: socket.socket, request: bytes) -> None:
    connection.sendall(switching(request))
    wait_for_eof(connection)


def wrong_accept(connection: socket.socket, request: bytes) -> None:
    connection.sendall(switching(request, "a" * 28))


def cut_at_once(connection: socket.socket, request: bytes) -> None:
    connection.sendall(switching(request))
    connection.recv(1)
    connection.shutdown(socket.SHUT_RDWR)


def garbage(connection: socket.socket, request: bytes) -> None:
    connection.sendall(switching(request) + b"\xff" * 20)
    wait_for_eof(connection)


def mysql(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"\x4a\x00\x00\x00\x0a8.0\r\n\r\n")
    connection.shutdown(socket.SHUT_RDWR)


def silent(connection: socket.socket, request: bytes) -> None:
    wait_for_eof(connection)


def hang_up(connection: socket.socket, request: bytes) -> None:
    connection.shutdown(socket.SHUT_RDWR)


PEERS: dict[str, tuple[Callable[[socket.socket, bytes], None], str, str]] = {
    "deaf": (deaf, "echo", "the handshake passes, then nothing comes back"),
    "an Accept of another key": (wrong_accept, "handshake", "does not belong to this handshake"),
    "cut at once": (cut_at_once, "echo", "cut at the first message"),
    "no frames": (garbage, "echo", "cut at the first message"),
    "MySQL": (mysql, "handshake", "speaks no HTTP: it sent b'J"),
    "silent": (silent, "handshake", "the app, or its whole server, is blocked"),
    "hangs up": (hang_up, "handshake", "closed without an answer"),
}


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_is_no_websocket_server_is_told(checked: Check, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    serve_one, check_name, cause = PEERS[name]
    if serve_one in {deaf, silent}:
        for module in (talk, doctor):
            monkeypatch.setattr(module, "TIMEOUT", 1.0)
    with peer(serve_one) as port:
        status, found = checked(f"ws://127.0.0.1:{port}/")
    assert status == 1
    assert cause in found[check_name]["cause"]
    assert found[check_name]["result"] == "failed"
    assert "\x1b" not in str(found)


def test_a_message_that_does_not_pass_is_told_by_its_size(server: Server, checked: Check) -> None:
    def small_messages(connection: socket.socket, request: bytes) -> None:
        """Pass on what comes, but no more than 10 KB of it."""
        with socket.create_connection(("127.0.0.1", server.port)) as app:
            app.sendall(request)
            back = threading.Thread(target=pour, args=(app, connection))
            back.start()
            pour(connection, app, 10_000)
            connection.shutdown(socket.SHUT_RDWR)
            app.shutdown(socket.SHUT_RDWR)
            back.join(DEADLINE)

    with peer(small_messages) as port:
        status, found = checked(f"ws://127.0.0.1:{port}/echo")
    assert (status, list(told(found))) == (1, ["echo"])
    assert re.search(r"5 B in .*, 64 KiB: ", found["echo"]["detail"])
    assert "a message of this size does not pass" in found["echo"]["cause"]


def pour(source: socket.socket, target: socket.socket, most: int = 1 << 30) -> None:
    try:
        while most > 0 and (data := source.recv(4096)):
            target.sendall(data)
            most -= len(data)
    except OSError:
        pass


# The command


MISTAKES = {
    ("localhost:8000/echo",): "the URL must be such as ws://127.0.0.1:8000/echo or wss://app.example/echo, not 'local",
    ("ws://",): "the URL must be such as",
    ("ws://a.example:port/",): "has no valid host and port",
    ("ws://a.example:99999/",): "has no valid host and port",
    ("ws://user:secret@a.example/",): "give --header 'Authorization",
    ("ws://a.example/#top",): "has a fragment",
    ("ws://a.example/", "--via", "8000"): "--via must be HOST:PORT or unix:PATH",
    ("ws://a.example/", "--via", "unix:"): "--via must be HOST:PORT or unix:PATH",
    ("ws://a.example/", "--header", "Cookie"): "--header must be 'NAME: VALUE'",
    ("ws://a.example/", "--header", "X: a\r\nY: b"): "--header must be 'NAME: VALUE'",
    ("ws://a.example/", "--header", "Host: b.example"): "--header Host belongs to the handshake",
    ("ws://a.example/", "--header", "Sec-WebSocket-Key: x"): "belongs to the handshake",
    ("ws://a.example/", "--origin", "a\r\nb"): "--origin must be",
    ("ws://a.example/", "--subprotocol", "a b"): "--subprotocol must be",
    ("ws://a.example/", "--idle", "-1"): "--idle must be",
}


@pytest.mark.parametrize("made", MISTAKES, ids=str)
def test_each_mistake_is_told_in_one_line(made: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(made) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert re.fullmatch(r"geventws: .+\n", written.err)
    assert MISTAKES[made] in written.err


def test_a_flag_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    assert_one_line(run(tmp_path, "check", "ws://a/", "--vai", "x"), "unrecognized arguments: --vai x; see python -m ")


def test_every_line_of_the_help_fits_a_terminal(tmp_path: Path) -> None:
    answer = run(tmp_path, "check", "--help", COLUMNS="80")
    assert answer.returncode == 0
    assert max(map(len, answer.stdout.splitlines())) <= 80


def test_a_failure_ends_with_its_cure_and_a_count(tmp_path: Path) -> None:
    answer = run(tmp_path, "check", f"ws://127.0.0.1:{free_port()}/")
    *_, failed, empty, cause, cure, _, count = answer.stdout.splitlines()
    assert re.match(r"✗ TCP +127\.0\.0\.1:\d+: Connection refused", failed)
    assert cause.startswith("TCP: nothing listens at 127.0.0.1:")
    assert cure.startswith("  cure: start the server")
    assert count == "1 passed, 1 failed, 11 not checked"
    assert answer.returncode == 1
    assert (empty, answer.stderr) == ("", "")


def test_a_name_without_address_is_told(checked: Check) -> None:
    status, found = checked("ws://nobody.invalid/")
    assert (status, told(found)) == (1, {"name": "nobody.invalid has no address"})


def test_a_terminal_without_the_marks_gets_words(tmp_path: Path) -> None:
    answer = run(tmp_path, "check", f"ws://127.0.0.1:{free_port()}/", PYTHONIOENCODING="ascii")
    assert "\nFAILED TCP " in answer.stdout


def test_ctrl_c_ends_it_without_a_traceback(server: Server) -> None:
    command = [sys.executable, "-m", "geventws", "check", server.url("/echo"), "--idle", "600"]
    process = subprocess.Popen(command, env=environment({}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "three at once" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complaints) == (130, "")


# docs/check.md


def test_docs_name_each_rule_and_each_check_and_quote_what_the_code_says() -> None:
    text = (ROOT / "docs" / "check.md").read_text()
    code = "".join(path.read_text() for path in (ROOT / "geventws").rglob("*.py"))
    rules = set(re.findall(r'_bad\(\s*"([a-z-]+)", |rule="([a-z-]+)"\)', code))
    named = {name for pair in rules for name in pair if name} | {
        "method",
        "full",
        "address",
        "hosts",
        "stopping",
        "upgrade",
    }
    assert named == set(re.findall(r"`([a-z-]+)`", text.partition("## Whose")[2].partition("A browser always")[0])) - {
        "origins"
    }
    checks = re.findall(r"^\| ([a-zA-Z, ]+) \|", text.partition("need each other")[2].partition("| flag")[0], re.M)
    assert [name for row in checks[1:] for name in row.split(", ")] == NAMES
    own = text.partition("In the log of the app:")[2].partition("In the log of nginx")[0]
    flat = re.sub(r'"\s+f?"', "", code)
    for quoted in re.findall(r"^\| `([^`]+)` ", own, re.M):
        if not quoted.startswith("KeyError"):
            assert quoted.replace("'HTTP/1.0'", "{environ['SERVER_PROTOCOL']!r}") in flat, quoted


def test_docs_show_what_it_prints(server: Server, tmp_path: Path) -> None:
    port = free_port()
    http = f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{server.port}; }} }}"
    with broken.nginx(tmp_path, http, [port]):
        written = run(tmp_path, "check", f"ws://127.0.0.1:{port}/echo").stdout
    written = re.sub(r"\d+\.\d ms", "0.2 ms", written.replace(str(port), "8080"))
    assert f"```text\n{written}```" in (ROOT / "docs" / "check.md").read_text()
