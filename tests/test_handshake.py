"""The opening handshake: which requests are taken, which refused and how, which origins, what is answered."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventws.errors import HandshakeError
from geventws.handshake import (
    Extension,
    Request,
    accept_key,
    check_host,
    check_origin,
    check_request,
    parse_extensions,
    parse_subprotocols,
    response,
    select_subprotocol,
    wants_websocket,
)

from .test_frames import bounded

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # §1.3
Environ = dict[str, str]


def environ(**changes: str | None) -> Environ:
    """Return the environ of a handshake with these variables changed, or taken out where None."""
    request: dict[str, str | None] = {
        "REQUEST_METHOD": "GET",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "server.example.com",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_KEY": KEY,
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
    }
    return {name: value for name, value in (request | changes).items() if value is not None}


# Whose request it is


@pytest.mark.parametrize(
    ("upgrade", "ours"),
    [
        ("websocket", True),
        ("WebSocket", True),
        ("h2c, WEBSOCKET", True),
        ("\twebsocket ,foo", True),
        ("h2c", False),
        ("websocket2", False),
        ("websocket/13", False),
        ("web socket", False),
        ("", False),
        (None, False),
    ],
)
def test_only_the_token_websocket_makes_a_request_ours(upgrade: str | None, ours: bool) -> None:
    assert wants_websocket(environ(HTTP_UPGRADE=upgrade)) is ours


# Good requests: each of these still asks for the same as the plainest (§4.2.1)
GOOD: list[dict[str, str | None]] = [
    {},
    {"HTTP_CONNECTION": "keep-alive, Upgrade"},
    {"HTTP_CONNECTION": "UPGRADE"},
    {"HTTP_CONNECTION": "keep-alive ,\tupgrade"},
    {"HTTP_HOST": "server.example.com:8080"},
    {"HTTP_HOST": "[::1]"},
    {"HTTP_HOST": "[2001:DB8::7]:443"},
    {"HTTP_HOST": "127.0.0.1:"},
    {"HTTP_HOST": "under_score.example"},
    {"CONTENT_LENGTH": ""},
    {"CONTENT_LENGTH": "0"},
    {"HTTP_SEC_WEBSOCKET_VERSION": " 13 "},
    {"HTTP_SEC_WEBSOCKET_KEY": f" {KEY}\t"},
    {"HTTP_ORIGIN": "null"},
]


@pytest.mark.parametrize("changes", GOOD, ids=str)
def test_good_request_is_taken(changes: dict[str, str | None]) -> None:
    assert check_request(environ(**changes)) == Request(KEY, (), ())


def test_request_tells_what_the_client_offers() -> None:
    request = check_request(
        environ(
            HTTP_SEC_WEBSOCKET_PROTOCOL="chat, superchat",
            HTTP_SEC_WEBSOCKET_EXTENSIONS="permessage-deflate; client_max_window_bits, x-unknown",
        )
    )
    offers = (Extension("permessage-deflate", (("client_max_window_bits", None),)), Extension("x-unknown", ()))
    assert request == Request(KEY, ("chat", "superchat"), offers)


# What Geventws-Refused may say; the doctor and whoever reads it rely on these.
RULES = {
    *("method", "http-version", "host", "connection", "body", "version", "key", "subprotocols", "extensions"),
}

# (changes, status, headers, what the reason tells)
ALLOW = (("Allow", "GET"),)
UPGRADE = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))
BAD: list[tuple[dict[str, str | None], int, tuple[tuple[str, str], ...], str]] = [
    ({"REQUEST_METHOD": "POST"}, 405, ALLOW, "POST"),
    ({"REQUEST_METHOD": "HEAD"}, 405, ALLOW, "HEAD"),
    ({"REQUEST_METHOD": "get"}, 405, ALLOW, "get"),
    ({"SERVER_PROTOCOL": "HTTP/1.0"}, 400, (), "HTTP/1.0"),
    ({"SERVER_PROTOCOL": "HTTP/2.0"}, 400, (), "HTTP/2.0"),
    ({"SERVER_PROTOCOL": "HTTP/1.10"}, 400, (), "HTTP/1.10"),
    ({"HTTP_HOST": None}, 400, (), "Host"),
    ({"HTTP_HOST": ""}, 400, (), "Host"),
    ({"HTTP_HOST": "a.example,b.example"}, 400, (), "Host"),
    ({"HTTP_HOST": "a.example b.example"}, 400, (), "Host"),
    ({"HTTP_HOST": "user@a.example"}, 400, (), "Host"),
    ({"HTTP_HOST": "a.example/path"}, 400, (), "Host"),
    ({"HTTP_HOST": "a.example:http"}, 400, (), "Host"),
    ({"HTTP_HOST": "::1"}, 400, (), "Host"),
    ({"HTTP_HOST": ":80"}, 400, (), "Host"),
    ({"HTTP_HOST": "a.example\n"}, 400, (), "Host"),
    ({"HTTP_CONNECTION": None}, 400, (), "Connection"),
    ({"HTTP_CONNECTION": "keep-alive"}, 400, (), "Connection"),
    ({"HTTP_CONNECTION": "upgraded"}, 400, (), "Connection"),
    ({"HTTP_CONNECTION": "keep-alive upgrade"}, 400, (), "Connection"),
    ({"HTTP_TRANSFER_ENCODING": "chunked"}, 400, (), "body"),
    ({"HTTP_TRANSFER_ENCODING": ""}, 400, (), "body"),
    ({"HTTP_TRANSFER_ENCODING": "identity"}, 400, (), "body"),
    ({"CONTENT_LENGTH": "1"}, 400, (), "body"),
    ({"CONTENT_LENGTH": "-0"}, 400, (), "body"),
    ({"HTTP_SEC_WEBSOCKET_VERSION": None}, 400, (), "Sec-WebSocket-Version"),
    ({"HTTP_SEC_WEBSOCKET_VERSION": "8"}, 426, UPGRADE, "8"),
    ({"HTTP_SEC_WEBSOCKET_VERSION": "14"}, 426, UPGRADE, "14"),
    ({"HTTP_SEC_WEBSOCKET_VERSION": "013"}, 426, UPGRADE, "013"),
    ({"HTTP_SEC_WEBSOCKET_VERSION": ""}, 426, UPGRADE, "13"),
    ({"HTTP_SEC_WEBSOCKET_KEY": None}, 400, (), "Sec-WebSocket-Key"),
    ({"HTTP_SEC_WEBSOCKET_KEY": ""}, 400, (), "Sec-WebSocket-Key"),
    ({"HTTP_SEC_WEBSOCKET_KEY": KEY[:-1]}, 400, (), "Sec-WebSocket-Key"),
    ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZ==="}, 400, (), "Sec-WebSocket-Key"),
    ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZTEh"}, 400, (), "Sec-WebSocket-Key"),  # 18 bytes
    ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25j"}, 400, (), "Sec-WebSocket-Key"),  # 15 bytes
    ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBs-SBub25jZQ=="}, 400, (), "Sec-WebSocket-Key"),
    ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBs ZSBub25jQ=="}, 400, (), "Sec-WebSocket-Key"),
    ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBs\xe9SBub25jZQ=="}, 400, (), "Sec-WebSocket-Key"),
    ({"HTTP_SEC_WEBSOCKET_KEY": f"{KEY},{KEY}"}, 400, (), "Sec-WebSocket-Key"),
    ({"HTTP_SEC_WEBSOCKET_PROTOCOL": ","}, 400, (), "Sec-WebSocket-Protocol"),
    ({"HTTP_SEC_WEBSOCKET_PROTOCOL": "chat, chat"}, 400, (), "chat"),
    ({"HTTP_SEC_WEBSOCKET_EXTENSIONS": "a=b"}, 400, (), "Sec-WebSocket-Extensions"),
    ({"HTTP_SEC_WEBSOCKET_PROTOCOL": "a" * 8191}, 400, (), "more than 8190 bytes"),
    ({"HTTP_SEC_WEBSOCKET_EXTENSIONS": "a" * 8191}, 400, (), "more than 8190 bytes"),
]


@pytest.mark.parametrize(("changes", "status", "headers", "told"), BAD, ids=[str(row[0])[:100] for row in BAD])
def test_bad_request_is_refused_with_the_rule_it_breaks(
    changes: dict[str, str | None], status: int, headers: tuple[tuple[str, str], ...], told: str
) -> None:
    with pytest.raises(HandshakeError) as caught:
        check_request(environ(**changes))
    assert (caught.value.status, caught.value.headers) == (HTTPStatus(status), headers)
    assert told in caught.value.reason
    assert caught.value.rule in RULES


# Lists of the client: §4.1 (10) 1#token, §9.1


@pytest.mark.parametrize(
    ("header", "offered"),
    [
        (None, ()),
        ("", ()),
        (" \t", ()),
        ("chat", ("chat",)),
        ("chat,superchat", ("chat", "superchat")),
        (" , chat ,, superchat\t, ", ("chat", "superchat")),
        ("v1.json, V1.json", ("v1.json", "V1.json")),
        ("!#$%&'*+-.^_`|~", ("!#$%&'*+-.^_`|~",)),
    ],
)
def test_subprotocols_are_read_in_the_clients_order(header: str | None, offered: tuple[str, ...]) -> None:
    assert parse_subprotocols(header) == offered


@pytest.mark.parametrize(
    "header", [",", "a b", "a;b", "a/b", '"a"', "a,(b)", "a, a", "gr\xfc\xdfe", "a\r\nb", "a\n", "a,b\x00"]
)
def test_malformed_or_repeated_subprotocols_are_refused(header: str) -> None:
    with pytest.raises(HandshakeError) as caught:
        parse_subprotocols(header)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("offered", "supported", "selected"),
    [
        (("chat", "superchat"), ("superchat", "chat"), "chat"),
        (("chat", "superchat"), ("superchat",), "superchat"),
        (("Chat",), ("chat",), None),
        (("chat",), (), None),
        ((), ("chat",), None),
    ],
)
def test_first_offered_subprotocol_that_is_supported_is_selected(
    offered: tuple[str, ...], supported: tuple[str, ...], selected: str | None
) -> None:
    assert select_subprotocol(offered, supported) == selected


@pytest.mark.parametrize(
    ("header", "offers"),
    [
        (None, ()),
        ("", ()),
        (" \t", ()),
        ("foo", (Extension("foo", ()),)),
        ("foo, bar; baz=2", (Extension("foo", ()), Extension("bar", (("baz", "2"),)))),
        ("deflate-stream,,mux; max-channels=4;flow ,", (
            Extension("deflate-stream", ()), Extension("mux", (("max-channels", "4"), ("flow", None))))),
        ('a; b="10"', (Extension("a", (("b", "10"),)),)),
        (r'a; b="1\0"; c', (Extension("a", (("b", "10"), ("c", None))),)),
        ("a ;\tb = c", (Extension("a", (("b", "c"),)),)),
        ("a; b; b=1, a", (Extension("a", (("b", None), ("b", "1"))), Extension("a", ()))),
    ],
)  # fmt: skip
def test_extensions_are_read_with_their_parameters(header: str | None, offers: tuple[Extension, ...]) -> None:
    assert parse_extensions(header) == offers


@pytest.mark.parametrize(
    "header",
    [",", ";", "a;", "a; ", "a;;b", "a=b", "a; b=", 'a; b="', 'a; b="c', r'a; b="c\"', 'a; b=""', 'a; b="c d"',
     'a; b="c,d"', 'a; b="c"d', "a; b=c d", "a b", "a; =b", 'a; "b"', 'a; b="\x00"', "a\r\nb", "a\n", "a; b=\xfc"],
)  # fmt: skip
def test_malformed_extensions_are_refused(header: str) -> None:
    with pytest.raises(HandshakeError) as caught:
        parse_extensions(header)
    assert caught.value.status == 400
    assert "Sec-WebSocket-Extensions" in caught.value.reason


HEADERS = st.text(st.sampled_from('ab1-;=,"\\ \t\n\x00\xe9()'), max_size=40) | st.text(max_size=40)


@bounded
@given(HEADERS, st.sampled_from([parse_subprotocols, parse_extensions]))
def test_any_header_is_read_or_refused(header: str, parse: Callable[[str], object]) -> None:
    try:
        assert bool(parse(header)) is bool(header.strip(" \t"))
    except HandshakeError as exc:
        assert exc.status == 400


LONG = 65_000  # bytes, the longest header line that a server lets through
HOSTILE = {
    "subprotocols": ",".join(f"{number:04x}" for number in range(LONG // 5)),
    "empty elements": "a" + "," * LONG + "(",
    "spaces": "a" + " " * LONG + "b",
    "spaces around a semicolon": "a" + " " * (LONG // 2) + ";" + " " * (LONG // 2),
    "spaces around an equals sign": "a;b" + " " * (LONG // 2) + "=" + " " * (LONG // 2) + '"',
    "parameters": "a" + ";b" * (LONG // 2) + "(",
    "quoted value without an end": 'a;b="' + "c" * LONG,
    "escapes without an end": 'a;b="' + "\\c" * (LONG // 2),
    "quotes": 'a;b="' + '"' * LONG,
    "spaces and semicolons": "a" + " ;" * (LONG // 2),
}  # fmt: skip


@pytest.mark.parametrize("header", HOSTILE)
@pytest.mark.parametrize("parse", [parse_subprotocols, parse_extensions])
def test_hostile_header_is_read_in_linear_time(parse: Callable[[str], object], header: str) -> None:
    started = process_time()
    with suppress(HandshakeError):
        parse(HOSTILE[header])
    assert process_time() - started < 0.5  # seconds; what is linear takes 20 ms, what is quadratic 1.3 s and more


# Origin: §10.2, RFC 6454


SAME = ("same-host",)
APP = ("https://app.example",)
ORG = ("*.example.org",)
# (Origin, Host, allowed, fine)
ORIGINS: list[tuple[str | None, str, tuple[str, ...], bool]] = [
    # No browser sends none.
    (None, "a.example", SAME, True),
    (None, "a.example", (), True),
    # Same host, default ports aside.
    ("http://a.example", "a.example", SAME, True),
    ("http://a.example:80", "a.example", SAME, True),
    ("http://a.example", "a.example:80", SAME, True),
    ("https://a.example:443", "a.example", SAME, True),
    ("https://a.example", "a.example:443", SAME, True),
    ("http://a.example:8000", "a.example:8000", SAME, True),
    ("http://A.Example", "a.eXAMPLE", SAME, True),
    ("HTTP://a.example", "a.example", SAME, True),
    ("http://127.0.0.1:5000", "127.0.0.1:5000", SAME, True),
    ("http://[::1]:8000", "[::1]:8000", SAME, True),
    ("http://[2001:DB8::7]", "[2001:db8::7]:80", SAME, True),
    ("http://a.example:8000", "a.example", SAME, False),
    ("http://a.example", "a.example:8000", SAME, False),
    ("http://a.example:8000", "a.example:8001", SAME, False),
    ("http://a.example:443", "a.example", SAME, False),
    ("http://[::1]:8000", "[::2]:8000", SAME, False),
    # A proxy ends TLS: the page is https, the Host header names either default port or none.
    ("https://a.example", "a.example:80", SAME, True),
    ("https://a.example", "a.example", SAME, True),
    # Others.
    ("http://b.example", "a.example", SAME, False),
    ("http://a.example.evil.example", "a.example", SAME, False),
    ("http://evil-a.example", "a.example", SAME, False),
    ("http://sub.a.example", "a.example", SAME, False),
    ("null", "a.example", SAME, False),
    ("null", "null", SAME, False),
    ("", "a.example", SAME, False),
    ("", "", SAME, False),
    ("a.example", "a.example", SAME, False),
    ("http://a.example", "a.example", (), False),
    ("file://", "a.example", SAME, False),
    # What is no origin though a part of it is one.
    ("https://a.example@evil.example", "a.example", SAME, False),
    ("https://evil.example@a.example", "a.example", SAME, False),
    ("https://a.example:443@evil.example", "a.example", SAME, False),
    ("https://a.example/", "a.example", SAME, False),
    ("https://a.example/path", "a.example", SAME, False),
    ("https://a.example?", "a.example", SAME, False),
    ("https://a.example?query", "a.example", SAME, False),
    ("https://a.example#", "a.example", SAME, False),
    ("https://a.example#fragment", "a.example", SAME, False),
    ("https://evil.example#a.example", "a.example", SAME, False),
    ("https://evil.example?.a.example", "a.example", SAME, False),
    ("https://a.example https://evil.example", "a.example", SAME, False),
    ("https://a.example, https://evil.example", "a.example", SAME, False),
    (" https://a.example", "a.example", SAME, False),
    ("https://a.exa\tmple", "a.example", SAME, False),
    ("\x00https://a.example", "a.example", SAME, False),
    ("https://a.example:", "a.example", SAME, True),
    ("https://a.example:port", "a.example", SAME, False),
    ("https://a.example:99999", "a.example", SAME, False),
    ("http://[::1", "[::1]", SAME, False),
    ("http://[::1]evil.example", "[::1]", SAME, False),
    # Exact origins.
    ("https://app.example", "a.example", APP, True),
    ("HTTPS://APP.EXAMPLE:443", "a.example", APP, True),
    ("https://app.example", "a.example", ("https://APP.example:443",), True),
    ("http://app.example", "a.example", APP, False),
    ("https://app.example:8443", "a.example", APP, False),
    ("https://app.example:8443", "a.example", ("https://app.example:8443",), True),
    ("https://app.example", "a.example", ("https://app.example:8443",), False),
    ("https://sub.app.example", "a.example", APP, False),
    ("https://app.example.evil.example", "a.example", APP, False),
    ("https://app.example@evil.example", "a.example", APP, False),
    ("https://a.example", "a.example", APP, False),
    ("https://a.example", "a.example", (*APP, *SAME), True),
    ("http://[::1]:8000", "a.example", ("http://[::1]:8000",), True),
    # Hosts and what lies below them.
    ("https://www.example.org", "a.example", ORG, True),
    ("http://a.b.example.org", "a.example", ORG, True),
    ("https://WWW.EXAMPLE.ORG", "a.example", ("*.Example.Org",), True),
    ("https://example.org", "a.example", ORG, False),
    ("https://evilexample.org", "a.example", ORG, False),
    ("https://example.org.evil.example", "a.example", ORG, False),
    ("https://www.example.org:8000", "a.example", ORG, False),
    ("https://www.example.org:8000", "a.example", ("*.example.org:8000",), True),
    ("https://www.example.org", "a.example", ("*.example.org:8000",), False),
    ("https://www.example.org@evil.example", "a.example", ORG, False),
    ("https://evil.example#.example.org", "a.example", ORG, False),
    ("https://evil.example/.example.org", "a.example", ORG, False),
    ("https://evil.example\\.example.org", "a.example", ORG, False),
    ("https://evil.example:1.example.org", "a.example", ORG, False),
    ("null", "a.example", ORG, False),
    ("https://example.org", "a.example", ("example.org",), True),
    ("http://example.org", "a.example", ("example.org",), True),
    ("https://www.example.org", "a.example", ("example.org",), False),
    ("https://example.org", "a.example", ("example.org:443",), True),
    ("http://example.org", "a.example", ("example.org:443",), False),
    ("https://example.org", "a.example", ("example.org:80",), False),
    ("http://[::1]:8000", "a.example", ("[::1]:8000",), True),
    ("https://www.example.org", "a.example", ("https://*.example.org",), True),
    ("https://www.example.org:444", "a.example", ("https://*.example.org:444",), True),
    ("http://www.example.org", "a.example", ("https://*.example.org",), False),
    ("https://evilexample.org", "a.example", ("https://*.example.org",), False),
    # Everything, and what has no host.
    ("https://b.example", "a.example", ("*",), True),
    ("null", "a.example", ("*",), True),
    ("", "a.example", (*APP, "*"), True),
    ("null", "a.example", ("null",), True),
    ("https://null", "a.example", ("null",), False),
    ("chrome-extension://abcdef", "a.example", ("chrome-extension://abcdef",), True),
    ("moz-extension://abcdef", "a.example", ("chrome-extension://abcdef",), False),
    # Taken literally.
    ("file://", "a.example", ("file://",), True),
    ("FILE://", "a.example", ("file://",), True),
    ("file:///", "a.example", ("file://",), True),
    ("file:///x", "a.example", ("file://",), False),
    ("file://", "a.example", ("null", "*.example"), False),
    ("null", "a.example", ("file://",), False),
    ("capacitor://localhost", "a.example", ("capacitor://localhost",), True),
    ("capacitor://localhost", "localhost", SAME, True),
    ("app://.", "a.example", ("app://.",), True),
    ("http://a.example/page", "a.example", ("http://a.example/page",), True),
    ("http://a.example/page", "a.example", ("http://a.example",), False),
    ("http://a.example", "a.example:8000", ("http://a.example/page",), False),
    ("https://app.example/", "a.example", APP, True),
    ("https://app.example//", "a.example", APP, False),
    ("https://app.example/x", "a.example", APP, False),
    ("https://app.example@evil.example/", "a.example", APP, False),
    ("https://www.example.org/", "a.example", ORG, False),
]  # fmt: skip


@pytest.mark.parametrize(("origin", "host", "allowed", "fine"), ORIGINS)
def test_origin_is_allowed_or_refused(origin: str | None, host: str, allowed: tuple[str, ...], fine: bool) -> None:
    request = environ(HTTP_ORIGIN=origin, HTTP_HOST=host)
    if fine:
        check_origin(request, allowed)
    else:
        with pytest.raises(HandshakeError) as caught:
            check_origin(request, allowed)
        assert caught.value.status == 403
        assert host in caught.value.reason


def test_refusal_shows_the_origin_and_the_host() -> None:
    with pytest.raises(HandshakeError, match=r"https://evil\.example.*\ba\.example:8000"):
        check_origin(environ(HTTP_ORIGIN="https://evil.example", HTTP_HOST="a.example:8000"), SAME)


def test_refusal_holds_no_control_character_for_a_terminal() -> None:
    with pytest.raises(HandshakeError) as caught:
        check_origin(environ(HTTP_ORIGIN="https://\x1b[31m\x9b2J"), SAME)
    assert caught.value.reason.isprintable()


@bounded
@given(st.text(max_size=30) | st.from_regex(r"https?://[a-z.:@\[\]\\/#?%*\t -]{0,20}", fullmatch=True))
def test_any_origin_is_allowed_or_refused(origin: str) -> None:
    for allowed in (SAME, APP, ORG, ("https://*.example.org:444", "null", "example.org:1")):
        try:
            check_origin(environ(HTTP_ORIGIN=origin), allowed)
        except HandshakeError as exc:
            assert exc.status == 403


# Whether it asks for a host that is ours


@pytest.mark.parametrize(
    ("host", "allowed", "fine"),
    [
        ("evil.example", ("*",), True),
        *((host, ("loopback",), True) for host in
          ("localhost", "LocalHost:8000", "localhost.", "app.localhost:1", "127.0.0.1:8000", "127.8.9.1", "[::1]:8000",
           "[0:0:0:0:0:0:0:1]", "localhost:")),
        *((host, ("loopback",), False) for host in
          ("evil.example", "localhost.evil.example", "evillocalhost", "127.0.0.1.evil.example", "10.0.0.1", "[::]",
           "[fe80::1]", "0.0.0.0", "loopback", "app.example")),
        ("app.example", ("app.example",), True),
        ("APP.example.:8443", ("app.Example",), True),
        ("app.example", ("app.example.",), True),
        ("www.app.example", ("app.example",), False),
        ("a.example.org", ("*.example.org",), True),
        ("a.b.example.org.", ("*.example.org",), True),
        ("example.org", ("*.example.org",), False),
        ("evilexample.org", ("*.example.org",), False),
        ("[2001:db8::1]", ("[2001:DB8::1]",), True),
        ("app.example", ("loopback", "app.example"), True),
        ("localhost", ("app.example",), False),
        ("app.example", (), False),
    ],
)  # fmt: skip
def test_host_is_allowed_or_refused(host: str, allowed: tuple[str, ...], fine: bool) -> None:
    if fine:
        check_host(environ(HTTP_HOST=host), allowed)
    else:
        with pytest.raises(HandshakeError, match="option hosts") as caught:
            check_host(environ(HTTP_HOST=host), allowed)
        assert caught.value.status == 421
        assert host in caught.value.reason


# The answer


REQUEST = Request(KEY, ("chat",), ())
HEAD = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
)


def test_accept_key_is_the_one_of_the_rfc() -> None:
    assert accept_key(KEY) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # §1.3


def test_response_is_the_handshakes_four_lines() -> None:
    assert response(REQUEST) == HEAD + b"\r\n"


def test_response_names_the_subprotocol_and_holds_the_views_headers() -> None:
    cookies = [("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=\xe9\t2"), ("X-Empty", "")]
    assert response(REQUEST, "chat", cookies) == (
        HEAD + b"Sec-WebSocket-Protocol: chat\r\n"
        b"Set-Cookie: a=1; Path=/\r\nSet-Cookie: b=\xe9\t2\r\nX-Empty: \r\n\r\n"
    )  # fmt: skip


@pytest.mark.parametrize("bad", ["\r", "\n", "\x00", "\r\nX: y", "\x0b", "\x1b", "\x7f"])
@pytest.mark.parametrize("place", ["{}", "a{}", "{}a", "a{}b"])
def test_no_header_value_name_or_subprotocol_can_inject(bad: str, place: str) -> None:
    text = place.format(bad)
    for subprotocol, headers in [(text, ()), (None, [("X-Name", text)]), (None, [(text, "value")])]:
        with pytest.raises(ValueError, match=r"\\"):  # the character is shown, escaped
            response(REQUEST, subprotocol, headers)


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\t", "gr\xfcn", "(a)"])
def test_header_name_that_is_no_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        response(REQUEST, None, [(name, "value")])


def test_header_value_outside_latin_1_is_refused() -> None:
    with pytest.raises(ValueError):
        response(REQUEST, None, [("X-Name", "\u20ac")])


@pytest.mark.parametrize("subprotocol", ["", "a b", "a,b", "a;b", "gr\xfcn"])
def test_subprotocol_that_is_no_token_is_refused(subprotocol: str) -> None:
    with pytest.raises(ValueError, match="subprotocol"):
        response(REQUEST, subprotocol)


@pytest.mark.parametrize(
    "name",
    [
        "Upgrade",
        "connection",
        "Sec-WebSocket-Accept",
        "SEC-WEBSOCKET-EXTENSIONS",
        "Content-Length",
        "transfer-encoding",
    ],
)
def test_header_of_the_handshake_itself_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        response(REQUEST, None, [(name, "value")])


@bounded
@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=20)), max_size=3), st.none() | st.text(max_size=8))
def test_any_headers_make_one_line_each_or_a_value_error(
    headers: list[tuple[str, str]], subprotocol: str | None
) -> None:
    try:
        answer = response(REQUEST, subprotocol, headers)
    except ValueError:
        return
    assert answer.startswith(HEAD) and answer.endswith(b"\r\n\r\n")
    lines = answer.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert len(lines) == 4 + (subprotocol is not None) + len(headers)
    assert b"\n" not in b"".join(lines) and b"\r" not in b"".join(lines)
