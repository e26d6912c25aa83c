"""Compression over the wire: other clients, a real Chromium, and bombs, against both front ends."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Event, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from .bombs import ATTACKS, LIMIT, OFFER, compressed, message
from .crowd import page as page_of
from .raw import BINARY, TEXT, Raw, frame, request
from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, serve, wait_for
from .test_chat import start_chromium
from .test_clients import TESTS, node_ws  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow  # it starts servers or installs packages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PLAIN = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
THRESHOLD = "GEVENTWS_DEFLATE_THRESHOLD"
TAIL = bytes.fromhex("0000ffff")  # RFC 7692 §7.2.1
NOISE = bytes((index * index * 31 + index * 7) >> 3 & 0xFF for index in range(3000))
MESSAGES: list[str | bytes] = [
    "hello", "", b"", "hello " * 100, "aü€𝄞" * 5000, NOISE, NOISE, bytes(1_000_000), "x" * 65_536, b"\xff" * 127,
]  # fmt: skip


@pytest.fixture(scope="module", params=FRONT_ENDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve("tests.apps_deflate:app", tmp_path_factory.mktemp("deflate"), front_end=request.param) as server:
        yield server
        assert "Traceback" not in server.log


def extensions_of(head: str) -> str | None:
    """Return the value of the Sec-WebSocket-Extensions header, None where there is none."""
    lines = [line.partition(": ")[2] for line in head.split("\r\n") if line.startswith("Sec-WebSocket-Extensions: ")]
    assert len(lines) <= 1
    return lines[0] if lines else None


@contextmanager
def opened(server: Server, path: str, offer: str | None = OFFER) -> Iterator[tuple[Raw, str | None]]:
    """Give a raw connection, and what was agreed on."""
    with Raw(server, request(path, Sec_WebSocket_Extensions=offer)) as raw:
        head = raw.head()
        assert head.startswith("HTTP/1.1 101 ")
        yield raw, extensions_of(head)


# What is agreed on, and what then travels


@pytest.mark.parametrize(("path", "offer", "wanted"), [
    ("/echo", None, None),
    ("/echo", "permessage-deflate", PLAIN),
    ("/echo", "permessage-deflate; client_max_window_bits", PLAIN),
    ("/echo", "x-other, permessage-deflate; x, permessage-deflate; server_max_window_bits=10",
     f"{PLAIN}; server_max_window_bits=10"),
    ("/echo", "permessage-deflate; server_max_window_bits=8", None),
    ("/echo", "x-webkit-deflate-frame", None),
    ("/plain", "permessage-deflate", None),
    ("/takeover", "permessage-deflate", "permessage-deflate"),
    ("/narrow", "permessage-deflate; client_max_window_bits",
     f"{PLAIN}; server_max_window_bits=9; client_max_window_bits=9"),
])  # fmt: skip
def test_offer_is_answered_in_the_handshake(server: Server, path: str, offer: str | None, wanted: str | None) -> None:
    with opened(server, path, offer) as (raw, agreed):
        assert agreed == wanted
        raw.send(frame(TEXT, b"x" * 1000))
        first = raw.take(1)[0]
        assert first == (0x81 if wanted is None else 0xC1)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize(("env", "wanted"), [
    ({"GEVENTWS_DEFLATE": "off"}, None),
    ({"GEVENTWS_DEFLATE_CONTEXT_TAKEOVER": "on"}, OFFER),
    ({"GEVENTWS_DEFLATE_WINDOW_BITS": "12", THRESHOLD: "5"}, f"{PLAIN}; server_max_window_bits=12"),
], ids=["off", "context takeover", "window bits"])  # fmt: skip
def test_environment_sets_what_is_agreed_on(
    tmp_path: Path, front_end: str, env: dict[str, str], wanted: str | None
) -> None:
    with (
        serve("tests.apps_deflate:app", tmp_path, front_end=front_end, env=env) as server,
        opened(server, "/echo") as (raw, agreed),
    ):
        assert agreed == wanted
        inflater = zlib.decompressobj(-15)
        for sent in (NOISE * 2, NOISE * 2, b"abc" * 20):
            raw.send(frame(BINARY, sent))
            first, length = raw.take(2)
            assert bool(first & 0x40) == (wanted is not None and len(sent) >= int(env.get(THRESHOLD, 100)))
            payload = raw.take(int.from_bytes(raw.take(2), "big") if length == 126 else length)
            if first & 0x40:
                payload = inflater.decompress(payload + TAIL)
                inflater = inflater if wanted == OFFER else zlib.decompressobj(-15)
            assert payload == sent


def test_message_that_does_not_shrink_and_a_small_one_come_back_plain(server: Server) -> None:
    with opened(server, "/echo") as (raw, _):
        for payload in (random.Random(7692).randbytes(3000), b"x" * 50):
            raw.send(frame(BINARY, payload))
            raw.send(message(BINARY, compressed(payload)))
            assert raw.frame() == (BINARY, payload)
            assert raw.frame() == (BINARY, payload)


@pytest.mark.parametrize(("wire", "code"), [
    (message(TEXT, b"\x07"), 1007),
    (message(TEXT, compressed(b"\xff")), 1007),
    (message(BINARY, compressed(bytes(LIMIT + 1))), 1009),
    (message(BINARY, compressed(bytes(LIMIT + 1)), 100), 1009),
    (bytes([0xC9]) + frame(9)[1:], 1002),
    (bytes([0xA1]) + frame(TEXT)[1:], 1002),
])  # fmt: skip
def test_broken_message_is_told_and_ends_the_connection(server: Server, wire: bytes, code: int) -> None:
    with opened(server, "/echo") as (raw, _):
        raw.send(message(TEXT, compressed(b"before")) + wire + frame(TEXT, b"never read"))
        assert raw.frame() == (TEXT, b"before")
        assert raw.closes()[0] == code
        assert raw.rest() == b""


def test_largest_message_comes_back(server: Server) -> None:
    with opened(server, "/echo") as (raw, _):
        raw.send(message(BINARY, compressed(bytes(LIMIT))))
        first, length = raw.take(2)
        assert (first, length) == (0xC2, 126)
        payload = raw.take(int.from_bytes(raw.take(2), "big"))
        assert zlib.decompressobj(-15).decompress(payload + TAIL) == bytes(LIMIT)


# Other clients

PATHS = ["/echo", "/takeover", "/narrow"]


@pytest.mark.parametrize("path", PATHS)
def test_websockets_with_its_defaults(server: Server, path: str) -> None:
    with server.connect(path, compression="deflate") as client:
        assert client.response and "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        for sent in MESSAGES:
            client.send(sent)
            assert client.recv(DEADLINE) == sent
        client.send(["frag", "", "ments ", "x" * 1000])
        assert client.recv(DEADLINE) == "fragments " + "x" * 1000


@pytest.mark.parametrize("path", ["/echo", "/takeover"])
@pytest.mark.parametrize("forgets", [False, True], ids=["takeover", "no takeover"])
@pytest.mark.parametrize("bits", range(9, 16))
def test_websockets_with_every_window(server: Server, path: str, bits: int, forgets: bool) -> None:
    factory = ClientPerMessageDeflateFactory(forgets, forgets, bits, bits)
    with server.connect(path, extensions=[factory]) as client:
        assert client.response
        agreed = client.response.headers["Sec-WebSocket-Extensions"]
        assert f"server_max_window_bits={bits}" in agreed
        assert ("no_context_takeover" in agreed) == (forgets or path == "/echo")
        for sent in MESSAGES:
            client.send(sent)
            assert client.recv(DEADLINE) == sent


NODE_OPTIONS: list[dict[str, Any]] = [
    {},
    {"serverNoContextTakeover": True, "clientNoContextTakeover": True},
    {"serverMaxWindowBits": 9, "clientMaxWindowBits": 9},
    {"serverMaxWindowBits": 12, "clientMaxWindowBits": 10, "clientNoContextTakeover": True},
    {"clientMaxWindowBits": True, "threshold": 1024},
]


@pytest.mark.usefixtures("node_ws")
@pytest.mark.parametrize("path", PATHS)
def test_ws_of_node(server: Server, path: str) -> None:
    for options in NODE_OPTIONS:
        command = ["node", str(TESTS / "clients" / "ws_deflate.js"), server.url(path), json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
        told = json.loads(done.stdout)
        assert told["extensions"].startswith("permessage-deflate"), options
        assert (told["code"], told["echoes"], told["wrong"]) == (1000, 9, []), options


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("offer", [
    {}, {"client_no_context_takeover": True, "server_no_context_takeover": True},
    {"client_max_window_bits": 9, "server_max_window_bits": 9}, {"client_max_window_bits": 10},
], ids=str)  # fmt: skip
def test_wsproto(server: Server, path: str, offer: dict[str, Any]) -> None:
    extension = PerMessageDeflate(**offer)
    connection = WSConnection(ConnectionType.CLIENT)
    with server.socket() as sock:

        def next_event() -> Event:
            while True:
                for event in connection.events():
                    return event
                connection.receive_data(sock.recv(65_536))

        sock.sendall(connection.send(Request(host="localhost", target=path, extensions=[extension])))
        accepted = next_event()
        assert isinstance(accepted, AcceptConnection) and accepted.extensions == [extension]
        for sent in MESSAGES:
            event_to_send = TextMessage(data=sent) if isinstance(sent, str) else BytesMessage(data=sent)
            sock.sendall(connection.send(event_to_send))
            pieces: list[Any] = []
            while True:
                event = next_event()
                assert isinstance(event, (TextMessage, BytesMessage))
                pieces.append(event.data)
                if event.message_finished:
                    break
            assert type(sent)().join(pieces) == sent


# A browser


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Page]:
    with start_chromium() as browser:
        yield open_page(browser, server)


def open_page(browser: Browser, server: Server) -> Page:
    page = browser.new_page()
    page.set_default_timeout(DEADLINE * 1000)
    page.goto(f"http://127.0.0.1:{server.port}/page")
    return page


# Sends each message when the echo of the one before is back; tells what was agreed on and which echoes were wrong.
IN_THE_PAGE = """path => new Promise((resolve) => {
    const noise = Uint8Array.from({ length: 3000 }, (_, index) => (index * index * 31 + index * 7) >> 3);
    const messages = ["hello", "", new Uint8Array(0), "hello ".repeat(100), "aü€𝄞".repeat(5000), noise, noise,
        new Uint8Array(1000000), "x".repeat(65536)];
    const same = (a, b) => typeof a == "string" ? a === b
        : b instanceof ArrayBuffer && a.length == b.byteLength && new Uint8Array(b).every((octet, i) => octet == a[i]);
    const ws = new WebSocket(`ws://${location.host}${path}`);
    const wrong = [];
    let next = 0;
    ws.binaryType = "arraybuffer";
    ws.onopen = () => ws.send(messages[0]);
    ws.onmessage = ({ data }) => {
        if (!same(messages[next], data)) wrong.push(next);
        next += 1;
        if (next < messages.length) ws.send(messages[next]);
        else ws.close(1000);
    };
    ws.onclose = ({ code }) => resolve({ extensions: ws.extensions, code, echoes: next, wrong });
})"""


@pytest.mark.parametrize(("path", "extensions"), [
    ("/echo", PLAIN),
    ("/takeover", "permessage-deflate"),
    ("/narrow", f"{PLAIN}; server_max_window_bits=9; client_max_window_bits=9"),
    ("/plain", ""),
])  # fmt: skip
def test_chromium_echoes_and_knows_what_was_agreed_on(page: Page, path: str, extensions: str) -> None:
    told = page.evaluate(IN_THE_PAGE, path)
    assert told == {"extensions": extensions, "code": 1000, "echoes": 9, "wrong": []}


# Bombs

WORST = 0.05  # seconds that an echo may take while others send bombs
TRIES = 5  # a machine that is held up from outside holds up one of them, a server that is slow each
SLACK = 24 << 20  # bytes: what is inflated at the moment, several times its size, and what malloc keeps


def stats(server: Server) -> dict[str, int]:
    """Return what the server's process holds, and the most memory it held since the last call."""
    told: dict[str, int] = json.loads(page_of(server, "/stats"))
    return told


