"""The fast lane: what C does with a connection is what Python does, and either is right."""

from __future__ import annotations

import gc
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from typing import Any

import gevent
import pytest
from gevent import get_hub
from gevent.exceptions import BlockingSwitchOutError

from geventws import fast
from geventws.connection import Close, Connection
from geventws.errors import ConnectionClosed
from geventws.frames import encode_frame
from geventws.session import Session
from geventws.transport import Transport
from geventws.turns import Turns
from geventws.websocket import WebSocket

from . import pairs
from .differential import PythonSession, PythonTransport, kind
from .pairs import Opener, close_frame, living, masked, reset, settle, until, until_closed, usable
from .servers import ROOT, missing

IS_COMPILED = find_spec("geventws._fast") is not None
TEXT, BINARY, RSV1 = 1, 2, 0x40
HELLO = bytes.fromhex("f248cdc9c90700")  # compressed, as RFC 7692 §7.2.3.1 has it
WITHIN = 120.0  # seconds for a program that takes few
FOR_LONG = 60.0  # seconds of random cases

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
# greenlet copies stacks, behind the back of what watches over the variables on them.
CHECKS = ["-fsanitize=address,undefined", "--param", "asan-stack=0", "-fno-sanitize-recover=undefined"]


@pytest.fixture
def compiled() -> None:
    if not IS_COMPILED:
        missing("the compiled geventws._fast (Linux, and a C compiler when geventws was installed)")


@pytest.fixture(params=["C", "Python"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Either way, one after the other. Where C is not compiled or not wanted, both are Python's."""
    with kind(is_python=request.param == "Python"):
        yield


def run(*arguments: str, pure: str = "", **environ: str) -> str:
    """Run Python; return what it wrote. C is used unless pure is "1", whatever this process does."""
    environ = {**os.environ, "GEVENTWS_PURE": pure, **environ}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=WITHIN
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


# The same in C as in Python


def test_hundred_random_cases_show_no_difference(compiled: None) -> None:
    assert run("-m", "tests.differential", "--cases", "100").strip() == "100 cases, 0 differences"


def test_crowd_whose_views_read_for_each_other_shows_no_difference(compiled: None) -> None:
    assert run("-m", "tests.differential", "--cases", "60", "--size", "20").strip() == "60 cases, 0 differences"


def test_sixty_random_rooms_show_no_difference(compiled: None) -> None:
    assert run("-m", "tests.broadcasts", "--cases", "60").strip() == "60 cases, 0 differences"


@pytest.mark.parametrize("module", ["differential", "broadcasts"])
def test_difference_is_told(module: str) -> None:
    assert "unlike" in run("-c", UNLIKE, module)


UNLIKE = """
import importlib, sys
differential = importlib.import_module("tests." + sys.argv[1])
differential.outcome = lambda number, *size, is_python: [[("wire", b"unlike" if is_python else b"this")]]
print(differential.difference(1))
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Compiles the package anew, with every check that gcc has, and runs a module of tests with that."""
    gcc = shutil.which("gcc")
    if sys.platform != "linux" or gcc is None:
        missing("gcc")
    libraries = [
        subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(map(os.path.isabs, libraries)):
        missing("libasan and libubsan, which belong to gcc")

    def compile_and_run(module: str, *flags: str) -> str:
        directory = tmp_path_factory.mktemp("checked")
        for name in ("geventws", "tests"):
            # But not what clients' packages weigh.
            shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("*.so", "node_modules"))
        for name in ("_mask", "_inflate", "_fast"):
            source = directory / "geventws" / f"{name}.c"
            more = flags if name == "_fast" else ()
            options = ["-g", "-O1", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", *WARNINGS, *CHECKS, *more]
            command = [gcc, *options, str(source), "-lz", "-o", str(source.with_suffix(".abi3.so"))]
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "GEVENTWS"))}
        environ |= {
            "PYTHONPATH": str(directory),
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it has until the end
            "PYTHONMALLOC": "malloc",
        }
        program = [sys.executable, "-m", module, "--seconds", f"{FOR_LONG:g}"]
        done = subprocess.run(
            program,
            cwd=directory,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=FOR_LONG + WITHIN,
        )
        assert done.returncode == 0, done.stdout[-8000:]
        return done.stdout

    return compile_and_run


@pytest.mark.slow
def test_random_cases_show_no_difference_and_no_fault_in_memory(checked: Callable[..., str]) -> None:
    assert checked("tests.differential").strip().endswith(" cases, 0 differences")


@pytest.mark.slow
def test_random_rooms_show_no_difference_and_no_fault_in_memory(checked: Callable[..., str]) -> None:
    assert checked("tests.broadcasts").strip().endswith(" cases, 0 differences")


@pytest.mark.slow
def test_want_of_memory_anywhere_is_told_or_ends_the_connection(checked: Callable[..., str]) -> None:
    assert checked("tests.failing", "-include", "tests/failing.h").strip().endswith(" failures, 0 faults")


# Which of the two it is

