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
from functools import partial
from time import monotonic
from typing import Any, ClassVar

import gevent
from gevent.server import StreamServer

from . import handshake
from .errors import MissingPackage
from .gateway import Gateway, StartResponse, Upgrade
from .listener import Listener
from .options import Options

try:
    from gunicorn.errors import AppImportError
    from gunicorn.workers.ggevent import GeventWorker
except ImportError as exc:  # its gevent worker needs `packaging` too, which plain gunicorn does not bring
    raise MissingPackage(f"geventws.Worker needs gunicorn ({exc}): pip install 'gunicorn[gevent]'") from exc

REQUEST_TIMEOUT = 20.0  # seconds for a request head where --keep-alive is 0; else that is its time
KILL_MARGIN = 2.0  # seconds before gunicorn's own SIGKILL by which the worker wants to be gone
QUICK_STOP = 2.0  # seconds that SIGINT and SIGQUIT leave to the closing handshakes

_target = re.compile(r"(?:https?://([^/?#]+))?(?:[/?][^#]*)?", re.IGNORECASE)


class _Server(Listener, StreamServer):  # type: ignore[misc]
    """The server for one listener. It stands for it where gunicorn wants its name, also once it is closed."""

    def __init__(self, worker: Worker, listener: Any, **settings: Any) -> None:
        self._worker = worker
        self._name = listener.getsockname()
        super().__init__(listener, **settings)

    def getsockname(self) -> Any:
        return self._name

    def handle(self, client: Any, address: Any) -> None:
        self._worker.handle(self, client, address)


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker, whose apps find a WebSocket in environ["wsgi.websocket"].

    Options come from GEVENTWS_* variables and, before them, from `options`: in gunicorn.conf.py write
    worker_class = geventws.Worker.with_options(ping_interval=10).
    """

    options: ClassVar[dict[str, Any]] = {}
    wsgi: Any
    gateway: Gateway | None = None
    _stop_greenlet: gevent.Greenlet | None = None

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
        """Load the app and put the gateway before it."""
        try:
            options = Options.from_environ(os.environ).replace(**self.options)
        except (TypeError, ValueError) as exc:
            raise AppImportError(f"geventws: {exc}") from exc
        self._servers: list[StreamServer] = []
        self.gateway = Gateway(options)  # before the app: a signal may come while it is imported
        super().load_wsgi()
        self._app = self.wsgi
        self.gateway.expect_disconnects(self._app)
        self.wsgi = self._run_app
        logger = logging.getLogger("geventws")
        if not logger.hasHandlers():  # the app chose no place for it
            logger.handlers = self.log.error_log.handlers
            logger.setLevel(self.log.error_log.level)

    def server_class(self, listener: Any, *, spawn: Any, ssl_context: Any = None, **unused: Any) -> StreamServer:
        """Return the server for one listener; gunicorn's gevent worker calls this where a class is set."""
        tls = {} if ssl_context is None else {"ssl_context": ssl_context}
        server = _Server(self, listener, spawn=spawn, **tls)
        if self.cfg.workers > 1:
            server.max_accept = 1  # leave some connections to the other workers
        self._servers.append(server)
        return server

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve one connection."""
        greenlet = gevent.getcurrent()
        late = ConnectionResetError(errno.ECONNRESET, "no whole request head in time")
        greenlet.patience = gevent.Timeout.start_new(None if self.cfg.keepalive else REQUEST_TIMEOUT, late)
        try:
            super().handle(listener, client, addr)
        finally:
            greenlet.patience.close()

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serve a request whose head was read."""
        gevent.getcurrent().patience.close()
        super().handle_request(listener_name, req, sock, addr)

    def handle_http2(self, *args: Any, **kwargs: Any) -> None:
        """Serve an HTTP/2 connection, of which gunicorn takes care."""
        gevent.getcurrent().patience.close()
        super().handle_http2(*args, **kwargs)

    def _run_app(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        # HTTP/2 has no Upgrade.
        if not handshake.wants_websocket(environ) or not environ["SERVER_PROTOCOL"].startswith("HTTP/1"):
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        target = _target.fullmatch(environ["RAW_URI"])
        if target is None:
            environ["HTTP_HOST"] = ""  # gunicorn takes any target; the handshake refuses this
        elif target[1]:
            environ["HTTP_HOST"] = target[1]  # RFC 9112 §3.2.2: it stands for the Host header
        response = start_response.__self__  # type: ignore[attr-defined]
        # Whatever the answer: the next bytes on this connection may be no HTTP.
        response.force_close()
        response.req.force_close()
        upgrade = Upgrade(
            response.sock,
            partial(_take_leftover, response.req.unreader),
            partial(self._on_accept, response, environ, gevent.getcurrent()),
            partial(_leave_http, response, 0),
            partial(setattr, response, "sent"),
        )
        assert self.gateway is not None
        return self.gateway.run(self._app, environ, start_response, upgrade)

    def _on_accept(self, response: Any, environ: dict[str, Any], greenlet: gevent.Greenlet, size: int) -> None:
        _leave_http(response, size)
        environ["wsgi.input"] = io.BytesIO()
        # A WebSocket holds none of worker_connections: idle ones must not stop the site's HTTP.
        for server in self._servers:
            if greenlet in server.pool:
                server.pool.discard(greenlet)

    # Stopping: SIGTERM, SIGHUP and max_requests leave the closing handshakes nearly graceful_timeout

    def run(self) -> None:
        """Serve until told to stop, then until the last WebSocket is closed."""
        super().run()
        self._begin_stop(self._grace)
        assert self._stop_greenlet is not None
        self._stop_greenlet.join()

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
        gateway.stop(within)
        for server in self._servers:
            if not server.pool.join(max(end - monotonic(), 0)):
                sys.exit(0)  # HTTP that hangs: gunicorn would kill the worker in a moment, with less ado

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM."""
        super().handle_exit(sig, frame)
        self._begin_stop(self._grace)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGINT and SIGQUIT."""
        self.alive = False
        self._begin_stop(min(QUICK_STOP, self._grace))
        gevent.spawn(self._quit, sig, frame)

    def _quit(self, sig: int, frame: Any) -> None:
        if self._stop_greenlet is not None:
            self._stop_greenlet.join()
        super().handle_quit(sig, frame)

    def notify(self) -> None:
        """Show the arbiter a sign of life, once a second; max_requests ends a worker without any signal."""
        super().notify()
        if not self.alive:
            self._begin_stop(self._grace)


def _take_leftover(unreader: Any) -> bytes:
    """Return what gunicorn's parser read beyond the request."""
    leftover: bytes = unreader.buf.getvalue()
    unreader.buf = io.BytesIO()
    return leftover


def _leave_http(response: Any, size: int) -> None:
    """Have gunicorn write nothing more on this connection, and log a 101 of this size at the end."""
    response.status = "101 Switching Protocols"
    response.status_code = 101
    response.headers_sent = True
    response.chunked = False
    response.sent = size
