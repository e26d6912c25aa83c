"""WebSockets used from other OS threads than the hub's: in real servers, and where hubs end or stand still."""

from __future__ import annotations

import contextvars
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import get_hub
from gevent._hub_local import get_hub_if_exists
from websockets.exceptions import ConnectionClosed

import geventws
from geventws import threads
from geventws.connection import Close, Ping
from geventws.websocket import WebSocket

from .crowd import page
from .pairs import Opener, hold_hub, pong_frame, until
from .raw import BINARY, CLOSE, PING, TEXT, Raw, request
from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, serve, wait_for
from .test_stopping import closing

KINDS = ["thread", "pool", "executor", "hub"]
HOMES = [(front_end, kind) for front_end in FRONT_ENDS for kind in KINDS] + [
    ("program", kind) for kind in [*KINDS, "plain"]
]

slow = pytest.mark.slow  # it starts servers


def each(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with each kind of thread, on each server."""
    tested: Callable[..., None] = slow(pytest.mark.parametrize(("front_end", "kind"), HOMES)(test))
    return tested


@contextmanager
def serving(directory: Path, front_end: str) -> Iterator[Server]:
    """Serve the app of threads: with a front end, which patches, or as a program of its own, which does not."""
    if front_end != "program":
        with serve("tests.apps_threads:app", directory, front_end=front_end) as server:
            yield server
        return
    command = [sys.executable, "-m", "tests.apps_threads"]
    env = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    server = Server(command, "127.0.0.1:0", None, directory / "log", env)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    with ExitStack() as stack:
        yield {
            front_end: stack.enter_context(serving(tmp_path_factory.mktemp(front_end), front_end))
            for front_end in (*FRONT_ENDS, "program")
        }


def left(server: Server) -> dict[str, Any]:
    """Return what threads do, and how many greenlets there are."""
    found: dict[str, Any] = json.loads(page(server, "/left"))
    return found


# In real servers


@slow
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_frame_of_compat_is_sent_on_the_hub(tmp_path: Path, front_end: str) -> None:
    env = {"GEVENTWS_COMPAT": "1"}  # in a process of its own, as compat changes all handlers of one
    with (
        serve("tests.apps_threads:app", tmp_path, front_end=front_end, env=env) as server,
        Raw(server, request("/thread/frame")) as raw,
    ):
        raw.head()
        assert raw.frame() == (PING, b"are you there")


@each
def test_thread_does_all_from_the_handshake_on(servers: dict[str, Server], front_end: str, kind: str) -> None:
    server = servers[front_end]
    ends = server.log.count("ended with 1000")
    with server.connect(f"/{kind}/echo") as ws:
        for message in ("hello", b"\x00", "é" * 100_000):
            ws.send(message)
            assert ws.recv(DEADLINE) == message
        for number in range(100):
            ws.send(str(number))
        assert [ws.recv(DEADLINE) for _ in range(100)] == [str(number) for number in range(100)]
    wait_for(lambda: server.log.count("ended with 1000") > ends, "end of the thread")


@each
def test_every_call_does_the_same_in_a_thread(servers: dict[str, Server], front_end: str, kind: str) -> None:
    server = servers[front_end]
    with server.connect(f"/{kind}/calls", subprotocols=["v1", "v2"]) as ws:
        assert ws.recv(DEADLINE) == "ready"
        ws.send('{"text":"\\ud83d"}')
        assert ws.recv(DEADLINE) == '{"text":"\\ud83d"}'
        found = json.loads(ws.recv(DEADLINE))
        assert (found["path"], found["closed"], found["subprotocol"]) == (f"/{kind}/calls", False, "v2")
        assert found["latency"] is True
        for name, line, error in (
            ("timeout", "ws.receive(timeout=0.01)", "no message within 0.01 s"),
            ("type", "ws.send(1)", "TypeError"),
        ):
            assert line in found[name]
            assert error in found[name].splitlines()[-1]
        assert closing(ws) == (4001, "bye")


@each
def test_thread_waits_for_a_slow_reader(servers: dict[str, Server], front_end: str, kind: str) -> None:
    with servers[front_end].connect(f"/{kind}/large/20", max_size=None, max_queue=1) as ws:
        for number in range(20):
            assert ws.recv(DEADLINE) == bytes([number]) * (1 << 20)


@slow
@pytest.mark.parametrize(
    ("front_end", "kind"), [*HOMES, *((front_end, "callback") for front_end in (*FRONT_ENDS, "program"))]
)
def test_post_of_a_thread_tells_whether_it_was_queued(servers: dict[str, Server], front_end: str, kind: str) -> None:
    server = servers[front_end]
    with Raw(server, request(f"/{kind}/post")) as raw:
        raw.head()
        told = wait_for(lambda: re.search(rf"posted /{kind}/post (\d+) of (\d+)", server.log), "end of the thread")
        assert raw.frame() == (TEXT, b"hello")
        taken = 1
        while (frame := raw.frame())[0] == BINARY:
            assert frame[1] == bytes(1 << 18)
            taken += 1
        assert frame[0] == CLOSE
        assert (int(told[1]), int(told[2])) == (taken, taken + 2)  # False for too much, and behind the close


@each
def test_view_that_ends_ends_the_sends_of_a_thread(servers: dict[str, Server], front_end: str, kind: str) -> None:
    server = servers[front_end]
    ends = server.log.count("flood ends")
    with server.connect(f"/{kind}/flood", max_size=None) as ws:
        ws.recv(DEADLINE)
        ws.send("enough")
        with suppress(ConnectionClosed):
            while True:
                ws.recv(DEADLINE)
    wait_for(lambda: server.log.count("flood ends") > ends, "end of the thread")


@each
def test_client_that_vanishes_ends_the_thread(servers: dict[str, Server], front_end: str, kind: str) -> None:
    server = servers[front_end]
    ends = server.log.count("thread got None, 1006")
    with server.connect(f"/{kind}/waits") as ws:
        assert ws.recv(DEADLINE) == "ready"
        ws.socket.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: server.log.count("thread got None, 1006") > ends, "end of the thread")


@each
def test_kill_of_the_view_ends_the_thread(servers: dict[str, Server], front_end: str, kind: str) -> None:
    server = servers[front_end]
    ends = server.log.count("thread got None, 1001")
    with server.connect(f"/{kind}/waits") as ws:
        assert ws.recv(DEADLINE) == "ready"
        page(server, "/kill-views")
        assert closing(ws) == (1001, "")
    wait_for(lambda: server.log.count("thread got None, 1001") > ends, "end of the thread")


@slow
@pytest.mark.parametrize("front_end", [*FRONT_ENDS, "program"])
def test_stop_waits_for_no_thread(tmp_path: Path, front_end: str) -> None:
    with serving(tmp_path, front_end) as server, ExitStack() as stack:
        kinds = [kind for home, kind in HOMES if home == front_end]
        clients = [stack.enter_context(server.connect(f"/{kind}/waits")) for kind in kinds]
        floods = [stack.enter_context(server.connect(f"/{kind}/flood", max_size=None)) for kind in kinds]
        for ws in [*clients, *floods]:
            ws.recv(DEADLINE)
        server.process.send_signal(signal.SIGTERM)
        for ws in clients:
            assert closing(ws) == (1012, "server restarting")
        for ws in floods:
            with suppress(ConnectionClosed):
                while True:
                    ws.recv(DEADLINE)
        wait_for(lambda: server.process.poll() is not None, "end of the server")
        assert server.process.returncode == 0
        assert "SIGKILL" not in server.log


@pytest.mark.flaky(reruns=2)  # the client's threads may end in "release unlocked lock" of threading itself
@each
def test_threads_send_to_all_while_clients_come_and_go(servers: dict[str, Server], front_end: str, kind: str) -> None:
    """What they leave behind is counted: a hub or a greenlet for each call would be."""
    server = servers[front_end]
    threads, count = 10, 50
    done = False

    def talk() -> None:
        assert json.loads(page(server, f"/{kind}/broadcast/{threads}/{count}")) == [None] * threads

    with server.connect("/member"):  # the log's greenlet begins
        pass
    for _ in range(3):  # to nobody: what the threads themselves leave behind
        talk()
    most = left(server)["greenlets"] + 20  # for the threads that an executor may begin yet; a call has none of its own

    def come_and_go() -> None:
        while not done:
            with server.connect("/member", max_queue=None) as ws:
                ws.send("hello")
                ws.recv(DEADLINE)

    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        stay = [stack.enter_context(server.connect("/member", max_queue=None)) for _ in range(5)]
        for ws in stay:
            ws.send("in")
            assert ws.recv(DEADLINE) == "in"
        visitors = [pool.submit(come_and_go) for _ in range(4)]
        try:
            talk()
        finally:
            done = True
        for visitor in visitors:
            visitor.result()
        for ws in stay:
            got = [str(ws.recv(DEADLINE)) for _ in range(threads * count)]
            for number in range(threads):  # each thread's in its order
                of_one = [line for line in got if line.split()[0] == str(number)]
                assert of_one == [f"{number} {line}" for line in range(count)]
    wait_for(lambda: left(server)["greenlets"] <= most, "end of all greenlets")
    assert left(server)["running"] == []
    assert "Traceback" not in server.log


# Where hubs end or stand still


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a hub given up after a fraction of a second."""
    monkeypatch.setattr(threads, "LOOK", 0.05)
    monkeypatch.setattr(threads, "PATIENCE", 6)


def outcome(function: Callable[..., Any], *arguments: Any) -> Callable[[], list[Any]]:
    """Start function in a thread; return a function that gives a list of what it returned or raised, once it has."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(function(*arguments))
        except BaseException as exc:
            found.append(exc)

    threading.Thread(target=run, daemon=True).start()
    return lambda: found


def of_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what function returned or raised in a thread, while this hub runs."""
    return until(outcome(function, *arguments), "end of the thread")[0]


def test_calling_thread_gets_no_hub(opened: Opener) -> None:
    ws, peer = opened()
    peer.send("first", "second")

    def talk() -> Any:
        got = [ws.receive(), ws.receive()]
        ws.send("answer")
        return got, get_hub_if_exists()

    assert of_thread(talk) == (["first", "second"], None)
    assert peer.receive() == "answer"


def test_each_call_of_a_thread_is_done_on_the_hub(opened: Opener) -> None:
    ws, peer = opened(accept=False)

    def talk() -> tuple[bool, float]:
        ws.accept(headers=[("X-By", "thread")])
        posted, took = ws.post("posted"), ws.ping(5)
        ws.close(4000, "enough")
        return posted, took

    done = outcome(talk)
    assert "X-By: thread" in peer.open()
    assert peer.receive() == "posted"
    ping = peer.receive()
    assert isinstance(ping, Ping)
    peer.sock.sendall(pong_frame(ping.payload))
    assert peer.receive() == Close(4000, "enough")
    posted, took = until(done, "end of the thread")[0]
    assert posted and 0 < took == ws.latency


def test_threads_that_are_first_together_make_one_handshake(opened: Opener) -> None:
    ws, peer = opened(accept=False)
    asked = [outcome(lambda: ws.closed) for _ in range(4)]
    hold_hub(0.1)  # until all have found no handshake
    assert [until(ask, "answer") for ask in asked] == [[False]] * 4
    assert peer.open().startswith("HTTP/1.1 101")


def test_error_shows_the_lines_of_both_threads(opened: Opener) -> None:
    ws, _ = opened()
    error = of_thread(ws.receive, 0.01)
    assert isinstance(error, TimeoutError)
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names[0] == "run"
    assert "_wait_within" in names


def test_two_threads_cannot_both_wait_for_messages(opened: Opener) -> None:
    ws, peer = opened()
    first = outcome(ws.receive)
    until(lambda: ws.session.reader, "wait of the first")
    assert "only one can" in str(of_thread(ws.receive))
    peer.send("for the first")
    assert until(first, "message") == ["for the first"]


def test_before_wait_sees_the_context_of_the_thread(opened: Opener) -> None:
    ws, peer = opened()
    who = contextvars.ContextVar("who", default="nobody")
    seen = []
    ws.before_wait = lambda: seen.append(who.get())

    def talk() -> Any:
        who.set("the thread")
        return ws.receive()

    waiting = outcome(talk)
    until(lambda: ws.session.reader, "wait")
    peer.send("hello")
    assert until(waiting, "message") == ["hello"]
    assert seen == ["the thread"]


def test_method_of_a_subclass_is_called_once(opened: Opener) -> None:
    ws, peer = opened()
    calls = []

    class Counted(WebSocket):
        __slots__ = ()

        def send(self, *args: Any) -> None:
            calls.append(args)
            super().send(*args)

    ws.__class__ = Counted
    assert of_thread(ws.send, "once") is None
    assert peer.receive() == "once"
    assert calls == [("once",)]


@pytest.mark.parametrize("end", ["thread", "destroy"])
def test_hub_that_ends_is_an_error_for_all_who_call_and_wait(end: str) -> None:
    command = [sys.executable, "-m", "tests.hub_that_ends", end]
    program = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=True)
    lines = program.stdout.splitlines()
    calls = [f"{name} {where}" for name in ("receive", "send", "close") for where in ("here", "in a new thread")]
    assert [line.partition(" the hub of this WebSocket ")[0] for line in lines] == ["waiting", *calls]
    assert all(re.search("has ended|is destroyed", line) for line in lines)
    assert program.stderr == ""


