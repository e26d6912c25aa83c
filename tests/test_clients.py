"""Clients that others wrote talk to both front ends: websockets, websocket-client, wsproto, Node's ws, and curl."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import ssl
import struct
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import websocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    Request,
    TextMessage,
)

from .raw import HANDSHAKE
from .servers import DEADLINE, FRONT_ENDS, Server, missing, node_modules, serve, wait_for

pytestmark = pytest.mark.slow  # it starts servers or installs packages

Certificate = tuple[str, str, ssl.SSLContext]

TESTS = Path(__file__).parent
KINDS = {f"{front_end}-{tls}": (front_end, tls == "wss") for front_end in FRONT_ENDS for tls in ("ws", "wss")}


@pytest.fixture(scope="module", params=KINDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificate: Certificate
) -> Iterator[Server]:
    front_end, tls = KINDS[request.param]
    directory = tmp_path_factory.mktemp("clients")
    with serve("tests.apps:app", directory, front_end=front_end, certificate=certificate if tls else None) as server:
        yield server


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Path:
    """The authorities that the tests trust, in a PEM file for clients that are no Python."""
    path: Path = tmp_path_factory.mktemp("authorities") / "ca.pem"
    path.write_text("".join(map(ssl.DER_cert_to_PEM_cert, certificate[2].get_ca_certs(binary_form=True))))
    return path


@pytest.fixture(scope="session")
def node_ws() -> None:
    """Node's ws, the newest, in tests/node_modules."""
    node_modules()


class Client(ABC):
    """One connection of a foreign library, as these tests need it."""

    @abstractmethod
    def send(self, message: str | bytes) -> None: ...

    @abstractmethod
    def send_fragments(self, fragments: Sequence[str]) -> None: ...

    @abstractmethod
    def receive(self) -> str | bytes: ...

    @abstractmethod
    def ping(self, payload: bytes) -> bytes:
        """Return the payload of the pong."""

    @abstractmethod
    def close(self, code: int, reason: str) -> int:
        """Return the code of the Close that answers."""

    @abstractmethod
    def closed_by_server(self) -> tuple[int, str]:
        """Wait for the server's Close; return its code and reason."""

    @abstractmethod
    def release(self) -> None:
        """Give everything back, whatever has happened."""


class Websockets(Client):
    def __init__(self, url: str, tls: ssl.SSLContext | None, authorities: Path) -> None:
        self._stack = ExitStack()
        if tls:
            # It reads and writes in two threads, which the session tickets of TLS 1.3 make hang now and then.
            tls.maximum_version = ssl.TLSVersion.TLSv1_2
            self._stack.callback(setattr, tls, "maximum_version", ssl.TLSVersion.MAXIMUM_SUPPORTED)
        self._ws = self._stack.enter_context(connect(url, ssl=tls, proxy=None, compression=None))

    def send(self, message: str | bytes) -> None:
        self._ws.send(message)

    def send_fragments(self, fragments: Sequence[str]) -> None:
        self._ws.send(fragments)

    def receive(self) -> str | bytes:
        return self._ws.recv(timeout=DEADLINE)

    def ping(self, payload: bytes) -> bytes:
        assert self._ws.ping(payload).wait(DEADLINE)
        return payload

    def close(self, code: int, reason: str) -> int:
        self._ws.close(code, reason)
        return self.closed_by_server()[0]

    def closed_by_server(self) -> tuple[int, str]:
        with pytest.raises(ConnectionClosed) as caught:
            self._ws.recv(timeout=DEADLINE)
        assert caught.value.rcvd is not None
        return caught.value.rcvd.code, caught.value.rcvd.reason

    def release(self) -> None:
        self._stack.close()


class WebsocketClient(Client):
    def __init__(self, url: str, tls: ssl.SSLContext | None, authorities: Path) -> None:
        self._ws = websocket.create_connection(url, timeout=DEADLINE, sslopt={"context": tls} if tls else None)

    def send(self, message: str | bytes) -> None:
        self._ws.send(message, websocket.ABNF.OPCODE_TEXT if isinstance(message, str) else websocket.ABNF.OPCODE_BINARY)

    def send_fragments(self, fragments: Sequence[str]) -> None:
        for index, fragment in enumerate(fragments):
            opcode = websocket.ABNF.OPCODE_CONT if index else websocket.ABNF.OPCODE_TEXT
            self._ws.send_frame(
                websocket.ABNF.create_frame(fragment.encode(), opcode, int(index == len(fragments) - 1))
            )

    def receive(self) -> str | bytes:
        message = self._ws.recv()
        assert isinstance(message, (str, bytes))
        return message

    def ping(self, payload: bytes) -> bytes:
        self._ws.ping(payload)
        opcode, frame = self._ws.recv_data_frame(control_frame=True)
        assert opcode == websocket.ABNF.OPCODE_PONG
        return bytes(frame.data)

    def close(self, code: int, reason: str) -> int:
        self._ws.close(code, reason.encode())
        return int.from_bytes(self._ws.close_frame.data[:2], "big")

    def closed_by_server(self) -> tuple[int, str]:
        opcode, payload = self._ws.recv_data()
        assert opcode == websocket.ABNF.OPCODE_CLOSE
        return struct.unpack("!H", payload[:2])[0], payload[2:].decode()

    def release(self) -> None:
        self._ws.shutdown()


