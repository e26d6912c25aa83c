"""Transport: a non-blocking byte pipe on gevent's event loop, with an outbox.

Knows sockets, TLS and the hub; knows nothing of WebSocket. All of it runs in hub callbacks or in the
caller's greenlet and none of it ever blocks.
"""

from __future__ import annotations

import _socket
import math
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Protocol

import gevent.socket
from gevent import get_hub

from .deadlines import Deadline
from .fast import TransportFields, watch

try:
    import fcntl
    import termios
except ImportError:  # Windows
    fcntl = termios = None  # type: ignore[assignment]

# Bytes; not less than a TLS record, so that one read leaves nothing behind in OpenSSL, and a message of 64 KiB comes
# in one read; less than what malloc gets from the system and gives back each time.
READ_SIZE = 131_000
CORK_SIZE = 16_384  # bytes of small frames that gather before they leave in one system call
# Bytes of one TLS record: OpenSSL reports nothing of a longer write until the peer took all of it.
RECORD = 16_384
# Bytes that the kernel takes, at least, before it has sent them. The limit is twice max_outbox: without one, it holds
# 4 MiB for a peer that does not read; with max_outbox itself an echo of messages of 1 MiB loses up to 13 %.
NOT_SENT = 262_144
DISCARD_PAUSE = 0.01  # seconds between two reads of what is thrown away
LARGEST_FREED = 4 << 20  # bytes

_WRITE = 2
_NOTHING = memoryview(b"")
_NOT_SENT = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

# glibc gives the memory of large messages back to the kernel, which clears it for the next ones: a tenth of the cost of
# 1 MiB. Once it has seen an object of this size freed, it keeps up to twice as much for what is to come.
bytes(LARGEST_FREED)


class Owner(Protocol):
    """What a Transport tells its owner, always from a hub callback or from within a call on itself."""

    def data_received(self, data: bytes) -> None:
        """Bytes came."""

    def eof_received(self) -> None:
        """The peer will send no more; writing may still work."""

    def connection_lost(self, cause: str, reason: str) -> None:
        """The pipe is closed; told once. cause is a word for it; reason is empty where finish() or close() ended it."""

    def drained(self) -> None:
        """The peer took what was waiting, down to half of max_outbox or less."""


