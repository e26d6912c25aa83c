"""Peers that mean harm: nothing they send hangs, bloats or confuses a worker, nor lets its other clients wait."""

from __future__ import annotations

import itertools
import json
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from geventws.rate import BURST

from .bombs import compressed, message
from .crowd import allow_descriptors, page
from .hostile import CONTINUATION, CROWDS, FLOODS, UNHEARD
from .raw import BINARY, CLOSE, PING, PONG, TEXT, Raw, close_frame, frame, request
from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, serve

pytestmark = pytest.mark.slow  # it starts servers or installs packages

APP = "tests.apps_hostile:app"
KIB, MIB = 1 << 10, 1 << 20

LONGEST_TRIP = 0.05  # seconds of processor time that the worker takes for others until it answers one more client
LONGEST_TRIP_IN_A_CROWD = 0.5  # the same while 10,000 handshakes come at once, of which each runs a view
TRIES = 3  # what shares the core makes one run dear, a server that is slow each
PROBE_PAUSE = 0.003  # seconds between an echo and the next message

# A peer that is not read, because the view does not, is missed at the second ping.
PATIENT = {"GEVENTWS_PING_INTERVAL": "0.5"}
IMPATIENT = {
    "GEVENTWS_SEND_TIMEOUT": "0.5",
    "GEVENTWS_PING_INTERVAL": "0.3",
    "GEVENTWS_PING_TIMEOUT": "0.3",
    "GEVENTWS_CLOSE_TIMEOUT": "0.5",
}

_ids = itertools.count(1)

Start = Callable[[str, dict[str, str]], Server]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """start(front_end, env) starts a server until the module ends; the same again gives the same server."""
    allow_descriptors(12_000)
    running: dict[str, Server] = {}
    with ExitStack() as stack:

        def start(front_end: str, env: dict[str, str]) -> Server:
            key = f"{front_end} {env}"
            if key not in running:
                # By default gunicorn serves 1000 connections at a time that ask for no WebSocket.
                arguments = ("--worker-connections", "12000") if front_end == "worker" else ()
                directory = tmp_path_factory.mktemp("hostile")
                server = serve(APP, directory, front_end=front_end, arguments=arguments, env=env)
                running[key] = stack.enter_context(server)
                warm_up(running[key])
            return running[key]

        yield start
        for server in running.values():  # all at once: each takes its second
            server.process.terminate()


@pytest.fixture(params=FRONT_ENDS)
def server(request: pytest.FixtureRequest, start: Start) -> Server:
    return start(request.param, PATIENT)


@pytest.fixture(params=FRONT_ENDS)
def impatient(request: pytest.FixtureRequest, start: Start) -> Server:
    return start(request.param, IMPATIENT)


def warm_up(server: Server) -> None:
    """Use what a process keeps from its first use on."""
    for path in ("/echo", "/probe", "/closes"):
        with Raw(server, request(path) + frame(PING) + close_frame(4000)) as raw:
            raw.rest()
    for _ in range(2):
        stats(server)


def stats(server: Server) -> dict[str, int]:
    """Return what the process holds, and its peak of memory since the last call."""
    told: dict[str, int] = json.loads(page(server, "/stats"))
    return told


@contextmanager
def unharmed(server: Server, *, peak: int = 8 * MIB, kept: int = 8 * MIB) -> Iterator[None]:
    """Check what the block costs, and that it leaves the worker as it was.

    peak is bytes of memory in the block, kept those that may stay allocated behind it.
    """
    # All objects that the collector knows; the timers of connections that ended stay for some seconds.
    slack = {"memory": kept, "objects": 4000, "descriptors": 0, "greenlets": 0, "websockets": 0}
    before, logged = stats(server), len(server.log)
    yield
    with Raw(server, request("/echo") + frame(TEXT, b"well?")) as raw:
        raw.head()
        assert next_frame(raw) == (TEXT, b"well?")
    now = stats(server)
    assert now["process"] == before["process"], "the worker is another"
    print(f"{(now['peak'] - before['memory']) / MIB:.1f} MiB more at most")
    assert now["peak"] - before["memory"] < peak
    end = time.monotonic() + DEADLINE
    while excess := {name: more for name, bound in slack.items() if (more := now[name] - before[name]) > bound}:
        assert time.monotonic() < end, f"the process still holds {excess} more than before"
        time.sleep(0.1)
        now = stats(server)
    assert "Traceback" not in server.log[logged:]


