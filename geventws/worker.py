"""Worker: the seam with gunicorn, for `gunicorn -k geventws.Worker app:app`.

Knows gunicorn's native gevent worker; everything about WebSocket is the gateway's.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields
from datetime import datetime
from http import HTTPStatus
from time import monotonic
from typing import Any, ClassVar

import gevent
from gevent.server import StreamServer

from . import handshake
from .addresses import is_among
from .census import publish
from .errors import MissingPackage
from .frameworks import expect_disconnects, why_no_app
from .gateway import Gateway, TakenSocket, Upgrade, tell_lost_upgrade
from .listener import REQUEST_TIMEOUT, Listener, end_wait
from .loglines import FORWARDED, forwarded_for
from .monitor import watch
from .options import PREFIX, Options, RequestLimits
from .shared import EMPTY, shared

try:
    from gunicorn.errors import AppImportError
    from gunicorn.glogging import Logger
    from gunicorn.http import wsgi
    from gunicorn.http.errors import NoMoreData
    from gunicorn.instrument.statsd import Statsd
    from gunicorn.workers.ggevent import GeventWorker
except ImportError as exc:  # its gevent worker needs `packaging` too, which plain gunicorn does not bring
    raise MissingPackage(f"geventws.Worker needs gunicorn ({exc}): pip install 'gunicorn[gevent]'") from exc

KILL_MARGIN = 2.0  # seconds before gunicorn's own SIGKILL by which the worker wants to be gone
QUICK_STOP = 2.0  # seconds that SIGINT and SIGQUIT leave to the closing handshakes
FIRST_REQUEST_GRACE = 1.0  # seconds for the first request of a connection that was accepted just before the stop

_LOST = {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN}
_target = re.compile(r"(?:https?://([^/?#]+))?(?:[/?][^#]*)?", re.IGNORECASE)


class _Server(Listener, StreamServer):  # type: ignore[misc]
    """Accepts connections on one listener. Also answers getsockname() for gunicorn, even after it has been closed."""

    def __init__(self, worker: Worker, listener: Any, **settings: Any) -> None:
        self._worker = worker
        self._name = listener.getsockname()
        super().__init__(listener, **settings)

    def getsockname(self) -> Any:
        return self._name

    def do_handle(self, *accepted: Any) -> None:
        """Serve a connection in a greenlet of its own."""
        if self.ssl_enabled:
            super().do_handle(*accepted)
            return
        try:
            self._spawn(_serve, [self._worker, self, *accepted])
        except BaseException:
            self.do_close(*accepted)
            raise

    def handle(self, client: Any, address: Any) -> None:
        """Serve a TLS connection, whose handshake is complete."""
        upgrade = self._worker.handle(self, client, address)
        if upgrade is not None:
            upgrade.serve()


def _serve(accepted: list[Any]) -> None:
    worker, server, client, address = accepted
    accepted.clear()  # the greenlet holds its arguments to its end
    upgrade = worker.handle(server, client, address)
    del client, address
    if upgrade is not None:
        upgrade.serve()


class _Errors:
    """wsgi.errors of every WebSocket. It asks for gunicorn's each time, because the log files may have been rotated."""

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg

    def __getattr__(self, name: str) -> Any:
        return getattr(wsgi.WSGIErrorsWrapper(self._cfg), name)


