"""The browser's half of a WebSocket: how a Flask app serves geventws.js.

Knows Flask; knows no WebSocket.
"""

from __future__ import annotations

import functools
from hashlib import sha256
from importlib.resources import files
from typing import Any

from flask import Flask, Response, request

ENDPOINT = "geventws.client"
PATH = "/geventws.js"
YEAR = 31_536_000  # seconds: the longest that anybody caches, RFC 2616 §14.21


def serve(app: Flask, path: str) -> None:
    """Have app answer this path with the script, and url_for() name its version."""
    app.add_url_rule(path, ENDPOINT, _send)
    app.url_defaults(_add_version)


def _send() -> Response:
    script, version = _read()
    response = Response(script, content_type="text/javascript; charset=utf-8")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.set_etag(version)
    # Of a deploy under way another process may have asked for its own version: that URL is not ours to promise.
    if request.args.get("v") == version:
        response.cache_control.public = True
        response.cache_control.max_age = YEAR
        response.cache_control.immutable = True
    else:
        response.cache_control.no_cache = True
    response.make_conditional(request)
    return response


def _add_version(endpoint: str, values: dict[str, Any]) -> None:
    if endpoint == ENDPOINT:
        values.setdefault("v", _read()[1])


@functools.lru_cache(maxsize=1)
def _read() -> tuple[bytes, str]:
    """Return the script, and a name for its content."""
    script = files(__package__).joinpath("static", "geventws.js").read_bytes()
    return script, sha256(script).hexdigest()[:16]
