"""WebSocket: the blocking object a view holds.

Joins a Connection (bytes) and a Transport (the hub). Knows greenlets and WSGI's environ; knows neither
server nor framework.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from sys import getsizeof
from time import monotonic, time
from typing import TYPE_CHECKING, Any, TypeVar

import gevent
from gevent import getcurrent
from gevent.hub import Waiter

from . import handshake, loglines, permessage_deflate
from .closing import Closing
from .connection import CLOSED, FAILING, OPEN, REMOTE_CLOSING, Connection, Event, Ping, Pong
from .errors import CloseCode, ConnectionClosed, HandshakeError, WebSocketError
from .frames import close_payload
from .keepalive import Keepalive
from .loglines import describe, printable
from .message import Prepared, Sendable, from_json, to_json
from .opening import Opening, warn_of_subprotocols
from .options import Options
from .threads import HubEnded, call, here, home
from .transport import NO_MEMORY, Transport
from .turns import TURN as TURN_TIME
from .turns import Turns, pause, streak_of_hub, turns

log = logging.getLogger("geventws")

T = TypeVar("T")

# How long the sends of others than the view to a WebSocket that has ended are dropped, as they were a moment before. A
# view learns of the end when it next waits; who only ever sends has to learn of it some time, too.
NEWS_TAKES = 10.0  # seconds
# How many sends of the view's own are, for each message that it has received: it may be in a loop over all members, in
# which it says several things to each. One that streams has to learn of the end by a send.
OWN_DROPS = 16
_NONE_DROPPED = (-1, 0)  # messages in the queue when the view sent last, and how many it has sent since
# Message size, in characters or bytes, from which header and payload go to the kernel without being joined before.
LARGE = 16_384
# What a peer may have inflated at a time, before others have their turn; the second once a pass has done its work. A
# message of that size or more takes two turns, between which reading stops: with 4096, echoes of 4 KiB to 64 peers take
# 9 to 16 % more processor time.
TURN, SMALL_TURN = 65_536, 8192  # bytes


# What servers, frameworks and the transport call.
_INTERNALS = {
    "abandon",
    "accept_no_more",
    "accept_soon",
    "answer",
    "belongs_to",
    "blocked",
    "connection_lost",
    "data_received",
    "drained",
    "end_is_told",
    "eof_received",
    "finish",
    "has_ended",
    "hub",
    "options",
    "prepare",
    "refusal",
    "unwatch",
    "watch",
}


class _ForViews(type):
    """A class that help() and dir() show as views may use it."""

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if name not in _INTERNALS]


class WebSocket(metaclass=_ForViews):
    """A WebSocket as the view sees it, in environ["wsgi.websocket"].

    Any greenlet or thread may call any method at any time, but only one may wait in receive(). What another thread than
    the hub's calls is done on the hub's, and the caller waits for it; it raises RuntimeError where the hub has ended.
    Nothing is sent before the first use: until then the view may still answer with plain HTTP. Any
    attribute may be set on it.
    """

    if TYPE_CHECKING:  # any attribute may be set and read, ws.user = "ann", but a method that is misspelt is none

        def __getattr__(self, name: str) -> object: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_closing",
        "_connection",
        "_debug",
        "_dropped",
        "_drops_until",
        "_end_told",
        "_hub",
        "_keepalive",
        "_opening",
        "_options",
        "_queue",
        "_reader",
        "_resuming",
        "_streak",
        "_transport",
        "_turn_ends",
        "_turns",
        "_view",
        "_watchers",
        "before_wait",
        "environ",
        "messages_received",
        "messages_sent",
        "opened_at",
        "subprotocol",
    )

    def __init__(
        self,
        sock: Any,
        take_leftover: Callable[[], bytes],
        environ: dict[str, Any],
        on_accept: Callable[[int], None],
        options: Options,
        request: handshake.Request,
        refusal: HandshakeError | None = None,
    ) -> None:
        """Prepare a WebSocket on a gevent socket whose request was read; servers call this, not apps.

        take_leftover() returns bytes read beyond the request, without waiting. on_accept(size) tells the
        server, just before `size` bytes of 101 response go out, that the socket is no longer its own.
        refusal is what accept() raises, unless prepare() finds the client's origin allowed.
        """
        self.before_wait: Callable[[], object] | None = None  # called before receive() really waits
        self.environ = environ
        self.subprotocol: str | None = None
        self.opened_at: float | None = None  # seconds since the epoch
        self.messages_received = 0
        self.messages_sent = 0
        self._opening: Opening | None = Opening(sock, take_leftover, on_accept, request, refusal)  # until the 101
        self._options = options
        self._hub = home()
        self._view: Any = None  # who is to be told of the end, where there is one that does not know yet
        self._connection = Connection(max_message_size=options.max_message_size)
        self._transport: Transport | None = None
        self._debug = False
        self._queue: list[str | bytes] = []  # an empty deque weighs 700 bytes more; it is short
        self._reader: Any = None  # the greenlet that waits in receive()
        self._watchers: tuple[Callable[[None], object], ...] = ()
        self._streak = streak_of_hub()
        self._turn_ends = 0.0  # by time.monotonic(); 0 until the view was quick, and once it was not
        self._drops_until = 0.0  # by time.monotonic(), sends of others since the end
        self._dropped = _NONE_DROPPED
        self._resuming = False  # _take_in_more() will be called
        self._turns: Turns | None = None  # where messages may be compressed
        self._end_told = False
        self._keepalive: Keepalive | None = None
        self._closing: Closing | None = None  # once a Close is due

    def __repr__(self) -> str:
        state = "not accepted" if self._transport is None else self._connection.state.value
        return f"<WebSocket {self.path} {state}>"

    # The opening handshake

    def accept(self, subprotocols: Sequence[str] = (), headers: handshake.Headers = (), **options: Any) -> None:
        """Complete the handshake now, with a choice of subprotocols, headers such as Set-Cookie, and options.

        Any first use does the same without choices. Raises WebSocketError when it is too late, ValueError
        for a header that may not be sent, TypeError for an option that does not exist.
        """
        if here.hub is not self._hub:
            self._call(WebSocket.accept, subprotocols, headers, **options)
            return
        if "origins" in options:
            raise TypeError("origins are judged before the view runs: they are options of a route or the server")
        opening = self._opening
        if opening is None:
            raise WebSocketError("the handshake is already complete; call accept() before any other use")
        if opening.answered:
            raise WebSocketError(f"this request was already answered with HTTP {opening.answered}")
        if isinstance(subprotocols, str):
            raise TypeError(f"subprotocols must be a sequence of names, not the string {subprotocols!r}")
        chosen = self._options.replace(**options) if options else self._options
        response, subprotocol, agreement = opening.negotiate(self.environ, chosen, subprotocols, headers)
        # Nothing from here to the log line lets another greenlet run, so one use makes one 101.
        sock, leftover = opening.hand_over(len(response))
        self._options = chosen
        self._connection.max_message_size = chosen.max_message_size
        if agreement is not None:
            self._connection.deflate = permessage_deflate.Deflate(agreement, chosen)
            self._turns = turns()
        self.subprotocol = subprotocol
        self.opened_at = time()
        self._debug = log.isEnabledFor(logging.DEBUG)
        self._transport = transport = Transport(
            sock, self, max_outbox=chosen.max_outbox, send_timeout=chosen.send_timeout
        )
        self._opening = None
        transport.write(response)
        self._keepalive = Keepalive(self._connection, transport, chosen.ping_interval, chosen.ping_timeout)
        transport.start()
        # Only now: a Pong for an early Ping must come behind the 101.
        if leftover:
            transport.bytes_received += len(leftover)
            self.data_received(leftover)
        self._log(
            logging.INFO, "%s open%s", printable(self.path), f", subprotocol {subprotocol}" if subprotocol else ""
        )
        if opening.request.subprotocols and subprotocol is None:
            warn_of_subprotocols(self.environ, self.peer, self.path, opening.request.subprotocols)

    def accept_soon(self, may_accept: Callable[[], bool] | None = None) -> None:
        """Have the handshake completed after accept_after seconds, should nothing have been decided by then.

        Then may_accept is asked, where it is given.
        """
        if self._options.accept_after is not None and self._opening is not None and not self._opening.answered:
            self._opening.set_acceptor(partial(self._accept_now, may_accept), self._options.accept_after)

    def accept_no_more(self) -> None:
        """Leave the handshake to the view alone again, or to what it has decided."""
        if self._opening is not None:
            self._opening.set_acceptor(None)

    def _accept_now(self, may_accept: Callable[[], bool] | None) -> None:
        opening = self._opening
        is_undecided = opening is not None and not opening.answered and opening.refusal is None
        if is_undecided and (may_accept is None or may_accept()):
            self.accept()

    def _open_transport(self) -> Transport:
        if self._transport is None:
            self.accept()
        assert self._transport is not None
        return self._transport

    # Messages

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Return the next message, str for text and bytes for binary; wait for it at most timeout seconds.

        None tells once that the connection has ended; after that ConnectionClosed is raised. Raises
        TimeoutError when the time runs out, and the connection stays usable.
        """
        if here.hub is not self._hub:
            return self._call(WebSocket.receive, timeout)
        transport = self._transport or self._open_transport()
        if self._reader is not None:
            raise _two_readers()
        self._streak.target = None
        if self._queue and monotonic() > self._turn_ends:
            self._let_others_run()
        if not self._queue:
            self._wait_for_message(transport, timeout)
        if self._queue:
            message = self._queue.pop(0)
            if not self._queue and not transport.reading:
                # Not only when the view waits next: it may sleep, and pings are to be answered meanwhile.
                self._go_on_reading()
            return message
        if self._end_told:
            raise self._closed_error()
        self._end_told = True
        self._view = None
        return None

    def __iter__(self) -> Iterator[str | bytes]:
        """Give each message until the connection ends."""
        queue, streak = self._queue if here.hub is self._hub else [], self._streak
        while not self._end_told:
            # All but the last that waits is taken here: a call of receive() costs as much as the rest of the way.
            if len(queue) > 1 and self._reader is None and monotonic() < self._turn_ends:
                streak.target = None
                message: str | bytes | None = queue.pop(0)
            else:
                message = self.receive()
            if message is None:
                return
            yield message

    def _let_others_run(self) -> None:
        """Have the loop look at sockets and timers, if it has not for a turn of the view.

        What the view sends until it has a new turn leaves at once: the message in hand may take it just as long.
        """
        if time() - self._hub.loop.now() > TURN_TIME:
            pause()
            self._turn_ends = 0.0
        else:  # the loop has looked at them since
            self._turn_ends = monotonic() + TURN_TIME

    def receive_json(self, timeout: float | None = None) -> Any:
        """Return the next message decoded from JSON; None when the connection has ended, as receive().

        Raises ValueError for a message that is not JSON, such as NaN, and for a number that is too large for float.
        send_json() can send all that this returns.
        """
        message = self.receive(timeout)
        return None if message is None else from_json(message)

    def send(self, message: Sendable | Prepared, binary: bool | None = None) -> None:
        """Send str as a text message, bytes-like as a binary one; binary=True or False decides otherwise.

        Waits while more than max_outbox bytes wait for the peer. Other greenlets run else only where one sends for
        long to this WebSocket alone. Interrupted by a gevent.Timeout or kill, the message leaves whole or not at all.
        Raises ConnectionClosed when the connection has ended. Until the view knows of the end, by receive(), what
        another greenlet sends is dropped instead, for 10 seconds at most, and up to 16 messages of the view's own.
        """
        if here.hub is not self._hub:
            self._call(WebSocket.send, message, binary)
            return
        transport = self._transport or self._open_transport()
        connection = self._connection
        if transport.congested:  # a view that gives up waiting each time must not fill the memory either
            self._wait_while(lambda: transport.congested and connection.may_send)
        try:
            self._write(transport, message, binary)
        except ConnectionClosed:
            self._drop_or_raise()
            return
        if transport.congested or transport.broken:
            self._wait_while(lambda: transport.congested and connection.may_send)
            if transport.broken:
                self._drop_or_raise()
        elif (streak := self._streak).target is self:
            streak.go_on(is_own=self._view is None or self._view is getcurrent())
        else:
            streak.target, streak.until = self, 0.0

    def post(self, message: Sendable | Prepared, binary: bool | None = None) -> bool:
        """Send a message as send() does, but never wait, nor let another greenlet run; return whether it was queued.

        False means that nothing was queued: send() would wait for the peer, or the connection has ended or begun to
        end. A hub callback may call it.
        """
        if here.hub is not self._hub:
            try:
                return self._call(WebSocket.post, message, binary)
            except ConnectionClosed:  # and so has its hub
                return False
        transport = self._transport or self._open_transport()
        if transport.congested or transport.broken or not self._connection.may_send:
            return False
        self._write(transport, message, binary)
        return not transport.broken

    def _write(self, transport: Transport, message: Sendable | Prepared, binary: bool | None) -> None:
        """Have the frame of a message leave, with the next ones where more messages wait for the view."""
        connection = self._connection
        if (type(message) is str or type(message) is bytes) and len(message) >= LARGE:
            header, frame = connection.encode_parts(message, binary)
            transport.write(header, more=True)
        else:
            frame = connection.encode_message(message, binary)
        transport.write(frame, more=(True if self._queue else connection.limited) if self._turn_ends else False)
        if transport.broken:
            return
        self.messages_sent += 1
        if self._debug:
            self._log(logging.DEBUG, "> %s", describe(message))

    def _drop_or_raise(self) -> None:
        """Raise ConnectionClosed, or drop a message as it would have been a moment earlier, until the view knows.

        What others than the view send is none of their failure. The view itself may be in a loop over all members,
        and is told by its next receive(): for each message that it received OWN_DROPS that it sends are dropped.
        """
        if self._view is getcurrent():
            waiting, (waited, count) = len(self._queue), self._dropped
            self._dropped = waiting, count + 1 if waiting == waited else 1
            may_drop = self._dropped[1] <= OWN_DROPS
        else:
            self._drops_until = self._drops_until or monotonic() + NEWS_TAKES
            may_drop = self._view is not None and monotonic() < self._drops_until
        if not may_drop:
            raise self._closed_error()

    def send_json(self, obj: Any) -> None:
        """Send obj as a text message of JSON. Raises TypeError or ValueError for what JSON cannot hold."""
        self.send(to_json(obj))

    def ping(self, timeout: float | None = None) -> float:
        """Return the seconds that a ping takes to be answered; wait at most timeout seconds for it.

        Raises TimeoutError when the time runs out, ConnectionClosed when the connection has ended.
        """
        if here.hub is not self._hub:
            return self._call(WebSocket.ping, timeout)
        transport = self._open_transport()
        if self._connection.state is not OPEN:
            raise self._closed_error()
        assert self._keepalive is not None
        ping = self._keepalive.send_ping()
        limit = _limit(timeout, "no pong")
        try:
            with limit:
                self._wait_while(lambda: ping.round_trip is None and self._connection.state is OPEN)
        except TimeoutError as exc:
            if exc is not limit.exception:
                raise
            transport.read_now()  # the hub may have been busy all the while
            if ping.round_trip is None:
                raise
        finally:
            self._keepalive.forget(ping.payload)
        if ping.round_trip is None:
            raise self._closed_error()
        return ping.round_trip

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Start the closing handshake, or answer the peer's; never wait for the peer.

        A greenlet blocked in receive() gets None. Raises ValueError for a code that may not be sent. A
        reason longer than 123 bytes of UTF-8 is cut.
        """
        if here.hub is not self._hub:
            self._call(WebSocket.close, code, reason)
            return
        close_payload(code, reason)  # an error of the caller's is one in every state
        transport = self._open_transport()
        if transport.broken or not self._connection.may_send:
            return
        frame = self._connection.close(code, reason)
        if self._debug:
            self._log(logging.DEBUG, "> close %s %s", self.close_code, printable(self.close_reason))
        self._end(transport).send(frame)
        if self._connection.state is CLOSED:
            transport.finish()
        else:
            self._go_on_reading()
        self._wake_all()

    def _call(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Have a method run on the hub's thread, the only one that may touch socket, queue and loop."""
        try:
            return call(self._hub, method, self, *args, **kwargs)
        except HubEnded:
            if self.has_ended:  # before its hub, as where a server stops
                raise self._closed_error() from None
            raise

    # What is known of it

    @property
    def closed(self) -> bool:
        """Whether the connection has ended or begun to end: no message sent now would be answered."""
        transport = self._open_transport()
        return self._connection.state is not OPEN or transport.broken

    @property
    def close_code(self) -> int | None:
        """Code of the first Close either way, 1006 where the connection ended without; None while open."""
        return self._connection.close_code

    @property
    def close_reason(self) -> str:
        """Reason of the first Close either way, or what was seen instead of one."""
        return self._connection.close_reason

    @property
    def path(self) -> str:
        """Path of the request, decoded, without its query string."""
        path: str = self.environ.get("SCRIPT_NAME", "") + self.environ.get("PATH_INFO", "")
        return path.encode("latin-1").decode(errors="replace")

    @property
    def origin(self) -> str | None:
        """The Origin header, None if the client sent none (it is no browser)."""
        return self.environ.get("HTTP_ORIGIN")

    @property
    def version(self) -> str:
        """Version of the WebSocket protocol."""
        return handshake.VERSION

    @property
    def protocol(self) -> str | None:
        """The subprotocol, under the name that gevent-websocket gave it."""
        return self.subprotocol

    @property
    def remote_address(self) -> tuple[str, int] | None:
        """(host, port) of the peer as the server saw it, None on a Unix socket."""
        host = self.environ.get("REMOTE_ADDR")
        return (host, int(self.environ.get("REMOTE_PORT") or 0)) if host else None

    @property
    def latency(self) -> float | None:
        """Seconds that the last answered ping took, the keepalive's or ping()'s; None before the first."""
        return self._keepalive.latency if self._keepalive else None

    @property
    def bytes_received(self) -> int:
        """Bytes received since the handshake, frames and control frames included."""
        return self._transport.bytes_received if self._transport else 0

    @property
    def bytes_sent(self) -> int:
        """Bytes handed to the kernel since the handshake began, the 101 response included."""
        return self._transport.bytes_sent if self._transport else 0

    @property
    def accepted(self) -> bool:
        """Whether the handshake is complete."""
        return self._transport is not None

    @property
    def has_ended(self) -> bool:
        """Whether its socket is closed."""
        return self._transport is not None and self._transport.closed

    @property
    def end_is_told(self) -> bool:
        """Whether the view knows of the end: receive() gave None, or a call of the view's raised ConnectionClosed."""
        return self._view is None

    @property
    def peer(self) -> str:
        """The peer as logs show it."""
        address = self.remote_address
        return f"{address[0]}:{address[1]}" if address else "unix"

    # What servers, frameworks and rooms call

    @property
    def options(self) -> Options:
        """Its options."""
        return self._options

    @property
    def refusal(self) -> HandshakeError | None:
        """What its first use raises, unless prepare() finds the client's origin allowed."""
        return None if self._opening is None else self._opening.refusal

    @property
    def hub(self) -> Any:
        """The hub that it lives on."""
        return self._hub

    @property
    def blocked(self) -> bool:
        """Whether the peer has not taken all it was sent; watchers are told when it has."""
        return self._transport is not None and self._transport.blocked

    def watch(self, watcher: Callable[[None], object]) -> None:
        """Have the hub call watcher(None) when the peer takes data again, or a Pong comes, or the end comes or begins.

        Only the hub's thread may call this.
        """
        self._watchers = (*self._watchers, watcher)

    def unwatch(self, watcher: Callable[[None], object]) -> None:
        """Call watcher no more, but for what is under way."""
        self._watchers = tuple(other for other in self._watchers if other != watcher)

    def prepare(self, options: Options) -> None:
        """Take options for the handshake to come, those of the route. Raises HandshakeError by their origins."""
        if self._opening is None:
            raise WebSocketError("the handshake is already complete, without the options of the route")
        if options is self._options and self._opening.refusal is None:
            return  # judged already
        handshake.check_origin(self.environ, options.origins)
        self._opening.refusal = None
        self._options = options

    def belongs_to(self, view: Any) -> None:
        """Note the greenlet whose view is to be told of the end."""
        self._view = view

    def answer(self, status: str) -> None:
        """Note that the request is answered with this HTTP status: from now on no use is possible."""
        if self._opening is not None:
            self._opening.answered = status
            self._opening.set_acceptor(None)

    def finish(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "", *, within: float | None = None) -> None:
        """Close, and wait until the socket is closed: close_timeout at most, once the peer took what was sent.

        within is seconds after which the peer is waited for no longer.
        """
        transport = self._open_transport()
        self._view = None
        try:
            self.close(code, reason)
            with gevent.Timeout(within, False):
                self._wait_while(lambda: not transport.closed)
        finally:
            transport.abort()

    def abandon(self) -> None:
        """Leave the connection to the process that this one was forked from."""
        if self._transport is not None:
            self._transport.abandon()
        self.accept_no_more()
        for timed in (self._keepalive, self._closing):
            if timed is not None:
                timed.cancel()

    # Owner of the transport: the rest runs in hub callbacks

    def data_received(self, data: bytes) -> None:
        """Take in bytes: answer control frames, queue messages, wake the reader."""
        connection, transport = self._connection, self._transport
        assert transport is not None
        queue = self._queue
        waiting = len(queue)
        limit = self._options.max_queue
        if waiting:
            limit = max(limit - waiting, 1)
        is_open = connection.state is OPEN
        others = []
        try:
            events = connection.receive_data(data, limit) if self._turns is None else self._inflate(data, limit)
        except MemoryError:
            transport.abort(NO_MEMORY)  # the bytes that it was in the middle of are lost
            return
        for event in events:
            if self._debug:
                self._log(logging.DEBUG, "< %s", describe(event))
            if type(event) is not str and type(event) is not bytes:
                others.append(event)
            elif is_open:
                queue.append(event)
        self.messages_received += len(queue) - waiting
        if others:
            self._take_others(others, transport)
        if queue and self._reader is not None:
            self._wake_reader()
        # A reader that was woken has mostly taken all of it by now.
        if connection.limited or (queue and self._is_full()):
            transport.pause_reading()
            if not self._is_full():
                self._go_on_reading()

    def _take_others(self, events: list[Event], transport: Transport) -> None:
        """Answer control frames, and what ends the connection."""
        for event in events:
            if isinstance(event, Pong):
                assert self._keepalive is not None
                self._keepalive.take_pong(event.payload)
                self._wake_watchers()
        if pongs := self._connection.take_pongs(latest_only=transport.blocked):
            transport.write(pongs, more=True)
        if not isinstance(events[-1], (Ping, Pong)):
            self._take_end(transport)

    def _inflate(self, data: bytes, limit: int) -> list[Event]:
        """Return the events of data, where what may be compressed is inflated in turns with others."""
        connection, turns = self._connection, self._turns
        assert turns is not None
        # A floor, or a peer that leaves a few bytes of room has a megabyte inflated in steps of so many.
        room = max(self._options.max_message_size - self._queue_size(), SMALL_TURN)
        inflated = connection.inflated
        # A few bytes may inflate to a megabyte, from each of many peers: others are not to wait for all of them.
        events = connection.receive_data(data, limit, min(room, TURN if turns.left > 0 else SMALL_TURN))
        if connection.inflated > inflated:
            # What the view does with a message costs at least as much again.
            messages = sum(len(event) for event in events if isinstance(event, (str, bytes)))
            turns.spend(connection.inflated - inflated + messages)
        return events

    def _is_full(self) -> bool:
        if not self._queue or self._transport is None or self._connection.state is not OPEN:
            return False
        options = self._options
        return len(self._queue) >= options.max_queue or self._queue_size() >= options.max_message_size

    def _queue_size(self) -> int:
        """Return the bytes of memory that the messages in the queue take."""
        return sum(map(getsizeof, self._queue))

    def _go_on_reading(self) -> None:
        """Take in the bytes that were left for later, once others had their turn, or read on."""
        assert self._transport is not None
        if not self._connection.limited:
            self._transport.resume_reading()
        elif not self._resuming:
            self._resuming = True
            loop = self._hub.loop
            is_fair = self._turns is None and time() - loop.now() < TURN_TIME
            later = loop.run_callback if is_fair else (self._turns or turns()).wait
            later(self._take_in_more)

    def _take_in_more(self) -> None:
        self._resuming = False
        if not self._is_full():
            self.data_received(b"")
            if not self._is_full():
                self._go_on_reading()

    def _take_end(self, transport: Transport) -> None:
        """Answer the peer's Close, or tell it which rule it broke: at once, or when the view had its say."""
        if self._connection.state is CLOSED:
            transport.finish()
            self._wake_all()
        elif self._queue:
            self._end(transport).wait_for_view()
        else:
            self.close()

    def _end(self, transport: Transport) -> Closing:
        """Return what bounds the end from now on."""
        if self._closing is None:
            self._closing = Closing(self._connection, transport, self._options, self.close)
        return self._closing

    def eof_received(self) -> None:
        """The peer ended the byte stream; that is fine only behind a Close."""
        if self._connection.state in (REMOTE_CLOSING, FAILING):
            return  # the answer may still reach it
        assert self._transport is not None
        self._transport.close()

    def drained(self) -> None:
        """The peer takes data again."""
        pongs = self._connection.take_pongs()
        if pongs and self._transport is not None:
            self._transport.write(pongs, more=True)
        self._wake_watchers()

    def connection_lost(self, reason: str) -> None:
        """The socket is closed."""
        self._connection.receive_eof(reason)
        for timed in (self._keepalive, self._closing):
            if timed is not None:
                timed.cancel()
        self._closing = None  # which holds this
        if self._streak.target is self:
            self._streak.target = None
        self._wake_all()
        assert self._transport is not None
        lost = self._transport.undelivered
        end = f"{self.close_reason}; {lost} bytes before it were not taken" if lost else self.close_reason
        self._log(logging.INFO, "%s close %s %s", printable(self.path), self.close_code, printable(end))

    # Waiting and waking

    def _wait_for_message(self, transport: Transport, timeout: float | None) -> None:
        """Return when a message is queued or none will come any more."""
        connection = self._connection
        is_slow = monotonic() > self._turn_ends
        if connection.state in (REMOTE_CLOSING, FAILING):
            self.close()
        if self.before_wait is not None and connection.state is OPEN:
            self.before_wait()  # which may let other greenlets run
            if self._reader is not None:
                raise _two_readers()
        while not self._queue and connection.state is OPEN:
            if not transport.reading:
                self._go_on_reading()
            self._reader = getcurrent()
            try:
                if timeout is None:
                    self._hub.switch()  # a Waiter would weigh 232 bytes more; _wake_reader() finds only who waits
                else:
                    self._wait_within(timeout, transport)
            finally:
                self._reader = None
        # What a view that was slow sends first leaves at once, as it may compute next. The queue shows what it is now.
        self._turn_ends = 0.0 if is_slow else transport.last_received + TURN_TIME

    def _wait_within(self, timeout: float, transport: Transport) -> None:
        limit = _limit(timeout, "no message")
        try:
            with limit:
                self._hub.switch()
        except TimeoutError as exc:
            if exc is not limit.exception:
                raise
            transport.read_now()  # the hub may have been busy all the while
            if not self._queue:
                raise

    def _wait_while(self, condition: Callable[[], bool]) -> None:
        while condition():
            waiter = Waiter(self._hub)
            self.watch(waiter.switch)
            try:
                waiter.get()
            finally:
                self.unwatch(waiter.switch)

    def _wake_reader(self) -> None:
        if getcurrent() is not self._hub:
            self._hub.loop.run_callback(self._wake_reader)
        elif self._reader is not None:
            self._reader.switch()

    def _wake_watchers(self) -> None:
        for watcher in self._watchers:
            self._hub.loop.run_callback(watcher, None)

    def _wake_all(self) -> None:
        self._wake_watchers()
        self._hub.loop.run_callback(self._wake_reader)

    def _log(self, level: int, line: str, *values: object) -> None:
        """Log behind the peer's address."""
        loglines.write(log, level, "%s " + line, self.peer, *values)

    def _closed_error(self) -> ConnectionClosed:
        if getcurrent() is self._view:
            self._view = None
        error = ConnectionClosed(self.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason)
        error.websocket = self
        return error


def _two_readers() -> RuntimeError:
    return RuntimeError("another greenlet is waiting in receive() of this WebSocket; only one can")


def _limit(seconds: float | None, what: str) -> gevent.Timeout:
    """Return a context that raises TimeoutError after this time; None is no limit."""
    return gevent.Timeout(None if seconds is None else max(seconds, 0.0), TimeoutError(f"{what} within {seconds} s"))
