"""Views at the seam with gunicorn: what they do with the environ, and how they fail before the handshake."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gevent


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/timeout":
        raise gevent.Timeout(1)
    if path == "/looks-at-the-socket":
        assert hasattr(environ.get("gunicorn.socket"), "send") or "gunicorn.socket" not in environ
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"no"]
    ws = environ.get("wsgi.websocket")
    if ws is None:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"up"]
    ws.accept()
    ws.send(repr(environ["wsgi.input"].read()))
    environ["wsgi.input"].close()
    environ["wsgi.errors"].write(f"seen {environ['QUERY_STRING']}\n")
    ws.receive()
    return []