class Transport(TransportFields):
    """A byte pipe over a connected gevent socket, plain or TLS, which it closes in the end.

    write() takes data whole and never waits: what the kernel does not take stays in the outbox.
    """

    __slots__ = (
        "_discard",
        "_end",
        "_eof",
        "_loop",
        "_max_outbox",
        "_paused",
        "_read_watcher",
        "_rest",
        "_send_deadline",
        "_send_timeout",
        "_sock",
        "_taken",
        "_tls",
        "_write_watcher",
        "closed",
        "undelivered",
    )

    def __init__(self, sock: Any, owner: Owner, *, max_outbox: int, send_timeout: float | None) -> None:
        self._loop = get_hub().loop
        self._owner = owner
        self._max_outbox = max_outbox
        self._send_timeout = send_timeout
        self._tls = hasattr(sock, "pending")
        self._fd = -1
        if type(sock) is gevent.socket.socket:
            # gevent's own recv and send would park the greenlet, and its two watchers weigh 500 bytes.
            kind = sock._sock.family, sock._sock.type, sock._sock.proto  # which the system would be asked for, else
            sock = _socket.socket(*kind, sock.detach())
            self._fd = sock.fileno()  # which nobody else can close
        self._sock = sock
        sock.setblocking(False)
        # A TLS socket has its protocol in gevent's wrapper, which honours the missing timeout.
        self._pipe = sock if self._tls else getattr(sock, "_sock", sock)
        with suppress(OSError):  # a Unix socket has no Nagle to switch off
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if _NOT_SENT is not None:
                sock.setsockopt(socket.IPPROTO_TCP, _NOT_SENT, min(max(2 * max_outbox, NOT_SENT), 1 << 30))
        self._rest = _NOTHING  # of the write that the peer did not take whole: not copied, others may have the same
        self._outbox = bytearray()  # behind it
        self._corked = False
        self._paused = False
        self._eof = False
        self._end: Callable[[], None] | None = None  # what the end of the stream, seen just now, will do
        self._finishing = False
        self._discard: Deadline | None = None
        self._send_deadline: Deadline | None = None
        self._taken = 0  # bytes that the peer's system had when that deadline was set
        self._write_watcher: Any = None
        self._read_watcher = watch(self._loop, sock.fileno())
        self.closed = False
        self.reading = False  # what the peer sends now would be read
        self.blocked = False  # the peer did not take all it was sent
        self.congested = False  # more than max_outbox bytes wait; over when they are half of that
        self.broken = False  # the peer takes no more data
        self.bytes_received = 0
        self.bytes_sent = 0  # bytes the kernel took
        self.undelivered = 0  # bytes that the peer's system had not when abort() ended it
        self.last_received = monotonic()

    # Reading

    def start(self) -> None:
        """Begin to read."""
        self._update_reading()

    def pause_reading(self) -> None:
        """Read no more, so that TCP holds the peer back."""
        if not self._finishing:
            self._paused = True
            self._update_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._paused:
            self._paused = False
            self.last_received = monotonic()  # its silence while nobody listened does not count
            self._update_reading()

    def _update_reading(self) -> None:
        if self.closed:
            return
        self.reading = not (self._paused or self.congested or self._eof)
        if not self.reading:
            self._read_watcher.stop()
        elif not self._read_watcher.active:
            self._read_watcher.start(self._on_readable)
            # A TLS record read in part leaves the rest in OpenSSL, where no watcher sees it.
            if self._tls and not self._finishing and self._sock.pending():
                self._loop.run_callback(self.read_now)

    def read_now(self) -> None:
        """Read once what has come, if anything, and hand it to the owner."""
        if self.reading:
            self._on_readable()
            self._run_end()

    def _on_readable(self) -> None:
        try:
            data = self._pipe.recv(READ_SIZE)
        except _NOT_NOW:
            return
        except OSError as exc:
            self._fail_reading(exc)
            return
        except MemoryError:
            self.give_up()  # let out, it would stop the watcher: the connection would stay, and hear nothing
            return
        if not data:
            self._end_soon(self._take_eof)
            return
        self.bytes_received += len(data)
        self.last_received = monotonic()
        if self._finishing:
            self._discard_slowly()
        else:
            self._owner.data_received(data)

    def _fail_reading(self, exc: OSError) -> None:
        self._end_soon(partial(self._lose, "reset", _explain(exc)))

    def _end_soon(self, end: Callable[[], None]) -> None:
        """End behind this pass of the loop. Thousands may leave in one pass, and those who stay are read first."""
        self._read_watcher.stop()
        if self._end is None:
            self._loop.run_callback(self._run_end)
        self._end = end

    def _run_end(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end()

    def _take_eof(self) -> None:
        if self.broken or self._eof:
            return  # _end_broken() knows more of the end
        self._eof = True
        self._update_reading()
        if not self._finishing:
            self._owner.eof_received()
        elif not self.waiting:
            self.close()

    def _discard_slowly(self) -> None:
        """Read on in a moment. TCP holds back a peer that never stops sending, so that it costs nothing."""
        self._read_watcher.stop()
        if self._discard is None:
            self._discard = Deadline(self._update_reading)
        self._discard.set(monotonic() + DISCARD_PAUSE)

    # Writing

    def write(self, data: bytes, *, header: bytes = b"", more: bool = False) -> None:
        """Take data whole, behind a header of its own, and send what the peer takes of it now.

        more=True says that other small data may follow soon: it gathers until 16 KiB, a write without
        `more`, or the end of the loop pass.
        """
        if self.broken or self._finishing:
            return
        # What others write waits behind this until it is noted how much has left: a garbage collection may let them
        # run between any two statements, or one of them be a signal handler.
        was_blocked, self.blocked = self.blocked, True
        outbox = self._outbox
        try:
            if was_blocked:
                self._outbox += header + data if header else data
            elif more and len(outbox) + len(header) + len(data) < CORK_SIZE:
                outbox += header + data if header else data
                self.blocked = False
                self._uncork_soon()
                return
            elif outbox or header:
                self._flush(header, data)
            else:
                try:
                    sent = self._pipe.send(data) if not self._tls else self._send_records(data)
                except _NOT_NOW:
                    sent = 0
                except OSError as exc:
                    self._break(exc)
                    return
                self.bytes_sent += sent
                if sent < len(data):
                    self._keep_rest(data, sent)
                    return
                self.blocked = bool(outbox)
                if outbox:
                    self._block()
                return
        except MemoryError:
            self.give_up()  # what has left may be half a frame
            raise
        self._note_congestion()

    def _keep_rest(self, data: bytes, start: int) -> None:
        """Have the rest of a write wait, before which nothing does."""
        self._rest = memoryview(data)[start:]
        self._block()

    def _block(self) -> None:
        """Have what waits leave once the peer takes more."""
        self._wait_for_room(progress=True)
        self._note_congestion()

    def _note_congestion(self) -> None:
        if self.waiting > self._max_outbox and not self.congested:
            self.congested = True
            self._update_reading()

    def _send_records(self, data: bytes | bytearray | memoryview) -> int:
        """Return how many bytes OpenSSL took of data. A record taken in part does not count, and is sent again."""
        sent = 0
        with suppress(*_NOT_NOW):
            while sent < len(data):
                # A copy: an error's traceback would hold a view, and so keep the outbox from being emptied.
                size = self._pipe.send(data[sent : sent + RECORD])
                if not size:
                    break
                sent += size
        return sent

    def _uncork_soon(self) -> None:
        if not self._corked:
            self._corked = True
            self._loop.run_callback(self._uncork)

    def _uncork(self) -> None:
        self._corked = False
        if self._outbox and not self.blocked:
            self._flush()

    def _flush(self, header: bytes = b"", data: bytes = b"") -> None:
        """Send what the peer takes of what waits, and of header and data behind it; the rest waits."""
        self.blocked = True  # as in write()
        rest, outbox = self._rest, self._outbox
        self._outbox = bytearray()  # of others
        outbox += header
        if self._tls or len(data) < CORK_SIZE:
            outbox += data
            data = b""
        try:
            # A large frame is not copied behind its header. A TLS write cut short must be repeated with the same bytes:
            # the outbox only grows at its end.
            if self._tls:
                sent = self._send_records(rest)
                if sent == len(rest):
                    sent += self._send_records(outbox)
            elif (rest or data) and hasattr(self._pipe, "sendmsg"):  # as it is not on Windows
                sent = self._pipe.sendmsg((rest, outbox, data))
            else:
                sent = self._pipe.send(rest or outbox)
        except _NOT_NOW:
            sent = 0
        except OSError as exc:
            self._break(exc)
            return
        except MemoryError:
            self.give_up()  # how much of it has left nobody knows
            return
        self.bytes_sent += sent
        self._rest = rest[sent:]
        behind = sent - len(rest) - len(outbox)  # what left of data, if not negative
        try:
            del outbox[: max(sent - len(rest), 0)]
            if behind >= 0:
                self._rest = memoryview(data)[behind:]
            else:
                outbox += data
            self._outbox = outbox + self._outbox if self._outbox else outbox
        except MemoryError:
            self.give_up()
            return
        is_watched = self._write_watcher is not None and self._write_watcher.active
        self.blocked = bool(self._rest or self._outbox or is_watched)
        if self.waiting:
            self._wait_for_room(progress=sent > 0)

    def _wait_for_room(self, *, progress: bool) -> None:
        if self.broken:  # by one of the others
            self._empty()
            return
        if self._write_watcher is None:
            self._write_watcher = self._loop.io(self._sock.fileno(), _WRITE)
        self.blocked = True
        if not self._write_watcher.active:
            progress = True
            self._write_watcher.start(self._on_writable)
        if self._send_timeout is not None and progress:
            if self._send_deadline is None:
                self._send_deadline = Deadline(self._on_send_deadline)
            self._taken = self.acknowledged()
            self._send_deadline.set(monotonic() + self._send_timeout)

    def _on_writable(self) -> None:
        if self.waiting:
            self._flush()
        if self.broken:
            return
        if not self.waiting:
            self.blocked = False
            self._write_watcher.stop()
            if self._send_deadline is not None:
                self._send_deadline.set(math.inf)
            if self._finishing:
                self._shut_down()
                return
        if self.waiting <= self._max_outbox // 2:
            was_congested, self.congested = self.congested, False
            if was_congested:
                self.last_received = monotonic()
                self._update_reading()
            self._owner.drained()
            if was_congested:
                self.read_now()  # a view that never stops sending fills the outbox again before the loop would read

    def _on_send_deadline(self) -> None:
        # The hub may have been held up past the deadline: only a peer that takes nothing even now has stalled. What its
        # system took of what the kernel holds may be too little for the kernel to take more.
        sent_before, taken_before = self.bytes_sent, self._taken
        self._on_writable()
        if self.broken or self.bytes_sent > sent_before:
            return
        if self.acknowledged() > taken_before:
            self._wait_for_room(progress=True)
        else:
            self.abort(f"the peer took nothing for {self._send_timeout:g} s", "send_timeout")

    def _break(self, exc: OSError) -> None:
        """Writing is over: read once what the peer sent before, its Close perhaps, and end."""
        self.broken = True
        self._empty()
        if self._write_watcher is not None:
            self._write_watcher.stop()
        self.blocked = self.congested = False
        self._update_reading()
        # Later, because the owner may be in the middle of what it read before.
        self._loop.run_callback(self._end_broken, _explain(exc))

    def _end_broken(self, reason: str) -> None:
        self.read_now()
        if not self.closed:
            self._lose("reset", reason)

    def _empty(self) -> None:
        self._rest = _NOTHING
        self._outbox.clear()

    @property
    def waiting(self) -> int:
        """Bytes that were not sent yet."""
        return len(self._rest) + len(self._outbox)

    def acknowledged(self) -> int:
        """Return how many of the bytes sent the peer's system has; all of them where ours does not tell.

        With TLS what it lacks are encrypted bytes, and on a Unix socket more than were written.
        """
        if fcntl is None:
            return self.bytes_sent
        lacking = bytearray(4)
        with suppress(OSError, ValueError):  # a closed socket has none
            fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, lacking)
        return self.bytes_sent - int.from_bytes(lacking, sys.byteorder)

    # The end

    def finish(self) -> None:
        """Send what waits, tell the peer that no more comes, throw away what it still sends, close at its EOF."""
        if self._outbox and not self.blocked:
            self._flush()
        if self._finishing or self.closed:
            return
        if self.broken:
            self.close()
            return
        self._finishing = True
        self._paused = self.congested = False
        if not self.waiting:
            self._shut_down()
        elif not self._eof:
            self._update_reading()

    def _shut_down(self) -> None:
        if self._eof:
            self.close()
            return
        raw = getattr(self._sock, "_sock", self._sock)
        if self._tls:
            try:
                self._sock.unwrap()
            except ssl.SSLWantWriteError:
                self._wait_for_room(progress=True)
                return
            except (OSError, ValueError):
                pass  # close_notify is sent; its answer is not awaited
            self._pipe = raw  # only EOF matters now, which the socket beneath shows
        try:
            raw.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._update_reading()

    def abort(self, reason: str = "", cause: str = "server") -> None:
        """Close at once with a TCP reset: nothing more is sent, and the kernel frees its buffers."""
        if not self.closed:
            self.undelivered = self.waiting + self.bytes_sent - self.acknowledged()
            with suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._lose(cause, reason)

    def give_up(self) -> None:
        """Close at once for want of memory."""
        self.abort("out of memory")

    def close(self) -> None:
        """Close at once."""
        if not self.closed:
            self._lose("eof", "")

    def abandon(self) -> None:
        """Close a forked child's copy of the pipe: nothing is sent, and the owner is not told.

        The parent's goes on. Without this the child's hub would read what is for the parent.
        """
        if not self.closed:
            self._let_go()

    def _lose(self, cause: str, reason: str) -> None:
        if self.closed:
            return
        self._let_go()
        owner = self._owner
        del self._owner  # the last it hears; and without a cycle, both are freed at once
        owner.connection_lost(cause, reason)

    def _let_go(self) -> None:
        self.closed = self.broken = True
        self.reading = False
        # Before the socket closes: a watcher whose descriptor is gone aborts the whole process.
        self._read_watcher.close()
        if self._write_watcher is not None:
            self._write_watcher.close()
        for timed in (self._send_deadline, self._discard):
            if timed is not None:
                timed.cancel()
        self._empty()
        self.blocked = self.congested = False
        self._sock.close()


def _explain(exc: OSError) -> str:
    return exc.strerror.lower() if exc.strerror else str(exc)
