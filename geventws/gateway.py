"""Gateway: runs a WSGI application on requests that ask for a WebSocket, for every front end alike.

Knows WSGI, the handshake and WebSocket; knows no server. What a front end must bring is `Upgrade`.
"""

from __future__ import annotations

import io
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from itertools import chain
from time import monotonic
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakSet

import gevent
from gevent.event import Event

from . import handshake, loglines, signals
from .addresses import Addresses
from .errors import CloseCode, ConnectionClosed, HandshakeError, WebSocketError
from .frameworks import (
    expect_disconnects_here,
    explain_mismatch,
    is_beside_view,
    kept_error,
    routes_judge_origins,
    warn_of_foreign_end,
)
from .loglines import about, path_of, peer_of, printable, route_of
from .options import Options
from .websocket import WebSocket

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger("geventws")

KILLED_GRACE = 0.3  # seconds for the peer of a killed view to take the Close: who kills does not wait long
CLOSING_PAUSE = 0.05  # seconds between two batches of closes at shutdown; longer, where each may hold but one
DEAF_GRACE = 2.0  # seconds, at shutdown, for a view to notice that its socket is closed
LAST_WAIT = 0.5  # seconds, at shutdown, for what is waited for behind the time that was given
NEWS_GRACE = 3.0  # seconds, at shutdown, for receivers of signals and handlers of the log to hear of the last ends

# What the log adds to a refusal that is mostly a proxy's doing, by its rule.
HINTS = {
    "origin": "; if it is yours, add it to the option origins, or have the proxy pass on the host that the browser "
    "asked for: nginx by proxy_set_header Host $http_host; Apache by ProxyPreserveHost On",
    "http-version": f"; nginx needs {handshake.NGINX_LINES}",
    "connection": f"; nginx needs {handshake.NGINX_UPGRADE}",
    "hosts": "; if it is a name of this server, add it there, as in GEVENTWS_HOSTS=loopback,app.example",
}
_IS_TOLD = "geventws.refused"  # in the environ: the refusal is ours, and has been told

