"""Opening handshake, server side: request environ in, response headers or a refusal out.

Pure functions. Knows RFC 6455 §4.2, the HTTP grammar it leans on and WSGI's environ; knows no socket,
greenlet or framework.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from .errors import HandshakeError
from .options import HOST, SCHEME, TOKEN

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # §1.3
VERSION = "13"
REFUSED = "Geventws-Refused"  # the header of each refusal, with the name of its rule
NGINX_UPGRADE = "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;"
NGINX_LINES = f"proxy_http_version 1.1; {NGINX_UPGRADE}"
LOST_UPGRADE = (  # said of a request
    "has a Sec-WebSocket-Key and no Upgrade: websocket, which a proxy must have removed; "
    f"nginx needs {NGINX_LINES} Apache needs upgrade=websocket at the end of its ProxyPass"
)
MAX_OFFERS = 8190  # bytes of a list; parsing 720 KB, which gunicorn lets through in 90 lines, takes half a second

_token = re.compile(TOKEN)
_QUOTED = r'"((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\.)*)"'
_parameter = re.compile(rf"[ \t]*;[ \t]*({TOKEN})(?:[ \t]*=[ \t]*(?:({TOKEN})|{_QUOTED}))?")
_separator = re.compile(r"[ \t]*(?:,|$)[ \t,]*")
_host = re.compile(HOST)
_origin = re.compile(rf"({SCHEME})://{HOST}")
_key = re.compile(r"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64
_DEFAULT_PORTS = {"http": 80, "https": 443}

Headers = Mapping[str, str] | Iterable[tuple[str, str]]

# The handshake sets the first two itself, and a 101 has no body: a view that set one could only break it.
_OWN_HEADERS = frozenset({"upgrade", "connection", "content-length", "transfer-encoding"})


class Extension(NamedTuple):
    """One offer of Sec-WebSocket-Extensions: parameter values are None where the parameter has none."""

    name: str
    parameters: tuple[tuple[str, str | None], ...]


class Request(NamedTuple):
    """A valid opening handshake: what the client asks for."""

    key: str
    subprotocols: tuple[str, ...]
    extensions: tuple[Extension, ...]


def wants_websocket(environ: Mapping[str, Any]) -> bool:
    """Whether the request asks for the websocket protocol, well or badly; any other upgrade is not ours."""
    return "websocket" in environ.get("HTTP_UPGRADE", "").lower() and "websocket" in _tokens(environ["HTTP_UPGRADE"])


def has_lost_upgrade(environ: Mapping[str, Any]) -> bool:
    """Whether only Upgrade is missing from a handshake. No page, and no program without intent, sends such a key."""
    return "HTTP_SEC_WEBSOCKET_KEY" in environ and not wants_websocket(environ)


def check_request(environ: Mapping[str, Any]) -> Request:
    """Return what a handshake asks for. Raises HandshakeError saying which rule it breaks.

    Source: RFC 6455 §4.2.1; no body, as nothing could tell it from the first frames.
    """
    if environ["REQUEST_METHOD"] != "GET":
        method = environ["REQUEST_METHOD"]
        raise HandshakeError(
            HTTPStatus.METHOD_NOT_ALLOWED, f"the method must be GET, not {method!r}", [("Allow", "GET")], "method"
        )
    if environ["SERVER_PROTOCOL"] != "HTTP/1.1":
        raise _bad("http-version", f"the protocol must be HTTP/1.1, not {environ['SERVER_PROTOCOL']!r}")
    if not _host.fullmatch(environ.get("HTTP_HOST", "")):
        raise _bad("host", "exactly one valid Host header is needed")
    if "upgrade" not in _tokens(environ.get("HTTP_CONNECTION", "")):
        raise _bad("connection", "the Connection header must contain upgrade; a proxy may have removed it")
    if "HTTP_TRANSFER_ENCODING" in environ or (environ.get("CONTENT_LENGTH") or "0") != "0":
        raise _bad("body", "a handshake has no body")
    version = environ.get("HTTP_SEC_WEBSOCKET_VERSION")
    if version is None:
        raise _bad("version", "the Sec-WebSocket-Version header is missing")
    if version.strip(" \t") != VERSION:
        raise HandshakeError(
            HTTPStatus.UPGRADE_REQUIRED,
            f"Sec-WebSocket-Version must be {VERSION}, not {version!r}",
            [("Upgrade", "websocket"), ("Sec-WebSocket-Version", VERSION)],
            "version",
        )
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip(" \t")
    if not _key.fullmatch(key):
        raise _bad("key", "Sec-WebSocket-Key must be 16 bytes in base64")
    for name, rule in (("Protocol", "subprotocols"), ("Extensions", "extensions")):
        if len(environ.get(f"HTTP_SEC_WEBSOCKET_{name.upper()}", "")) > MAX_OFFERS:
            raise _bad(rule, f"Sec-WebSocket-{name} holds more than {MAX_OFFERS} bytes")
    return Request(
        key,
        parse_subprotocols(environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")),
        parse_extensions(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS")),
    )


def parse_subprotocols(header: str | None) -> tuple[str, ...]:
    """Return the offered subprotocols in the client's order. Raises HandshakeError for bad syntax or a duplicate.

    Source: RFC 6455 §4.1 (10), 1#token; but an empty header, which several clients send, is as good as none.
    """
    if header is None or not header.strip(" \t"):
        return ()
    offered: dict[str, None] = {}  # ordered, and quick to search
    position = _skip_empty(header)
    while position < len(header) or not offered:
        name = _token.match(header, position)
        end = _separator.match(header, name.end()) if name else None
        if not name or not end:
            raise _bad("subprotocols", "malformed Sec-WebSocket-Protocol header")
        if name.group() in offered:
            raise _bad("subprotocols", f"subprotocol {name.group()} is offered twice")
        offered[name.group()] = None
        position = end.end()
    return tuple(offered)


def parse_extensions(header: str | None) -> tuple[Extension, ...]:
    """Return the offered extensions in the client's order. Raises HandshakeError for bad syntax.

    A quoted value must be a token once its quotes are off; an empty header is as good as none. Source: RFC 6455 §9.1.
    """
    if header is None or not header.strip(" \t"):
        return ()
    offers: list[Extension] = []
    position = _skip_empty(header)
    while position < len(header) or not offers:
        name = _token.match(header, position)
        if not name:
            raise _bad("extensions", "malformed Sec-WebSocket-Extensions header")
        position = name.end()
        parameters = []
        while parameter := _parameter.match(header, position):
            position = parameter.end()
            attribute, value, quoted = parameter.groups()
            if quoted is not None:
                value = re.sub(r"\\(.)", r"\1", quoted)
                if not _token.fullmatch(value):
                    raise _bad("extensions", "malformed quoted value in the Sec-WebSocket-Extensions header")
            parameters.append((attribute, value))
        end = _separator.match(header, position)
        if not end:
            raise _bad("extensions", "malformed Sec-WebSocket-Extensions header")
        position = end.end()
        offers.append(Extension(name.group(), tuple(parameters)))
    return tuple(offers)


def check_host(environ: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raise HandshakeError 421 if the Host header, whose port does not matter, names no allowed host.

    allowed holds "*", hosts such as "app.example", "*.example.org" and "[::1]", and "loopback". A page whose own name
    was made to lead here asks for that name, and its origin is of the same host: DNS rebinding. Source: RFC 9110 §7.4.
    """
    if "*" in allowed:
        return
    host = environ["HTTP_HOST"]
    found = _host.fullmatch(host.lower())
    assert found is not None  # check_request() has seen to that
    name = found[1].removesuffix(".")
    if not any(_is_named(name, entry.lower().removesuffix(".")) for entry in allowed):
        reason = f"host {host!r} is not allowed by the option hosts"
        raise HandshakeError(HTTPStatus.MISDIRECTED_REQUEST, reason, rule="hosts")


