"""Fuzz target: the opening handshake, from an environ to a refusal, or to the bytes of a 101.

An input is one byte of settings; then lines, each of which sets ("Name: value") or removes ("Name") one variable of a
good handshake; then, behind an empty line, the view's own headers with a NUL between them. websockets reads the lists
that a client sends, h11 the 101.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import h11
from websockets.exceptions import InvalidHeader
from websockets.headers import parse_extension, parse_subprotocol

from geventws.errors import HandshakeError
from geventws.handshake import (
    Extension,
    Request,
    check_origin,
    check_request,
    parse_extensions,
    parse_subprotocols,
    response,
    select_subprotocol,
    wants_websocket,
)
from geventws.options import Options
from geventws.permessage_deflate import NAME, Agreement, Deflate, negotiate

from . import Reader

Environ = dict[str, Any]
Header = tuple[str, str]

GOOD = {
    "REQUEST_METHOD": "GET",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_HOST": "server.example.com",
    "HTTP_UPGRADE": "websocket",
    "HTTP_CONNECTION": "Upgrade",
    "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
}
NO_HEADERS = {"REQUEST_METHOD", "SERVER_PROTOCOL", "CONTENT_LENGTH"}
SHORT = {"P": "SEC_WEBSOCKET_PROTOCOL", "E": "SEC_WEBSOCKET_EXTENSIONS", "O": "ORIGIN", "H": "HOST"}

# What the settings choose among, two bits each.
ORIGINS = (("same-host",), ("*",), ("https://app.example", "null"), ("*.example.org", "app.example:8080"))
SUBPROTOCOLS = ((), ("chat",), ("v2.chat", "chat"), ("v1.chat",))
DEFLATE: tuple[dict[str, Any], ...] = (
    {},
    {"deflate": False},
    {"deflate_context_takeover": True},
    {"deflate_window_bits": 10},
)

TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
OWN = {"upgrade", "connection", "content-length", "transfer-encoding"}
FLAGS = {"server_no_context_takeover", "client_no_context_takeover"}
BITS = [str(bits) for bits in range(9, 16)]
MESSAGE = b'{"text": "Hello"}' * 20


def decode(data: bytes) -> tuple[Options, Environ, list[Header]]:
    reader = Reader(data)
    settings = reader.byte()
    options = Options(
        origins=ORIGINS[settings & 3], subprotocols=SUBPROTOCOLS[settings >> 2 & 3], **DEFLATE[settings >> 4 & 3]
    )
    request, _, own = reader.rest().partition(b"\n\n")
    environ: Environ = dict(GOOD)
    for line in request.decode("latin-1").split("\n"):
        name, colon, value = line.partition(":")
        name = name.upper().replace("-", "_")
        name = name if name in NO_HEADERS else f"HTTP_{SHORT.get(name, name)}"
        if colon:
            environ[name] = value.strip(" \t")
        elif name not in ("REQUEST_METHOD", "SERVER_PROTOCOL"):
            environ.pop(name, None)
    pairs = (line.decode(errors="replace").partition(":") for line in own.split(b"\0") if line)
    return options, environ, [(name, value) for name, _, value in pairs]


def run(data: bytes) -> None:
    """Raise whatever an input proves to be wrong."""
    options, environ, headers = decode(data)
    answer(environ, options, headers)
    _compare_lists(environ)


def answer(environ: Environ, options: Options, headers: Iterable[Header] = ()) -> bool:
    """Take a request through the handshake as the gateway and an application do; return whether it is accepted."""
    upgrade = [protocol.strip(" \t").lower() for protocol in environ.get("HTTP_UPGRADE", "").split(",")]
    assert wants_websocket(environ) is ("websocket" in upgrade)
    try:
        request = check_request(environ)
        check_origin(environ, options.origins)
    except HandshakeError as exc:
        assert exc.status in (400, 403, 405, 426) and exc.reason in str(exc)
        str(exc).encode()
        assert all(TOKEN.fullmatch(name) and value.isprintable() for name, value in exc.headers)
        return False
    _check_request(request, environ, options)
    subprotocol = select_subprotocol(request.subprotocols, options.subprotocols)
    agreement = negotiate(request.extensions, options)
    _check_agreement(agreement, request.extensions, options)
    try:
        wire = response(request, subprotocol, headers, extensions=str(agreement or ""))
    except ValueError:
        assert not all(map(_is_good, headers))
        return False
    assert all(map(_is_good, headers))
    accept = base64.b64encode(hashlib.sha1(f"{request.key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
    expected = [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-accept", accept.decode())]
    if subprotocol is not None:
        expected.append(("sec-websocket-protocol", subprotocol))
    if agreement is not None:
        expected.append(("sec-websocket-extensions", str(agreement)))
    expected += [(name.lower(), value.strip(" \t")) for name, value in headers]
    assert _read(wire) == expected
    return "websocket" in upgrade


def _is_good(header: Header) -> bool:
    name, value = header
    is_own = name.lower() in OWN or name.lower().startswith("sec-websocket-")
    return bool(TOKEN.fullmatch(name)) and not is_own and not re.search(r"[\0-\x08\n-\x1f\x7f]|[^\0-\xff]", value)


def _read(wire: bytes) -> list[Header]:
    """Return the headers of a 101 as a client finds them."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a"), ("Upgrade", "websocket")]))
    client.receive_data(wire)
    event = client.next_event()
    assert isinstance(event, h11.InformationalResponse) and event.status_code == 101
    assert client.trailing_data == (b"", False)
    return [(name.decode(), value.decode("latin-1")) for name, value in event.headers]