StartResponse = Callable[..., Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class Upgrade:
    """One upgrade request, from its front end; see WebSocket for sock, take_leftover and on_accept.

    The gateway keeps no reference to what on_accept() lets go of, so that an idle WebSocket does not hold it.
    """

    __slots__ = ("sock", "start_response")

    def __init__(self, sock: Any, start_response: Any) -> None:
        self.sock = sock
        self.start_response = start_response

    def take_leftover(self) -> bytes:
        return b""

    def on_accept(self, size: int) -> None:
        pass

    @property
    def is_hijacked(self) -> bool:
        """Whether the app is seen to write on the raw socket by itself."""
        return False

    def on_hijack(self) -> None:
        """The app returned without any answer: it used the raw socket itself."""

    def on_end(self, size: int) -> None:
        """The WebSocket is closed; so many bytes were sent on it."""


class TakenSocket:
    """Stands in for the raw socket after the handshake. Raises WebSocketError when an app uses it."""

    def __getattr__(self, name: str) -> Any:
        raise WebSocketError(
            "the handshake is already complete: a view that takes the raw socket does so within accept_after seconds"
        )


class Gateway:
    """The WebSockets of one server or worker: admits them, runs their views, ends them."""

    def __init__(
        self,
        options: Options,
        live: dict[WebSocket, gevent.Greenlet] | None = None,
        proxies: Iterable[str] = (),
        counts: dict[str, int] | None = None,
    ) -> None:
        """Take the options of all, and the proxies to be trusted.

        Where other gateways count with this one: what is live, and the places taken of each address.
        """
        self.options = options
        self.live = {} if live is None else live  # with the greenlets of the views
        self.max_connections = options.max_connections or _descriptor_limit()
        most = options.max_connections_per_address
        self.addresses = None if most is None else Addresses(most, proxies, counts)
        self._closing = False
        self._is_closing_all = False
        self._was_hijacked = False  # a socket of it was
        self._idle = Event()
        self._idle.set()
        gateways.add(self)
        for start in starters:
            start()

    def run(self, app: Application, environ: dict[str, Any], upgrade: Upgrade) -> Iterable[bytes]:
        """Answer a request for which wants_websocket() holds; return the HTTP body, () after a WebSocket.

        When it returns the WebSocket is closed. An exception of a view that neither used it nor answered is let
        through, because the server answers that with HTTP 500.
        """
        try:
            admitted = self._admit(app, environ)
        except HandshakeError as exc:
            return _refuse(exc, upgrade.start_response, environ)
        environ["HTTP_UPGRADE"] = "websocket"  # frameworks know no list of protocols
        on_accept = partial(self._on_accept, upgrade)
        options = self.options_for(app, environ)
        admit = None
        if self.addresses is not None:
            admit = partial(self._take_place, self.addresses, upgrade, environ, environ.get("REMOTE_ADDR") or "")
        ws = WebSocket(upgrade.sock, upgrade.take_leftover, environ, on_accept, options, *admitted, admit)
        del on_accept, admit
        del admitted  # this frame lives as long as the WebSocket
        environ["wsgi.websocket"] = ws
        self.live[ws] = gevent.getcurrent()
        ws.belongs_to(gevent.getcurrent())
        self._idle.clear()
        self._accept_soon(ws, upgrade)
        try:
            return self._run_view(app, environ, ws, upgrade)
        except HandshakeError as exc:  # of accept()
            return _refuse(exc, upgrade.start_response, environ)
        finally:
            ws.accept_no_more()  # where an exception came before any decision
            del self.live[ws]
            if self.addresses is not None:
                self.addresses.release(upgrade)
            environ.pop("wsgi.websocket", None)  # ws.environ points back: only the garbage collector would free them
            if ws.accepted:
                ws.session.transport.abort()  # if it is not closed: what ends it may have been killed
                upgrade.on_end(ws.bytes_sent)
            if not self.live:
                self._idle.set()

    def _admit(self, app: Application, environ: dict[str, Any]) -> tuple[handshake.Request, HandshakeError | None]:
        """Return what the handshake asks for, and the refusal that its route may lift: that of its origin."""
        if self._closing:
            raise HandshakeError(
                HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping", [("Retry-After", "1")], "stopping"
            )
        request = handshake.check_request(environ)
        handshake.check_host(environ, self.options.hosts)
        refusal = None
        try:
            handshake.check_origin(environ, self.options.origins)
        except HandshakeError as exc:
            if not routes_judge_origins(app):
                raise
            refusal = exc
            # What else runs may not take the raw socket either.
            environ.pop("gunicorn.socket", None)
            environ["wsgi.input"] = io.BytesIO()
        if len(self.live) >= self.max_connections:
            raise HandshakeError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the option max_connections allows no more WebSockets",  # how many is no business of a stranger's
                [("Retry-After", "10")],
                "full",
            )
        return request, refusal

    def _run_view(self, app: Application, environ: dict[str, Any], ws: WebSocket, upgrade: Upgrade) -> Iterable[bytes]:
        answer = _Answer(self, ws, upgrade)
        body: Iterable[bytes] = ()
        try:
            body = _called(app)(environ, answer.start_response)
            if not ws.accepted:
                body = _Begun(body)  # an app that is a generator runs only now, up to its first bytes
            if ws.accepted:
                # Nothing goes out, but what stands before the app ends by it: spans, lines, tracebacks.
                for _ in body or ():
                    pass
        except StopIteration:
            pass  # how flask-sock tells gunicorn that it used the raw socket itself
        except BaseException as exc:
            if isinstance(exc, ConnectionClosed) and ws.accepted:
                if exc.websocket not in {None, ws}:  # None is one that the view raised itself
                    warn_of_foreign_end(ws)
            elif not ws.accepted and not upgrade.is_hijacked:
                ws.answer("500 Internal Server Error")
                if not isinstance(exc, HandshakeError):
                    _tell_answer("500 Internal Server Error", environ)
                if isinstance(exc, SystemExit):
                    raise RuntimeError(f"view of {ws.path} called sys.exit({exc.code!r})") from exc
                raise
            elif isinstance(exc, (gevent.GreenletExit, KeyboardInterrupt)):
                if ws.accepted:
                    cause = "shutdown" if self._closing else "server"
                    ws.finish(CloseCode.GOING_AWAY, "", cause, within=KILLED_GRACE)
                if isinstance(exc, KeyboardInterrupt):
                    raise  # it means the whole program
            else:
                answer.close_code, answer.error = CloseCode.INTERNAL_ERROR, exc
                _log_failure(ws, "%s %s view failed")
        if not ws.accepted:
            ws.answer(answer.status or "nothing, but used the socket itself")
            if answer.refusal is not None:
                getattr(body, "close", _discard)()
                raise answer.refusal
            if answer.status:
                # A framework may answer what accept() raised.
                is_full = ws.refusal is not None and ws.refusal.rule == "address"
                _tell_answer(answer.status, environ, "address" if is_full else "view")
                return body
            self._was_hijacked = True
            upgrade.on_hijack()
        try:
            getattr(body, "close", _discard)()
        except (Exception, SystemExit, gevent.Timeout):
            _log_failure(ws, "%s %s closing the response failed")
        finally:
            if ws.accepted:
                self._finish(ws, answer)
        return ()

    def _finish(self, ws: WebSocket, answer: _Answer) -> None:
        """Close a WebSocket whose view has ended, and wait for the end."""
        error, kept = answer.error, kept_error(ws.environ)
        error, answer.error = kept if error is None else error, None  # whose traceback holds all of this
        del kept
        with suppress(gevent.GreenletExit):  # the end of the view is near anyhow, and the server is to log it
            try:
                if answer.close_code == CloseCode.INTERNAL_ERROR:
                    ws.session.close(answer.close_code, "", "view_failed")
                    if signals.view_failed.receivers:
                        signals.tell(signals.view_failed, ws, **about(ws), error=error)
            finally:
                del error
                ws.finish(answer.close_code, answer.close_reason)

    def _accept_soon(self, ws: WebSocket, upgrade: Upgrade) -> None:
        ws.accept_soon(partial(self._may_accept, ws, upgrade))

    def _may_accept(self, ws: WebSocket, upgrade: Upgrade) -> bool:
        """Whether to complete the handshake of a silent app. Not if the app is known to make its own."""
        if upgrade.is_hijacked or self._was_hijacked:
            return False
        if is_beside_view(self.live[ws]):
            self._accept_soon(ws, upgrade)
            return False
        return True

    def options_for(self, app: Application, environ: dict[str, Any]) -> Options:
        """Return the options of a handshake, which compat asks the app for."""
        return self.options

    def _take_place(self, addresses: Addresses, upgrade: Upgrade, environ: dict[str, Any], peer: str) -> None:
        """Count a WebSocket that is about to open; only now, as middleware may have found the client's address."""
        expect_disconnects_here()  # and what take() raises
        addresses.take(upgrade, environ, peer)

    def _on_accept(self, upgrade: Upgrade, size: int) -> None:
        expect_disconnects_here()
        upgrade.on_accept(size)

    # The end of all

    def begin_stop(self) -> None:
        """Refuse new WebSockets with 503."""
        self._closing = True

    def stop(self, within: float) -> None:
        """Refuse new WebSockets, close the live ones with shutdown_code, and return when their views have ended.

        The closes are spread over time, so that the clients' return does not come as one wave. A view that has not
        noticed the end of its WebSocket after DEAF_GRACE seconds waits for something else, and is killed. So is any
        view that is still there after `within` seconds. What is to be told of the ends has NEWS_GRACE of them.
        """
        self.begin_stop()
        end = monotonic() + within
        if self._is_closing_all:  # by another call, at its pace
            self._idle.wait(max(within, 0))
        else:
            self._is_closing_all = True
            try:
                self._close_all(end, within)
            finally:
                self._is_closing_all = False
        for greenlet in list(self.live.values()):
            gevent.kill(greenlet)
        self._idle.wait(LAST_WAIT)
        now = monotonic()
        end = min(max(end, now + LAST_WAIT), now + NEWS_GRACE)
        signals.wait_for_receivers(end - now)
        loglines.wait_for_lines(max(end - monotonic(), 0))

    def _close_all(self, end: float, within: float) -> None:
        """Close the live WebSockets, until a moment that is `within` seconds from now."""
        rate = max(self.options.closes_per_second, 2 * len(self.live) / max(within, CLOSING_PAUSE))
        batch = math.ceil(rate * CLOSING_PAUSE)
        pause = batch / rate
        if self.live:
            seconds = len(self.live) / rate
            loglines.write(log, logging.INFO, "stopping: closing %d WebSockets within %.1f s", len(self.live), seconds)
        ended: dict[WebSocket, float] = {}
        while self.live and monotonic() < end:
            self._kill_deaf(ended)
            waiting = [ws for ws in self.live if ws.accepted and not ws.closed]
            for ws in waiting[:batch]:
                ws.session.close(self.options.shutdown_code, self.options.shutdown_reason, "shutdown")
            self._idle.wait(min(pause, max(end - monotonic(), 0)))

    def _kill_deaf(self, ended: dict[WebSocket, float]) -> None:
        """Kill, once, each view that does not notice the end of its WebSocket. `ended` holds when to kill it."""
        now = monotonic()
        for ws, view in list(self.live.items()):
            if ws.has_ended and not ws.end_is_told and now >= ended.setdefault(ws, now + DEAF_GRACE):
                ended[ws] = math.inf
                gevent.kill(view)


