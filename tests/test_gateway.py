"""The gateway alone: one request on a socket pair, without a server."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import gevent
import pytest

from geventws.gateway import Gateway, Upgrade
from geventws.options import Options

from .pairs import ENVIRON, Peer, close_frame, joined, settle


def test_websocket_that_ended_is_freed_without_the_garbage_collector() -> None:
    server, client = joined("unix")
    kept: list[weakref.ref[Any]] = []
    sent: list[int] = []

    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ws = environ["wsgi.websocket"]
        kept.append(weakref.ref(ws))
        assert ws.receive() is None
        return []

    class Counted(Upgrade):
        def on_end(self, size: int) -> None:
            sent.append(size)

    gc.disable()
    try:
        running = gevent.spawn(Gateway(Options()).run, view, dict(ENVIRON), Counted(server, None))
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


class Failing(Gateway):
    """A gateway whose hook fails before the view, as an app's app_protocol() may with compat."""

    def options_for(self, app: Any, environ: Any) -> Options:
        raise ValueError("before the view")


def test_request_that_failed_before_its_view_is_not_accepted_later(capsys: pytest.CaptureFixture[str]) -> None:
    server, client = joined("unix")
    gateway = Failing(Options(accept_after=0.02))
    with pytest.raises(ValueError, match="before the view"):
        gateway.run(lambda environ, start_response: [], dict(ENVIRON), Upgrade(server, None))
    gevent.sleep(0.05)
    assert capsys.readouterr().err == ""
    server.close()
    client.close()
