"""The same app where gevent-websocket is not installed: Engine.IO takes simple-websocket."""

from __future__ import annotations

import sys

sys.modules["geventwebsocket"] = None  # type: ignore[assignment]

from .socketio_app import app as app  # noqa: E402
