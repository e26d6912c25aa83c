"""Both ends of a connection in this process: sockets joined in pairs, and a client driven by hand."""

from __future__ import annotations

import gc
import io
import itertools
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import gevent
import gevent.socket
import gevent.ssl
import pytest
from gevent import get_hub

from geventws.connection import Connection, Event, Ping
from geventws.errors import HandshakeError
from geventws.frames import CLOSE, PING, PONG, close_payload, encode_frame
from geventws.handshake import Request
from geventws.options import Options
from geventws.websocket import WebSocket

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 §1.3
KINDS = ["unix", "tcp", "tls"]  # of sockets
SMALL = 4096  # bytes of a kernel buffer
MEGABYTE = 1 << 20
WITHIN = 60.0  # seconds behind which a thing that should happen at once hangs; a busy machine needs less

# What a server says of the handshake of RFC 6455 §1.3.
ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "PATH_INFO": "/",
    "HTTP_HOST": "localhost",
    "HTTP_UPGRADE": "websocket",
    "HTTP_CONNECTION": "Upgrade",
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
    "HTTP_SEC_WEBSOCKET_KEY": KEY,
}

T = TypeVar("T")
Certificate = tuple[str, str, Any]


@contextmanager
def watched_hub(within: float = 2 * WITHIN) -> Iterator[io.StringIO]:
    """Fail on anything printed about an error in the hub or in a greenlet, and on a block that takes too long.

    Gives the stream of such errors; who expects one empties it.
    """
    hub = get_hub()
    errors = hub.exception_stream = io.StringIO()
    try:
        with gevent.Timeout(within):
            yield errors
    finally:
        del hub.exception_stream
    assert errors.getvalue() == "", errors.getvalue()


def until(condition: Callable[[], T], what: str, within: float = WITHIN) -> T:
    """Return the first true result of condition, letting the hub run meanwhile; fail when the time is over."""
    end = monotonic() + within
    while not (result := condition()):
        if monotonic() > end:
            pytest.fail(f"{what} did not happen within {within:g} s")
        gevent.sleep(0.002)
    return result


def settle() -> None:
    """Return when the hub has nothing left to do but to wait."""
    for _ in range(3):
        gevent.idle()


def hold_hub(seconds: float) -> None:
    """Keep the CPU, as a view does that computes."""
    end = monotonic() + seconds
    while monotonic() < end:
        pass


class Passes:
    """Counts the passes of the event loop while its block runs."""

    count = 0

    def __enter__(self) -> Passes:
        self._watcher = get_hub().loop.prepare(ref=False)
        self._watcher.start(self._step)
        return self

    def _step(self) -> None:
        self.count += 1

    def __exit__(self, *exc_info: object) -> None:
        self._watcher.close()


def joined(kind: str, certificate: Certificate | None = None, *, buffer: int | None = None) -> tuple[Any, Any]:
    """Return the server's and the client's end of a connection: kind is "unix", "tcp" or "tls".

    buffer is the size of the kernel's buffers, for peers that are to be slow.
    """
    if kind == "unix":
        server, client = gevent.socket.socketpair()
    else:
        listener = gevent.socket.socket()
        if buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client = gevent.socket.socket()
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        listener.close()
    if buffer:
        for sock in (server, client):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    if kind == "tls":
        assert certificate is not None
        server, client = _encrypted(server, client, certificate)
    return server, client


def _encrypted(server: Any, client: Any, certificate: Certificate) -> tuple[Any, Any]:
    ours = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(*certificate[:2])
    theirs = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
    theirs.check_hostname = False
    theirs.verify_mode = gevent.ssl.CERT_NONE
    # suppress_ragged_eofs=False: an end without close_notify is an error.
    wrapping = gevent.spawn(theirs.wrap_socket, client, suppress_ragged_eofs=False)
    server = ours.wrap_socket(server, server_side=True)
    return server, wrapping.get()


