"""Opening: what a WebSocket has until its handshake is complete, and what the handshake leads to.

Knows the server's socket and the handshake; knows no view.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, NamedTuple

from . import handshake, loglines, permessage_deflate
from .deadlines import Due
from .errors import HandshakeError
from .loglines import printable, route_of
from .options import Options

log = logging.getLogger("geventws")

MOST_WARNED = 100  # routes; without a framework's rule, paths are what strangers make of them
_warned: set[str] = set()


class Outcome(NamedTuple):
    """The 101 response, and what it tells the client."""

    response: bytes
    subprotocol: str | None
    agreement: permessage_deflate.Agreement | None


class Opening(Due):
    """A request for a WebSocket that is not decided yet.

    take_leftover() returns bytes read beyond the request, without waiting. on_accept(size) tells the server, just
    before `size` bytes of 101 response go out, that the socket is no longer its own. admit() comes before both, and may
    raise the refusal of the client.
    """

    __slots__ = ("_admit", "_how", "_on_accept", "_sock", "_take_leftover", "answered", "refusal", "request")

    def __init__(
        self,
        sock: Any,
        take_leftover: Callable[[], bytes],
        on_accept: Callable[[int], None],
        request: handshake.Request,
        refusal: HandshakeError | None,
        admit: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.request = request
        self.refusal = refusal  # of the client by its origin, unless the route allows it
        self.answered = ""  # status of the HTTP answer
        self._sock = sock
        self._take_leftover = take_leftover
        self._on_accept = on_accept
        self._admit = admit
        self._how: tuple[Callable[[], None], Callable[[], bool], Callable[[HandshakeError], object]] | None = None

    def negotiate(
        self, environ: dict[str, Any], options: Options, subprotocols: Sequence[str], headers: handshake.Headers
    ) -> Outcome:
        """Return what the handshake leads to. Raises its refusal, and ValueError for a header that may not be sent."""
        if self.refusal is not None:
            raise self.refusal
        request = self.request
        subprotocol = handshake.select_subprotocol(request.subprotocols, tuple(subprotocols) or options.subprotocols)
        agent = environ.get("HTTP_USER_AGENT", "")
        is_broken = not options.deflate_context_takeover and permessage_deflate.forgets_to_forget(agent)
        agreement = None if is_broken else permessage_deflate.negotiate(request.extensions, options)
        response = handshake.response(request, subprotocol, headers, extensions=str(agreement or ""))
        if self._admit is not None:
            try:
                self._admit()
            except HandshakeError as exc:
                self.refusal = exc
                raise
        return Outcome(response, subprotocol, agreement)

    def hand_over(self, size: int) -> tuple[Any, bytes]:
        """Return the socket, which is the server's no longer, and what came behind the request."""
        leftover = self._take_leftover()
        self._on_accept(size)
        self.accept_no_more()
        return self._sock, leftover

    def accept_in(
        self,
        seconds: float,
        accept: Callable[[], None],
        may_accept: Callable[[], bool],
        refuse: Callable[[HandshakeError], object],
    ) -> None:
        """Have accept() called after this time, if nothing is decided by then and may_accept() holds.

        What it refuses the client for is given to refuse().
        """
        self._how = accept, may_accept, refuse
        self.set(monotonic() + seconds)

    def fall_due(self) -> None:
        """Complete the handshake, as the view has not decided."""
        assert self._how is not None
        accept, may_accept, refuse = self._how
        if not self.answered and self.refusal is None and may_accept():
            try:
                accept()
            except HandshakeError as exc:
                refuse(exc)

    def accept_no_more(self) -> None:
        """Leave the decision to the view."""
        self.cancel()
        self._how = None  # which holds the WebSocket, and that this


def warn_of_subprotocols(environ: dict[str, Any], peer: str, path: str, offered: Sequence[str]) -> None:
    """Say once for each route why browsers will leave: RFC 6455 §4.1 does not ask it of them, WHATWG's API does."""
    route = route_of(environ) or path
    if route not in _warned and len(_warned) < MOST_WARNED:
        _warned.add(route)
        loglines.write(
            log,
            logging.WARNING,
            "%s %s offers the subprotocols %s and none is chosen, for which browsers close with 1006: "
            "set the option subprotocols, or call ws.accept(subprotocols=[...])",
            peer,
            printable(route),
            printable(", ".join(offered)),
        )
