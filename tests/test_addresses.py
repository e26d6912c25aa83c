"""Addresses: who is counted as one client, and that every place given comes back once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from geventws import addresses
from geventws.addresses import QUIET, Addresses, network_of
from geventws.errors import HandshakeError

from .pairs import settle


@pytest.fixture(autouse=True)
def no_line_is_left() -> Iterator[None]:
    yield
    settle()


PROXIES = ("127.0.0.1", "10.1.0.0/16", "proxy.example")


def environ(address: str | None, forwarded: str | None = None) -> dict[str, Any]:
    headers = {"REMOTE_ADDR": address, "HTTP_X_FORWARDED_FOR": forwarded, "PATH_INFO": "/chat"}
    return {name: value for name, value in headers.items() if value is not None}


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("[2001:db8:1:2::1]", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::1]:443", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
        ("x" * 1000, "x" * 64),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address: str, counted: str) -> None:
    assert network_of(address) == counted


@pytest.mark.parametrize(
    ("peer", "seen", "counted"),
    [
        ("192.0.2.1", environ("192.0.2.1"), "192.0.2.1"),
        ("192.0.2.1", environ("192.0.2.1", "203.0.113.9"), "192.0.2.1"),  # a stranger's word
        ("127.0.0.1", environ("127.0.0.1", "203.0.113.9"), "203.0.113.9"),
        ("127.0.0.1", environ("127.0.0.1", "203.0.113.9, 198.51.100.7"), "198.51.100.7"),  # what the proxy has added
        ("127.0.0.1", environ("127.0.0.1"), "127.0.0.1"),
        ("::ffff:127.0.0.1", environ("::ffff:127.0.0.1", "203.0.113.9"), "203.0.113.9"),  # as [::]:8000 sees it
        ("10.1.2.3", environ("10.1.2.3", "203.0.113.9"), "203.0.113.9"),
        ("::ffff:10.1.2.3", environ("::ffff:10.1.2.3", "203.0.113.9"), "203.0.113.9"),
        ("::ffff:10.2.2.3", environ("::ffff:10.2.2.3", "203.0.113.9"), "10.2.2.3"),
        ("10.2.2.3", environ("10.2.2.3", "203.0.113.9"), "10.2.2.3"),
        ("127.0.0.1", environ("198.51.100.7", "198.51.100.7, 203.0.113.9"), "198.51.100.7"),  # ProxyFix has looked
        ("", environ("", "203.0.113.9"), "203.0.113.9"),  # a Unix socket
        ("", environ(None, "203.0.113.9"), "203.0.113.9"),
        ("", environ("198.51.100.7", "203.0.113.9"), "198.51.100.7"),
    ],
)
def test_address_is_the_one_that_a_trusted_proxy_gives(peer: str, seen: dict[str, Any], counted: str) -> None:
    places = Addresses(1, PROXIES)
    places.take("first", seen, peer)
    places.take("another address", environ("192.0.2.250"), "192.0.2.250")
    with pytest.raises(HandshakeError):
        places.take("second", environ(counted), counted)
    places.release("first")
    places.take("second", environ(counted), counted)


def test_every_proxy_is_trusted_by_an_asterisk() -> None:
    places = Addresses(1, ["*"])
    places.take(1, environ("192.0.2.1", "203.0.113.9"), "192.0.2.1")
    places.take(2, environ("192.0.2.1", "203.0.113.10"), "192.0.2.1")
    with pytest.raises(HandshakeError):
        places.take(3, environ("192.0.2.7", "203.0.113.9"), "192.0.2.7")


def test_refusal_says_what_to_set_and_when_to_come_back() -> None:
    places = Addresses(1)
    places.take(1, environ("192.0.2.1"), "192.0.2.1")
    with pytest.raises(HandshakeError, match="max_connections_per_address") as caught:
        places.take(2, environ("192.0.2.1"), "192.0.2.1")
    assert caught.value.status == 429
    assert dict(caught.value.headers) == {"Retry-After": "10"}


def test_holder_has_one_place_however_often_it_takes_and_releases() -> None:
    places = Addresses(2)
    for _ in range(3):
        places.take("twice", environ("192.0.2.1"), "192.0.2.1")
    places.take("once", environ("192.0.2.1"), "192.0.2.1")
    for _ in range(3):
        places.release("twice")
    places.release("nobody")
    places.take("next", environ("192.0.2.1"), "192.0.2.1")
    with pytest.raises(HandshakeError):
        places.take("one more", environ("192.0.2.1"), "192.0.2.1")


def test_nothing_is_left_of_those_who_left() -> None:
    places = Addresses(3)
    draw = random.Random(1)
    inside: list[int] = []
    for number in range(10_000):
        address = f"2001:db8:{draw.randrange(200):x}:{draw.randrange(3)}::{number:x}"
        try:
            places.take(number, environ(address), address)
            inside.append(number)
        except HandshakeError:
            places.release(number)
        if len(inside) > 100:
            places.release(inside.pop(draw.randrange(len(inside))))
    assert len(inside) == sum(places._counts.values()) == len(places._places)
    for number in inside:
        places.release(number)
    assert not places._counts and not places._places


def test_log_tells_of_refusals_once_a_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    monkeypatch.setattr(addresses, "monotonic", lambda: now)
    places = Addresses(1)
    places.take(0, environ("192.0.2.1"), "192.0.2.1")
    for seconds in (0, 1, QUIET - 2, 1, 1):
        now += seconds
        with pytest.raises(HandshakeError):
            places.take(1, environ("192.0.2.1"), "192.0.2.1")
    settle()
    first, second = caplog.messages
    assert first.startswith("192.0.2.1 /chat refused: 429 Too Many Requests: the option max_connections_per_address ")
    assert first.endswith("; if this is a proxy, let forwarded_allow_ips or ProxyFix name it")
    assert second == f"{first}; 2 more were since the last such line"


def test_clients_without_an_address_are_not_counted_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    places = Addresses(1)
    for number in range(3):
        places.take(number, environ(""), "")
        places.release(number)
    settle()
    assert [line.partition(":")[0] for line in caplog.messages] == ["max_connections_per_address counts nothing"]
    assert not places._counts