class Wsproto(Client):
    """wsproto has no socket of its own."""

    def __init__(self, server: Server, path: str) -> None:
        self._sock = server.socket()
        self._connection = WSConnection(ConnectionType.CLIENT)
        self._events: list[Event] = []
        self._tell(Request(host="localhost", target=path))
        assert isinstance(self._next(), AcceptConnection)

    def _tell(self, event: Event) -> None:
        self._sock.sendall(self._connection.send(event))

    def _next(self) -> Event:
        while not self._events:
            data = self._sock.recv(65536)
            assert data, "the connection ended"
            self._connection.receive_data(data)
            self._events.extend(self._connection.events())
        return self._events.pop(0)

    def send(self, message: str | bytes) -> None:
        self._tell(TextMessage(data=message) if isinstance(message, str) else BytesMessage(data=message))

    def send_fragments(self, fragments: Sequence[str]) -> None:
        for index, fragment in enumerate(fragments):
            self._tell(TextMessage(data=fragment, message_finished=index == len(fragments) - 1))

    def receive(self) -> str | bytes:
        pieces: list[Any] = []
        while True:
            event = self._next()
            assert isinstance(event, (TextMessage, BytesMessage))
            pieces.append(event.data)
            if event.message_finished:
                return "".join(pieces) if isinstance(event, TextMessage) else b"".join(pieces)

    def ping(self, payload: bytes) -> bytes:
        self._tell(Ping(payload=payload))
        event = self._next()
        assert isinstance(event, Pong)
        return bytes(event.payload)

    def close(self, code: int, reason: str) -> int:
        self._tell(CloseConnection(code=code, reason=reason))
        event = self._next()
        assert isinstance(event, CloseConnection)
        assert self._sock.recv(1) == b""
        self._sock.close()
        return event.code

    def closed_by_server(self) -> tuple[int, str]:
        event = self._next()
        assert isinstance(event, CloseConnection)
        self._tell(event.response())
        return event.code, event.reason or ""

    def release(self) -> None:
        self._sock.close()


