"""Signals: what happens to WebSockets, told to those who ask for it: an APM, metrics, an audit.

Knows blinker, which comes with Flask; where it is missing, nothing is told. Knows the hub, and no WebSocket.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import gevent
from gevent import get_hub, getcurrent
from gevent.event import Event

from .loglines import comes_from_outside

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


_tellers: set[Any] = set()  # greenlets that tell something
_last: dict[int, _Turn] = {}  # what was last told of a sender, by its id, until all have heard it


class _Turn:
    """When a sender's receivers are told of something: once all have heard what was told of it before."""

    def __init__(self, sender: object) -> None:
        self._sender = sender  # held, or another might have its id before this ends
        self._before = _last.get(id(sender))
        self._is_over = Event()
        _last[id(sender)] = self

    def wait(self) -> None:
        """Return when it has come."""
        if self._before is not None:
            self._before._is_over.wait()

    def end(self) -> None:
        """Let what is told next have its own."""
        self._before = None
        self._is_over.set()
        if _last[id(self._sender)] is self:
            del _last[id(self._sender)]


def tell(signal: Signal, sender: object, **fields: object) -> None:
    """Call the receivers of a signal now; soon, where this is the hub, which may not wait for them.

    Raises what another greenlet has raised in this one meanwhile, by kill() or a gevent.Timeout. Those who have not
    heard then hear soon.
    """
    if signal.receivers:
        if getcurrent() is get_hub():
            tell_soon(signal, sender, **fields)
        else:
            _send(_receivers(signal, sender), sender, fields, _Turn(sender))


def tell_soon(signal: Signal, sender: object, **fields: object) -> None:
    """Call the receivers of a signal in a greenlet of their own."""
    if signal.receivers:
        _send_soon(_receivers(signal, sender), sender, fields, _Turn(sender))


def wait_for_receivers(seconds: float) -> None:
    """Return when all have heard what they were to be told soon by this hub, after so many seconds at most."""
    loop = get_hub().loop
    gevent.joinall([teller for teller in _tellers if teller.loop is loop], seconds)


Receivers = Iterator[Callable[..., object]]


def _receivers(signal: Any, sender: object) -> Receivers:
    return iter(()) if signal.is_muted else signal.receivers_for(sender)


def _send_soon(*arguments: Any) -> None:
    teller = gevent.spawn(_send, *arguments)
    _tellers.add(teller)
    teller.rawlink(_tellers.discard)


def _send(receivers: Receivers, sender: object, fields: dict[str, object], turn: _Turn) -> None:
    try:
        turn.wait()
        for receiver in receivers:
            _call(receiver, sender, fields)
    except BaseException:  # from outside: this greenlet is to leave at once, whatever the others would do
        _send_soon(receivers, sender, fields, turn)
        raise
    turn.end()


def _call(receiver: Callable[..., object], sender: object, fields: dict[str, object]) -> None:
    try:
        receiver(sender, **fields)
    except BaseException as exc:  # the connection, the other receivers and the program are not to suffer for it
        if comes_from_outside(exc):
            raise
        log.exception("a receiver of a signal failed: %r", receiver)
