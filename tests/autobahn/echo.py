"""The application under test: every message goes back as it came."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    websocket = environ["wsgi.websocket"]
    for message in websocket:
        websocket.send(message)
    return []