SHAPE = """
import inspect
from geventws.transport import Transport
from geventws.websocket import WebSocket
for kind, names in ((Transport, ["write"]), (WebSocket, ["receive", "send", "post", "__iter__"])):
    for name in names:
        method = getattr(kind, name)
        _, *parameters = inspect.signature(method).parameters.values()  # but for self
        print(type(method).__name__, name, [(p.name, p.kind, p.default) for p in parameters], repr(method.__doc__))
"""


def test_methods_in_c_have_the_signatures_and_docstrings_of_those_in_python(compiled: None) -> None:
    in_c, in_python = run("-c", SHAPE).splitlines(), run("-c", SHAPE, pure="1").splitlines()
    assert [line.partition(" ")[2] for line in in_c] == [line.partition(" ")[2] for line in in_python]
    assert {line.partition(" ")[0] for line in in_c} == {"method_descriptor"}
    assert {line.partition(" ")[0] for line in in_python} == {"function"}


ALONE = """
from geventws import _fast
for kind in (_fast.Watcher, _fast.Poller, _fast.Messages):
    try:
        kind()
    except TypeError as exc:
        print(exc)
"""


def test_what_only_c_makes_is_made_by_nobody_else(compiled: None) -> None:
    assert run("-c", ALONE).count("cannot create 'geventws._fast.") == 3


LACKING_A_FIELD = """
import gevent
from gevent import Timeout, with_timeout
from geventws.connection import Connection
from geventws.session import Session
from geventws.transport import Transport
from geventws.websocket import WebSocket
from tests import pairs
request = pairs.Request
pairs.Request = lambda key, protocols, _: request(key, protocols, [("permessage-deflate", ())])
gevent.get_hub().exception_stream = None
hello = bytes.fromhex("f248cdc9c90700")  # RFC 7692 §7.2.3.1
def attempt(function, *arguments):
    try:
        with_timeout(0.005, function, *arguments)
    except (AttributeError, StopIteration, Timeout):
        pass
def attempts(ws, peer, transport):
    for use in (ws.receive, lambda: next(iter(ws))):
        peer.sock.sendall(pairs.masked(1, b"text") + pairs.masked(0x41, hello))
        attempt(transport._on_readable)
        attempt(use)
    for use in (ws.send, ws.post, transport.write):
        attempt(use, b"bytes")
for kind in (WebSocket, Session, Connection, Transport):
    for name in set(vars(kind.__base__)) - set(vars(object)) - {"__module__", "__slots__"}:
        opener = pairs.Opener(None)
        ws, peer = opener()
        session, connection, transport = ws.session, ws.session.connection, ws.session.transport
        [owner] = [part for part in (ws, session, connection, transport) if isinstance(part, kind)]
        value = getattr(owner, name)
        try:
            delattr(owner, name)
        except TypeError:  # a number
            continue
        attempts(ws, peer, transport)
        setattr(owner, name, value)
        opener.close()
        print(kind.__name__, name)
attempt(Transport.__new__(Transport).write, b"")
attempt(WebSocket.__new__(WebSocket).send, b"")
print("no crash")
"""


@pytest.mark.parametrize("pure", ["", "1"])
def test_lack_of_a_field_is_no_crash(pure: str) -> None:
    assert "no crash" in run("-c", LACKING_A_FIELD, pure=pure)


def test_methods_in_c_have_no_docstrings_where_python_has_none(compiled: None) -> None:
    assert run("-OO", "-c", SHAPE).count(" None\n") == 5


UNLUCKY = """
import gevent, os, socket, sys, tempfile
from types import SimpleNamespace
from geventws import fast
class Loop:
    __module__ = "gevent.libev.corecext"
    fails = True
    def __init__(self, loop):
        self.loop = loop
    def io(self, *arguments):
        if Loop.fails:
            raise MemoryError
        return self.loop.io(*arguments)
hub = gevent.get_hub()
end, other = socket.socketpair()
told = []
poller = fast.enter(SimpleNamespace(loop=(loop := Loop(hub.loop))))
watcher = fast.watch(loop, end.fileno())
for Loop.fails in (True, False):
    try:
        watcher.start(lambda: told.append(end.recv(9)) or watcher.stop())
    except MemoryError:
        print("MemoryError", watcher.active)
other.send(b"bytes")
print(hub.join(60), told)
with tempfile.TemporaryFile() as file:
    try:
        fast.watch(loop, file.fileno()).start(print)
    except PermissionError:
        print("PermissionError", hub.join(1))
"""


def test_watcher_that_could_not_be_started_leaves_nothing_started(compiled: None) -> None:
    assert run("-c", UNLUCKY).splitlines() == ["MemoryError False", "True [b'bytes']", "PermissionError True"]


LOAD = """
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
[path] = [f"{place}/_fast.abi3.so" for place in find_spec("geventws").submodule_search_locations]
spec = spec_from_file_location("geventws._fast", path)
module = module_from_spec(spec)
spec.loader.exec_module(module)
"""

OLD = """
import warnings
sys.modules["geventws._fast"] = module
module.EDITION -= 1
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from geventws.websocket import WebSocket
print([(warning.category.__name__, str(warning.message)) for warning in caught], type(WebSocket.receive).__name__)
"""