def next_frame(raw: Raw) -> tuple[int, bytes]:
    """Return the next frame that is no Ping of the server's own."""
    while (received := raw.frame())[0] == PING:
        pass
    return received


def unique(path: str) -> tuple[str, str]:
    """Return a path with an id for its view, and the id."""
    number = str(next(_ids))
    return f"{path}?id={number}", number


# What breaks a rule: the exact code, at once

BROKEN_RULES: dict[str, dict[str, tuple[bytes, int]]] = {
    "no mask": {
        "text": (bytes.fromhex("810548656c6c6f"), 1002),
        "empty": (bytes.fromhex("8100"), 1002),
        "ping": (bytes.fromhex("890548656c6c6f"), 1002),
        "Close": (bytes.fromhex("880203e8"), 1002),
    },
    "reserved bits": {
        f"{bits:03b} on opcode {opcode}": (bytes([frame(opcode)[0] | bits << 4]) + frame(opcode)[1:], 1002)
        for bits in range(1, 8)
        for opcode in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG)
    },
    "reserved opcodes": {
        f"{opcode:#x} {fin}": (frame(opcode, b"x", fin=fin), 1002)
        for opcode in (*range(3, 8), *range(11, 16))
        for fin in (True, False)
    },
    "lengths": {
        "2**63": (struct.pack("!BBQ", 0x82, 0xFF, 1 << 63), 1002),
        "2**64 - 1": (struct.pack("!BBQ", 0x82, 0xFF, (1 << 64) - 1), 1002),
        "2**63 - 1": (struct.pack("!BBQ", 0x82, 0xFF, (1 << 63) - 1), 1009),
        "2**63 - 1 of text": (struct.pack("!BBQ", 0x81, 0xFF, (1 << 63) - 1), 1009),
        "2**63 - 1 in a fragment": (struct.pack("!BBQ", 0x02, 0xFF, (1 << 63) - 1), 1009),
        "2**63 - 1 behind a fragment": (
            frame(TEXT, b"x", fin=False) + struct.pack("!BBQ", 0x80, 0xFF, (1 << 63) - 1),
            1009,
        ),
        "2**63 - 1 of ping": (struct.pack("!BBQ", 0x89, 0xFF, (1 << 63) - 1), 1002),
        "one too many": (struct.pack("!BBQ", 0x82, 0xFF, MIB + 1), 1009),
        "125 in two bytes": (struct.pack("!BBH", 0x82, 0xFE, 125), 1002),
        "65535 in eight bytes": (struct.pack("!BBQ", 0x82, 0xFF, 65_535), 1002),
        "ping of 126": (frame(PING, b"x" * 126), 1002),
        "pong of 126": (frame(PONG, b"x" * 126), 1002),
        "Close of 126": (frame(CLOSE, struct.pack("!H", 1000) + b"x" * 124), 1002),
    },
    "fragments": {
        "ping": (frame(PING, fin=False), 1002),
        "pong": (frame(PONG, fin=False), 1002),
        "Close": (frame(CLOSE, fin=False), 1002),
        "nothing to continue": (frame(CONTINUATION, b"x"), 1002),
        "nothing to continue any more": (frame(PONG, b"x") + frame(CONTINUATION, b"x"), 1002),
        "a message in a message": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"), 1002),
    },
    "Close codes": {
        str(code): (close_frame(code), 1002)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65_535)
    },
    "Close reasons": {
        "half a code": (frame(CLOSE, b"\x03"), 1002),
        "not UTF-8": (frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
        "half a character": (frame(CLOSE, struct.pack("!H", 1000) + "é".encode()[:1]), 1007),
        "a surrogate": (frame(CLOSE, struct.pack("!H", 1000) + b"\xed\xa0\x80"), 1007),
    },
}


def close_code(raw: Raw) -> int:
    """Return the code of the Close that comes, behind which nothing may."""
    opcode, payload = next_frame(raw)
    assert opcode == CLOSE
    assert raw.rest() == b""
    return int.from_bytes(payload[:2], "big")


@pytest.mark.parametrize("rule", BROKEN_RULES)
def test_a_broken_rule_ends_the_connection_with_its_code(server: Server, rule: str) -> None:
    cases = BROKEN_RULES[rule]
    codes = {}
    with unharmed(server):
        for name, (sent, _) in cases.items():
            with Raw(server, request("/echo") + sent) as raw:
                raw.head()
                codes[name] = close_code(raw)
    assert codes == {name: code for name, (_, code) in cases.items()}


# Messages without an end