def _check_request(request: Request, environ: Environ, options: Options) -> None:
    assert {name: environ[name] for name in NO_HEADERS & environ.keys()} in (
        {"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1"} | length for length in ({}, *NO_BODY)
    )
    assert "HTTP_TRANSFER_ENCODING" not in environ
    assert environ["HTTP_SEC_WEBSOCKET_VERSION"] == "13" and len(base64.b64decode(request.key, validate=True)) == 16
    assert len(set(request.subprotocols)) == len(request.subprotocols)
    assert all(map(TOKEN.fullmatch, request.subprotocols))
    if options.origins == ("same-host",) and "HTTP_ORIGIN" in environ:
        origin, host = urlsplit(environ["HTTP_ORIGIN"]), urlsplit(f"//{environ['HTTP_HOST']}")
        assert origin.hostname == host.hostname and origin.hostname
        assert "@" not in environ["HTTP_ORIGIN"] and origin[2:] == ("", "", "")


NO_BODY = ({"CONTENT_LENGTH": ""}, {"CONTENT_LENGTH": "0"})


def _check_agreement(agreement: Agreement | None, offers: tuple[Extension, ...], options: Options) -> None:
    """Check that the first good offer of permessage-deflate is taken, and kept to. Source: RFC 7692 §5.1, §7.1."""
    offered = [parameters for name, parameters in offers if name == NAME and _is_good_offer(parameters)]
    assert (agreement is not None) is bool(options.deflate and offered)
    if agreement is None:
        return
    asked = dict(offered[0])
    for flag in FLAGS & asked.keys():
        assert getattr(agreement, flag)
    server_bits, client_bits = agreement.server_max_window_bits, agreement.client_max_window_bits
    if "server_max_window_bits" in asked:
        assert server_bits is not None and server_bits <= int(asked["server_max_window_bits"] or 0)
    if client_bits is not None:
        assert "client_max_window_bits" in asked and client_bits <= int(asked["client_max_window_bits"] or 15)
    server, client = Deflate(agreement, options), Deflate(agreement, options, client=True)
    for sender, receiver in ((server, client), (client, server)):
        compressed = sender.compress(MESSAGE)
        assert compressed and receiver.inflate(compressed, len(MESSAGE) + 1, last=True) == MESSAGE


def _is_good_offer(parameters: tuple[tuple[str, str | None], ...]) -> bool:
    asked = dict(parameters)
    server_bits = asked.pop("server_max_window_bits", "15")
    client_bits = asked.pop("client_max_window_bits", None)
    is_unique = len(dict(parameters)) == len(parameters)
    # A server may decline a window of 256 bytes, and zlib cannot compress for one.
    has_good_bits = server_bits in BITS and client_bits in (None, "8", *BITS)
    return is_unique and has_good_bits and all(name in FLAGS and value is None for name, value in asked.items())


def _compare_lists(environ: Environ) -> None:
    """Check that the lists which a client sends are what websockets makes of them."""
    extensions = environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS")
    if extensions is not None:
        ours = _or_none(parse_extensions, extensions)
        theirs = _or_none(parse_extension, extensions)
        assert ours == (None if theirs is None else tuple((name, tuple(rest)) for name, rest in theirs))
    subprotocols = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")
    if subprotocols is not None:
        ours = _or_none(parse_subprotocols, subprotocols)
        theirs = _or_none(parse_subprotocol, subprotocols)
        if theirs is not None and len(set(theirs)) < len(theirs):
            theirs = None  # RFC 6455 §4.1 (10): "MUST all be unique strings"
        assert ours == (None if theirs is None else tuple(theirs))


def _or_none(parse: Any, header: str) -> Any:
    if not header.strip(" \t"):
        return ()  # as good as none, which websockets sends but does not take
    try:
        return parse(header)
    except (HandshakeError, InvalidHeader):
        return None


def seeds() -> Iterator[bytes]:
    """Yield headers, good and bad ones, to start from; what the handshake's own tests list among them."""
    from tests.test_handshake import BAD, GOOD, ORIGINS

    for changes in (*GOOD, *(row[0] for row in BAD)):
        names = {name: name.removeprefix("HTTP_") for name in changes}
        lines = [names[name] if value is None else f"{names[name]}: {value}" for name, value in changes.items()]
        yield b"\0" + "\n".join(lines).encode("latin-1")
    yield from (b"\0Upgrade: h2c, WEBSOCKET , a", b"\0Upgrade: websocket2", b"\0Upgrade")
    for origin, host, _, _ in ORIGINS:
        for settings in range(4):
            yield bytes([settings]) + f"O: {origin}\nH: {host}".encode("latin-1")
    for settings in range(0, 64, 4):
        yield bytes([settings]) + b"P: v1.chat, chat,,v2.chat\n\nSet-Cookie: a=b; Path=/\0X: \xe2\x82\xac"
        for parameters in (
            "; x=1",
            "; client_max_window_bits",
            '; server_max_window_bits="12"; client_max_window_bits=8',
            "; server_max_window_bits",
            "; server_max_window_bits=8",
            "; client_max_window_bits=16",
            "; server_no_context_takeover; client_no_context_takeover",
            "; server_no_context_takeover; server_no_context_takeover",
            "; client_no_context_takeover=1",
        ):
            yield bytes([settings]) + f"E: permessage-deflate{parameters}, x, permessage-deflate".encode()