def test_c_that_is_left_from_another_version_is_not_used(compiled: None) -> None:
    seen = run("-c", LOAD + OLD)
    assert "'RuntimeWarning'" in seen and "was compiled for another version of geventws, and is not used" in seen
    assert seen.split()[-1] == "function"


LACKING = """
from types import SimpleNamespace
from geventws import fast
names = [name for name in vars(fast) if name.endswith("Fields")]
whole = {name: getattr(fast, name) for name in names}
print(len(names), fast._is_ours(SimpleNamespace(EDITION=fast.EDITION, **whole)))
print(fast._is_ours(SimpleNamespace(EDITION=fast.EDITION + 1, **whole)))
for name in names:
    print(fast._is_ours(SimpleNamespace(EDITION=fast.EDITION, **{**whole, name: object})))
    others = {other: whole[other] for other in names if other != name}
    print(fast._is_ours(SimpleNamespace(EDITION=fast.EDITION, **others)))
"""


def test_c_that_lacks_a_field_is_of_another_version() -> None:
    assert run("-c", LACKING, pure="1").split() == ["10", "True", *["False"] * 21]


AGAIN = """
import gc, sys
from unittest import mock
for _ in range(3):
    with mock.patch.dict(sys.modules):
        from geventws import testing
        def app(environ, start_response):
            ws = environ["wsgi.websocket"]
            ws.send(type(type(ws).send).__name__ + ws.receive())
            return []
        with testing.connect(app, "/") as ws:
            ws.send(" sends")
            print(ws.receive())
    gc.collect()
"""

UNFIT = """
for arguments in [(), (int, 3), (int, int, int, int, int, 3, 4)]:
    try:
        module.take_over(*arguments)
    except Exception as exc:
        print(type(exc).__name__)
"""


NOT_A_LANE = """
from geventws.fast import next_place
from geventws.rooms.lane import KEEPS_UP, Counts, Lane
from geventws.rooms.log import NOWHERE, Limits
from geventws.turns import turns
lane = Lane(Limits(1, 1.0, 1), NOWHERE, Counts(), slow="skip")
print(next_place(lane, None, 1, KEEPS_UP, turns()))
lane._round = iter([])
for arguments in [(), (1, None, 1, 2, turns()), (lane, None, 1, 2, 3), (lane, None, "", 2, turns())]:
    try:
        next_place(*arguments)
    except TypeError as exc:
        print("no")
lane._round = iter([1, lane])
print(next_place(lane, 2, 1, KEEPS_UP, turns()), next_place(lane, 2, 1, KEEPS_UP, turns()) is lane)
"""


def test_what_is_no_lane_is_not_served(compiled: None) -> None:
    assert run("-c", NOT_A_LANE).split() == ["None", "no", "no", "no", "no", "1", "True"]


def test_package_that_is_imported_anew_is_pythons(compiled: None) -> None:
    assert run("-c", AGAIN).splitlines() == ["method_descriptor sends", "function sends", "function sends"]


def test_what_is_no_type_is_not_taken_over(compiled: None) -> None:
    assert run("-c", LOAD + UNFIT).splitlines() == ["TypeError"] * 3


class Loud(WebSocket):
    """One that notes its waits: a class of an app's own, which C leaves alone."""

    waits = 0

    def _wait_for_message(self, session: Session, timeout: float | None) -> None:
        self.waits += 1
        super()._wait_for_message(session, timeout)


def test_class_of_an_apps_own_has_its_methods_called(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "WebSocket", Loud)
    ws, peer = opened()
    assert isinstance(ws, Loud)
    greenlet = opened.spawn(lambda: [*islice(ws, 1), ws.receive()])
    for message in ("one", "two"):
        settle()
        peer.send(message)
    assert greenlet.get(timeout=pairs.WITHIN) == ["one", "two"]
    assert ws.waits == 2


WRAPPED = """
import gevent
from geventws.websocket import WebSocket
from tests import pairs
calls = []
def wrap(receive):
    return lambda *arguments: calls.append(1) or receive(*arguments)
def numbers(ws, peer):
    calls.clear()
    peer.send("1", "2", "3")
    pairs.settle()
    messages = iter(ws)
    taken = [next(messages), next(messages), next(messages)]
    view = gevent.spawn(next, messages)
    pairs.settle()
    peer.send("4")
    print(taken, view.get(timeout=60), len(calls))
opened = pairs.Opener(None)
class Watching(WebSocket):
    receive = wrap(WebSocket.receive)
pairs.WebSocket = Watching
numbers(*opened())
pairs.WebSocket = WebSocket
ws, peer = opened()
numbers(ws, peer)
ws.receive = wrap(ws.receive)
numbers(ws, peer)
del ws.receive
numbers(ws, peer)
WebSocket.receive = wrap(WebSocket.receive)
numbers(ws, peer)
"""


@pytest.mark.parametrize("pure", ["", "1"])
def test_iteration_calls_a_receive_of_an_apps_own(pure: str) -> None:
    calls = [line.rpartition(" ")[2] for line in run("-c", WRAPPED, pure=pure).splitlines()]
    assert calls == ["4", "0", "4", "0", "4"]