class _RawSocket:
    """The client's socket, for an app that writes its own 101 on it, as flask-sock does. It notes that the app did."""

    __slots__ = ("_sock", "is_hijacked")

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.is_hijacked = False

    def send(self, *args: Any) -> int:
        self.is_hijacked = True
        size: int = self._sock.send(*args)
        return size

    def sendall(self, *args: Any) -> None:
        self.is_hijacked = True
        self._sock.sendall(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def take_back(self) -> None:
        """Take the socket away from the app, which may still hold this object."""
        self._sock = TakenSocket()


class _HttpConnection:
    """A connection as long as it speaks HTTP: whether it waits for a request, and what has become of it."""

    __slots__ = ("has_served", "is_waiting", "patience", "sock", "upgrade")

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.patience: gevent.Timeout | None = None
        self.is_waiting = True
        self.has_served = False
        self.upgrade: _Upgrade | None = None

    def end_if_waiting(self) -> None:
        """End it as at the peer's EOF, which is what NoMoreData means, if no request is under way."""
        if self.is_waiting:
            end_wait(self.sock, NoMoreData())


class _Upgrade(Upgrade):
    """An upgrade request that gunicorn has parsed, served outside its frames.

    gunicorn's frames, parser, request and response are most of what makes an idle WebSocket weigh 14 KiB instead of
    27. If an access log or a hook will look at request and response, these stay.
    """

    __slots__ = ("_address", "_environ", "_greenlet", "_request", "_response", "_started", "_worker")

    def __init__(self, worker: Worker, request: Any, sock: Any, address: Any, environ: dict[str, Any], response: Any):
        super().__init__(sock, response.start_response)
        self._worker = worker
        self._request = request
        self._response = response
        self._environ = environ
        environ["gunicorn.socket"] = _RawSocket(sock)
        self._address = address
        self._greenlet = gevent.getcurrent()
        self._started: Any = datetime.now()
        # Whatever the answer: the next bytes on this connection may be no HTTP.
        response.force_close()
        # gunicorn closes the socket on its way out of its frames. As a file made of it would, this holds it.
        sock._io_refs += 1

    def serve(self) -> None:
        """Run the app and close the connection; nothing is left to gunicorn but its hooks and logs."""
        worker, sock = self._worker, self.sock
        sock._io_refs -= 1
        sock._closed = False
        del sock
        try:
            self._write(worker.run_upgrade(self._environ, self))
        except (gevent.GreenletExit, SystemExit):
            self._answer_killed()
        except (Exception, gevent.Timeout) as exc:
            self._fail(exc)
        finally:
            worker.count_request()
            if self._response is not None:
                worker.post_request(self._request, self._environ, self._response)
            if self.sock is not None:
                self.sock.close()

    def _write(self, body: Iterable[bytes]) -> None:
        response = self._response
        if response is None:
            return
        try:
            for data in body:
                response.write(data)
            response.close()
        finally:
            self._log_access(response)
            if hasattr(body, "close"):
                body.close()

    def _log_access(self, response: Any) -> None:
        """Log the request. gunicorn's statsd counts a WebSocket, and gets no duration: its life is no latency."""
        log, seen = self._worker.log, (response, self._request, self._environ, datetime.now() - self._started)
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS and type(log).access is Statsd.access:
            Logger.access(log, *seen)
            log.increment("gunicorn.requests", 1)
            log.increment("gunicorn.request.status.101", 1)
        else:
            log.access(*seen)

    def _answer_killed(self) -> None:
        """Answer a handshake whose view was killed before it had decided."""
        response = self._response
        if response is not None and response.status is None:
            response.start_response("500 Internal Server Error", [("Content-Length", "0")])
            with suppress(OSError):
                self._write(())

    def _fail(self, exc: BaseException) -> None:
        worker = self._worker
        if isinstance(exc, OSError) and exc.errno in _LOST:
            worker.log.debug("Ignoring a lost client: %s", exc)
        elif isinstance(exc, OSError) or self._response is None or self._response.headers_sent:
            worker.log.exception("Error handling request")
        else:
            worker.handle_error(self._request, self.sock, self._address, exc)

    # What the gateway asks of a front end

    def take_leftover(self) -> bytes:
        """Return what gunicorn's parser read beyond the request."""
        unreader = self._request.unreader
        leftover: bytes = unreader.buf.getvalue()
        unreader.buf = io.BytesIO()
        return leftover

    def on_accept(self, size: int) -> None:
        """Let go of what was for HTTP."""
        _leave_http(self._response, size)
        self._environ["wsgi.input"] = EMPTY
        raw = self._environ.pop("gunicorn.socket", None)
        if raw is not None:
            raw.take_back()
        self._environ.pop("wsgi.early_hints", None)
        self.sock = None  # the transport's now
        self._worker.release_slot(self._greenlet)
        if not self._worker.is_watched:
            self._request = self._response = self._address = self._started = None
            self.start_response = self._greenlet = None

    @property
    def is_hijacked(self) -> bool:
        return "gunicorn.socket" in self._environ and bool(self._environ["gunicorn.socket"].is_hijacked)

    def on_hijack(self) -> None:
        _leave_http(self._response, 0)

    def on_end(self, size: int) -> None:
        if self._response is not None:
            self._response.sent = size


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker, whose apps find a WebSocket in environ["wsgi.websocket"].

    Options come from GEVENTWS_* variables and, before them, from `options`: in gunicorn.conf.py write
    worker_class = geventws.Worker.with_options(ping_interval=10).
    """

    options: ClassVar[dict[str, Any]] = {}
    wsgi: Any
    alive: bool
    gateway: Gateway | None = None
    _stop_greenlet: gevent.Greenlet | None = None
    _quit_greenlet: gevent.Greenlet | None = None

    @classmethod
    def with_options(cls, **options: Any) -> type[Worker]:
        """Return a worker class with these options. Raises TypeError or ValueError for a wrong one."""
        Options().replace(**options)
        return type(cls.__name__, (cls,), {"options": {**cls.options, **options}, "__module__": cls.__module__})

    def init_process(self) -> None:
        """Serve until told to stop; called once, in the new process."""
        # Until gunicorn's worker has patched and set its own handlers, those of the arbiter would swallow a signal.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda *unused: sys.exit(0))
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the app."""
        try:
            options = Options.from_environ(os.environ).replace(**self.options)
        except (TypeError, ValueError) as exc:
            raise AppImportError(f"geventws: {exc}") from exc
        for field in fields(RequestLimits):
            if (variable := PREFIX + field.name.upper()) in os.environ:
                flag = field.name.replace("_", "-")
                self.log.warning("%s is for servers without gunicorn and changes nothing; use --%s", variable, flag)
        self._servers: list[StreamServer] = []
        # Before the app: a signal may come while it is imported.
        self.gateway = Gateway(options, proxies=self.cfg.forwarded_allow_ips)
        self._errors = _Errors(self.cfg)
        self._connections: dict[gevent.Greenlet, _HttpConnection] = {}
        super().load_wsgi()
        if why := why_no_app(self.wsgi, getattr(self.app, "app_uri", None) or "the app"):
            raise AppImportError(f"geventws: {why}")
        expect_disconnects(self.wsgi)
        someone_logs = type(self.log) is not Logger or getattr(self.log, "access_log_enabled", True)
        # Whether someone will look at gunicorn's request and response once a WebSocket has ended.
        self.is_watched = someone_logs or self.cfg.post_request is not self.cfg.settings["post_request"].default
        logger = logging.getLogger("geventws")
        theirs = [getattr(self.log, name, None) for name in ("error_log", "access_log")]
        for other in theirs:
            if isinstance(other, logging.Logger):
                other.disabled = False  # by an app's dictConfig(), which means all loggers that it does not name
        if not logger.hasHandlers() and isinstance(theirs[0], logging.Logger):  # the app chose no place for it
            logger.handlers = theirs[0].handlers
            logger.setLevel(theirs[0].level)
        publish()

    def server_class(self, listener: Any, *, spawn: Any, ssl_context: Any = None, **unused: Any) -> StreamServer:
        """Return the server for one listener; gunicorn's gevent worker calls this where a class is set."""
        tls = {} if ssl_context is None else {"ssl_context": ssl_context}
        server = _Server(self, listener, spawn=spawn, **tls)
        if self.cfg.workers > 1:
            server.max_accept = 1  # leave some connections to the other workers
        self._servers.append(server)
        return server

    def handle(self, listener: Any, client: Any, addr: Any) -> _Upgrade | None:
        """Serve one connection. Return its upgrade request, if there is one: the caller serves that."""
        connection = self._connections[gevent.getcurrent()] = _HttpConnection(client)
        if not self.cfg.keepalive:
            late = ConnectionResetError(errno.ECONNRESET, "no whole request head in time")
            connection.patience = gevent.Timeout.start_new(REQUEST_TIMEOUT, late)
        try:
            super().handle(listener, client, addr)
        finally:
            self._head_is_read()
            del self._connections[gevent.getcurrent()]
        return connection.upgrade

    def timeout_ctx(self) -> Any:
        """Return what limits the wait for a request; gunicorn's worker waits in it where --keep-alive is not 0."""
        self._wait_for_request()
        return super().timeout_ctx()

    def _wait_for_request(self) -> None:
        connection = self._connections[gevent.getcurrent()]
        connection.is_waiting = True
        if connection.has_served and not self.alive:
            connection.end_if_waiting()  # the answer that was under way at the stop promised to go on

    def _head_is_read(self) -> None:
        connection = self._connections[gevent.getcurrent()]
        connection.is_waiting, connection.has_served = False, True
        if connection.patience is not None:
            connection.patience.close()

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serve a request whose head was read."""
        self._head_is_read()
        if not handshake.wants_websocket({"HTTP_UPGRADE": ",".join(v for name, v in req.headers if name == "UPGRADE")}):
            if any(name == "SEC-WEBSOCKET-KEY" for name, _ in req.headers):
                tell_lost_upgrade(req.path)
            super().handle_request(listener_name, req, sock, addr)
            return
        try:
            self.cfg.pre_request(self, req)
            response, environ = wsgi.create(req, sock, addr, listener_name, self.cfg)
        except Exception:
            self.post_request(req, {}, None)
            raise
        if "HTTP_X_FORWARDED_FOR" in environ and self._is_trusted(req.peer_addr):
            address = forwarded_for(environ["HTTP_X_FORWARDED_FOR"])
            if address is not None:
                environ[FORWARDED] = address
        environ["wsgi.multithread"] = True
        environ["wsgi.errors"] = self._errors  # one for all: 200 bytes less
        self._connections[gevent.getcurrent()].upgrade = _Upgrade(self, req, sock, addr, shared(environ), response)
        raise StopIteration  # which ends gunicorn's loop over the requests of this connection

    def _is_trusted(self, peer: Any) -> bool:
        """Whether gunicorn believes what a peer says of its clients: --forwarded-allow-ips."""
        on_unix_socket = not isinstance(peer, tuple)
        return on_unix_socket or is_among(peer[0], tuple(map(str, self.cfg.forwarded_allow_ips)))

    def handle_http2(self, *args: Any, **kwargs: Any) -> None:
        """Serve an HTTP/2 connection by gunicorn's own code."""
        self._head_is_read()
        self._wait_for_request()
        super().handle_http2(*args, **kwargs)

    def handle_http2_request(self, *args: Any, **kwargs: Any) -> None:
        """Serve a request of an HTTP/2 connection."""
        self._head_is_read()
        try:
            super().handle_http2_request(*args, **kwargs)
        finally:
            self._wait_for_request()

    def count_request(self) -> None:
        """Count a request that asked for a WebSocket when the WebSocket ends, for --max-requests.

        Counted at the beginning, the crowd that comes back after a restart would make the next restart due.
        """
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False

    def run_upgrade(self, environ: dict[str, Any], upgrade: _Upgrade) -> Iterable[bytes]:
        """Run the app on an upgrade request; return the body of the HTTP response, if that is the answer."""
        target = _target.fullmatch(environ["RAW_URI"])
        if target is None:
            environ["HTTP_HOST"] = ""  # gunicorn takes any target; the handshake refuses this
        elif target[1]:
            environ["HTTP_HOST"] = target[1]  # RFC 9112 §3.2.2: it stands for the Host header
        del target
        assert self.gateway is not None
        # What HTTP would get now: hooks and subclasses wrap it late.
        return self.gateway.run(self.wsgi, environ, upgrade)

    def release_slot(self, greenlet: gevent.Greenlet) -> None:
        """Let greenlet hold none of worker_connections: idle WebSockets must not stop the site's HTTP."""
        for server in self._servers:
            if greenlet in server.pool:
                server.pool.discard(greenlet)

    def post_request(self, request: Any, environ: dict[str, Any], response: Any) -> None:
        """Call gunicorn's hook of that name."""
        try:
            self.cfg.post_request(self, request, environ, response)
        except Exception:
            self.log.exception("Exception in post_request hook")

    # Stopping: SIGTERM, SIGHUP and max_requests leave the closing handshakes nearly graceful_timeout

    def run(self) -> None:
        """Serve until told to stop, then until the last WebSocket is closed."""
        assert self.gateway is not None
        watch(self.gateway.options.hub_warning)  # only now: the hook post_worker_init may have patched a driver
        super().run()
        self._begin_stop(self._grace)
        assert self._stop_greenlet is not None
        while not self._stop_greenlet.ready():
            self.notify()  # a view that still cleans up is no hanging worker
            self._stop_greenlet.join(1.0)
        if self._quit_greenlet is not None:
            self._quit_greenlet.join()  # it calls a hook, and its sys.exit() is meant for us, not for Python's own end

    @property
    def _grace(self) -> float:
        return float(max(self.cfg.graceful_timeout - KILL_MARGIN, 0.5))

    def _begin_stop(self, within: float) -> None:
        if self._stop_greenlet is None and self.gateway is not None:
            self.gateway.begin_stop()
            self._stop_greenlet = gevent.spawn(self._stop, self.gateway, within)

    def _stop(self, gateway: Gateway, within: float) -> None:
        end = monotonic() + within
        for server in self._servers:
            server.close()
        for connection in self._connections.values():
            if connection.has_served:
                connection.end_if_waiting()
        gevent.spawn_later(FIRST_REQUEST_GRACE, self._end_waiting)
        gateway.stop(within)
        for server in self._servers:
            if not server.pool.join(max(end - monotonic(), 0)) and self._quit_greenlet is None:
                sys.exit(0)  # HTTP that hangs: gunicorn would kill the worker in a moment, with less ado

    def _end_waiting(self) -> None:
        for connection in self._connections.values():
            connection.end_if_waiting()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM."""
        super().handle_exit(sig, frame)
        self._begin_stop(self._grace)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGINT and SIGQUIT."""
        self.alive = False
        self._begin_stop(min(QUICK_STOP, self._grace))
        if self._quit_greenlet is None:  # Ctrl-C comes twice: from the terminal and from the arbiter
            self._quit_greenlet = gevent.spawn(self._quit, sig, frame)

    def _quit(self, sig: int, frame: Any) -> None:
        if self._stop_greenlet is not None:
            self._stop_greenlet.join()
        super(GeventWorker, self).handle_quit(sig, frame)  # GeventWorker's would do this in one more greenlet

    def notify(self) -> None:
        """Show the arbiter a sign of life, once a second; max_requests ends a worker without any signal."""
        if os.getppid() != self.ppid:
            # gunicorn logs that and exits. Neither may wait for a log handler for ever, as nobody else ends the worker.
            signal.alarm(max(self.cfg.graceful_timeout, 1))
        super().notify()
        if not self.alive:
            self._begin_stop(self._grace)


def _leave_http(response: Any, size: int) -> None:
    """Have gunicorn write nothing more on this connection, and log a 101 of this size at the end."""
    response.status = "101 Switching Protocols"
    response.status_code = 101
    response.headers_sent = True
    response.chunked = False
    response.sent = size
