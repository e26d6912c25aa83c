"""Turns: what one pass of the loop does, and how long one may go on before others have their turn."""

from __future__ import annotations

import zlib
from typing import Any

import gevent
import pytest
from gevent import get_hub

from geventws.frames import BINARY, RSV1, encode_frame
from geventws.gateway import Gateway, Upgrade
from geventws.options import Options
from geventws.turns import WORK_PER_PASS, turns

from .pairs import ENVIRON, Opener, Peer, joined, until

pytestmark = pytest.mark.usefixtures("errors")


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


def test_a_view_that_only_sends_lets_others_run(opened: Opener) -> None:
    ws, peer = opened()
    other = 0

    def count() -> None:
        nonlocal other
        while True:
            other += 1
            gevent.sleep(0)

    opened.spawn(count)
    opened.spawn(lambda: list(iter(peer.receive, None)))
    for _ in range(1000):
        ws.send("x")
    assert other >= 10
