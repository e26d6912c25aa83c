"""Closing: how long the end of one connection may take, once a Close is due.

Knows Connection, Transport and the clock; knows no view.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from .connection import FAILING, REMOTE_CLOSING, Connection
from .deadlines import Due
from .options import Options
from .transport import Transport

# How long a Close or a broken rule waits for the view to answer messages that came in just before it.
FAREWELL = 1.0  # seconds
# Bytes that were sent on a connection from which some may wait, unread, in the peer's system when it is given up.
UNREAD = 16_384


class Closing(Due):
    """Two time limits. If the peer closes first, the view may have its say; then the peer must end the connection.

    The argument `close` sends our Close.
    """

    __slots__ = ("_acknowledged", "_close", "_close_end", "_connection", "_options", "_transport")

    def __init__(
        self, connection: Connection, transport: Transport, options: Options, close: Callable[[], object]
    ) -> None:
        super().__init__()
        self._connection = connection
        self._transport = transport
        self._options = options
        self._close = close
        self._close_end = 0  # bytes sent once our Close is
        self._acknowledged = 0  # bytes that the peer had when the deadline was set

    def wait_for_view(self) -> None:
        """Close after FAREWELL, unless the view has closed by then."""
        self._within(min(FAREWELL, self._options.close_timeout))

    def send(self, frame: bytes) -> None:
        """Send our Close, or b"" if the peer has it already, and give the peer close_timeout from now."""
        self._within(self._options.close_timeout)
        self._transport.write(frame)
        self._close_end = self._transport.bytes_sent + self._transport.waiting

    def _within(self, seconds: float) -> None:
        self.set(monotonic() + seconds)
        self._acknowledged = self._transport.acknowledged()

    def fall_due(self) -> None:
        """The view had its say, or the peer did not end the connection in time."""
        if self._connection.state in (REMOTE_CLOSING, FAILING):
            self._close()
            return
        transport = self._transport
        transport.read_now()
        acknowledged = transport.acknowledged()
        # Our Close may wait behind data that the peer still takes, if slowly: in the outbox, which send_timeout
        # watches, or in the kernel, which would throw it away.
        is_slow = transport.blocked and self._options.send_timeout is not None
        is_slow = is_slow or self._acknowledged < acknowledged < self._close_end
        if is_slow:
            self._within(self._options.close_timeout)
        elif acknowledged >= self._close_end > UNREAD:
            transport.close()  # its program may still read what its system has, which a reset could destroy
        else:
            transport.abort()
