"""Addresses: what the URLs of buses say, and which of several a room is on."""

from __future__ import annotations

import pytest

from geventws.rooms.address import choose, parse


@pytest.mark.parametrize(
    ("url", "shown", "hosts", "database", "user", "password", "service"),
    [
        ("redis://localhost", "redis://localhost", (("localhost", 6379),), 0, None, None, ""),
        ("redis://", "redis://", (("localhost", 6379),), 0, None, None, ""),
        ("redis://[::1]:7000/2", "redis://[::1]:7000/2", (("::1", 7000),), 2, None, None, ""),
        ("rediss://ann:p%40ss@a:1/3", "rediss://a:1/3", (("a", 1),), 3, "ann", "p@ss", ""),
        ("redis://:secret@a?db=4", "redis://a", (("a", 6379),), 4, None, "secret", ""),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock", (), 1, None, None, ""),
        (
            "redis+sentinel://:secret@a,b:5/main/2", "redis+sentinel://a,b:5/main/2", (("a", 26379), ("b", 5)), 2, None,
            "secret", "main",
        ),
    ],
)  # fmt: skip
def test_an_address_is_what_its_url_says(
    url: str, shown: str, hosts: object, database: int, user: str | None, password: str | None, service: str
) -> None:
    (address,) = parse(url)
    assert (address.shown, address.hosts, address.database) == (shown, hosts, database)
    assert (address.username, address.password, address.service) == (user, password, service)
    assert address.tls == url.startswith("rediss")
    if password:
        assert password not in repr(address)


def test_a_server_that_is_added_takes_rooms_and_moves_no_others() -> None:
    servers = [(name, name) for name in ("redis://a", "redis://b", "redis://c")]
    names = [f"{{room {number}}}" for number in range(300)]
    before = {name: choose(name, servers[:2]) for name in names}
    after = {name: choose(name, servers) for name in names}
    moved = [name for name in names if before[name] != after[name]]
    assert {after[name] for name in moved} == {"redis://c"}
    assert 50 < len(moved) < 150