ITERATED = """
import gevent
from geventws.websocket import WebSocket
from tests import pairs
class Rare(WebSocket):
    answers = [None, "two"]
    def receive(self):
        return self.answers.pop(0)
opener = pairs.Opener(None)
ws, peer = opener()
messages = iter(ws)
with gevent.Timeout(0.01, False):
    next(messages)
peer.send("one")
pairs.WebSocket = Rare
rare, _ = opener()
others = iter(rare)
for iterator in (messages, iter(ws), others, others):
    print(next(iterator, "over"))
"""


@pytest.mark.parametrize("pure", ["", "1"])
def test_iteration_that_is_over_stays_so(pure: str) -> None:
    assert run("-c", ITERATED, pure=pure).split() == ["over", "one", "over", "over"]


@pytest.mark.usefixtures("way")
def test_messages_are_in_the_log_at_debug(opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "geventws"):
        ws, peer = opened()
        assert usable(ws, peer)
        until(lambda: "< text" in caplog.text and "> text" in caplog.text, "the lines of both")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("how", pairs.KINDS)
@pytest.mark.parametrize("rate", [None, 1_000_000])
def test_messages_of_every_size_pass_each_way(opened: Opener, how: str, rate: int | None) -> None:
    ws, peer = opened(how, max_message_rate=rate)
    opened.spawn(pairs.echo, ws)
    for size in (0, 1, 125, 126, 4095, 4096, 65_535, 65_536, pairs.MEGABYTE):
        for message in ("x" * size, bytes(size), "é" * (size // 2)):
            sending = opened.spawn(peer.send, message)
            assert peer.receive() == message
            sending.get()


# Waiting


def receive(ws: WebSocket) -> Any:
    return ws.receive()


def iterate(ws: WebSocket) -> Any:
    return next(iter(ws))


WAYS_TO_WAIT = pytest.mark.parametrize("wait", [receive, iterate])


@pytest.mark.usefixtures("way")
@WAYS_TO_WAIT
def test_message_that_comes_with_a_kill_is_there_for_the_next(opened: Opener, wait: Callable[..., Any]) -> None:
    ws, peer = opened()
    for number in range(3):
        greenlet = opened.spawn(wait, ws)
        settle()
        peer.send(f"{number}")
        greenlet.kill(block=False)
        settle()
        assert isinstance(greenlet.value, gevent.GreenletExit)
        assert wait(ws) == f"{number}"


@pytest.mark.usefixtures("way")
@WAYS_TO_WAIT
def test_message_that_comes_behind_a_timeout_is_there_for_the_next(opened: Opener, wait: Callable[..., Any]) -> None:
    ws, peer = opened()
    with gevent.Timeout(0.001, False):
        wait(ws)
    peer.send("late")
    assert wait(ws) == "late"
    assert usable(ws, peer)


@pytest.mark.usefixtures("way")
@WAYS_TO_WAIT
def test_waiting_in_a_hub_callback_is_an_error(opened: Opener, wait: Callable[..., Any]) -> None:
    ws, peer = opened()
    seen: list[Any] = []

    def callback() -> None:
        try:
            wait(ws)
        except BaseException as exc:
            seen.append(type(exc))

    get_hub().loop.run_callback(callback)
    settle()
    assert seen == [BlockingSwitchOutError]
    assert usable(ws, peer)


@pytest.mark.usefixtures("way")
@WAYS_TO_WAIT
def test_second_greenlet_that_waits_is_told(opened: Opener, wait: Callable[..., Any]) -> None:
    ws, peer = opened()
    first = opened.spawn(wait, ws)
    settle()
    with pytest.raises(RuntimeError, match="another greenlet is waiting"):
        wait(ws)
    peer.send("for the first")
    assert first.get() == "for the first"


class Watched(gevent.Greenlet):  # type: ignore[misc]
    """A greenlet that is told when it is left."""

    left = 0

    def switch_out(self) -> None:
        self.left += 1


@pytest.mark.usefixtures("way")
@WAYS_TO_WAIT
def test_greenlet_with_switch_out_has_it_called(opened: Opener, wait: Callable[..., Any]) -> None:
    ws, peer = opened()
    for plain in (True, False, True):
        greenlet = gevent.Greenlet(wait, ws) if plain else Watched(wait, ws)
        greenlet.start()
        settle()
        assert plain or greenlet.left == 1
        peer.send("go")
        assert greenlet.get() == "go"


@pytest.mark.usefixtures("way")
def test_another_thread_receives_and_sends(opened: Opener) -> None:
    ws, peer = opened()

    def use() -> Any:
        ws.send("from a thread")
        return [ws.receive(), *islice(ws, 2), ws.post("last")]

    task = get_hub().threadpool.spawn(use)
    assert peer.receive() == "from a thread"
    peer.send("1", "2")
    peer.send("3")
    assert task.get() == ["1", "2", "3", True]
    assert peer.receive() == "last"


@pytest.mark.usefixtures("way")
def test_hubs_of_two_threads_keep_their_messages_apart(certificate: Any) -> None:
    seen: list[Any] = []

    def exchange(name: str) -> None:
        opener = Opener(certificate)
        ws, peer = opener()
        opener.spawn(pairs.echo, ws)
        messages: list[str | bytes] = [name * 50, name.encode() * 20_000, name * 100_000] * 30
        sending = opener.spawn(peer.send, *messages)
        seen.append([peer.receive() for _ in messages] == messages)
        sending.get()
        opener.close()
        get_hub().destroy()

    threads = [threading.Thread(target=exchange, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    until(lambda: len(seen) == 2, "the exchange of both")
    for thread in threads:
        thread.join()
    assert seen == [True, True]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("behind", [b"", pairs.ping_frame()], ids=["C", "Python"])
def test_what_a_view_raises_through_the_hub_holds_up_no_other(
    opened: Opener, errors: io.StringIO, behind: bytes
) -> None:
    (ws, peer), (failing, its_peer) = opened("tcp", max_queue=4), opened("tcp")
    taken: list[Any] = []
    view = gevent.spawn_raw(lambda: taken.extend(islice(iter(ws.receive, None), 10)))
    gevent.spawn_raw(lambda: 1 // len(failing.receive()))  # type: ignore[arg-type]
    settle()
    peer.sock._sock.send(peer.frame("one of many") * 3 + behind + peer.frame("one of many") * 7)
    its_peer.sock._sock.send(its_peer.frame(""))
    until(lambda: view.dead, "its messages")
    assert taken == ["one of many"] * 10
    assert "ZeroDivisionError" in errors.getvalue()
    errors.truncate(errors.seek(0))


@pytest.mark.usefixtures("way")
def test_limits_may_be_larger_than_anything(opened: Opener) -> None:
    most = (1 << 63) - 1
    assert usable(*opened(max_message_size=most, max_queue=most, max_outbox=most))


@pytest.mark.usefixtures("way")
def test_counters_go_past_four_billion(opened: Opener) -> None:
    ws, peer = opened()
    transport = ws.session.transport
    transport.bytes_received = transport.bytes_sent = ws.messages_sent = (1 << 32) - 1
    assert usable(ws, peer)
    assert min(ws.bytes_received, ws.bytes_sent, ws.messages_sent) >= 1 << 32


# Large messages, in pieces


HEADER = 14  # bytes, the key among them


def large(size: int, opcode: int = BINARY) -> bytes:
    """Return the frame of a large message, each of whose bytes is an x."""
    return masked(opcode, b"x" * size)


def feed(peer: Any, *pieces: bytes) -> None:
    """Have each piece come in a read of its own."""
    for piece in pieces:
        peer.sock.sendall(piece)
        settle()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("how", ["eof", "reset"])
def test_peer_that_ends_in_the_middle_of_a_message_leaves_none(opened: Opener, how: str) -> None:
    ws, peer = opened("tcp")
    greenlet = opened.spawn(ws.receive)
    frame = large(100_000)
    feed(peer, frame[:5000], frame[5000:10_000])
    reset(peer.sock) if how == "reset" else peer.sock.shutdown(1)
    assert greenlet.get(timeout=pairs.WITHIN) is None
    until_closed(ws)
    assert (ws.close_code, ws.session.cause) == (1006, how)
    assert ws.close_reason == ("connection reset by peer" if how == "reset" else "")
    assert ws.bytes_received == 10_000 and ws.messages_received == 0


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("first", [TEXT, BINARY])
def test_view_that_closes_in_the_middle_of_a_message_gets_the_answer_behind_it(opened: Opener, first: int) -> None:
    ws, peer = opened()
    frame = large(100_000, first)
    feed(peer, frame[:5000], frame[5000:10_001])
    ws.close(4000, "enough")
    feed(peer, frame[10_001:15_000], frame[15_000:] + masked(TEXT, b"behind") + close_frame(4000))
    assert peer.receive() == Close(4000, "enough")
    assert peer.receive() is None
    peer.sock.close()
    until_closed(ws)
    assert (ws.close_code, ws.close_reason) == (4000, "enough")
    assert ws.receive() is None


@pytest.mark.usefixtures("way")
def test_close_of_a_peer_behind_what_came_in_pieces_is_seen(opened: Opener) -> None:
    ws, peer = opened()
    frame = large(100_000)
    feed(peer, frame[:5000], frame[5000:90_000], frame[90_000:] + pairs.ping_frame(b"?") + close_frame(1001))
    assert ws.receive() == b"x" * 100_000
    assert ws.receive() is None
    assert ws.close_code == 1001
    assert [type(event).__name__ for event in peer.read_all()] == ["Close"]  # §5.5.1: nothing behind the Close


@pytest.mark.usefixtures("way")
def test_header_of_a_large_message_reserves_no_memory(opened: Opener) -> None:
    frame = large(pairs.MEGABYTE)
    peers = [opened()[1] for _ in range(100)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for peer in peers:
            peer.sock.sendall(frame[:HEADER])
        settle()
        after, _ = tracemalloc.get_traced_memory()
        assert after - before < len(peers) * 10_000
        for peer in peers:
            peer.sock.sendall(frame[HEADER:1000])
        settle()
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < len(peers) * 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("way")
def test_end_in_the_middle_of_a_large_message_takes_no_memory(opened: Opener) -> None:
    ws, peer = opened("tcp", max_message_size=16 * pairs.MEGABYTE)
    greenlet = opened.spawn(ws.receive)
    frame = large(16 * pairs.MEGABYTE)
    peer.sock.sendall(frame[: 8 * pairs.MEGABYTE])
    until(lambda: ws.bytes_received == 8 * pairs.MEGABYTE, "what came")
    tracemalloc.start()
    try:
        peer.sock.close()
        assert greenlet.get(timeout=pairs.WITHIN) is None
        _, peak = tracemalloc.get_traced_memory()
        assert peak < pairs.MEGABYTE
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("wrong", [6000, 9000, 50_000])
@pytest.mark.parametrize("wrong_bytes", [b"\xff", b"\xed\xa0", b"\xc3x", b"\xc3\xa9\xff"])
def test_text_that_is_none_fails_before_the_rest_has_come(opened: Opener, wrong: int, wrong_bytes: bytes) -> None:
    ws, peer = opened()
    frame = masked(TEXT, b"good" * (wrong // 4) + wrong_bytes + b"x" * 500_000)
    feed(peer, frame[:5001], frame[5001 : HEADER + wrong], frame[HEADER + wrong :][:3])
    assert peer.receive() == Close(1007, "text is not UTF-8")
    assert ws.receive() is None


@pytest.mark.usefixtures("way")
def test_collection_that_lets_others_run_while_a_view_reads_for_the_next_mixes_nothing_up(opened: Opener) -> None:
    (first, first_peer), (second, second_peer), (third, third_peer) = opened("tcp"), opened("tcp"), opened("tcp")
    is_due = False

    def collected(phase: str, info: dict[str, int]) -> None:
        nonlocal is_due
        if is_due and gevent.getcurrent() is reader:
            is_due = False
            gevent.sleep(0)  # as where __del__() waits for a lock

    def read() -> None:
        nonlocal is_due
        first.receive()
        young: list[list[int]] = [[] for _ in range(100)]
        gc.set_threshold(1)
        is_due = bool(young)
        first.receive()

    reader, others = opened.spawn(read), [opened.spawn(lambda ws=ws: list(ws)) for ws in (second, third)]
    settle()
    threshold = gc.get_threshold()
    gc.set_threshold(100_000)
    gc.callbacks.append(collected)
    try:
        first_peer.sock._sock.send(first_peer.frame("begin"))
        second_peer.sock._sock.send(masked(TEXT, b"well") + masked(TEXT, b"\xff" * 5) + masked(TEXT, b"never"))
        third_peer.sock._sock.send(third_peer.frame("of a third") * 3)
        until(lambda: second.close_code, "the failure")
    finally:
        gc.callbacks.remove(collected)
        gc.set_threshold(*threshold)
    third_peer.sock.sendall(close_frame())
    assert [other.get(timeout=pairs.WITHIN) for other in others] == [["well"], ["of a third"] * 3]
    assert second.close_code == 1007


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("how", ["tcp", "tls"])
@pytest.mark.parametrize("waiting", [0, 1, 2], ids=["alone", "behind one", "behind two"])
def test_collection_that_lets_others_send_in_the_middle_of_a_frame_cuts_none(
    opened: Opener, how: str, waiting: int
) -> None:
    ws, peer = opened(how, buffer=pairs.SMALL)
    sizes = [100_000, 17_000, 300, 64_000] * 5
    said: list[str] = []
    sending = True
    collecting = False

    def collected(phase: str, info: dict[str, int]) -> None:
        nonlocal collecting
        if sending and not collecting and gevent.getcurrent() is view:
            collecting = True
            gevent.sleep(0)  # as where __del__() waits for a lock
            collecting = False

    def others() -> None:
        while sending:
            said.append(str(len(said)))
            ws.send(said[-1])
            gevent.sleep(0)

    def send() -> None:
        nonlocal sending
        gc.set_threshold(1)
        for number, size in enumerate(sizes):
            for _ in range(waiting):
                ws.session.transport.write(peer_text(b"small"), more=True)
            ws.send(bytes([65 + number]) * size)
        sending = False

    threshold = gc.get_threshold()
    gc.callbacks.append(collected)
    try:
        view, other = opened.spawn(send), opened.spawn(others)
        events: list[Any] = []
        while not events or events[-1] != "last":
            if view.dead and other.dead and not ws.session.transport.waiting:
                ws.post("last")
            events.append(peer.receive())
            assert isinstance(events[-1], (str, bytes))
    finally:
        gc.callbacks.remove(collected)
        gc.set_threshold(*threshold)
    assert [event for event in events if isinstance(event, bytes)] == [
        bytes([65 + number]) * size for number, size in enumerate(sizes)
    ]
    assert [event for event in events if isinstance(event, str) and event.isdigit()] == said


def peer_text(text: bytes) -> bytes:
    return encode_frame(TEXT, text)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("message", [bytes(100_000), "x" * 100_000], ids=["bytes", "text"])
def test_end_that_comes_in_the_middle_of_a_send_is_one(opened: Opener, message: Any) -> None:
    ws, _ = opened(buffer=pairs.SMALL)
    transport = ws.session.transport

    def collected(phase: str, info: dict[str, int]) -> None:
        if transport.bytes_sent > 1000:
            transport.abort()

    threshold = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(1)
    try:
        assert not ws.post(message)
    finally:
        gc.callbacks.remove(collected)
        gc.set_threshold(*threshold)
    assert ws.closed and not transport.waiting


@pytest.mark.usefixtures("way")
def test_hub_alone_notes_what_messages_cost(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view that did so while it reads for the next could let others run in the middle of that."""
    request, spend, noting = pairs.Request, Turns.spend, []  # type: ignore[attr-defined]
    offers: Any = (("permessage-deflate", (("client_no_context_takeover", None),)),)
    monkeypatch.setattr(pairs, "Request", lambda key, protocols, _: request(key, protocols, offers))

    def note(turns: Turns, work: int) -> None:
        noting.append(gevent.getcurrent())
        spend(turns, work)
        if gevent.getcurrent() is not get_hub():
            gevent.sleep(0)  # as where a garbage collection begins here, and __del__() waits for a lock

    monkeypatch.setattr(Turns, "spend", note)
    ends = [opened("tcp") for _ in range(4)]
    views = [opened.spawn(lambda ws=ws: list(islice(ws, 2))) for ws, _ in ends]
    for _ in range(2):
        settle()
        for (_, peer), frame in zip(ends, [masked(TEXT, b"plain"), *[masked(RSV1 | TEXT, HELLO)] * 3], strict=True):
            peer.sock._sock.send(frame)
    assert [view.get(timeout=pairs.WITHIN) for view in views] == [["plain"] * 2, *[["Hello"] * 2] * 3]
    assert set(noting) == {get_hub()}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("cut", range(8))
def test_text_that_is_not_all_ascii_is_cut_anywhere(opened: Opener, cut: int) -> None:
    ws, peer = opened()
    text = "x" * 20_000 + "é€😀" * 10_000
    frame, at = masked(TEXT, text.encode()), 30_000 + cut
    feed(peer, frame[:9001], frame[9001:at], frame[at:] + masked(TEXT, b"behind"))
    assert [ws.receive(), ws.receive()] == [text, "behind"]


@pytest.mark.usefixtures("way")
def test_messages_in_pieces_wait_no_more_than_max_queue(opened: Opener) -> None:
    ws, peer = opened(max_queue=2)
    messages = [bytes([number]) * 10_000 for number in range(6)]
    stream = b"".join(map(peer.frame, messages))
    feed(peer, *[stream[start : start + 4500] for start in range(0, len(stream), 4500)])
    assert len(ws.session.queue) == 2 and not ws.session.transport.reading
    assert list(islice(ws, 6)) == messages
    assert ws.session.transport.reading
    assert usable(ws, peer)


# Turns, and what waits


@pytest.mark.usefixtures("way")
def test_view_that_computes_lets_others_run_between_messages(opened: Opener) -> None:
    ws, peer = opened()
    feed(peer, b"".join(map(peer.frame, "12345")))
    with pairs.Passes() as passes:
        for _ in islice(ws, 5):
            pairs.hold_hub(0.006)
    assert passes.count >= 3


@pytest.mark.usefixtures("way")
def test_answers_gather_while_more_messages_wait(opened: Opener) -> None:
    ws, peer = opened()
    transport = ws.session.transport
    for _ in range(100):  # until the machine lets a view have its turn without a break
        feed(peer, peer.frame("1") + peer.frame("2"))
        ws.receive()
        ws.send("a")
        waits = transport.waiting > 0
        ws.receive()
        ws.send("b")
        assert transport.waiting == 0
        assert pairs.received(peer, 2) == ["a", "b"]
        if waits:
            return
    pytest.fail("none ever waited")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("how", ["unix", "tcp"])
@pytest.mark.parametrize("form", [b"x", "x", "é"])
def test_slow_peer_gets_whole_messages(opened: Opener, how: str, form: Any) -> None:
    ws, peer = opened(how, buffer=pairs.SMALL, max_outbox=1 << 24)
    messages = [form * 300_000, form * 10, form * 3000, form * 30_000]
    for message in messages:
        assert ws.post(message)
    assert ws.session.transport.blocked
    assert pairs.received(peer, 4) == messages


# The end


@pytest.mark.usefixtures("way")
def test_reset_that_reading_meets_is_told(opened: Opener) -> None:
    ws, peer = opened("tcp")
    reset(peer.sock)
    assert ws.receive() is None
    until_closed(ws)
    assert (ws.close_code, ws.close_reason, ws.session.cause) == (1006, "connection reset by peer", "reset")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [1, 5000, 100_000])
@pytest.mark.parametrize(("how", "reason"), [("tcp", "connection reset by peer"), ("unix", "broken pipe")])
def test_end_that_sending_meets_is_told(opened: Opener, how: str, reason: str, size: int) -> None:
    ws, peer = opened(how)
    reset(peer.sock) if how == "tcp" else peer.sock.close()
    assert ws.post(bytes(size)) is False
    assert ws.messages_sent == 0 and ws.closed
    until_closed(ws)
    assert (ws.close_code, ws.close_reason, ws.session.cause) == (1006, reason, "reset")
    assert ws.post("late") is False
    assert ws.receive() is None
    with pytest.raises(ConnectionClosed, match=reason):
        ws.receive()
    assert list(ws) == []


@pytest.mark.usefixtures("way")
def test_message_before_the_end_is_read_though_sending_met_it(opened: Opener) -> None:
    ws, peer = opened()
    peer.send("last words")
    peer.sock.close()
    ws.post("nobody hears")
    assert ws.receive() == "last words"
    assert ws.receive() is None


@pytest.mark.usefixtures("way")
def test_connection_left_to_another_process_is_touched_no_more(opened: Opener) -> None:
    ws, peer = opened()
    frame = large(100_000)
    feed(peer, frame[:5000])
    ws.abandon()
    with suppress(BrokenPipeError):  # nobody else has it here
        peer.sock.sendall(frame[5000:])
    settle()
    assert ws.post("not from here") is False
    assert not ws.session.queue and ws.bytes_received == 5000


FORKED = """
import os
import gevent
from tests.pairs import Opener, settle
ws, peer = Opener(None)()
view = gevent.spawn(ws.receive)
settle()
if not (child := gevent.os.fork()):
    ws.abandon()
    os._exit(not gevent.wait(timeout=60))  # for all that its loop has to do, which is nothing
print(os.waitpid(child, 0)[1])
peer.send("to the parent")
print(view.get(timeout=60))
"""


@pytest.mark.parametrize("pure", ["", "1"])
def test_loop_of_a_child_has_nothing_left_of_its_parents(pure: str) -> None:
    assert run("-c", FORKED, pure=pure).splitlines() == ["0", "to the parent"]


# Memory


@pytest.mark.usefixtures("way")
def test_messages_are_let_go_of(opened: Opener) -> None:
    ws, peer = opened()
    sent: list[Any] = [bytes([65]) * 100, bytes(50_000), "".join(["y"] * 100), "".join(["é"] * 50_000)]
    before = list(map(sys.getrefcount, sent))
    for number in range(len(sent)):
        ws.send(sent[number])
        assert ws.post(sent[number])
        assert received_sizes(peer, 2) == [len(sent[number])] * 2
        peer.send(sent[number], sent[number])
        received = [ws.receive(), next(iter(ws))]
        assert received == [sent[number]] * 2
        settle()  # they woke this up in the middle of being taken in
        assert list(map(sys.getrefcount, received)) == [2, 2]  # the list's and the argument's
    assert list(map(sys.getrefcount, sent)) == before


KINDS = WebSocket, Session, PythonSession, Transport, PythonTransport, Connection


def received_sizes(peer: Any, count: int) -> list[int]:
    return [len(event) for event in pairs.received(peer, count)]


def visit(opened: Opener, number: int) -> None:
    """Open a connection, use it, and end it in one of the ways there are."""
    ws, peer = opened()
    peer.send("hello", bytes(300), "é")
    opened.spawn(pairs.echo, ws)
    assert received_sizes(peer, 3) == [5, 300, 1]
    frame = large(20_000)
    feed(peer, frame[:6000])
    if number % 3 == 0:
        peer.sock.sendall(frame[6000:] + close_frame())
    elif number % 3 == 1:
        ws.close()
    peer.sock.close()
    until_closed(ws)


def visits(opened: Opener, count: int) -> int:
    """Have so many visits; return how many bytes are in use then."""
    for number in range(count):
        visit(opened, number)
        opened.forget()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.usefixtures("way")
def test_connections_leave_nothing_behind(opened: Opener) -> None:
    before = len(living(*KINDS))
    visits(opened, 10)
    assert len(living(*KINDS)) == before


@pytest.mark.slow
def test_ten_thousand_connections_leave_nothing_behind(opened: Opener, compiled: None) -> None:
    tracemalloc.start()
    try:
        before = visits(opened, 100)
        after = visits(opened, 10_000)
    finally:
        tracemalloc.stop()
    assert after - before < 100_000


@pytest.mark.usefixtures("way")
def test_views_in_a_cycle_with_their_connection_are_collected(opened: Opener) -> None:
    before = len(living(*KINDS))
    ws, peer = opened()
    ws.itself = ws
    ws.messages = iter(ws)
    peer.send("one")
    assert next(ws.messages) == "one"
    peer.sock.close()
    assert ws.receive() is None
    until_closed(ws)
    settle()
    del ws, peer
    opened.forget()
    assert len(living(*KINDS)) == before


def test_text_that_was_sent_weighs_no_more_than_before(opened: Opener) -> None:
    ws, peer = opened()
    for text in ("é" * 10_000, "e" * 10_000, "€" * 300):
        before = sys.getsizeof(text)
        ws.send(text)
        assert sys.getsizeof(text) == before
        assert peer.receive() == text


def test_connection_without_a_piece_has_nothing_to_take_back() -> None:
    assert fast.take_back(Connection()) == b""
