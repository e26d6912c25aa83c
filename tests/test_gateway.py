"""The gateway alone: one request on a socket pair, without a server."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import gevent

from geventws.gateway import Gateway, Upgrade
from geventws.options import Options

from .pairs import KEY, Peer, close_frame, joined, settle

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


def test_websocket_that_ended_is_freed_without_the_garbage_collector() -> None:
    server, client = joined("unix")
    kept: list[weakref.ref[Any]] = []
    sent: list[int] = []

    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ws = environ["wsgi.websocket"]
        kept.append(weakref.ref(ws))
        assert ws.receive() is None
        return []

    upgrade = Upgrade(server, lambda: b"", lambda size: None, lambda: None, sent.append)
    gc.disable()
    try:
        running = gevent.spawn(Gateway(Options()).run, view, dict(ENVIRON), None, upgrade)
        peer = Peer(client)
        head = peer.open()
        peer.sock.sendall(close_frame())
        answer = b"".join(iter(lambda: peer.sock.recv(100), b""))
        peer.sock.close()
        assert running.get(timeout=5) == ()
        settle()
        assert kept[0]() is None
    finally:
        gc.enable()
    assert sent == [len(head) + 4 + len(answer)]