# What comes first, what follows, and how often
ENDLESS = {
    "one frame": (struct.pack("!BBQ4x", 0x82, 0xFF, 64 * MIB), bytes(64 * KIB), 64),
    "one frame of text": (struct.pack("!BBQ4x", 0x81, 0xFF, 64 * MIB), b"x" * 64 * KIB, 64),
    "fragments of 64 KiB": (frame(BINARY, fin=False), frame(CONTINUATION, bytes(64 * KIB), fin=False), 64),
    "a hundred thousand fragments of one byte": (frame(TEXT, fin=False), frame(CONTINUATION, b"x", fin=False), 100_000),
    "a hundred thousand empty fragments": (frame(TEXT, fin=False), frame(CONTINUATION, fin=False), 100_000),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_message_without_end_is_refused_at_the_limit(server: Server, name: str) -> None:
    first, piece, count = ENDLESS[name]
    with unharmed(server, peak=3 * MIB), Raw(server, request("/echo") + first) as raw:
        raw.head()
        raw.send(piece * count)
        assert close_code(raw) == 1009


# Floods


class Attack(NamedTuple):
    """What an attack did to another client, and to the worker."""

    worst: float  # seconds of processor time that the worker took until it answered, at most
    worst_beside_collector: float  # the same, less what Python's garbage collector took
    cpu: float  # seconds that the worker used
    told: dict[str, int]  # by the peers


def scheduled(process: int) -> tuple[float, float]:
    """Return the seconds that a process ran, and that it could have run while others had the CPU."""
    ran, waited, _ = Path(f"/proc/{process}/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


def attack(server: Server, name: str) -> Attack:
    """Let the peers loose, and have one client more ask for an answer every few milliseconds meanwhile."""
    worker = stats(server)["process"]
    command = [sys.executable, "-m", "tests.hostile", str(server.port), name]
    worst = worst_beside_collector = 0.0
    with Raw(server, request("/probe")) as raw, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as load:
        raw.head()
        assert load.stdout is not None
        assert load.stdout.readline() == b"ready\n"
        raw.send(frame(TEXT))
        _, collected = map(float, next_frame(raw)[1].split())
        ran_before, _ = scheduled(worker)
        while load.poll() is None:
            raw.send(frame(TEXT, b"well?"))
            begun, _ = scheduled(worker)  # behind the send: whatever holds up this process between makes a trip shorter
            ended, total = map(float, next_frame(raw)[1].split())
            trip = ended - begun
            worst = max(worst, trip)
            worst_beside_collector = max(worst_beside_collector, trip - (total - collected))
            collected = total
            time.sleep(PROBE_PAUSE)
        cpu = scheduled(worker)[0] - ran_before
        told = json.loads(load.stdout.read())
    print(
        f"{name}: worst {worst * 1000:.1f} ms, {worst_beside_collector * 1000:.1f} beside the collector, "
        f"CPU {cpu:.2f} s, {told}"
    )
    return Attack(worst, worst_beside_collector, cpu, told)


# Where the attack makes the worker hold more than a little: bytes
PEAKS = {
    "messages of a megabyte": 48 * MIB,  # four times a message that comes, waits, and goes
    "text of a megabyte": 48 * MIB,
    "readers that stop": 40 * MIB,  # twenty times max_outbox and the message behind it
}


def attacks(server: Server, name: str) -> Iterator[Attack]:
    """Attack as often as a machine that is held up may need until nobody waits."""
    for _ in range(TRIES):
        yield attack(server, name)


@pytest.mark.parametrize("flood", [name for name in FLOODS if name not in UNHEARD])
def test_a_flood_lets_no_other_client_wait(server: Server, flood: str) -> None:
    with unharmed(server, peak=PEAKS.get(flood, 8 * MIB)):
        assert any(result.worst < LONGEST_TRIP for result in attacks(server, flood))


@pytest.mark.parametrize("flood", UNHEARD)
def test_a_peer_that_is_no_longer_heard_costs_little(server: Server, flood: str) -> None:
    with unharmed(server):
        assert any(
            result.worst < LONGEST_TRIP
            and result.cpu < 0.3
            and result.told["sent"] < 64 * MIB  # some of which the kernel holds
            for result in attacks(server, flood)
        )


@pytest.mark.parametrize("crowd", CROWDS)
def test_10_000_connections_opened_and_dropped_at_once_let_no_other_wait_long(server: Server, crowd: str) -> None:
    """Without the pauses of Python's collector, which grow with all that is alive: here a million objects."""
    # What malloc cannot give back of 10,000 WebSockets, in pieces, is up to half of it.
    with unharmed(server, peak=512 * MIB, kept=128 * MIB):
        assert any(result.worst_beside_collector < LONGEST_TRIP_IN_A_CROWD for result in attacks(server, crowd))


# Work for each byte

NEARLY_FULL = {room: message(BINARY, compressed(bytes(MIB - room))) for room in (34, 50, 100, 4096)}
BOMB = message(BINARY, compressed(bytes(MIB - 1)))
MOST_WORK = 40.0  # times the processor time of a byte of small echoes: zlib makes a thousand bytes of one

# What is sent on one connection, to a view that does not read.
WORK = {
    "pings": frame(PING) * 2000,
    "pongs": frame(PONG) * 2000,
    "fragments of one byte": frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x", fin=False) * 2000,
    "empty fragments": frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 2000,
    "half a character in each fragment": frame(TEXT, b"\xc3", fin=False)
    + (frame(CONTINUATION, b"\xa9\xc3", fin=False) * 1000),
    "bombs": BOMB * 2,
    "a bomb in fragments": message(BINARY, compressed(bytes(MIB - 1)), 1),
    "empty compressed messages": message(BINARY, b"\0") * 2000,
    **{f"a bomb with {room} bytes of room": first + BOMB for room, first in NEARLY_FULL.items()},
}
CONTROL = frame(TEXT, b"x") * 2000  # to a view that echoes


def work(server: Server, path: str, sent: bytes, connections: int = 8) -> float:
    """Return the seconds of the worker's processor time that each byte of input takes."""
    worker = stats(server)["process"]
    with ExitStack() as stack:
        raws = [
            stack.enter_context(Raw(server, request(path, Sec_WebSocket_Extensions="permessage-deflate")))
            for _ in range(connections)
        ]
        for raw in raws:
            raw.head()
        before, _ = scheduled(worker)
        for raw in raws:
            raw.send(sent)
        seen, end, is_busy = before, time.monotonic() + DEADLINE, True
        while is_busy:
            assert time.monotonic() < end, "the worker is still busy with it"
            time.sleep(0.1)
            used, waited = scheduled(worker)
            # The views look up now and then. A worker that waits for the CPU has work.
            seen, is_busy = used + waited, used + waited - seen > 0.02
    return (used - before) / (connections * len(sent))


@pytest.mark.parametrize("name", WORK)
def test_a_byte_of_input_takes_a_bounded_time(server: Server, name: str) -> None:
    ratios = []
    for _ in range(TRIES):
        taken, control = work(server, "/never-reads", WORK[name]), work(server, "/echo", CONTROL)
        ratios.append(taken / control)
        print(f"{name}: {taken * 1e6:.2f} us a byte, {ratios[-1]:.1f} times a small message's")
        if ratios[-1] < MOST_WORK:
            return
    pytest.fail(f"a byte takes {ratios} times that of small messages")


# Peers that do not read, do not answer, or vanish


@pytest.mark.parametrize(
    ("path", "seen"),
    [("/sends-endlessly", "failed to send"), (f"/sends-and-sleeps/{12 * MIB}", "slept")],
    ids=["the view sends", "the view sleeps"],
)
def test_a_reader_that_stops_is_given_up_after_send_timeout(impatient: Server, path: str, seen: str) -> None:
    path, number = unique(path)
    with unharmed(impatient, peak=48 * MIB):
        begun = time.monotonic()
        with Raw(impatient, request(path)) as raw:
            raw.head()
            impatient.wait_for_log(rf"^view {number} {seen} 1006 'the peer took nothing for 0\.5 s'$")
            assert time.monotonic() - begun > 0.4


SILENT = {
    "behind the handshake": b"",
    "in a header": frame(TEXT, b"x" * 200)[:3],
    "in a payload": frame(TEXT, b"x" * 200)[:50],
    "in a message": frame(TEXT, b"x", fin=False),
    "in a ping": frame(PING, b"x" * 100)[:50],
}


@pytest.mark.parametrize("path", ["/echo", "/never-reads"])
def test_peers_that_vanish_without_a_word_are_given_up(impatient: Server, path: str) -> None:
    with unharmed(impatient), ExitStack() as stack:
        begun = time.monotonic()
        peers = [stack.enter_context(Raw(impatient, request(path) + sent)) for sent in [*SILENT.values()] * 4]
        for raw in peers:
            raw.head()
            with pytest.raises(ConnectionResetError):
                raw.rest()
        assert time.monotonic() - begun > 0.5


@pytest.mark.parametrize("noise", [b"", frame(PING), frame(TEXT, b"more")], ids=["silent", "pings", "messages"])
def test_a_peer_that_never_answers_a_close_is_given_up_after_close_timeout(impatient: Server, noise: bytes) -> None:
    with unharmed(impatient):
        begun = time.monotonic()
        with Raw(impatient, request("/closes")) as raw:
            raw.head()
            assert raw.closes() == (4000, "by the view")
            with pytest.raises(ConnectionError):
                while time.monotonic() - begun < DEADLINE:
                    raw.send(noise)
                    raw.sock.settimeout(0.02)
                    with suppress(TimeoutError):
                        raw.rest()
            assert time.monotonic() - begun > 0.4


@pytest.mark.parametrize("end", [frame(3), close_frame(1000)], ids=["a broken rule", "a Close"])
def test_a_peer_that_goes_on_sending_is_cut_off_after_close_timeout(impatient: Server, end: bytes) -> None:
    with unharmed(impatient):
        begun = time.monotonic()
        with Raw(impatient, request("/echo") + end) as raw:
            raw.head()
            with pytest.raises(ConnectionError):
                while time.monotonic() - begun < DEADLINE:
                    raw.send(bytes(MIB))
            assert time.monotonic() - begun > 0.4


def test_data_behind_a_close_is_thrown_away(server: Server) -> None:
    sent = frame(TEXT, b"before") + close_frame(4001) + frame(TEXT, b"behind") + frame(PING) + frame(3) + b"\xff" * 1000
    with unharmed(server), Raw(server, request("/echo") + sent) as raw:
        raw.head()
        assert next_frame(raw) == (TEXT, b"before")
        assert close_code(raw) == 4001


# A session cut short

SESSION = b"".join(
    (
        request("/echo"),
        frame(TEXT, "é".encode()),
        frame(BINARY, b"x" * 126, fin=False),
        frame(PING, b"?"),
        frame(CONTINUATION, b"y"),
        close_frame(1000, "bye"),
    )
)


@pytest.mark.parametrize("settled", [True, False], ids=["read by then", "perhaps not read"])
@pytest.mark.parametrize("end", [Raw.reset, Raw.close])
def test_a_session_may_end_at_any_byte(server: Server, end: Callable[[Raw], None], settled: bool) -> None:
    with unharmed(server), Raw(server, request("/probe")) as other:
        other.head()
        for size in range(len(SESSION) + 1):
            with Raw(server, SESSION[:size]) as raw:
                if settled:  # whoever is served after it shows that it was
                    for _ in range(3):
                        other.send(frame(PING))
                        assert next_frame(other) == (PONG, b"")
                end(raw)


# More messages than the option max_message_rate allows


def flooded_until(raw: Raw, data: bytes, last: bytes) -> bytes:
    """Send data again and again, and read meanwhile; return what has come once that ends with last."""
    raw.sock.settimeout(0)
    received, rest = b"", data
    end = time.monotonic() + DEADLINE
    while not received.endswith(last):
        assert time.monotonic() < end
        readable, writable, _ = select.select([raw.sock], [raw.sock], [], DEADLINE)
        if writable:
            rest = rest[raw.sock.send(rest) :] or data
        if readable:
            received += raw.sock.recv(65536)
    return received


@pytest.mark.parametrize("path", ["/server", "/route", "/accepted"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_flood_of_messages_is_held_back_then_closed_with_1008(tmp_path: Path, front_end: str, path: str) -> None:
    env = {"GEVENTWS_MAX_MESSAGE_RATE": "20"} if path == "/server" else {}
    with serve("tests.apps_rate:app", tmp_path, front_end=front_end, env=env) as server:
        begun = time.monotonic()
        with Raw(server, request("/off")) as other, Raw(server, request(path)) as raw:
            other.head()
            raw.head()
            reason = b"\x03\xf0more than 20 messages a second"
            received = flooded_until(raw, frame(TEXT, b"x") * 1000, bytes([0x88, len(reason)]) + reason)
            assert received.count(b"\x81\x01x") <= 20 * (BURST + time.monotonic() - begun) + 1
            server.wait_for_log(rf"WARNING.*{path} closes: the peer goes on past max_message_rate, 20 messages a sec")
            other.send(frame(TEXT, b"x") * 5000)
            for _ in range(5000):
                assert next_frame(other) == (TEXT, b"x")
        server.wait_for_log(rf"{path} close 1008 ")
