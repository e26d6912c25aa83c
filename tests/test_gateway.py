"""The gateway alone: one request on a socket pair, without a server."""

from __future__ import annotations

import gc
import weakref
import zlib
from typing import Any

import gevent
import pytest
from gevent import get_hub

from geventws.frames import BINARY, RSV1, encode_frame
from geventws.gateway import Gateway, Upgrade
from geventws.options import Options
from geventws.turns import WORK_PER_PASS, turns

from .pairs import ENVIRON, Peer, close_frame, joined, settle, until


def test_peers_whose_bytes_inflate_to_much_have_it_in_several_passes() -> None:
    """So that nobody else waits for all of them: here 20 messages of 60,000 bytes that come in one pass."""
    deflater = zlib.compressobj(wbits=-15)
    payload = (deflater.compress(bytes(60_000)) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
    bomb = encode_frame(BINARY | RSV1, payload, masking_key=b"\1\2\3\4")
    received: list[int] = []

    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        received.extend(len(message) for message in environ["wsgi.websocket"])
        return []

    gateway, environ = Gateway(Options()), {**ENVIRON, "HTTP_SEC_WEBSOCKET_EXTENSIONS": "permessage-deflate"}
    peers = []
    for _ in range(20):
        server, client = joined("unix")
        gevent.spawn(gateway.run, view, dict(environ), Upgrade(server, None))
        peers.append(Peer(client))
        peers[-1].open()
    left = []
    watcher = get_hub().loop.prepare(ref=False)
    watcher.start(lambda: left.append(turns().left))
    for peer in peers:
        peer.sock._sock.send(bomb)
    until(lambda: len(received) == len(peers), "the last message")
    watcher.close()
    assert received == [60_000] * len(peers)
    assert min(left) > -WORK_PER_PASS
    for peer in peers:
        peer.sock.close()
    until(lambda: not gateway.live, "the end of the views")


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