class _Answer:
    """What an app says in HTTP to one upgrade request. No closure: each of its cells would outlive the handshake."""

    __slots__ = (
        *("_gateway", "_upgrade", "_write", "_ws"),
        *("close_code", "close_reason", "error", "refusal", "status"),
    )

    def __init__(self, gateway: Gateway, ws: WebSocket, upgrade: Upgrade) -> None:
        self._gateway = gateway
        self._upgrade = upgrade
        self._ws = ws
        self.status = ""  # that goes out
        self.refusal: HandshakeError | None = None  # that goes out instead of what the app made of it
        self.close_code, self.close_reason = CloseCode.NORMAL_CLOSURE, ""  # of a WebSocket that was used
        self.error: BaseException | None = None  # that the view raised
        self._write: Callable[[bytes], object] = _discard

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """Begin the HTTP response, as WSGI has it."""
        ws = self._ws
        if self._upgrade.is_hijacked:
            return _discard  # a 500 of a view that failed, or a 200: nothing that the stream may hold
        if ws.accepted:
            # Too late for HTTP. A framework that caught the view's exception shows it by its 500.
            self.close_code, self.close_reason = CloseCode.NORMAL_CLOSURE, ""
            if status.startswith("5"):
                self.close_code = CloseCode.INTERNAL_ERROR
            if status.startswith("4"):
                self.close_code, self.close_reason = CloseCode.POLICY_VIOLATION, status
                line = "%s %s answered %s after the handshake, too late"
                loglines.say(log, logging.WARNING, line, ws.peer, printable(ws.path), status, fields=about(ws))
            return _discard
        ws.accept_no_more()  # decided, however long the body takes
        self.status = status
        if ws.refusal is not None and status.startswith("5"):  # a framework shows so an exception that it does not know
            self.refusal = ws.refusal
            return _discard
        explain_mismatch(status, ws.environ)
        headers = [header for header in headers if header[0].lower() != "connection"]
        self._write = self._upgrade.start_response(status, [*headers, ("Connection", "close")], exc_info)
        return self._write_body

    def _write_body(self, data: bytes) -> object:
        """Send a piece of the answer. That decides for HTTP."""
        self._ws.answer(self.status)
        return self._write(data)


