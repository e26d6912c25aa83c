"""Addresses of the servers that join the rooms of many processes: what GEVENTWS_BUS may say.

Pure. Connects to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

T = TypeVar("T")

VARIABLE = "GEVENTWS_BUS"
FORMS = (
    "redis://[user:password@]host[:port][/database], rediss:// for TLS, unix:///path[?db=0], "
    "or redis+sentinel://host[:port],host[:port]/service[/database]"
)
SCHEMES = {"redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"}
# As redis-py names them in its own URLs.
PARAMETERS = {
    "db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname",
    "sentinel_username", "sentinel_password",
}  # fmt: skip


@dataclass(frozen=True)
class Address:
    """One server, or the sentinels that know where it is."""

    shown: str  # without password
    hosts: tuple[tuple[str, int], ...]
    path: str = ""  # of a Unix socket
    service: str = ""  # the name under which sentinels know the server
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    parameters: dict[str, str] = field(default_factory=dict, repr=False)


def parse(text: str) -> list[Address]:
    """Return the addresses that URLs name, which white space parts. Raises ValueError that says what to write."""
    addresses = [_parse(url) for url in text.split()]
    if not addresses:
        raise ValueError(f"no bus is named: write {FORMS}")
    return addresses


def _parse(url: str) -> Address:
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    try:
        return _address(url, shown)
    except ValueError as exc:
        raise ValueError(f"{shown} names no bus, as {exc}: write {FORMS}") from None


def _address(url: str, shown: str) -> Address:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{parts.scheme!r} is no scheme of one")
    parameters = dict(parse_qsl(parts.query))
    for name in parameters:
        if name not in PARAMETERS:
            raise ValueError(f"{name!r} is no parameter")
    credentials, _, netloc = parts.netloc.rpartition("@")
    username, _, password = (unquote(part) for part in credentials.partition(":"))
    path = [unquote(part) for part in parts.path.split("/")[1:] if part]
    is_sentinel = parts.scheme.endswith("+sentinel")
    service = ""
    if is_sentinel:
        if not path:
            raise ValueError("sentinels are asked for a service")
        service = path.pop(0)
    database = parameters.pop("db", "0")
    if parts.scheme != "unix" and path:
        database = path.pop(0)
    if not database.isdecimal() or (parts.scheme != "unix" and path):
        raise ValueError("a database is a number")
    return Address(
        shown,
        () if parts.scheme == "unix" else tuple(_hosts(netloc, 26379 if is_sentinel else 6379)),
        unquote(parts.path) if parts.scheme == "unix" else "",
        service,
        int(database),
        username or None,
        password or None,
        parts.scheme.startswith("rediss"),
        parameters,
    )


def _hosts(netloc: str, port: int) -> Iterable[tuple[str, int]]:
    for host in netloc.split(","):
        parts = urlsplit(f"//{host}")
        yield parts.hostname or "localhost", parts.port or port


def choose(name: str, items: list[tuple[str, T]]) -> T:
    """Return the item that a name belongs to. One that is added or lost moves no other names (rendezvous hashing)."""
    return max(items, key=lambda item: blake2b(f"{item[0]} {name}".encode(), digest_size=8).digest())[1]