def test_websocket_that_ended_before_its_hub_has_ended_as_any(looks: None) -> None:
    made: list[WebSocket] = []

    def other_thread() -> None:
        ws, peer = Opener(("", "", None))()
        peer.sock.close()
        until(lambda: ws.has_ended, "end of the WebSocket")
        made.append(ws)
        get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join(DEADLINE)
    assert made[0].post("nobody is there") is False
    with pytest.raises(geventws.ConnectionClosed, match="1006"):
        made[0].receive()


def test_hub_that_stands_still_is_an_error_and_nothing_is_sent_late(opened: Opener, looks: None) -> None:
    ws, peer = opened()
    sending = outcome(ws.send, "too late")
    end = monotonic() + DEADLINE
    while not sending():  # as a view does that waits for the thread in Thread.join()
        hold_hub(0.01)
        assert monotonic() < end
    assert "has not run for" in str(sending()[0])
    assert of_thread(ws.send, "in time") is None
    assert peer.receive() == "in time"


def test_hub_that_computes_for_a_while_is_waited_for(opened: Opener, looks: None) -> None:
    ws, peer = opened()
    sending = outcome(ws.send, "patience")
    hold_hub(threads.LOOK * 3)
    assert until(sending, "end of the send") == [None]
    assert peer.receive() == "patience"