gateways: WeakSet[Gateway] = WeakSet()  # all of this process
_lost_upgrade: list[str] = []  # the path of the request that the log has told of
starters: list[Callable[[], object]] = []  # called where a gateway is made, on the hub that is to serve


def _abandon() -> None:
    """In a forked child, let go of the WebSockets of the parent, which goes on serving them."""
    for gateway in gateways:
        for ws in gateway.live:
            ws.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)


class _Begun:
    """A WSGI body whose first bytes are already asked for."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        try:
            self._rest = iter(body)
            self._first = next(self._rest, b"")
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        return chain((self._first,), self._rest)

    def close(self) -> None:
        getattr(self._body, "close", _discard)()


def _called(app: Application) -> Application:
    """Return the method of an app that is an object: Python calls that without a detour through C.

    The detour would be 400 bytes and more of each idle view's stack.
    """
    for kind in type(app).__mro__:
        if (call := vars(kind).get("__call__")) is not None:
            return MethodType(call, app) if type(call) is FunctionType else app
    return app


def _discard(data: bytes = b"") -> None:
    pass


def log_refusal(error: HandshakeError, environ: dict[str, Any]) -> None:
    """Say why a handshake is refused: in the log, and to those who listen."""
    environ[_IS_TOLD] = True
    told = _told(environ, error.status.value, error.rule, error.reason)
    hint = HINTS.get(error.rule, "")
    path = printable(path_of(environ))
    if error.rule != "address":  # which Addresses has said, unless it did so a moment ago
        loglines.say(log, logging.WARNING, "%s %s refused: %s%s", peer_of(environ), path, error, hint, fields=told)
    signals.tell(signals.refused, environ, **told)


def _tell_answer(status: str, environ: dict[str, Any], rule: str = "view") -> None:
    """Tell those who listen that the app has answered a handshake in HTTP, by this rule."""
    if signals.refused.receivers and _IS_TOLD not in environ:
        signals.tell(signals.refused, environ, **_told(environ, int(status[:3]), rule, status))


def _told(environ: dict[str, Any], status: int, rule: str, reason: str) -> dict[str, Any]:
    route = route_of(environ)
    return {"path": path_of(environ), "route": route, "status": status, "rule": rule, "reason": reason}


def _log_failure(ws: WebSocket, line: str) -> None:
    loglines.say(log, logging.ERROR, line, ws.peer, printable(ws.path), fields=about(ws), exc_info=True)


def tell_lost_upgrade(path: str) -> None:
    """Say once in the log that a proxy takes the Upgrade from handshakes; the app answers them as it does pages."""
    if not _lost_upgrade:
        _lost_upgrade.append(path)
        log.warning("%s a request %s", printable(path), handshake.LOST_UPGRADE)


def _refuse(error: HandshakeError, start_response: StartResponse, environ: dict[str, Any]) -> list[bytes]:
    log_refusal(error, environ)
    body = f"{error}\n".encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        (handshake.REFUSED, error.rule),
        *error.headers,
    ]
    start_response(f"{error.status.value} {error.status.phrase}", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def _descriptor_limit() -> int:
    """Return how many sockets the file descriptor limit leaves, less a margin for everything else."""
    if resource is None:
        return sys.maxsize
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(limit - max(limit // 10, 64), 1)