def is_loopback(name: str) -> bool:
    """Whether a host, in lower case, is this machine for who asks. Source: RFC 6761 §6.3, RFC 1122 §3.2.1.3."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:  # another name
        return False


def check_origin(environ: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raise HandshakeError 403 if the Origin header is not allowed; a client without one is no browser.

    allowed holds "same-host" (the Host header, default ports left aside), "*", origins such as
    "https://app.example" and hosts such as "*.example.org"; an entry also allows the very header that it is, such as
    "file://". Source: RFC 6455 §10.2, RFC 6454.
    """
    origin = environ.get("HTTP_ORIGIN")
    if origin is None or "*" in allowed:
        return
    host = environ.get("HTTP_HOST", "")
    if any(_is_allowed(origin, host, pattern) for pattern in allowed):
        return
    raise HandshakeError(HTTPStatus.FORBIDDEN, f"origin {origin!r} is not allowed for host {host!r}", rule="origin")


def select_subprotocol(offered: Iterable[str], supported: Sequence[str]) -> str | None:
    """Return the first offered subprotocol that is supported, by exact match; None if there is none."""
    return next((name for name in offered if name in supported), None)


def accept_key(key: str) -> str:
    """Return the Sec-WebSocket-Accept value for a key. Source: RFC 6455 §4.2.2 (5.4)."""
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()