def reset(sock: Any) -> None:
    """Close a TCP socket as a process that crashed does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class RecordingSocket:
    """A socket that writes down in `sends` what each send() gave the kernel."""

    def __init__(self, sends: list[bytes], sock: Any) -> None:
        self.sends = sends
        self.inner = sock

    def send(self, data: bytes) -> int:
        size = int(self.inner._sock.send(data))
        self.sends.append(bytes(data[:size]))
        return size

    def sendmsg(self, parts: Sequence[bytes]) -> int:
        return self.send(b"".join(parts))

    def recv(self, size: int) -> bytes:
        return bytes(self.inner._sock.recv(size))

    def __getattr__(self, name: str) -> Any:
        if name in {"pending", "_sock"}:
            raise AttributeError(name)
        return getattr(self.inner, name)


class Peer:
    """The client at the other end: a gevent socket and a client's Connection, both driven by hand."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.connection = Connection(client=True, max_message_size=1 << 30)
        self._events: deque[Event] = deque()
        sock.settimeout(WITHIN)

    def open(self) -> str:
        """Read the 101 response and return its head."""
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.sock.recv(4096)
            assert data, f"the server closed behind {head!r}"
            head += data
        head, _, rest = head.partition(b"\r\n\r\n")
        self._events += self.connection.receive_data(rest)
        return head.decode()

    def frame(self, message: str | bytes) -> bytes:
        """Return the frame of a message."""
        return self.connection.encode_message(message)

    def send(self, *messages: str | bytes) -> None:
        """Send messages in one piece."""
        self.sock.sendall(b"".join(self.frame(message) for message in messages))

    def receive(self) -> Event | None:
        """Return the next event, None at the end of the byte stream."""
        while not self._events:
            data = self.sock.recv(65536)
            if not data:
                return None
            self._events += self.connection.receive_data(data)
        return self._events.popleft()

    def read_all(self) -> list[Event]:
        """Return all events up to the end of the byte stream."""
        return list(iter(self.receive, None))

    def has_data(self) -> bool:
        """Whether anything waits to be read."""
        if self._events:
            return True
        try:
            return bool(self.sock._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False

    def send_until_blocked(self, frames: Iterator[bytes]) -> list[bytes]:
        """Send frames whole until the kernel takes no more for a while; return those it took and the rest of one."""
        taken: list[bytes] = []
        for frame in frames:
            sent = 0
            while sent < len(frame):
                try:
                    sent += self.sock._sock.send(frame[sent:])
                except BlockingIOError:
                    settle()
                    try:
                        sent += self.sock._sock.send(frame[sent:])
                    except BlockingIOError:
                        return [*taken, frame[sent:]]
            taken.append(frame)
        raise AssertionError("the kernel took all")


def masked(opcode: int, payload: bytes = b"") -> bytes:
    """Return a client's frame."""
    return encode_frame(opcode, payload, masking_key=b"\1\2\3\4")


def ping_frame(payload: bytes = b"") -> bytes:
    return masked(PING, payload)


def pong_frame(payload: bytes = b"") -> bytes:
    return masked(PONG, payload)


def close_frame(code: int = 1000, reason: str = "") -> bytes:
    return masked(CLOSE, close_payload(code, reason))


class Opener:
    """Opens WebSockets with their peers, and ends them when the test is over."""

    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate
        self._opened: list[tuple[WebSocket, Peer, Any]] = []
        self._greenlets: list[Any] = []

    def __call__(
        self,
        kind: str = "unix",
        *,
        buffer: int | None = None,
        leftover: bytes = b"",
        accept: bool = True,
        wrap: Callable[[Any], Any] = lambda sock: sock,
        refusal: HandshakeError | None = None,
        admit: Callable[[], None] | None = None,
        **options: Any,
    ) -> tuple[WebSocket, Peer]:
        """Return a WebSocket and its peer, the handshake done unless accept is False.

        leftover came with the request; wrap makes the server's socket another one; refusal is the client's by its
        origin; admit may raise another.
        """
        server, client = joined(kind, self._certificate, buffer=buffer)
        environ = {"SCRIPT_NAME": "", "PATH_INFO": "/path", "REQUEST_METHOD": "GET"}
        leftovers = itertools.chain([leftover], itertools.repeat(b""))
        request = Request(KEY, (), ())
        ends = wrap(server), lambda: next(leftovers), environ, lambda size: None
        ws = WebSocket(*ends, Options(**options), request, refusal, admit)
        peer = Peer(client)
        self._opened.append((ws, peer, server))
        if accept:
            ws.accept()
            peer.open()
        return ws, peer

    def spawn(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function in a greenlet that does not outlive the test; an error ends up in its value."""
        greenlet = gevent.spawn(_outcome, function, arguments)
        self._greenlets.append(greenlet)
        return greenlet

    def forget(self) -> None:
        """Keep nothing of what was opened: the test has ended it."""
        self._opened.clear()
        self._greenlets.clear()

    def close(self) -> None:
        """End them all."""
        gevent.killall(self._greenlets)
        for ws, peer, server in self._opened:
            peer.sock.close()
            if ws.accepted:
                finishing = gevent.spawn(ws.finish)
                settle()
                finishing.kill()
            server.close()
        self.forget()


def _outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return function(*arguments)
    except (Exception, gevent.Timeout) as exc:
        return exc


def living(*kinds: type) -> list[Any]:
    """Return the objects of these types that are still there after a garbage collection."""
    gc.collect()
    return [item for item in gc.get_objects() if type(item) in kinds]


def echo(ws: WebSocket) -> None:
    """Answer each message with itself until the connection ends."""
    for message in ws:
        ws.send(message)


def usable(ws: WebSocket, peer: Peer) -> bool:
    """Whether a message passes each way."""
    peer.send("there")
    assert ws.receive(timeout=WITHIN) == "there"
    ws.send("back")
    return peer.receive() == "back"


def until_closed(ws: WebSocket, what: str = "the end") -> None:
    """Return when the WebSocket's socket is closed."""
    until(lambda: ws.session.transport.closed, what)


def recording_pair(opened: Opener, **options: Any) -> tuple[WebSocket, Peer, list[bytes]]:
    """Return a WebSocket, its peer and what each system call gave the kernel after the 101."""
    sends: list[bytes] = []
    ws, peer = opened(wrap=partial(RecordingSocket, sends), **options)
    sends.clear()
    return ws, peer, sends


def answer_pings(peer: Peer) -> None:
    """Answer each ping until the end of the byte stream."""
    while event := peer.receive():
        if isinstance(event, Ping):
            peer.sock.sendall(pong_frame(event.payload))


def read_slowly(peer: Peer, seconds: float) -> None:
    """Read for this long, a little at a time."""
    end = monotonic() + seconds
    while monotonic() < end:
        peer.connection.receive_data(peer.sock.recv(2000))
        gevent.sleep(0.01)  # the peer's own pace


def with_room(sock: Any) -> Any:
    """Give a socket's kernel room for what a slow peer has not taken yet."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MEGABYTE)
    return sock


# The bytes by which a peer ends a connection, and the close code that this gives.
LAST_WORDS = {"close": (close_frame(1001), 1001), "failure": (masked(0x3), 1002)}


def received(peer: Peer, count: int) -> list[Any]:
    """Return that many events."""
    return [peer.receive() for _ in range(count)]
