"""Signals: what happens to WebSockets, told to those who ask for it: an APM, metrics, an audit.

Knows blinker, which comes with Flask; where it is missing, nothing is told. Knows the hub, and no WebSocket.
"""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import gevent
from gevent import get_hub, getcurrent

try:
    from blinker import Signal

    HAS_BLINKER = True
except ImportError:
    HAS_BLINKER = False

    class Signal:  # type: ignore[no-redef]
        """Stands for a signal that nobody can hear."""

        receivers = ()

        def __init__(self, doc: str) -> None:
            self.__doc__ = doc

        def connect(self, *unused: object, **options: object) -> NoReturn:
            """Raise RuntimeError saying what to install."""
            raise RuntimeError("signals need the package blinker, which comes with Flask: pip install blinker")

        connect_via = connected_to = connect


__all__ = ["closed", "opened", "refused", "view_failed"]

log = logging.getLogger("geventws")

# Receivers get the first thing named here, and the others by name.
opened = Signal("A handshake is complete: WebSocket; id, path, route. In the greenlet that completed it.")
closed = Signal(
    "A socket is closed: WebSocket; id, path, route, code, reason, cause, seconds, messages, bytes. The last two are "
    "dictionaries with received and sent. In a greenlet of its own; the view may still run."
)
refused = Signal(
    "A handshake was answered in HTTP: the WSGI environ; path, route, status (int), reason, and the rule: what was "
    "broken, or view where the app has answered. In the request's greenlet."
)
view_failed = Signal(
    "A view has failed on an open WebSocket: WebSocket; id, path, route, and error, None if the framework kept the "
    "exception to itself. In the view's greenlet."
)


def tell(signal: Signal, sender: object, **fields: object) -> None:
    """Call the receivers of a signal now; soon, where this is the hub, which may not wait for them."""
    if signal.receivers:
        if getcurrent() is get_hub():
            tell_soon(signal, sender, **fields)
        else:
            _send(signal, sender, fields)


def tell_soon(signal: Signal, sender: object, **fields: object) -> None:
    """Call the receivers of a signal in a greenlet of their own."""
    if signal.receivers:
        gevent.spawn(_send, signal, sender, fields)


def _send(signal: Any, sender: object, fields: dict[str, object]) -> None:
    if signal.is_muted:
        return
    for receiver in signal.receivers_for(sender):
        try:
            receiver(sender, **fields)
        except Exception:  # the connection, and the other receivers, are not to suffer for it
            log.exception("a receiver of a signal failed: %r", receiver)
