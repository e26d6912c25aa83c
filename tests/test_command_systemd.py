"""What systemd gives to a service and hears of it: real activation by systemd-socket-activate, real datagrams."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, unix_connect

from .commands import APP, PATIENCE, assert_one_line, command, environment, running, wait_for, write_files
from .servers import FRONT_ENDS, missing
from .test_readme import free_port

pytestmark = pytest.mark.slow  # it starts servers or installs packages

INHERITED_APP = """
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    names = [name for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES") if name in os.environ]
    return [f"{os.get_inheritable(3)} {names}".encode()]
"""
FILES = {"good.py": APP % "good", "inherited.py": INHERITED_APP}
GUNICORN = [sys.executable, "-m", "gunicorn", "-k", "geventws.Worker"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_files(tmp_path, FILES)


class Activated:
    """A service whose sockets are open before it is: the first connection starts it."""

    def __init__(self, directory: Path, addresses: Sequence[str], program: Sequence[str], *flags: str) -> None:
        activate = shutil.which("systemd-socket-activate")
        if activate is None:
            missing("systemd-socket-activate")
        self.directory, self.addresses = directory, addresses
        words = [activate, *flags]
        words += [word for address in addresses for word in ("-l", address)]
        words += [word for pair in environment({"HOME": str(directory)}).items() for word in ("-E", "=".join(pair))]
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen([*words, *program], cwd=directory, stdout=log, stderr=log)
        self.wait_for_log("Listening on ", len(addresses))

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def wait_for_log(self, text: str, count: int = 1) -> None:
        wait_for(lambda: self.log.count(text) >= count, text)

    def socket(self, number: int = 0) -> socket.socket:
        """Return a connection to one of its sockets."""
        address = self.addresses[number]
        if address[0] in "@/":
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(PATIENCE)
            sock.connect(address.replace("@", "\0"))
            return sock
        return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), PATIENCE)

    def get(self, number: int = 0) -> str:
        with closing(http.client.HTTPConnection("localhost")) as connection:
            connection.sock = self.socket(number)
            connection.request("GET", "/", headers={"Connection": "close"})
            return connection.getresponse().read().decode()

    @contextmanager
    def websocket(self, number: int = 0, path: str = "/") -> Iterator[ClientConnection]:
        sock, uri = self.socket(number), f"ws://localhost{path}"
        with unix_connect(uri=uri, sock=sock, compression=None, open_timeout=PATIENCE) as ws:
            ws.send("hello")
            assert ws.recv(PATIENCE) == "hello"
            yield ws


@contextmanager
def activated(directory: Path, addresses: Sequence[str], program: Sequence[str], *flags: str) -> Iterator[Activated]:
    service = Activated(directory, addresses, program, *flags)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.terminate()
        service.process.wait(PATIENCE)


def local_port() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_service_serves_all_sockets_of_systemd_and_leaves_their_files(front_end: str, directory: Path) -> None:
    path = directory / "run.sock"
    program = command("good:app") if front_end == "server" else [*GUNICORN, "good:app"]
    with activated(directory, [local_port(), str(path), f"@{path}"], program) as service, ExitStack() as stack:
        assert [service.get(number)[:5] for number in range(3)] == ["good "] * 3
        clients = [stack.enter_context(service.websocket(number)) for number in range(3)]
        service.process.terminate()
        for client in clients:
            with pytest.raises(ConnectionClosed) as caught:
                client.recv(PATIENCE)
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
        assert service.process.wait(PATIENCE) == 0
        assert path.exists()
        assert "Traceback" not in service.log


def test_the_log_names_all_sockets(directory: Path) -> None:
    port, path = local_port(), directory / "run.sock"
    with activated(directory, [port, str(path), f"@{path}"], command("good:app")) as service:
        service.get()
        service.wait_for_log(f" serves good:app on http://{port}, unix:{path}, unix:@{path}\n")


def test_all_sockets_share_one_max_connections(directory: Path) -> None:
    addresses = [local_port(), str(directory / "run.sock")]
    with activated(directory, addresses, command("good:app", "--max-connections", "1")) as service:
        with service.websocket(0):
            assert not opens(service, 1)
        wait_for(lambda: opens(service, 1), "room for another WebSocket")


def opens(service: Activated, number: int) -> bool:
    try:
        with service.websocket(number):
            return True
    except InvalidStatus as exc:
        assert exc.response.status_code == 503
        return False


def test_a_stop_waits_for_no_idle_connection_of_any_socket(directory: Path) -> None:
    addresses = [local_port(), str(directory / "run.sock")]
    with (
        activated(directory, addresses, command("good:app", "--close-timeout", "1000")) as service,
        ExitStack() as stack,
    ):
        for number in range(2):
            sock = stack.enter_context(service.socket(number))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        service.process.terminate()
        assert service.process.wait(PATIENCE) == 0


def test_programs_that_the_app_starts_inherit_nothing(directory: Path) -> None:
    with activated(directory, [local_port()], command("inherited:app")) as service:
        assert service.get() == "False []"


def test_reload_keeps_the_sockets(directory: Path) -> None:
    with activated(directory, [local_port()], command("good:app", "--reload")) as service:
        assert service.get().startswith("good ")
        (directory / "good.py").write_text("def app(:\n")
        service.wait_for_log("waiting for a change")
        with service.socket() as early:  # while nobody accepts
            early.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            (directory / "good.py").write_text(APP % "mended")
            assert b"mended " in b"".join(iter(lambda: early.recv(65536), b""))
        service.process.terminate()
        assert service.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("flags", "arguments", "complaint"),
    [
        ([], ["--bind", "127.0.0.1:0"], "--bind 127.0.0.1:0 and the sockets of systemd exclude each other: leave"),
        (["-a"], [], "descriptor 3 of LISTEN_FDS: no listening stream socket; the socket unit needs ListenStream="),
        (["-d"], [], "descriptor 3 of LISTEN_FDS: no listening stream socket; the socket unit needs ListenStream="),
    ],
    ids=["bind", "accept", "datagram"],
)
def test_a_socket_unit_that_cannot_serve_is_told(
    directory: Path, flags: list[str], arguments: list[str], complaint: str
) -> None:
    with activated(directory, [local_port()], command("good:app", *arguments), *flags) as service:
        if flags == ["-d"]:
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                sock.sendto(b"hello", ("127.0.0.1", int(service.addresses[0].rpartition(":")[2])))
                service.wait_for_log(complaint)
        else:
            with service.socket():
                service.wait_for_log(complaint)
        if flags != ["-a"]:  # where each connection has a process of its own
            assert service.process.wait(PATIENCE) == 2


@pytest.mark.parametrize(
    ("count", "complaint"),
    [
        ("many", "LISTEN_FDS must be a number of sockets, not 'many'$"),
        ("99", r"cannot listen on file descriptor \d+ of LISTEN_FDS: \w+"),
        ("999999999", r"cannot listen on file descriptor \d+ of LISTEN_FDS: \w+"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--reload"]])
def test_wrong_variables_are_told(directory: Path, count: str, complaint: str, flags: list[str]) -> None:
    words = ["sh", "-c", f'LISTEN_PID=$$ LISTEN_FDS={count} exec "$@"', "sh", *command("good:app", *flags)]
    answer = subprocess.run(
        words,
        cwd=directory,
        env=environment({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert_one_line(answer, complaint)


def test_sockets_of_another_process_are_not_ours(directory: Path) -> None:
    with running(directory, "good:app", "--bind", "127.0.0.1:0", LISTEN_PID="1", LISTEN_FDS="1") as program:
        assert program.get().startswith("good ")


# What systemd hears


@contextmanager
def notified(path: str) -> Iterator[Callable[[], str]]:
    """Give a function that waits for the next message to this NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.bind(path.replace("@", "\0"))
        yield lambda: sock.recv(4096).decode()


@pytest.mark.parametrize("kind", ["path", "abstract"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_systemd_hears_of_readiness_and_of_the_stop(front_end: str, kind: str, directory: Path) -> None:
    path, bind = ("@" if kind == "abstract" else "") + str(directory / "notify"), str(directory / "server.sock")
    program = command("good:app") if front_end == "server" else [*GUNICORN, "good:app"]
    variables = environment({"NOTIFY_SOCKET": path, "HOME": str(directory)})
    with notified(path) as heard:
        process = subprocess.Popen([*program, "--bind", f"unix:{bind}"], cwd=directory, env=variables)
        try:
            assert heard().splitlines()[0] == "READY=1"
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(bind)  # without waiting: it is ready
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
            process.send_signal(signal.SIGTERM)
            if front_end == "server":  # gunicorn does not tell
                assert heard() == "STOPPING=1"
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0


def test_the_watchdog_hears_that_the_hub_runs(directory: Path) -> None:
    path = str(directory / "notify")
    variables = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"}
    with notified(path) as heard, running(directory, "good:app", "--bind", "127.0.0.1:0", **variables) as program:
        assert [heard() for _ in range(4)] == ["READY=1", *["WATCHDOG=1"] * 3]
        program.process.terminate()
        wait_for(lambda: heard() == "STOPPING=1", "news of the stop")


@pytest.mark.parametrize("variables", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "often"}])
def test_a_watchdog_that_watches_another_hears_nothing(directory: Path, variables: dict[str, str]) -> None:
    path = str(directory / "notify")
    variables = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1", **variables}
    with notified(path) as heard, running(directory, "good:app", "--bind", "127.0.0.1:0", **variables) as program:
        assert heard() == "READY=1"
        assert program.get().startswith("good ")
        program.process.terminate()
        assert heard() == "STOPPING=1"


@pytest.mark.parametrize("path", ["absent", "@absent"])
def test_a_socket_of_systemd_that_is_not_there_is_a_warning(directory: Path, path: str) -> None:
    with running(directory, "good:app", "--bind", "127.0.0.1:0", NOTIFY_SOCKET=path) as program:
        assert program.get().startswith("good ")
        assert program.end(signal.SIGTERM) == 0
        assert re.search(r"\[WARNING\] cannot tell systemd READY=1: ", program.err)


def test_a_message_that_systemd_does_not_take_is_a_warning(directory: Path) -> None:
    path = str(directory / "notify")
    with (
        notified(path),
        full(path),
        running(directory, "good:app", "--bind", "127.0.0.1:0", NOTIFY_SOCKET=path) as program,
    ):
        wait_for(lambda: "[WARNING] cannot tell systemd READY=1: timed out" in program.err, "warning")
        assert program.get().startswith("good ")


def test_a_signal_while_systemd_takes_nothing_ends_the_service_in_order(directory: Path) -> None:
    path, bind = str(directory / "notify"), directory / "server.sock"
    with (
        notified(path),
        full(path),
        running(directory, "good:app", "--bind", f"unix:{bind}", NOTIFY_SOCKET=path) as program,
    ):
        program.address()
        assert program.end(signal.SIGTERM) == 0
        assert " stopping\n" in program.err
        assert not bind.exists()


@contextmanager
def full(path: str) -> Iterator[None]:
    """Fill the queue of a NOTIFY_SOCKET, of which nothing is read."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        with pytest.raises(OSError):
            while True:
                sock.sendto(b"", path)
        yield