def test_thread_waits_for_as_long_as_others_are_answered(opened: Opener, looks: None) -> None:
    ws, peer = opened()
    waiting = outcome(ws.receive)
    until(lambda: ws.session.reader, "wait")
    for _ in range(2 * threads.PATIENCE):
        assert of_thread(lambda: ws.closed) is False
        gevent.sleep(threads.LOOK)
    assert not waiting()
    peer.send("late")
    assert until(waiting, "message") == ["late"]


def test_interrupted_caller_waits_no_more_in_receive(opened: Opener) -> None:
    ws, peer = opened()

    def talk() -> Any:
        with gevent.Timeout(0.05, False):
            return ws.receive()
        return "interrupted"

    assert of_thread(lambda: gevent.spawn(talk).get()) == "interrupted"
    until(lambda: ws.session.reader is None, "end of receive()")
    peer.send("for another")
    assert of_thread(ws.receive) == "for another"


def test_program_ends_although_threads_still_send(tmp_path: Path) -> None:
    """The hub runs no more, threads that are no daemons call, and Python waits for them."""
    program = tmp_path / "program.py"
    program.write_text(ENDS)
    server = Server(
        [sys.executable, str(program)],
        "127.0.0.1:0",
        None,
        tmp_path / "log",
        {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    try:
        # By hand: a client of websockets that reads no more waits for the end of what has ended already.
        with Raw(server, request("/")) as client:
            client.head()
            client.frame()
            os.kill(server.process.pid, signal.SIGTERM)
            wait_for(lambda: server.process.poll() is not None, "end of the program")
        server.wait_for_log("thread ends: HubEnded")
    finally:
        server.stop(signal.SIGKILL)


ENDS = """
import signal, sys, threading
import gevent
import geventws

def app(environ, start_response):
    ws = environ["wsgi.websocket"]
    def talk():
        try:
            while True:
                ws.send("tick")
        except Exception as exc:
            print("thread ends:", type(exc).__name__, flush=True)
    threading.Thread(target=talk).start()
    ws.receive()

server = geventws.WebSocketServer(("127.0.0.1", 0), app, log=None)
server.start()
gevent.signal_handler(signal.SIGTERM, sys.exit)
print(f"script serves itself on http://127.0.0.1:{server.server_port}", flush=True)
gevent.sleep(600)  # no serve_forever(), which stops the server in the end
"""
