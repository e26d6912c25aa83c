"""Addresses: how many WebSockets the clients of one address have, for the option max_connections_per_address.

Knows WSGI's environ and what a proxy adds to it; knows no WebSocket or server.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import math
from collections.abc import Hashable, Iterable
from http import HTTPStatus
from time import monotonic
from typing import Any

from . import loglines
from .errors import HandshakeError
from .loglines import LONGEST, forwarded_for, path_of, printable

log = logging.getLogger("geventws")

QUIET = 60.0  # seconds between two lines: whom the limit stops may come back at once, and without end
NETWORK = (
    64  # bits of an IPv6 address that count: a customer's smallest network, of which the other half is the client's
)


class Addresses:
    """Counts what holds a place for each address. Nothing is kept of an address that holds none."""

    def __init__(self, most: int, proxies: Iterable[str] = (), counts: dict[str, int] | None = None) -> None:
        """Allow so many places for each address. proxies are addresses, networks or "*", whose word is taken.

        counts has the places that are taken, where others count in it too.
        """
        self._most = most
        self._proxies = tuple(map(str, proxies))
        self._counts = {} if counts is None else counts
        self._places: dict[Hashable, str] = {}
        self._told_at = -math.inf  # by time.monotonic()
        self._untold = 0
        self._is_blind = False

    def take(self, holder: Hashable, environ: dict[str, Any], peer: str) -> None:
        """Give holder a place, if it has none yet; peer is REMOTE_ADDR as the server had it, before any middleware.

        Raises HandshakeError 429 where the client's address has no place left.
        """
        if holder in self._places:
            return
        address = self._address_of(environ, peer)
        if not address:
            self._tell_of_blindness()
            return
        count = self._counts.get(address, 0)
        if count >= self._most:
            error = HandshakeError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "the option max_connections_per_address allows no more WebSockets from this address",
                [("Retry-After", "10")],
                "address",
            )
            self._tell(address, path_of(environ), error)
            raise error
        self._counts[address] = count + 1
        self._places[holder] = address

    def release(self, holder: Hashable) -> None:
        """Take back the place of holder, if it has one."""
        address = self._places.pop(holder, None)
        if address is not None:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]

    def _address_of(self, environ: dict[str, Any], peer: str) -> str:
        """Return the client's address as it is counted, "" where nothing tells it."""
        address: str = environ.get("REMOTE_ADDR") or ""
        # If it is another by now, middleware such as ProxyFix has found it. A Unix socket's peers are of this machine.
        if address == peer and (not peer or is_among(peer, self._proxies)):
            # The last was written by the proxy itself, those before it by whoever came to it.
            address = forwarded_for(environ.get("HTTP_X_FORWARDED_FOR", "")) or address
        return network_of(address)

    def _tell(self, address: str, path: str, error: HandshakeError) -> None:
        now = monotonic()
        if now - self._told_at < QUIET:
            self._untold += 1
            return
        more = f"; {self._untold} more were since the last such line" if self._untold else ""
        line = "%s %s refused: %s; if this is a proxy, let forwarded_allow_ips or ProxyFix name it%s"
        loglines.write(log, logging.WARNING, line, printable(address), printable(path), error, more)
        self._told_at, self._untold = now, 0

    def _tell_of_blindness(self) -> None:
        if not self._is_blind:
            self._is_blind = True
            loglines.write(
                log,
                logging.WARNING,
                "max_connections_per_address counts nothing: behind this Unix socket clients have no address, "
                "let the proxy set X-Forwarded-For",
            )


def network_of(address: str) -> str:
    """Return what counts as one address: an IPv4 address, the /64 of an IPv6 address, any other text as it is.

    Proxies may add a port to it.
    """
    for text in (address, address.rpartition(":")[0]):
        try:
            parsed = ipaddress.ip_address(text.strip("[]").partition("%")[0])
        except ValueError:
            continue
        if isinstance(parsed, ipaddress.IPv4Address):
            return str(parsed)
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, NETWORK), strict=False))
    return address[:LONGEST]  # such as a proxy's "unknown"


@functools.lru_cache
def is_among(address: str, networks: tuple[str, ...]) -> bool:
    """Whether an address is one of these, which are addresses, networks or "*"."""
    if "*" in networks or address in networks:
        return True
    try:
        parsed = ipaddress.ip_address(address)
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed  # a socket of IPv6 sees a client of IPv4 like that
        return any(parsed in ipaddress.ip_network(network, strict=False) for network in networks)
    except ValueError:  # one of them is a name
        return False
