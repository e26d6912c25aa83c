"""The doctor's client: how it reads a URL. What it does on the wire, the tests of the doctor show."""

from __future__ import annotations

import pytest

from geventws.command.wire import read_url


@pytest.mark.parametrize(
    ("url", "host", "resource", "address"),
    [
        ("ws://a.example", "a.example", "/", ("a.example", 80)),
        ("wss://a.example:443/x", "a.example", "/x", ("a.example", 443)),
        ("wss://a.example:80/x", "a.example:80", "/x", ("a.example", 80)),
        ("http://[::1]:8000/a b?c=d e&f=%20", "[::1]:8000", "/a%20b?c=d%20e&f=%20", ("::1", 8000)),
        ("https://B\u00fccher.example/\u00e9", "xn--bcher-kva.example", "/%C3%A9", ("xn--bcher-kva.example", 443)),
    ],
)
def test_a_url_is_read_as_browsers_read_it(url: str, host: str, resource: str, address: tuple[str, int]) -> None:
    target = read_url(url)
    assert (target.host, target.resource, target.address) == (host, resource, address)
