"""A WSGI app without framework that echoes over environ["wsgi.websocket"]."""

from collections.abc import Callable, Iterable
from typing import Any


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    ws = environ.get("wsgi.websocket")
    if ws is None:
        start_response("426 Upgrade Required", [("Upgrade", "websocket"), ("Content-Length", "0")])
        return []
    for message in ws:
        ws.send(message)
    return []
