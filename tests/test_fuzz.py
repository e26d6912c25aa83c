"""What fuzzing found worth keeping, then a little more of it; and that the fuzz targets notice a fault."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from gevent import pywsgi

import geventws.connection
import geventws.frames
import geventws.handshake
from geventws.connection import OPEN, Connection, Event, Ping
from geventws.errors import ProtocolError
from geventws.frames import CONTINUATION, encode_header
from geventws.handshake import Request
from geventws.permessage_deflate import Agreement
from geventws.server import WebSocketHandler

from .fuzz import CORPUS, TARGETS
from .fuzz import connection as connection_target
from .fuzz import handshake as handshake_target
from .servers import DEADLINE, ROOT, missing

SECONDS = 10  # that each target is fuzzed
COMMAND = [sys.executable, "-m", "tests.fuzz"]


def check(target: str) -> None:
    """Run a target on its seeds and its corpus."""
    module = importlib.import_module(f"tests.fuzz.{target}")
    for data in (*module.seeds(), *(path.read_bytes() for path in sorted((CORPUS / target).iterdir()))):
        try:
            module.run(data)
        except Exception as exc:
            raise AssertionError(f"{target} target: {data!r}") from exc


@pytest.mark.parametrize("target", TARGETS)
def test_no_known_input_breaks_a_promise(target: str) -> None:
    check(target)


# Faults, planted one at a time


class RaisesForAPing(Connection):
    def receive_data(self, data: bytes = b"", *limits: int, **more: int) -> list[Event]:
        events = super().receive_data(data, *limits, **more)
        if any(isinstance(event, Ping) for event in events):
            raise KeyError("ping")
        return events


class LosesAPingInABrokenFrame(Connection):
    def receive_data(self, data: bytes = b"", *limits: int, **more: int) -> list[Event]:
        events = super().receive_data(data, *limits, **more)
        return [event for event in events if len(data) > 1 or not isinstance(event, Ping)]


class StopsAtItsLimitForGood(Connection):
    def receive_data(self, data: bytes = b"", *limits: int, **more: int) -> list[Event]:
        events = super().receive_data(data, *limits, **more)
        self.limited = False
        return events


class GoesOnAfterTheEnd(Connection):
    def receive_data(self, data: bytes = b"", *limits: int, **more: int) -> list[Event]:
        events = super().receive_data(data, *limits, **more)
        self.state = OPEN
        return events


class CopiesMoreAndMore(Connection):
    def receive_data(self, data: bytes = b"", *limits: int, **more: int) -> list[Event]:
        for start in range(len(data)):
            data[start:]
        return super().receive_data(data, *limits, **more)


class KeepsWhatItRead(Connection):
    read = b""

    def receive_data(self, data: bytes = b"", *limits: int, **more: int) -> list[Event]:
        events = super().receive_data(data, *limits, **more)
        self.read += data
        return events


class SendsAfterItsClose(Connection):
    @property
    def may_send(self) -> bool:
        return True


class NeverCloses(Connection):
    def close(self, code: int = 1000, reason: str = "") -> bytes:
        super().close(code, reason)
        return b""


class LimitsNothing(Connection):
    def _check_size(self, size: int) -> None:
        pass


class ReadsInAnyOrder(Connection):
    def _check_sequence(self, opcode: int) -> None:
        pass


class RefusesFragments(Connection):
    def _check_sequence(self, opcode: int) -> None:
        if opcode == CONTINUATION:
            raise ProtocolError("fragments")


@pytest.mark.parametrize(
    "fault",
    [
        RaisesForAPing,
        LosesAPingInABrokenFrame,
        StopsAtItsLimitForGood,
        GoesOnAfterTheEnd,
        CopiesMoreAndMore,
        KeepsWhatItRead,
        SendsAfterItsClose,
        NeverCloses,
        LimitsNothing,
        ReadsInAnyOrder,
        RefusesFragments,
    ],
)
def test_fault_of_a_connection_is_noticed(fault: type[Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_target, "Connection", fault)
    with pytest.raises(AssertionError, match="connection target"):
        check("connection")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("SMALL_TEXT", (encode_header(0x81, 0x80, 0),) * 126),
        ("may_travel", lambda code: True),
        ("mask", lambda data, key, start, stop: data[start:stop]),
        ("encode_frame", lambda opcode, payload, **rest: bytes([0x80 | opcode, 126, 0, len(payload) & 127]) + payload),
        ("TEXT", 2),
    ],
)
def test_fault_below_a_connection_is_noticed(name: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = geventws.connection if hasattr(geventws.connection, name) else geventws.frames
    monkeypatch.setattr(module, name, fault)
    with pytest.raises(AssertionError, match="connection target"):
        check("connection")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("check_request", lambda environ: Request(environ["HTTP_SEC_WEBSOCKET_KEY"], (), ())),
        ("check_origin", lambda environ, allowed: None),
        ("wants_websocket", lambda environ: environ["HTTP_UPGRADE"].endswith("websocket")),
        ("parse_extensions", lambda header: ()),
        ("parse_subprotocols", lambda header: tuple(header.replace(" ", "").split(","))),
        ("select_subprotocol", lambda offered, supported: "chat\r\nSet-Cookie: admin=1"),
        ("negotiate", lambda offers, options: Agreement()),
        ("negotiate", lambda offers, options: None),
        ("response", lambda *arguments, **rest: geventws.handshake.response(*arguments)),
    ],
)
def test_fault_of_the_handshake_is_noticed(name: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake_target, name, fault)
    with pytest.raises(AssertionError, match="handshake target"):
        check("handshake")


def test_what_pywsgi_alone_would_let_through_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WebSocketHandler, "MessageClass", pywsgi.WSGIHandler.MessageClass)
    with pytest.raises(AssertionError, match="request target"):
        check("request")


# The command


def test_command_runs_single_inputs() -> None:
    files = sorted((CORPUS / "handshake").iterdir())
    subprocess.run([*COMMAND, "handshake", *files], cwd=ROOT, check=True, timeout=DEADLINE)


def test_command_says_how_to_install_what_it_needs() -> None:
    program = "import runpy, sys; sys.modules['atheris'] = None; runpy.run_module('tests.fuzz', run_name='__main__')"
    command = [sys.executable, "-c", program, "connection"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == 1 and "pip install atheris" in ended.stderr and "Traceback" not in ended.stderr


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A fuzzer for each target, all at once."""
    if importlib.util.find_spec("atheris") is None:
        if not (3, 11) <= sys.version_info < (3, 14):
            pytest.skip("atheris is not made for this Python")
        missing("atheris is not installed")
    directory = tmp_path_factory.mktemp("fuzz")
    processes = {
        target: subprocess.Popen(
            [*COMMAND, target, "--seconds", str(SECONDS), "--directory", str(directory)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for target in TARGETS
    }
    try:
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_fuzzing_for_a_moment_finds_nothing(target: str, fuzzers: dict[str, subprocess.Popen[str]]) -> None:
    _, output = fuzzers[target].communicate(timeout=SECONDS + 3 * DEADLINE)
    assert fuzzers[target].returncode == 0, output[-8000:]
    done = re.search(r"DONE +cov: (\d+)", output)
    assert done and int(done[1]) >= 100, "the package is not instrumented"
