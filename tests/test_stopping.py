"""The end of a server: every signal, with peers that answer, peers that do not, and crowds."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import ssl
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from contextlib import closing as ending
from pathlib import Path

import pytest
from h2.connection import H2Connection
from h2.events import StreamEnded
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from .crowd import CLOSE, Crowd, allow_descriptors, frame, page
from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, serve, upgrade_request, wait_for

pytestmark = pytest.mark.slow  # it starts servers or installs packages

APP = "tests.apps_stopping:app"
SIGNALS = [
    ("worker", signal.SIGTERM),
    ("worker", signal.SIGINT),
    ("worker", signal.SIGQUIT),
    ("server", signal.SIGTERM),
    ("server", signal.SIGINT),
]
# The worker means to be gone 2 seconds before gunicorn kills it; the server gives twice close_timeout.
SHORT = {"worker": ["--graceful-timeout", "4"], "server": ["--close-timeout", "1"]}
# Far longer than DEADLINE: who leaves before that did not wait for it.
LONG = {"worker": ["--graceful-timeout", "300"], "server": ["--close-timeout", "150"]}


def closing(ws: ClientConnection) -> tuple[int, str] | None:
    """Return code and reason of the Close that ends this connection, None if it ends without."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            ws.recv(DEADLINE)
    received = caught.value.rcvd
    return (int(received.code), received.reason) if received else None


def workers(server: Server) -> list[int]:
    """Return the process ids of gunicorn's workers, in the order of their start."""
    return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", server.log)]


def assert_left_by_themselves(server: Server) -> None:
    """No worker was killed: gunicorn's parting words of a worker are missing after SIGKILL."""
    log = server.log
    for pid in workers(server):
        assert f"Worker exiting (pid: {pid})" in log
    assert "SIGKILL" not in log
    assert "Traceback" not in log


def exit_status(server: Server) -> int:
    """Wait for the end of a server that was told to stop, and return its exit status."""
    wait_for(lambda: server.process.poll() is not None, "end of the server")
    return server.process.returncode


