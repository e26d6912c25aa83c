"""Close codes and exceptions: everything that can end or refuse a connection.

Knows RFC 6455 §7.4 and HTTP status codes; knows nothing of how either is sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from http import HTTPStatus
from typing import Any


class CloseCode(IntEnum):
    """Close codes by their registered names. Source: RFC 6455 §7.4.1 and its IANA registry."""

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RECEIVED = 1005  # never travels: the peer's Close carried no code
    ABNORMAL_CLOSURE = 1006  # never travels: the connection ended without a Close
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014


def may_travel(code: int) -> bool:
    """Whether a Close frame may carry this code. Source: RFC 6455 §7.4, IANA registry for 1012 to 1014."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


class WebSocketError(Exception):
    """Base of all errors of this package."""


class HandshakeError(WebSocketError):
    """The opening handshake is refused with an HTTP answer: status, extra headers, reason for the body.

    rule is the short name of what was broken, such as "origin", which the header Geventws-Refused tells.
    """

    def __init__(
        self, status: HTTPStatus, reason: str, headers: Iterable[tuple[str, str]] = (), rule: str = "handshake"
    ) -> None:
        super().__init__(f"{status.value} {status.phrase}: {reason}")
        self.status = status
        self.reason = reason
        self.headers = tuple(headers)
        self.rule = rule

    def __reduce__(self) -> Any:
        return type(self), (self.status, self.reason, self.headers, self.rule)


class ProtocolError(WebSocketError):
    """The peer broke a rule. Our Close tells it close_code."""

    close_code = CloseCode.PROTOCOL_ERROR


class InvalidPayload(ProtocolError):
    """Text, or a close reason, that is not UTF-8; or compressed data that cannot be inflated."""

    close_code = CloseCode.INVALID_PAYLOAD


class MessageTooBig(ProtocolError):
    """A message larger than max_message_size."""

    close_code = CloseCode.MESSAGE_TOO_BIG


class ConnectionClosed(WebSocketError):
    """The connection has ended: code and reason say how (1006: without a Close frame).

    websocket is the WebSocket whose connection it was: a view's own, or one that it sends to as well.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"connection closed with code {code}" + (f": {reason}" if reason else ""))
        self.code = code
        self.reason = reason
        self.websocket: object = None

    def __reduce__(self) -> Any:
        return type(self), (self.code, self.reason)


class BusUnavailable(WebSocketError):
    """What joins rooms with other processes cannot be reached, and a message cannot wait for it, or has long enough."""


# RuntimeError too: gunicorn prints such an error of a worker class in one line.
class MissingPackage(ImportError, RuntimeError):
    """A package that this part needs is not installed; the message has the pip command."""
