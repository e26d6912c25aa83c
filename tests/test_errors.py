"""What can end or refuse a connection: close codes, and errors that say all by themselves."""

from __future__ import annotations

import pickle
from http import HTTPStatus

import pytest

import geventws
from geventws.errors import CloseCode, MissingPackage, may_travel


@pytest.mark.parametrize(
    "error",
    [
        geventws.ConnectionClosed(1009, "too much"),
        geventws.HandshakeError(HTTPStatus.FORBIDDEN, "a stranger", [("X-Why", "origin")], "origin"),
        geventws.ProtocolError("reserved bits"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_pass_between_processes(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_close_codes_have_the_numbers_of_the_registry() -> None:
    assert {code.value for code in CloseCode} == {*range(1000, 1004), *range(1005, 1015)}
    assert [code for code in CloseCode if not may_travel(code)] == [1005, 1006]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (geventws.ConnectionClosed(1001), "connection closed with code 1001"),
        (geventws.ConnectionClosed(4000, "enough"), "connection closed with code 4000: enough"),
        (geventws.HandshakeError(HTTPStatus.UPGRADE_REQUIRED, "version 8"), "426 Upgrade Required: version 8"),
    ],
)
def test_an_error_says_all_in_its_text(error: Exception, text: str) -> None:
    assert str(error) == text


def test_all_errors_are_caught_by_one_name_and_broken_rules_have_their_codes() -> None:
    rules = {geventws.ProtocolError: 1002, geventws.InvalidPayload: 1007, geventws.MessageTooBig: 1009}
    for rule, code in rules.items():
        assert issubclass(rule, geventws.ProtocolError)
        assert rule.close_code == code
    for error in (geventws.ProtocolError, geventws.ConnectionClosed, geventws.HandshakeError):
        assert issubclass(error, geventws.WebSocketError)


def test_a_missing_package_is_an_error_of_import_that_gunicorn_prints_in_one_line() -> None:
    assert issubclass(MissingPackage, ImportError)
    assert issubclass(MissingPackage, RuntimeError)