def response(request: Request, subprotocol: str | None = None, headers: Headers = (), *, extensions: str = "") -> bytes:
    """Return the 101 response that completes the handshake, with the view's own headers, such as cookies.

    extensions is the value of its Sec-WebSocket-Extensions header, "" for none. Raises ValueError for a
    header that is malformed or is the handshake's own.
    """
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_key(request.key)}",
    ]
    if subprotocol is not None:
        if not _token.fullmatch(subprotocol):
            raise ValueError(f"subprotocol {subprotocol!r} is no token")
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    if extensions:
        lines.append(f"Sec-WebSocket-Extensions: {extensions}")
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        if not _token.fullmatch(name) or any((char < " " and char != "\t") or char == "\x7f" for char in value):
            raise ValueError(f"header {name!r}: {value!r} holds a character that headers may not")
        if name.lower() in _OWN_HEADERS or name.lower().startswith("sec-websocket-"):
            raise ValueError(f"header {name} belongs to the handshake itself")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _bad(rule: str, reason: str) -> HandshakeError:
    return HandshakeError(HTTPStatus.BAD_REQUEST, reason, rule=rule)


def _tokens(header: str) -> list[str]:
    return [token.strip(" \t").lower() for token in header.split(",")]


def _skip_empty(header: str) -> int:
    """Return where the first element of a list starts: RFC 7230 §7 lets empty ones come before it."""
    position = 0
    while position < len(header) and header[position] in " \t,":
        position += 1
    return position


def _is_named(name: str, entry: str) -> bool:
    """Whether one entry of check_host()'s `allowed` allows a host; both in lower case."""
    if entry == "loopback":
        return is_loopback(name)
    return name.endswith(entry[1:]) if entry.startswith("*.") else name == entry


def _is_allowed(origin: str, host: str, pattern: str) -> bool:
    """Whether one entry of check_origin()'s `allowed` allows an origin."""
    if pattern == "null":
        return origin == "null"
    # RFC 6454 has no slash at the end; clients that are no browsers send one.
    if "://" in pattern and pattern.lower() in {origin.lower(), origin.lower().removesuffix("/")}:
        return True
    scheme, _, wanted_host = pattern.lower().rpartition("://")
    found = _origin.fullmatch(origin.lower())
    wanted = _host.fullmatch(host.lower() if pattern == "same-host" else wanted_host)
    if not found or not wanted or scheme not in {"", found[1]}:
        return False
    default_port = _DEFAULT_PORTS.get(found[1], 0)
    port, wanted_port = int(found[3] or default_port), int(wanted[2] or default_port)
    if pattern == "same-host":
        # Behind a TLS proxy the page's scheme is not the request's, so the Host's port may be the other default.
        return found[2] == wanted[1] and (port == wanted_port or (port == default_port and wanted_port in {80, 443}))
    if port != wanted_port:
        return False
    return found[2].endswith(wanted[1][1:]) if wanted[1].startswith("*.") else found[2] == wanted[1]