def is_refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def kept_alive(server: Server) -> http.client.HTTPConnection:
    """Return a connection on which one page was served already."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = server.socket()
    connection.request("GET", "/")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"hello")
    return connection


@pytest.mark.parametrize(("front_end", "number"), SIGNALS)
def test_live_connections_get_1012_and_the_server_leaves(tmp_path: Path, front_end: str, number: int) -> None:
    with serve(APP, tmp_path, front_end=front_end, arguments=LONG[front_end]) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect(path)) for path in ("/echo", "/environ", "/echo")]
        for ws in clients:
            ws.send("are you there")
            assert ws.recv(DEADLINE) == "are you there"
        server.process.send_signal(number)
        assert [closing(ws) for ws in clients] == [(1012, "server restarting")] * 3
        assert exit_status(server) == 0
        with pytest.raises(ConnectionRefusedError):
            server.socket()
        assert_left_by_themselves(server)


@pytest.mark.parametrize("guest", ["nobody", "a page that was served", "a page that hangs", "a WebSocket"])
def test_ctrl_c_in_gunicorns_terminal_shows_no_traceback(tmp_path: Path, guest: str) -> None:
    conf = tmp_path / "conf.py"
    # A hook that lasts until the worker has seen that it is to end; without one that is a matter of 0.1 s.
    conf.write_text(
        "import time\n"
        "def post_worker_init(worker):\n    print('ready for signals', flush=True)\n"
        "def worker_int(worker):\n    time.sleep(1.5)\n    print('the hook has run', flush=True)\n"
    )
    arguments = ["--workers", "2", "--config", str(conf)]
    with serve(APP, tmp_path, front_end="worker", arguments=arguments) as server, ExitStack() as stack:
        if guest == "a page that was served":
            stack.enter_context(ending(kept_alive(server)))
        elif guest == "a page that hangs":
            stack.enter_context(server.socket()).sendall(b"GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
            server.wait_for_log("hanging page begins")
        elif guest == "a WebSocket":
            stack.enter_context(server.connect("/echo"))
        wait_for(lambda: server.log.count("ready for signals") == 2, "start of both workers")
        for pid in (server.process.pid, *workers(server)):
            os.kill(pid, signal.SIGINT)
        assert exit_status(server) == 0
        assert_left_by_themselves(server)
        assert "SystemExit" not in server.log
        assert server.log.count("the hook has run") == 2


@pytest.mark.parametrize(("front_end", "number"), SIGNALS)
def test_silent_peers_and_sleeping_views_do_not_hold_it_up(tmp_path: Path, front_end: str, number: int) -> None:
    with serve(APP, tmp_path, front_end=front_end, arguments=SHORT[front_end]) as server:
        with server.socket() as unused, server.socket() as stalled, Crowd(server) as crowd:
            unused.sendall(upgrade_request("/idle-unused"))
            stalled.sendall(upgrade_request("/flood"))  # never reads: outbox and the kernel's buffers fill up
            crowd.join("/echo", 3, answers_close=False)
            crowd.join("/sleep", 2, answers_close=False)
            crowd.join("/sleep", 2)
            server.process.send_signal(number)
            crowd.wait(lambda: all(member.ended_at for member in crowd.members), "end of all")
            assert [member.close_code for member in crowd.members] == [1012] * 7
            assert exit_status(server) == 0
            assert_ends(unused)
            assert_ends(stalled)
        assert_left_by_themselves(server)


def assert_ends(sock: socket.socket) -> None:
    """Read what was sent, to the end of the stream, its reset, or OpenSSL's alert for an end inside a record."""
    with suppress(ConnectionResetError, ssl.SSLError):
        while sock.recv(1 << 20):
            pass


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_handshake_that_its_view_never_decides_is_answered_at_the_end(tmp_path: Path, front_end: str) -> None:
    env = {"GEVENTWS_ACCEPT_AFTER": "off"}
    with serve(APP, tmp_path, front_end=front_end, arguments=SHORT[front_end], env=env) as server:
        with server.socket() as undecided, server.connect("/echo") as ws:
            undecided.sendall(upgrade_request("/idle-unused"))
            ws.send("are you there")
            assert ws.recv(DEADLINE) == "are you there"
            server.process.send_signal(signal.SIGTERM)
            assert closing(ws) == (1012, "server restarting")
            assert undecided.recv(100).startswith(b"HTTP/1.1 500 ")
        assert exit_status(server) == 0
        assert re.search('"GET /idle-unused HTTP/1.1" 500 ', server.log)
        assert_left_by_themselves(server)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_server_leaves_as_soon_as_the_last_peer_has_answered(tmp_path: Path, front_end: str) -> None:
    arguments, env = LONG[front_end], {"GEVENTWS_CLOSE_TIMEOUT": "150"}
    with serve(APP, tmp_path, front_end=front_end, arguments=arguments, env=env) as server, Crowd(server) as crowd:
        first, last = crowd.join("/echo", 2, answers_close=False)
        server.process.send_signal(signal.SIGTERM)
        crowd.wait(lambda: all(member.closed_at for member in crowd.members), "Close to each")
        first.send(frame(CLOSE, b"\x03\xf4"))
        crowd.wait(lambda: first.ended_at > 0, "end of the first")
        assert server.process.poll() is None
        assert not last.ended_at
        last.send(frame(CLOSE, b"\x03\xf4"))
        crowd.wait(lambda: last.ended_at > 0, "end of the last")
        assert exit_status(server) == 0
        assert_left_by_themselves(server)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_new_upgrades_get_503_while_it_stops(tmp_path: Path, front_end: str) -> None:
    arguments = {"worker": ["--graceful-timeout", "20", "--keep-alive", "30"], "server": ["--close-timeout", "10"]}
    with (
        serve(APP, tmp_path, front_end=front_end, arguments=arguments[front_end]) as server,
        ending(kept_alive(server)) as connection,
        server.socket() as begun,
        Crowd(server) as crowd,
    ):
        head, tail = upgrade_request("/echo").split(b"\r\n", 1)
        begun.sendall(head + b"\r\n")
        (silent,) = crowd.join("/echo", answers_close=False)
        server.process.send_signal(signal.SIGTERM)
        crowd.wait(lambda: silent.closed_at > 0, "Close")
        assert_ends(connection.sock)  # as no request has begun on it
        begun.sendall(tail)
        answer = b""
        while data := begun.recv(65536):
            answer += data
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        for line in (b"Retry-After: 1", b"Connection: close"):
            assert line + b"\r\n" in answer
        assert b"stopping" in answer
        with pytest.raises(ConnectionRefusedError):
            server.socket()
        assert not silent.ended_at


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_handshake_completed_during_the_stop_gets_1012_too(tmp_path: Path, front_end: str) -> None:
    with serve(APP, tmp_path, front_end=front_end) as server, Crowd(server) as crowd:
        (other,) = crowd.join("/echo")
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(server.connect, "/late")
            server.wait_for_log("late view begins")
            server.process.send_signal(signal.SIGTERM)
            crowd.wait(lambda: other.ended_at > 0, "end of the other")
            with late.result() as ws:
                assert closing(ws) == (1012, "server restarting")
        assert exit_status(server) == 0
        assert_left_by_themselves(server)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_page_under_way_is_still_answered(tmp_path: Path, front_end: str) -> None:
    with serve(APP, tmp_path, front_end=front_end) as server:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = server.socket()
        connection.request("GET", "/slow")
        server.wait_for_log("slow page begins")
        server.process.send_signal(signal.SIGTERM)
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"slow page")
        connection.close()
        assert exit_status(server) == 0


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_connections_that_wait_for_a_request_do_not_hold_it_up(
    tmp_path: Path, front_end: str, tls: bool, certificate: tuple[str, str, ssl.SSLContext]
) -> None:
    arguments = {"worker": ["--graceful-timeout", "300", "--keep-alive", "300"], "server": ["--close-timeout", "150"]}
    with (
        serve(
            APP, tmp_path, front_end=front_end, arguments=arguments[front_end], certificate=certificate if tls else None
        ) as server,
        ending(kept_alive(server)) as idle,
        ending(kept_alive(server)) as busy,
        server.socket() as silent,
        server.connect("/echo") as ws,
    ):
        busy.request("GET", "/slow")
        server.wait_for_log("slow page begins")
        server.process.send_signal(signal.SIGTERM)
        assert closing(ws) == (1012, "server restarting")
        assert_ends(idle.sock)
        assert_ends(silent)
        assert busy.getresponse().read() == b"slow page"  # and, as it is idle now, ends too
        assert exit_status(server) == 0
        assert_left_by_themselves(server)


