"""What can end or refuse a connection: close codes, and errors that say all by themselves."""

from __future__ import annotations

import pickle
from http import HTTPStatus

import pytest

import geventws


@pytest.mark.parametrize(
    "error",
    [
        geventws.ConnectionClosed(1009, "too much"),
        geventws.HandshakeError(HTTPStatus.FORBIDDEN, "a stranger", [("X-Why", "origin")]),
        geventws.ProtocolError("reserved bits"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_pass_between_processes(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