def attack(server: Server, name: str) -> float:
    """Attack, and return the longest that another client's echo took meanwhile, in seconds.

    What counts is the CPU time of the server's process until the answer is there: a machine that has no CPU
    left for it is not its fault.
    """
    clock = ~stats(server)["process"] << 3 | 2  # as clock_getcpuclockid(3) makes it on Linux
    with opened(server, "/echo") as (raw, _):
        command = [sys.executable, "-m", "tests.bombs", str(server.port), name]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as peers:
            assert peers.stdout and peers.stdout.readline() == "ready\n"
            worst, is_over = 0.0, False
            while not is_over:  # one echo more when the peers are gone
                is_over = peers.poll() is not None
                started = time.clock_gettime(clock)
                raw.send(message(TEXT, compressed(b"probe")))
                assert raw.frame() == (TEXT, b"probe")
                worst = max(worst, time.clock_gettime(clock) - started)
                time.sleep(0.002)  # paces the probe
            told = json.loads(peers.stdout.read())
    assert peers.returncode == 0 and told["sent"] > 100_000, "that was no attack"
    return worst


def test_queue_takes_no_message_once_it_holds_as_many_bytes_as_one_may_have(server: Server) -> None:
    with opened(server, "/queued") as (raw, _):
        nearly_full = message(BINARY, compressed(bytes(LIMIT - 4096)))
        raw.send(nearly_full)
        assert raw.frame() == (TEXT, b"1")
        raw.send(nearly_full * 10)
        opcode, count = raw.frame()
        assert opcode == TEXT and int(count) <= 2


@pytest.mark.parametrize("name", ATTACKS)
def test_bombs_hold_up_nobody_else_and_leave_no_memory_behind(server: Server, name: str) -> None:
    # For each peer one message that arrives, in a buffer that grows by an eighth; and in the queue max_message_size
    # bytes with the message that went past them.
    allowed = ATTACKS[name].peers * LIMIT * (1.125 + 2 * ATTACKS[name].width)
    before = stats(server)
    trips: list[float] = []
    while not trips or (min(trips) >= WORST and len(trips) < TRIES):
        trips.append(attack(server, name))
        assert stats(server)["peak"] < before["memory"] + allowed + SLACK
        wait_for(lambda: stats(server)["websockets"] <= before["websockets"], "end of the bombers", 3 * DEADLINE)
        assert stats(server)["memory"] < before["memory"] + SLACK
    assert min(trips) < WORST, f"echoes took up to {', '.join(f'{1000 * trip:.0f}' for trip in trips)} ms"