def test_idle_http2_connection_does_not_hold_a_worker_up(
    tmp_path: Path, certificate: tuple[str, str, ssl.SSLContext]
) -> None:
    arguments = ["--graceful-timeout", "300", "--keep-alive", "300", "--http-protocols", "h2,h1"]
    with serve(APP, tmp_path, front_end="worker", arguments=arguments, certificate=certificate) as server:
        context = ssl.create_default_context(cafile=certificate[0])
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(socket.create_connection(("127.0.0.1", server.port), DEADLINE)) as sock:
            assert sock.selected_alpn_protocol() == "h2"
            client = H2Connection()
            client.initiate_connection()
            headers = [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "localhost")]
            client.send_headers(1, headers, end_stream=True)
            sock.sendall(client.data_to_send())
            events: list[object] = []
            while not any(isinstance(event, StreamEnded) for event in events):
                events += client.receive_data(sock.recv(65536))
            sock.sendall(client.data_to_send())
            server.process.send_signal(signal.SIGTERM)
            assert_ends(sock)
        assert exit_status(server) == 0
        assert_left_by_themselves(server)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_view_that_waits_for_something_else_is_killed_soon_after_its_socket_is_closed(
    tmp_path: Path, front_end: str
) -> None:
    arguments = {"worker": ["--graceful-timeout", "300"], "server": ["--close-timeout", "150"]}
    with serve(APP, tmp_path, front_end=front_end, arguments=arguments[front_end]) as server:
        with server.connect("/parked") as ws:
            server.process.send_signal(signal.SIGTERM)
            assert closing(ws) == (1012, "server restarting")
        assert exit_status(server) == 0
        assert "parked view cleans up" in server.log
        assert_left_by_themselves(server)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_view_that_knows_of_the_end_has_the_whole_grace_for_its_cleanup(tmp_path: Path, front_end: str) -> None:
    arguments = {"worker": ["--graceful-timeout", "60", "--timeout", "2"], "server": ["--close-timeout", "30"]}
    with serve(APP, tmp_path, front_end=front_end, arguments=arguments[front_end]) as server:
        with server.connect("/cleans-up/6.0") as ws:
            server.process.send_signal(signal.SIGTERM)
            assert closing(ws) == (1012, "server restarting")
        assert exit_status(server) == 0
        assert "cleanup is done" in server.log
        assert_left_by_themselves(server)


def test_connection_still_in_its_tls_handshake_is_served_or_ended_in_silence(
    tmp_path: Path, certificate: tuple[str, str, ssl.SSLContext]
) -> None:
    with serve(APP, tmp_path, front_end="worker", certificate=certificate) as server:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = certificate[2].wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(("127.0.0.1", server.port), DEADLINE) as sock:
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(65536))  # so it is accepted, and waits for the rest
            server.process.terminate()
            wait_for(lambda: is_refused(server.port), "end of the listener")
            with suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            tls.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            sock.sendall(outgoing.read())
            with suppress(ConnectionResetError):
                while sock.recv(65536):
                    pass
        assert exit_status(server) == 0
        assert_left_by_themselves(server)


