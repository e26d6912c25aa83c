"""WebSocket: the blocking object a view holds.

Is an Opening until the 101, and a Session from then on. Knows the view, its greenlet and WSGI's environ; knows neither
server nor framework.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Any, TypeVar

from gevent import Timeout, getcurrent, kill

from . import fast, handshake, signals
from .connection import FAILING, OPEN, REMOTE_CLOSING, Connection
from .errors import CloseCode, ConnectionClosed, HandshakeError, WebSocketError
from .frames import close_payload
from .late import LateSends
from .lifetime import moment
from .loglines import about, address_of, path_of, peer_of
from .message import Prepared, Sendable, from_json, to_json
from .opening import Opening, warn_of_subprotocols
from .options import Options
from .rate import RatedSession
from .session import Session
from .shown import ForViews
from .threads import HubEnded, call, here, home
from .transport import Transport
from .turns import TURN, Streak, Turns, pause, streak_of_hub

T = TypeVar("T")

_numbers = itertools.count(1)


class WebSocket(fast.WebSocketFields, metaclass=ForViews):
    """A WebSocket as the view sees it, in environ["wsgi.websocket"].

    Any greenlet or thread may call any method at any time, but only one may wait in receive(). What another thread than
    the hub's calls is done on the hub's, and the caller waits for it; it raises RuntimeError where the hub has ended.
    Nothing is sent before the first use: the view may still answer with plain HTTP. Any attribute may be set on it.
    """

    if TYPE_CHECKING:  # any attribute may be set and read, ws.user = "ann", but a method that is misspelt is none

        def __getattr__(self, name: str) -> object: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_late",
        "_number",
        "_opening",
        "_options",
        "_view",
        "environ",
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
        admit: Callable[[], None] | None = None,
    ) -> None:
        """Prepare a WebSocket on a gevent socket whose request was read; servers call this, not apps.

        take_leftover() returns bytes read beyond the request, without waiting. on_accept(size) tells the
        server, just before `size` bytes of 101 response go out, that the socket is no longer its own.
        refusal is what accept() raises, unless prepare() finds the client's origin allowed; admit() may raise another.
        """
        self.before_wait: Callable[[], object] | None = None  # called before receive() really waits
        self.environ = environ
        self.subprotocol: str | None = None
        self.opened_at: float | None = None  # seconds since the epoch
        self.messages_sent = 0
        self._opening: Opening | None = Opening(sock, take_leftover, on_accept, request, refusal, admit)
        self._session: Session | None = None  # from then on
        self._options = options
        self._number = next(_numbers)
        self._hub = home()
        self._view: Any = None  # who is to be told of the end, where there is one that does not know yet
        self._streak = streak_of_hub()
        self._turn_ends = 0.0  # by time.monotonic(); 0 until the view was quick, and once it was not
        self._late: LateSends | None = None  # once it was sent to after its end
        self._end_told = False

    def __repr__(self) -> str:
        state = "not accepted" if self._session is None else self._session.connection.state.value
        return f"<WebSocket {self.path} {state}>"

    # The opening handshake

    def accept(
        self,
        subprotocols: Sequence[str] = (),
        headers: handshake.Headers = (),
        *,
        expires_at: float | None = None,
        **options: Any,
    ) -> None:
        """Complete the handshake now, with a choice of subprotocols, headers such as Set-Cookie, and options.

        Any first use does the same without choices. expires_at is the moment at which the connection closes with
        expiry_code, in seconds since the epoch: the exp of a token. Raises WebSocketError when it is too late,
        ValueError for a header that may not be sent, TypeError for an option that does not exist.
        """
        if here.hub is not self._hub:
            self.on_hub(WebSocket.accept, subprotocols, headers, expires_at=expires_at, **options)
            return
        end = moment(expires_at)
        for name in {"origins", "hosts"} & options.keys():
            raise TypeError(f"{name} are judged before the view runs, and are no options of a connection")
        opening = self._opening
        if opening is None:
            raise WebSocketError("the handshake is already complete; call accept() before any other use")
        if opening.answered:
            raise WebSocketError(f"this request was already answered with HTTP {opening.answered}")
        if isinstance(subprotocols, str):
            raise TypeError(f"subprotocols must be a sequence of names, not the string {subprotocols!r}")
        chosen = self._options.replace(**options) if options else self._options
        response, subprotocol, agreement = opening.negotiate(self.environ, chosen, subprotocols, headers)
        # Nothing from here on lets another greenlet run, so one use makes one 101.
        sock, leftover = opening.hand_over(len(response))
        self._options = chosen
        self.subprotocol = subprotocol
        self.opened_at = time()
        self._opening = None
        kind = Session if chosen.max_message_rate is None else RatedSession
        self._session = session = kind(sock, self._hub, self, chosen, agreement)
        session.open(response, leftover, subprotocol)
        if expires_at is not None:
            session.expire_at(end)
        if opening.request.subprotocols and subprotocol is None:
            warn_of_subprotocols(self.environ, self.peer, self.path, opening.request.subprotocols)
        if signals.opened.receivers:
            signals.tell(signals.opened, self, **about(self))

    def accept_soon(self, may_accept: Callable[[], bool] = lambda: True) -> None:
        """Have the handshake completed in accept_after seconds, if nothing is decided then and may_accept() holds."""
        if self._options.accept_after is not None and self._opening is not None:
            self._opening.accept_in(self._options.accept_after, self.accept, may_accept, partial(kill, self._view))

    def accept_no_more(self) -> None:
        """Leave the handshake to the view alone again, or to what it has decided."""
        if self._opening is not None:
            self._opening.accept_no_more()

    def _open(self) -> Session:
        if self._session is None:
            if here.hub is not self._hub:  # there the look and the handshake are one: several threads may be first
                return self.on_hub(WebSocket._open)
            self.accept()
        assert self._session is not None
        return self._session

    # Messages

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Return the next message, str for text and bytes for binary; wait for it at most timeout seconds.

        None tells once that the connection has ended; after that ConnectionClosed is raised. Raises
        TimeoutError when the time runs out, and the connection stays usable.
        """
        if here.hub is not self._hub:
            return self.on_hub(WebSocket.receive, timeout)
        session = self._session or self._open()
        if session.reader is not None:
            raise _two_readers()
        self._streak.target = None
        queue = session.queue
        if queue and monotonic() > self._turn_ends:
            self._let_others_run()
        if not queue:
            self._wait_for_message(session, timeout)
        if queue:
            message = queue.pop(0)
            if not queue and not session.transport.reading:
                # Not only when the view waits next: it may sleep, and pings are to be answered meanwhile.
                session.go_on_reading()
            return message
        if self._end_told:
            raise self.closed_error()
        self._end_told = True
        self._view = None
        return None

    def __iter__(self) -> Iterator[str | bytes]:
        """Give each message until the connection ends."""
        is_own = getattr(self.receive, "__func__", None) is _receive  # and not an app's that watches it
        session = self._open() if is_own and here.hub is self._hub else None
        while not self._end_told:
            # All but the last that waits is taken here: a call of receive() costs as much as the rest of the way.
            if session and len(session.queue) > 1 and session.reader is None and monotonic() < self._turn_ends:
                self._streak.target = None
                message: str | bytes | None = session.queue.pop(0)
            else:
                message = self.receive()
            if message is None:
                return
            yield message

    def _let_others_run(self) -> None:
        """Have the loop look at sockets and timers, if it has not for a turn of the view.

        What the view sends until it has a new turn leaves at once: the message in hand may take it just as long.
        """
        if time() - self._hub.loop.now() > TURN:
            pause()
            self._turn_ends = 0.0
        else:  # the loop has looked at them since
            self._turn_ends = monotonic() + TURN

    def _wait_for_message(self, session: Session, timeout: float | None) -> None:
        """Return when a message is queued or none will come any more."""
        connection, queue = session.connection, session.queue
        is_slow = monotonic() > self._turn_ends
        if connection.state in (REMOTE_CLOSING, FAILING):
            session.close()
        if self.before_wait is not None and connection.state is OPEN:
            self.before_wait()  # which may let other greenlets run
            if session.reader is not None:
                raise _two_readers()
        while not queue and connection.state is OPEN:
            session.wait(timeout)
        # What a view that was slow sends first leaves at once, as it may compute next. The queue shows what it is now.
        self._turn_ends = 0.0 if is_slow else session.transport.last_received + TURN

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
            self.on_hub(WebSocket.send, message, binary)
            return
        session = self._session or self._open()
        if session.transport.congested:  # a view that gives up waiting each time must not fill the memory either
            self._wait_for_room(session)
        try:
            self._write(session, message, binary)
        except ConnectionClosed:
            self._drop_or_raise(session)
            return
        self._after_send(session)

    def _after_send(self, session: Session) -> None:
        """Wait for the peer where it has to catch up, and let others run where it is their turn."""
        transport = session.transport
        if transport.congested or transport.broken:
            self._wait_for_room(session)
            if transport.broken:
                self._drop_or_raise(session)
        elif (streak := self._streak).target is session:
            streak.go_on(is_own=self._view is None or self._view is getcurrent())
        else:
            streak.target, streak.until = session, 0.0

    def _wait_for_room(self, session: Session) -> None:
        session.wait_while(lambda: session.transport.congested and session.connection.may_send)

    def post(self, message: Sendable | Prepared, binary: bool | None = None) -> bool:
        """Send a message as send() does, but never wait, nor let another greenlet run; return whether it was queued.

        False means that nothing was queued: send() would wait for the peer, or find that the connection has ended.
        A hub callback may call it; one of another thread's hub holds that hub up until this one has run.
        """
        if here.hub is not self._hub:
            try:
                return self.on_hub(WebSocket.post, message, binary)
            except ConnectionClosed:  # and so has its hub
                return False
        session = self._session or self._open()
        if not session.takes_messages:
            return False
        self._write(session, message, binary)
        return not session.transport.broken

    def _write(self, session: Session, message: Sendable | Prepared, binary: bool | None) -> None:
        """Have the frame of a message leave, with the next ones where more messages wait for the view."""
        more = (True if session.queue else session.connection.limited) if self._turn_ends else False
        if session.send(message, binary, more=more):
            self.messages_sent += 1

    def _drop_or_raise(self, session: Session) -> None:
        """Drop a message as it would have been a moment earlier, until the view knows, or raise ConnectionClosed.

        What others than the view send is none of their failure.
        """
        late = self._late = self._late or LateSends()
        if self._view is getcurrent():
            may_drop = late.may_drop_own(len(session.queue))
        else:
            may_drop = self._view is not None and late.may_drop_others()
        if not may_drop:
            raise self.closed_error()

    def send_json(self, obj: Any) -> None:
        """Send obj as a text message of JSON. Raises TypeError or ValueError for what JSON cannot hold."""
        self.send(to_json(obj))

    def ping(self, timeout: float | None = None) -> float:
        """Return the seconds that a ping takes to be answered; wait at most timeout seconds for it.

        Raises TimeoutError when the time runs out, ConnectionClosed when the connection has ended.
        """
        if here.hub is not self._hub:
            return self.on_hub(WebSocket.ping, timeout)
        round_trip = self._open().ping(timeout)
        if round_trip is None:
            raise self.closed_error()
        return round_trip

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Start the closing handshake, or answer the peer's; never wait for the peer.

        A greenlet blocked in receive() gets None. Raises ValueError for a code that may not be sent. A
        reason longer than 123 bytes of UTF-8 is cut.
        """
        if here.hub is not self._hub:
            self.on_hub(WebSocket.close, code, reason)
            return
        close_payload(code, reason)  # an error of the caller's is one in every state
        self._open().close(code, reason)

    def extend(self, expires_at: float | None) -> None:
        """Close at this moment, seconds since the epoch, instead of the one that accept() was given; None is never.

        The connection still ends with its max_lifetime. Raises TypeError or ValueError for what is no moment.
        """
        if here.hub is not self._hub:
            self.on_hub(WebSocket.extend, expires_at)
            return
        end = moment(expires_at)
        self._open().expire_at(end)

    # What is known of it

    @property
    def closed(self) -> bool:
        """Whether the connection has ended or begun to end: no message sent now would be answered."""
        session = self._open()
        return session.connection.state is not OPEN or session.transport.broken

    @property
    def id(self) -> str:
        """Its name among those of this machine: the process's id and a number, such as 4711-17."""
        return f"{os.getpid()}-{self._number}"

    @property
    def close_code(self) -> int | None:
        """Code of the first Close either way, 1006 where the connection ended without; None while open."""
        return self._session.connection.close_code if self._session else None

    @property
    def close_reason(self) -> str:
        """Reason of the first Close either way, or what was seen instead of one."""
        return self._session.connection.close_reason if self._session else ""

    @property
    def path(self) -> str:
        """Path of the request, decoded, without its query string."""
        return path_of(self.environ)

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
        """(host, port) of the peer, None on a Unix socket; (host, 0) where ProxyFix has set the host."""
        return address_of(self.environ)

    @property
    def latency(self) -> float | None:
        """Seconds that the last answered ping took, the keepalive's or ping()'s; None before the first."""
        return self._session.keepalive.latency if self._session else None

    @property
    def messages_received(self) -> int:
        """Messages received since the handshake, those that wait for the view included."""
        return self._session.messages_received if self._session else 0

    @property
    def bytes_received(self) -> int:
        """Bytes received since the handshake, frames and control frames included."""
        return self._session.transport.bytes_received if self._session else 0

    @property
    def bytes_sent(self) -> int:
        """Bytes handed to the kernel since the handshake began, the 101 response included."""
        return self._session.transport.bytes_sent if self._session else 0

    @property
    def accepted(self) -> bool:
        """Whether the handshake is complete."""
        return self._session is not None

    @property
    def has_ended(self) -> bool:
        """Whether its socket is closed."""
        return self._session is not None and self._session.transport.closed

    @property
    def peer(self) -> str:
        """The peer as logs show it."""
        return peer_of(self.environ, self._number)

    # What servers, frameworks and rooms call

    @property
    def end_is_told(self) -> bool:
        """Whether the view knows of the end: receive() gave None, or a call of the view's raised ConnectionClosed."""
        return self._view is None

    @property
    def options(self) -> Options:
        """Its options."""
        return self._options

    @property
    def refusal(self) -> HandshakeError | None:
        """What its first use raises, unless prepare() finds the client's origin allowed."""
        return None if self._opening is None else self._opening.refusal

    @property
    def session(self) -> Session:
        """What it is since its handshake is complete, which this completes. Only the hub's thread may use it."""
        return self._open()

    @property
    def hub(self) -> Any:
        """The hub that it lives on."""
        return self._hub

    def deliver(self, prepared: Prepared, count: int) -> bool:
        """Send so many messages at once, as post() does, unless the connection has ended or the peer is behind at all.

        Only the hub's thread may call this.
        """
        session = self._session
        if session is None or not session.is_clear:
            return False
        session.transport.write(prepared.frame(session.connection.deflate))
        if session.transport.broken:
            return False
        self.messages_sent += count
        if session.debug:
            session.note("sent", prepared, count)
        return True

    def on_hub(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Have a method run on the hub's thread, the only one that may touch socket, queue and loop."""
        try:
            return call(self._hub, method, self, *args, **kwargs)
        except HubEnded:
            if self.has_ended:  # before its hub, as where a server stops
                raise self.closed_error() from None
            raise

    def closed_error(self) -> ConnectionClosed:
        """Return what a call raises that comes behind the end. Its view is told by that."""
        if getcurrent() is self._view:
            self._view = None
        error = ConnectionClosed(self.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason)
        error.websocket = self
        return error

    def prepare(self, options: Options) -> None:
        """Take options for the handshake to come, those of the route. Raises HandshakeError by their origins."""
        if self._opening is None:
            raise WebSocketError("the handshake is already complete, without the options of the route")
        if options is not self._options or self._opening.refusal is not None:
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
            self._opening.accept_no_more()

    def finish(self, code: int = 1000, reason: str = "", cause: str = "server", *, within: float | None = None) -> None:
        """Close, and wait until the socket is closed: close_timeout at most, once the peer took what was sent.

        within is seconds after which the peer is waited for no longer.
        """
        session = self._open()
        self._view = None
        try:
            session.close(code, reason, cause)
            with Timeout(within, False):
                session.wait_while(lambda: not session.transport.closed)
        finally:
            session.transport.abort()

    def abandon(self) -> None:
        """Leave the connection to the process that this one was forked from."""
        self.accept_no_more()
        if self._session is not None:
            self._session.abandon()


def _two_readers() -> RuntimeError:
    return RuntimeError("another greenlet is waiting in receive() of this WebSocket; only one can")


_receive = WebSocket.receive
# Last, as it takes the methods for those of which it does the plain cases.
fast.take_over(WebSocket, Transport, Connection, Session, Streak, Turns, OPEN)