class NodeWs(Client):
    def __init__(self, url: str, tls: ssl.SSLContext | None, authorities: Path) -> None:
        self._node = subprocess.Popen(
            ["node", str(TESTS / "clients" / "ws.js"), url],
            env={**os.environ, "NODE_EXTRA_CA_CERTS": str(authorities)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # Reading a pipe has no timeout; without the process it ends.
        self._watchdog = threading.Timer(DEADLINE, self._node.kill)
        self._watchdog.start()
        self._expect("open")

    def _order(self, action: str, **details: Any) -> None:
        assert self._node.stdin
        print(json.dumps({"action": action, **details}), file=self._node.stdin, flush=True)

    def _expect(self, *kinds: str) -> dict[str, Any]:
        assert self._node.stdout
        event: dict[str, Any] = json.loads(self._node.stdout.readline())
        assert event["kind"] in kinds, event
        return event

    def _send(self, message: str | bytes, fin: bool) -> None:
        data = message.encode() if isinstance(message, str) else message
        self._order("send", data=base64.b64encode(data).decode(), binary=isinstance(message, bytes), fin=fin)

    def send(self, message: str | bytes) -> None:
        self._send(message, fin=True)

    def send_fragments(self, fragments: Sequence[str]) -> None:
        for index, fragment in enumerate(fragments):
            self._send(fragment, fin=index == len(fragments) - 1)

    def receive(self) -> str | bytes:
        event = self._expect("text", "binary")
        data = base64.b64decode(event["data"])
        return data.decode() if event["kind"] == "text" else data

    def ping(self, payload: bytes) -> bytes:
        self._order("ping", data=base64.b64encode(payload).decode())
        return base64.b64decode(self._expect("pong")["data"])

    def close(self, code: int, reason: str) -> int:
        self._order("close", code=code, reason=reason)
        return self.closed_by_server()[0]

    def closed_by_server(self) -> tuple[int, str]:
        event = self._expect("close")
        return event["code"], event["reason"]

    def release(self) -> None:
        self._watchdog.cancel()
        self._node.kill()
        self._node.communicate()


LIBRARIES = {"websockets": Websockets, "websocket-client": WebsocketClient, "wsproto": Wsproto, "ws of Node": NodeWs}


class Clients:
    """open(path) connects with the library under test; what it opened is released at the end of the test."""

    def __init__(self, library: str, server: Server, authorities: Path, stack: ExitStack) -> None:
        self._library = LIBRARIES[library]
        self._server = server
        self._authorities = authorities
        self._stack = stack

    def open(self, path: str) -> Client:
        client: Client
        if self._library is Wsproto:
            client = Wsproto(self._server, path)
        else:
            client = self._library(self._server.url(path), self._server.tls, self._authorities)
        self._stack.callback(client.release)
        return client


@pytest.fixture(params=LIBRARIES)
def clients(request: pytest.FixtureRequest, server: Server, authorities: Path) -> Iterator[Clients]:
    if request.param == "ws of Node":
        request.getfixturevalue("node_ws")
    with ExitStack() as stack:
        yield Clients(request.param, server, authorities, stack)


@pytest.mark.parametrize("path", ["/echo", "/environ"])
def test_messages_come_back_as_they_went(clients: Clients, path: str) -> None:
    client = clients.open(path)
    for message in ("hello", "é𝄞", "", b"\x00\xff", b"", b"x" * 125, b"x" * 126, "x" * 65_535, b"x" * 65_536):
        client.send(message)
        assert client.receive() == message


def test_a_message_of_one_mebibyte_comes_back(clients: Clients) -> None:
    client = clients.open("/echo")
    message = bytes(range(256)) * 4096
    client.send(message)
    assert client.receive() == message


def test_fragments_come_back_as_one_message(clients: Clients) -> None:
    client = clients.open("/echo")
    client.send_fragments(["one ", "", "twö ", "three"])
    assert client.receive() == "one twö three"


def test_a_ping_is_answered_with_its_payload(clients: Clients) -> None:
    client = clients.open("/echo")
    assert client.ping(b"payload") == b"payload"
    client.send("still open")
    assert client.receive() == "still open"


def test_the_client_closes_with_code_and_reason(clients: Clients, server: Server) -> None:
    before = len(server.log)
    assert clients.open("/echo").close(4001, "enough") == 4001
    wait_for(lambda: "/echo close 4001 enough (client, " in server.log[before:], "the close in the log")


@pytest.mark.parametrize("code", [1000, 4002])
def test_the_server_closes_with_code_and_reason(clients: Clients, code: int) -> None:
    assert clients.open(f"/close/{code}").closed_by_server() == (code, f"closed with {code}")


def test_a_failed_view_is_1011_for_the_client(clients: Clients) -> None:
    client = clients.open("/raise")
    client.send("go")
    assert client.closed_by_server()[0] == 1011


# path, changed headers, arguments, status, a header, a piece of the body
CURLED: dict[str, tuple[str, dict[str, str | None], list[str], int, str, str]] = {
    "POST": ("/echo", {}, ["-X", "POST"], 405, "Allow: GET", "the method must be GET"),
    "HTTP/1.0": ("/echo", {}, ["--http1.0"], 400, "Content-Type: text/plain", "the protocol must be HTTP/1.1"),
    "version": ("/echo", {"Sec-WebSocket-Version": "7"}, [], 426, "Sec-WebSocket-Version: 13", "must be 13"),
    "key": ("/echo", {"Sec-WebSocket-Key": "x"}, [], 400, "Content-Type: text/plain", "16 bytes in base64"),
    "origin": ("/echo", {"Origin": "https://evil.example"}, [], 403, "Content-Type: text/plain", "is not allowed"),
    "view": ("/unauthorized", {}, [], 401, "Content-Type: text/html", "Unauthorized"),
    "redirect": ("/login", {}, [], 302, "Set-Cookie: seen=yes", "Redirecting"),
    "no route": ("/nothing-here", {}, [], 404, "Content-Type: text/html", "Not Found"),
    "plain GET": ("/echo", {"Upgrade": None, "Connection": None}, [], 426, "Upgrade: websocket", "WebSocket endpoint"),
}


@pytest.mark.parametrize("name", CURLED)
def test_curl_shows_a_refusal_and_ends(server: Server, authorities: Path, name: str) -> None:
    if not shutil.which("curl"):
        missing("curl")
    path, changes, arguments, status, header, text = CURLED[name]
    command = ["curl", "--silent", "--include", "--http1.1", "--max-time", "5", "--cacert", str(authorities)]
    for key, value in {**HANDSHAKE, **changes}.items():
        command += ["-H", f"{key}: {value}"] if value is not None else []
    done = subprocess.run([*command, *arguments, server.url(path).replace("ws", "http", 1)], capture_output=True)
    assert done.returncode == 0, f"curl ended with {done.returncode}: the connection was left open or cut"
    head, _, body = done.stdout.decode().partition("\r\n\r\n")
    assert re.match(rf"HTTP/1\.[01] {status} ", head)
    assert header in head
    assert text in body