@pytest.mark.parametrize("page", ["/", "/hang"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_idle_or_hanging_http_does_not_get_it_killed(tmp_path: Path, front_end: str, page: str) -> None:
    arguments = [*SHORT[front_end], *(["--keep-alive", "60"] if front_end == "worker" else [])]
    with serve(APP, tmp_path, front_end=front_end, arguments=arguments) as server:
        connection = kept_alive(server)
        if page == "/hang":
            connection.request("GET", page)
            server.wait_for_log("hanging page begins")
        assert server.stop() == 0
        connection.close()
        assert_left_by_themselves(server)


# Crowds


def test_closes_are_spread_over_time(tmp_path: Path) -> None:
    allow_descriptors(6000)
    count = 2500
    with serve(APP, tmp_path, front_end="worker") as server, Crowd(server) as crowd:
        crowd.join("/echo", count)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        crowd.wait(lambda: all(member.ended_at for member in crowd.members), "end of all")
        assert {member.close_code for member in crowd.members} == {1012}
        for seconds in (0.5, 1, 1.5, 2):  # a machine that is held up lets a Close come later, never sooner
            assert sum(member.closed_at < begun + seconds for member in crowd.members) <= 1000 * seconds + 100
        assert exit_status(server) == 0
        assert_left_by_themselves(server)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_more_closes_a_second_where_the_time_is_short(tmp_path: Path, front_end: str) -> None:
    allow_descriptors(10000)
    count = 2500  # a thousand a second would be too few
    with serve(APP, tmp_path, front_end=front_end, arguments=SHORT[front_end]) as server:
        with Crowd(server) as crowd:
            crowd.join("/echo", count)
            server.process.send_signal(signal.SIGTERM)
            crowd.wait(lambda: all(member.ended_at for member in crowd.members), "end of all")
            assert Counter(member.close_code for member in crowd.members) == {1012: count}
        assert exit_status(server) == 0
        assert_left_by_themselves(server)


# gunicorn's other ends of a worker


def test_reload_moves_the_site_to_a_new_worker(tmp_path: Path) -> None:
    with serve(APP, tmp_path, front_end="worker") as server:
        with server.connect("/pid-echo") as ws, Crowd(server) as crowd:
            crowd.join("/echo", answers_close=False)
            (old,) = workers(server)
            assert ws.recv(DEADLINE) == str(old)
            server.process.send_signal(signal.SIGHUP)
            assert closing(ws) == (1012, "server restarting")
            new = wait_for(lambda: [pid for pid in workers(server) if pid != old], "a new worker")[0]
            # The silent peer still holds the old worker, and nobody waits for that.
            assert f"Worker exiting (pid: {old})" not in server.log
            wait_for(lambda: page(server, "/pid") == str(new), "an answer of the new worker")
            with server.connect("/pid-echo") as again:
                assert again.recv(DEADLINE) == str(new)
                again.send("still here")
                assert again.recv(DEADLINE) == "still here"
        server.wait_for_log(rf"Worker exiting \(pid: {old}\)")
        assert server.stop() == 0
        assert_left_by_themselves(server)


def test_max_requests_ends_a_worker_with_open_websockets(tmp_path: Path) -> None:
    with serve(APP, tmp_path, front_end="worker", arguments=["--max-requests", "1"]) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect("/pid-echo")) for _ in range(2)]
        (old,) = workers(server)
        assert [ws.recv(DEADLINE) for ws in clients] == [str(old)] * 2
        assert page(server, "/pid") == str(old)
        assert [closing(ws) for ws in clients] == [(1012, "server restarting")] * 2
        with server.connect("/pid-echo") as ws:  # waits in the listener's queue for the new worker
            assert ws.recv(DEADLINE) != str(old)
        assert server.stop() == 0
        assert_left_by_themselves(server)


