"""Listener: what both servers add to gevent's accept loop, against crowds and strangers.

Knows gevent's StreamServer; knows no HTTP.
"""

from __future__ import annotations

import _socket
import errno
import logging
import math
import os
import socket
from time import monotonic
from typing import Any
from weakref import WeakSet

import gevent
from gevent import get_hub

log = logging.getLogger("geventws")

TLS_HANDSHAKE_TIMEOUT = 10.0  # seconds
# Seconds that a connection may wait for the next whole request head; with gunicorn, where --keep-alive is 0.
REQUEST_TIMEOUT = 20.0
OUTAGE = 60.0  # seconds without starving after which the next time is news
RETRY = 0.1  # seconds between two tries to accept while there is no file descriptor for it

_STARVED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def end_wait(sock: Any, error: Exception) -> None:
    """Raise error in the greenlet that waits to read from a gevent socket, unless unread bytes have come."""
    try:
        if _socket.socket.recv(sock._sock, 1, socket.MSG_PEEK):  # gevent's sockets never block
            return
    except OSError:
        pass  # nothing has come
    get_hub().cancel_wait(sock._read_event, error)


_accepting: WeakSet[Any] = WeakSet()  # all of this process


def _stop_accepting() -> None:
    """In a forked child, leave new connections to the parent."""
    for server in _accepting:
        server.stop_accepting()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stop_accepting)


class Listener:
    """Mixin for gevent.server.StreamServer."""

    max_accept = 10  # at a time: a hundred handshakes, gevent's default, hold up everyone else for 40 ms and more
    _starved_at = -math.inf  # by time.monotonic()

    def start_accepting(self) -> None:
        """Accept connections, in this process and not in any forked from it."""
        server: Any = super()
        server.start_accepting()
        _accepting.add(self)

    def do_read(self) -> Any:
        """Accept one connection; without a free file descriptor, say so once a minute and try again soon."""
        server: Any = super()
        try:
            return server.do_read()
        except OSError as exc:
            if exc.errno not in _STARVED:
                raise
            was_starved_at, self._starved_at = self._starved_at, monotonic()
            if self._starved_at - was_starved_at > OUTAGE:
                # In a greenlet: this is the hub, which must not wait for a log handler.
                gevent.spawn_raw(log.error, "cannot accept connections: %s; raise the limit with ulimit -n", exc)
            self._accept_later()
            return None

    def _accept_later(self: Any) -> None:
        self.stop_accepting()
        self._timer = self.loop.timer(RETRY)
        self._timer.start(self._accept_again)

    def _accept_again(self: Any) -> None:
        if self.started:
            self.start_accepting()

    def wrap_socket_and_handle(self: Any, client_socket: Any, address: Any) -> None:
        """Serve a TLS connection; a peer that fails the TLS handshake or never ends it is no error of ours."""
        try:
            with gevent.Timeout(TLS_HANDSHAKE_TIMEOUT, TimeoutError("TLS handshake timed out")):
                tls_socket = self.wrap_socket(client_socket, **self.ssl_args)
        except OSError as exc:
            log.info("%s TLS handshake failed: %s", address[0] if address else "unix", exc)
            client_socket.close()
            return
        with tls_socket:
            self.handle(tls_socket, address)
