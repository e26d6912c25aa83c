"""Log lines: written behind what they tell of, by one greenlet, whatever a handler does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
import gevent.lock
import pytest

from geventws import loglines
from geventws.testing import Refused, connect

from .pairs import WITHIN, Opener, close_frame, ping_frame, settle, until, until_closed
from .servers import DEADLINE

pytestmark = pytest.mark.usefixtures("errors")


def test_a_handler_that_is_slow_has_a_bounded_queue_and_says_what_was_dropped() -> None:
    lines: list[str] = []

    class Slow(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            lines.append(record.getMessage())
            return True

    log = logging.Logger("slow")
    log.addHandler(Slow())
    for number in range(loglines.MOST_LINES + 10):  # no greenlet runs meanwhile
        loglines.write(log, logging.INFO, "line %d", number)
    with gevent.Timeout(DEADLINE):
        while len(lines) <= loglines.MOST_LINES:
            gevent.sleep(0.001)
    assert lines[:-1] == [f"line {number}" for number in range(loglines.MOST_LINES)]
    assert lines[-1].startswith("10 lines of this log were dropped")


def out_of_time() -> None:
    with gevent.Timeout(0.001):
        gevent.sleep(60)


def raise_error(error: BaseException) -> None:
    raise error


FAULTS: dict[str, Callable[[], None]] = {
    "disk is full": lambda: raise_error(OSError("disk is full")),
    "KeyError": lambda: raise_error(KeyError("a field of the program's own")),
    "SystemExit": lambda: raise_error(SystemExit(3)),
    "Timeout": out_of_time,
}


@pytest.fixture
def faulty(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines that came to a handler of the logger geventws, which fails over each of them."""
    lines: list[str] = []

    class Faulty(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            lines.append(record.getMessage())
            FAULTS[request.param]()
            return True

    handler = Faulty()
    log = logging.getLogger("geventws")
    log.addHandler(handler)
    yield lines
    log.removeHandler(handler)


@pytest.mark.parametrize("faulty", FAULTS, indirect=True)
def test_a_handler_that_fails_loses_its_own_line_alone(
    faulty: list[str], capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    log = logging.getLogger("geventws")
    for number in range(5):
        loglines.write(log, logging.WARNING, "line %d", number, fields={"id": "4711-17"})
    until(lambda: len(faulty) == 5, "five lines")
    loglines.say(log, logging.WARNING, "line %d", 5, fields={"id": "4711-17"})
    log.warning("line 6")
    assert faulty == [f"line {number}" for number in range(7)]
    assert request.node.callspec.params["faulty"] in capsys.readouterr().err


@pytest.mark.parametrize("faulty", FAULTS, indirect=True)
def test_a_handler_that_fails_changes_no_answer_and_keeps_no_connection(faulty: list[str]) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.websocket"].receive()
        raise KeyError("in the view")

    with pytest.raises(Refused) as refused:
        connect(app, "/", origin="https://evil.example").__enter__()
    assert refused.value.status == 403
    with suppress(KeyError), connect(app, "/") as ws:
        ws.send("go")
        assert ws.receive() is None
        assert ws.close_code == 1011
    assert [line for line in faulty if "refused" in line or "view failed" in line] == faulty[:2]


def test_frames_are_logged_at_debug_and_ends_at_info(opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "geventws")
    ws, peer = opened()
    peer.sock.sendall(peer.frame("é" * 65) + peer.frame(b"b") + ping_frame(b"p") + close_frame(1001, "bye"))
    ws.send(ws.receive() or "")
    assert list(ws) == [b"b"]
    peer.read_all()
    peer.sock.close()
    until_closed(ws)
    settle()
    peer_name = f"unix#{ws.id.partition('-')[2]}"
    assert caplog.messages[0] == f"{peer_name} /path open"
    assert caplog.messages[-1].startswith(f"{peer_name} /path close 1001 bye (client, ")
    for piece in (f"< text {'é' * 64!r}… (65)", "> text", "< binary b'b'", "< Ping(payload=b'p')", "> close 1001 bye"):
        assert any(piece in line for line in caplog.messages), piece
    assert {record.levelno for record in caplog.records} == {logging.INFO, logging.DEBUG}


@pytest.mark.parametrize("message", [bytearray(b"b"), memoryview(b"b"), memoryview(b"b").cast("B", ())])
def test_what_holds_bytes_is_logged_as_bytes(
    opened: Opener, caplog: pytest.LogCaptureFixture, message: bytearray | memoryview
) -> None:
    caplog.set_level(logging.DEBUG, "geventws")
    ws, peer = opened()
    ws.send(message)
    assert peer.receive() == b"b"
    settle()
    assert caplog.messages[-1] == f"{ws.peer} > binary b'b'"


class SlowHandler(logging.Handler):
    """A handler that talks to a log server through gevent, under gevent's lock, as patched programs have it."""

    def createLock(self) -> None:
        self.lock = gevent.lock.RLock()

    def emit(self, record: logging.LogRecord) -> None:
        gevent.sleep(0.02)


@pytest.fixture
def slow_log() -> Iterator[None]:
    log = logging.getLogger("geventws")
    handler = SlowHandler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


@pytest.mark.usefixtures("slow_log")
def test_a_log_handler_that_waits_does_not_make_two_101(opened: Opener) -> None:
    ws, peer = opened(accept=False)
    for message in ("one", "two"):
        opened.spawn(ws.send, message)
    assert peer.open().count("HTTP/1.1 101") == 1
    assert {peer.receive(), peer.receive()} == {"one", "two"}


@pytest.mark.usefixtures("slow_log")
def test_a_log_handler_that_waits_does_not_keep_the_end_from_the_view(opened: Opener, errors: Any) -> None:
    ws, peer = opened()
    reader = opened.spawn(ws.receive)
    logging_view = opened.spawn(logging.getLogger("geventws").info, "busy")
    settle()
    peer.sock.close()
    reader.join(WITHIN)
    errors.truncate(0)
    errors.seek(0)
    assert reader.ready()
    assert reader.value is None
    logging_view.join()


def test_a_writer_that_was_killed_is_followed_by_another(errors: Any) -> None:
    lines: list[str] = []

    class Deadly(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            lines.append(record.getMessage())
            raise gevent.GreenletExit

    log = loglines.hardened(logging.Logger("deadly"))
    log.addHandler(Deadly())
    for number in range(3):
        loglines.write(log, logging.INFO, "line %d", number)
        until(lambda: len(lines) > number, "the line")  # noqa: B023
        settle()
    assert lines == ["line 0", "line 1", "line 2"]
    for number in range(3, 5):  # the first of these ends the writer
        loglines.write(log, logging.INFO, "line %d", number)
    settle()
    loglines.wait_for_lines(WITHIN)
    assert lines[3:] == ["line 3", "line 4"]


def test_what_a_peer_says_can_neither_end_a_line_nor_colour_it() -> None:
    assert loglines.printable("/a path/é") == "/a path/é"
    assert loglines.printable("a\nERROR forged \x1b[31m") == r"'a\nERROR forged \x1b[31m'"


def test_record_factory_of_the_program_that_has_a_field_of_ours_loses_no_line(
    opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    class Traced(logging.LogRecord):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.id = "trace"

    caplog.set_level(logging.INFO, "geventws")
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Traced)
    try:
        _, peer = opened()
        peer.sock.close()
        until(lambda: caplog.records, "the line")
    finally:
        logging.setLogRecordFactory(before)
    (record,) = caplog.records
    assert " close 1006 (eof, " in record.getMessage()
    assert vars(record)["id"] == "trace"


def test_logger_is_silenced_by_its_level_alone() -> None:
    log = logging.getLogger("geventws")
    log.disabled = True
    assert log.isEnabledFor(logging.ERROR)

    class Own(logging.Logger):
        own = True

    kept: Any = loglines.hardened(Own("own"))
    kept.disabled = True
    assert kept.own and not kept.disabled
    assert loglines.hardened(kept) is kept


FIXED = {"werkzeug.proxy_fix.orig": {"REMOTE_ADDR": "10.0.0.1"}, "REMOTE_PORT": "4000"}
PEERS: list[tuple[dict[str, Any], str, tuple[str, int] | None]] = [
    ({}, "unix#7", None),
    ({"REMOTE_ADDR": ""}, "unix#7", None),
    ({"REMOTE_ADDR": "10.0.0.1", "REMOTE_PORT": "4000"}, "10.0.0.1:4000", ("10.0.0.1", 4000)),
    ({**FIXED, "REMOTE_ADDR": "203.0.113.7"}, "203.0.113.7#7", ("203.0.113.7", 0)),
    ({**FIXED, "REMOTE_ADDR": "203.0.113.7", loglines.FORWARDED: "10.9.9.9"}, "203.0.113.7#7", ("203.0.113.7", 0)),
    ({**FIXED, "REMOTE_ADDR": "10.0.0.1"}, "10.0.0.1:4000", ("10.0.0.1", 4000)),
    ({**FIXED, "REMOTE_ADDR": "a\x1b[31m"}, r"'a\x1b[31m'#7", ("a\x1b[31m", 0)),
    ({**FIXED, "REMOTE_ADDR": "::1 / close"}, "'::1 / close'#7", ("::1 / close", 0)),
    ({**FIXED, "REMOTE_ADDR": "1" * 5000}, f"'{'1' * 64}'#7", ("1" * 5000, 0)),
    ({"REMOTE_ADDR": "2001:db8::1", "REMOTE_PORT": "4000"}, "[2001:db8::1]:4000", ("2001:db8::1", 4000)),
    ({loglines.FORWARDED: "203.0.113.7"}, "203.0.113.7#7", None),
    (
        {"REMOTE_ADDR": "10.0.0.1", "REMOTE_PORT": "4000", loglines.FORWARDED: "::1"},
        "::1#7",
        ("10.0.0.1", 4000),
    ),
]


@pytest.mark.parametrize(("environ", "shown", "address"), PEERS)
def test_peer_is_its_host_and_what_tells_it_from_others_there(
    environ: dict[str, Any], shown: str, address: tuple[str, int] | None
) -> None:
    assert loglines.peer_of(environ, 7) == shown
    assert loglines.peer_of(environ) == shown.removesuffix("#7")
    assert loglines.address_of(environ) == address


@pytest.mark.parametrize(
    ("header", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("10.9.9.9, [2001:db8::1]:4000 ", "[2001:db8::1]:4000"),
        ("203.0.113.7, unknown", None),
        ("203.0.113.7,", None),
        ("", None),
        ("1" * 65, None),
    ],
)
def test_forwarded_address_is_the_last_and_nothing_else(header: str, address: str | None) -> None:
    assert loglines.forwarded_for(header) == address