def test_max_requests_counts_a_websocket_when_it_ends(tmp_path: Path) -> None:
    with serve(APP, tmp_path, front_end="worker", arguments=["--max-requests", "3"]) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect("/pid-echo")) for _ in range(6)]
        (old,) = workers(server)
        assert [ws.recv(DEADLINE) for ws in clients] == [str(old)] * 6
        for ws in clients[:3]:
            ws.close()
        assert [closing(ws) for ws in clients[3:]] == [(1012, "server restarting")] * 3
        # A crowd larger than max_requests that comes back does not make the next worker leave.
        clients = [stack.enter_context(server.connect("/pid-echo")) for _ in range(6)]
        assert len({ws.recv(DEADLINE) for ws in clients} - {str(old)}) == 1
        for ws in clients:
            ws.send("still here")
            assert ws.recv(DEADLINE) == "still here"
        assert len(workers(server)) == 2


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, (1012, "server restarting")), (signal.SIGKILL, None)]
)
def test_other_worker_of_two_goes_on(tmp_path: Path, number: int, expected: tuple[int, str] | None) -> None:
    with serve(APP, tmp_path, front_end="worker", arguments=["-w", "2"]) as server, ExitStack() as stack:
        by_worker: dict[int, ClientConnection] = {}

        def connect_to_both() -> bool:
            ws = stack.enter_context(server.connect("/pid-echo"))
            by_worker.setdefault(int(ws.recv(DEADLINE)), ws)
            return len(by_worker) >= 2

        wait_for(connect_to_both, "a WebSocket on each worker")
        victim, other = by_worker
        os.kill(victim, number)
        assert closing(by_worker[victim]) == expected
        by_worker[other].send("still here")
        assert by_worker[other].recv(DEADLINE) == "still here"
        # A signal that comes before a worker has its handlers is lost: the new one must be up.
        wait_for(lambda: connect_to_both() and len(by_worker) == 3, "a WebSocket on a worker in the victim's place")
        assert server.stop() == 0
        assert "Traceback" not in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_before_gunicorn_sets_its_handlers_ends_the_worker(tmp_path: Path, number: int) -> None:
    with serve(APP, tmp_path, front_end="worker", arguments=["-k", "tests.slow_worker.SlowWorker"]) as server:
        server.wait_for_log("patch begins")
        assert server.stop(number) == 0
        assert_left_by_themselves(server)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_the_import_of_the_app_ends_the_worker(tmp_path: Path, number: int) -> None:
    with serve("tests.apps_slow_start:app", tmp_path, front_end="worker") as server:
        server.wait_for_log("import begins")
        assert server.stop(number) == 0
        assert_left_by_themselves(server)


# Recipes and options


@pytest.mark.parametrize("count", ["1", "2"])
def test_preload_with_the_patch_in_the_configuration(tmp_path: Path, count: str) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("from gevent import monkey\n\nmonkey.patch_all()\n")
    arguments = ["-c", str(tmp_path / "gunicorn.conf.py"), "--preload", "-w", count]
    with serve(APP, tmp_path, front_end="worker", arguments=arguments) as server, ExitStack() as stack:
        wait_for(lambda: len(workers(server)) == int(count), "start of all workers")
        clients = [stack.enter_context(server.connect("/pid-echo")) for _ in range(6)]
        for ws in clients:
            assert int(ws.recv(DEADLINE)) in workers(server)
            ws.send("preloaded")
            assert ws.recv(DEADLINE) == "preloaded"
        assert page(server) == "hello"
        server.process.send_signal(signal.SIGTERM)
        assert [closing(ws) for ws in clients] == [(1012, "server restarting")] * 6
        assert exit_status(server) == 0
        assert_left_by_themselves(server)
        assert "Warning" not in server.log


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_what_is_said_at_the_stop_is_an_option_and_a_unix_socket_is_removed(tmp_path: Path, front_end: str) -> None:
    env = {"GEVENTWS_SHUTDOWN_CODE": "1001", "GEVENTWS_SHUTDOWN_REASON": "back at noon"}
    with serve(APP, tmp_path, front_end=front_end, unix=True, env=env) as server, server.connect("/echo") as ws:
        server.process.send_signal(signal.SIGTERM)
        assert closing(ws) == (1001, "back at noon")
        assert exit_status(server) == 0
        assert re.search(r"INFO.* stopping: closing 1 WebSockets within 0\.0 s", server.log)
        assert not (tmp_path / "server.sock").exists()
        assert_left_by_themselves(server)


def test_stop_of_a_server_object_closes_its_websockets(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.apps_stopping"]
    server = Server(command, "127.0.0.1:0", None, tmp_path / "log", {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"})
    try:
        with server.connect("/pid-echo") as ws, server.connect("/sleep"):
            assert ws.recv(DEADLINE) == str(server.process.pid)
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert closing(ws) == (1012, "server restarting")
            with pytest.raises(ConnectionRefusedError):
                server.socket()
            assert exit_status(server) == 0
            assert time.monotonic() - begun > 1.9  # twice close_timeout, the time that the sleeping view has
        server.wait_for_log(r"serve_forever\(\) has returned")
        assert "Traceback" not in server.log
    finally:
        server.stop(signal.SIGKILL)
