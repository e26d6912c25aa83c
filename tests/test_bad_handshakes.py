"""Malformed, hostile and slow handshakes on both front ends: what is answered, and that nothing is left of them."""

from __future__ import annotations

import json
import re
import selectors
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import gunicorn
import pytest

from .crowd import page
from .raw import ACCEPT, CLOSE, HANDSHAKE, TEXT, Raw, close_frame, frame, request
from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, cpu_seconds, plain_socket, process_id, serve, wait_for

pytestmark = pytest.mark.slow  # it starts servers or installs packages

Certificate = tuple[str, str, ssl.SSLContext]

APP = "tests.apps_bad_handshakes:app"
KEEP_ALIVE = ("--keep-alive", "3")  # seconds that gunicorn waits for a whole request head; our server's is the app's
ONE_READ = 8192  # bytes: of what is longer a server that closes leaves some unread, which makes the end a reset

GOOD = request("/echo")
KEY = HANDSHAKE["Sec-WebSocket-Key"].encode()
SECOND = b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n"


def line(first: bytes) -> bytes:
    """Return a good handshake with another request line."""
    return first + GOOD[GOOD.index(b"\r\n") :]


def header(name: str, value: bytes | None) -> bytes:
    """Return a good handshake with another value of one of its headers, or without it."""
    return GOOD.replace(
        f"{name}: {HANDSHAKE[name]}\r\n".encode(), b"" if value is None else b"%s: %s\r\n" % (name.encode(), value)
    )


def more(*lines: bytes) -> bytes:
    """Return a good handshake with these lines behind its headers."""
    return GOOD[:-2] + b"\r\n".join([*lines, b"", b""])


def client_hello() -> bytes:
    """Return what a client of TLS sends first."""
    sent = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


@pytest.fixture(scope="module", params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(front_end: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(APP, tmp_path_factory.mktemp("bad"), front_end=front_end, arguments=arguments(front_end)) as server:
        yield server


@pytest.fixture(scope="module")
def at_rest(server: Server) -> dict[str, int]:
    """What the server holds before the first test, once it is warm."""
    assert_echoes(server)
    held(server)
    return held(server)


@pytest.fixture(scope="module")
def tls_server(front_end: str, tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("tls")
    with serve(APP, directory, front_end=front_end, arguments=arguments(front_end), certificate=certificate) as server:
        yield server


def arguments(front_end: str) -> tuple[str, ...]:
    return KEEP_ALIVE if front_end == "worker" else ()


def counts(server: Server) -> dict[str, int]:
    """How often the WebSocket view and the page ran."""
    found: dict[str, int] = json.loads(page(server, "/counts"))
    return found


def held(server: Server) -> dict[str, int]:
    """How many greenlets and file descriptors the serving process has."""
    found: dict[str, int] = json.loads(page(server, "/held"))
    return found


def statuses(answer: bytes) -> list[int]:
    """The status of each HTTP answer in what a server sent."""
    return [int(status) for status in re.findall(rb"HTTP/1\.\d (\d{3}) ", answer)]


def assert_echoes(server: Server, sent: bytes = GOOD) -> str:
    """Fail if a handshake brings no working WebSocket; return the head of the 101."""
    with Raw(server, sent + frame(TEXT, b"hello")) as raw:
        head = raw.head()
        assert head.startswith("HTTP/1.1 101 "), head
        assert raw.frame() == (TEXT, b"hello")
        raw.send(close_frame(1000))
        assert raw.frame()[0] == CLOSE
        assert raw.rest() == b""
    return head


class Row(NamedTuple):
    """A request that must be refused, by status and a word of the body; "" where a parser answers for itself."""

    sent: bytes
    worker: tuple[int, str]
    server: tuple[int, str]
    why: str = ""  # the two differ


def checked(sent: bytes, status: int, word: str) -> Row:
    """Both parsers let it through to our check, which refuses it."""
    return Row(sent, (status, word), (status, word))


def parsed(sent: bytes, status: int = 400) -> Row:
    """Both parsers refuse it themselves, or the app does."""
    return Row(sent, (status, ""), (status, ""))


def limited(sent: bytes, status: int, option: str) -> Row:
    """Both parsers refuse it themselves; ours by the name of the option."""
    return Row(sent, (status, ""), (status, option))


GUNICORN_METHOD = "gunicorn wants 3 to 20 characters and no lower case before anybody looks for an Upgrade"
GUNICORN_CODING = "gunicorn lets codings of RFC 9112 through to our check, our server only chunked"
GUNICORN_501 = "gunicorn answers a coding that it does not know by 501 as RFC 9112 §6.1 has it"
SERVER_HOST = "our server's parser wants a Host itself, gunicorn leaves it to our check"

ROWS: dict[str, Row] = {
    # RFC 6455 §4.2.1 (1): the method
    "POST": checked(request("/echo", method="POST"), 405, "method must be GET"),
    "HEAD": Row(request("/echo", method="HEAD"), (405, ""), (405, "")),  # which has no body
    "OPTIONS of all": checked(line(b"OPTIONS * HTTP/1.1"), 405, "not 'OPTIONS'"),
    "CONNECT": checked(line(b"CONNECT localhost:80 HTTP/1.1"), 405, "not 'CONNECT'"),
    "an unknown method": checked(request("/echo", method="GETS"), 405, "not 'GETS'"),
    "a method in lower case": Row(request("/echo", method="get"), (400, ""), (405, "not 'get'"), why=GUNICORN_METHOD),
    "a method of 2 letters": Row(request("/echo", method="GE"), (400, ""), (405, "not 'GE'"), why=GUNICORN_METHOD),
    "a method that is no token": parsed(request("/echo", method="G@T")),
    "a method with NUL": parsed(request("/echo", method="GET\0")),
    "POST with a body": checked(request("/echo", method="POST", Content_Length="5") + b"hello", 405, "not 'POST'"),
    "POST in chunks": checked(
        request("/echo", method="POST", Transfer_Encoding="chunked") + b"5\r\nhello\r\n0\r\n\r\n", 405, "not 'POST'"
    ),
    # (1): the version
    "HTTP/1.0": checked(request("/echo", version="HTTP/1.0"), 400, "must be HTTP/1.1, not 'HTTP/1.0'"),
    "HTTP/1.0 that wants to stay": checked(
        request("/echo", version="HTTP/1.0", Connection="keep-alive, Upgrade"), 400, "not 'HTTP/1.0'"
    ),
    "HTTP/1.9": checked(request("/echo", version="HTTP/1.9"), 400, "must be HTTP/1.1, not 'HTTP/1.9'"),
    "HTTP/0.9": parsed(request("/echo", version="HTTP/0.9")),
    "HTTP/0.9 without a version": parsed(line(b"GET /echo")),
    "HTTP/2.0": parsed(request("/echo", version="HTTP/2.0")),
    "HTTP/1": parsed(request("/echo", version="HTTP/1")),
    "HTTP/1.1.1": parsed(request("/echo", version="HTTP/1.1.1")),
    "HTTP/01.1": parsed(request("/echo", version="HTTP/01.1")),
    "HTTP/1.x": parsed(request("/echo", version="HTTP/1.x")),
    "http/1.1": parsed(request("/echo", version="http/1.1")),
    "the preface of HTTP/2": parsed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "the hello of TLS": parsed(client_hello()),
    "a frame without a handshake": parsed(frame(TEXT, b"hello")),
    # The request line: RFC 9112 §3
    "one word": parsed(line(b"GET")),
    "four words": parsed(line(b"GET /echo HTTP/1.1 x")),
    "two targets": parsed(line(b"GET /echo /page HTTP/1.1")),
    "two spaces before the target": parsed(line(b"GET  /echo HTTP/1.1")),
    "two spaces behind the target": parsed(line(b"GET /echo  HTTP/1.1")),
    "a space before the method": parsed(line(b" GET /echo HTTP/1.1")),
    "a space behind the version": parsed(line(b"GET /echo HTTP/1.1 ")),
    "tabs for spaces": parsed(line(b"GET\t/echo\tHTTP/1.1")),
    "a vertical tab for a space": parsed(line(b"GET\x0b/echo HTTP/1.1")),
    "a form feed for a space": parsed(line(b"GET /echo\x0cHTTP/1.1")),
    "a file separator for a space": parsed(line(b"GET\x1c/echo HTTP/1.1")),
    "NEL for a space": parsed(line(b"GET /echo\x85HTTP/1.1")),
    "a no-break space for a space": parsed(line(b"GET\xa0/echo HTTP/1.1")),
    "CR for a space": parsed(line(b"GET /echo\rHTTP/1.1")),
    "CR before the end of the request line": parsed(line(b"GET /echo HTTP/1.1\r")),
    "LF at the end of the request line": parsed(GOOD.replace(b"\r\n", b"\n", 1)),
    "LF at the end of every line": parsed(GOOD.replace(b"\r\n", b"\n")),
    "two empty lines first": parsed(b"\r\n\r\n" + GOOD),
    "LF first": parsed(b"\n" + GOOD),
    "a long request line": limited(line(b"GET /" + b"a" * 9_000 + b" HTTP/1.1"), 414, "limit_request_line"),
    "a request line without an end": limited(b"GET /" + b"a" * 20_000, 414, "limit_request_line"),
    # The target: RFC 9112 §3.2, RFC 6455 §4.2.1 (1)
    "a target without its slash": parsed(line(b"GET echo HTTP/1.1")),
    "asterisk form": parsed(line(b"GET * HTTP/1.1")),
    "authority form": parsed(line(b"GET localhost:80 HTTP/1.1")),
    "a backslash for the slash": parsed(line(b"GET \\echo HTTP/1.1")),
    "a fragment": parsed(line(b"GET /echo#fragment HTTP/1.1")),
    "absolute form with ws": parsed(line(b"GET ws://localhost/echo HTTP/1.1")),
    "absolute form with ftp": parsed(line(b"GET ftp://localhost/echo HTTP/1.1")),
    "absolute form without a host": parsed(line(b"GET http:///echo HTTP/1.1")),
    "absolute form with an open bracket": parsed(line(b"GET http://[::1/echo HTTP/1.1")),
    "absolute form with userinfo": parsed(line(b"GET http://user@localhost/echo HTTP/1.1")),
    "absolute form with two hosts": parsed(line(b"GET http://a.example,b.example/echo HTTP/1.1")),
    "absolute form with HTTP/1.0 and no Host": parsed(request("http://localhost/echo", version="HTTP/1.0", Host=None)),
    "absolute form of another host than the Origin's": checked(
        request("http://other.example/echo", Origin="http://localhost"), 403, "not allowed for host 'other.example'"
    ),
    "NUL in the target": parsed(line(b"GET /echo\0 HTTP/1.1")),
    "ESC in the target": parsed(line(b"GET /echo\x1b[31m HTTP/1.1")),
    "DEL in the target": parsed(line(b"GET /echo\x7f HTTP/1.1")),
    "UTF-8 in the target": parsed(line(b"GET /ech\xc3\xb6 HTTP/1.1")),
    "a high byte in the query": parsed(line(b"GET /echo?\xff HTTP/1.1")),
    # The app has no such path.
    "NUL in percent": parsed(line(b"GET /echo%00 HTTP/1.1"), 404),
    "LF in percent": parsed(line(b"GET /echo%0a HTTP/1.1"), 404),
    "bad percent": parsed(line(b"GET /echo%zz HTTP/1.1"), 404),
    "half a percent": parsed(line(b"GET /echo% HTTP/1.1"), 404),
    # (2): Host
    "no Host": Row(header("Host", None), (400, "valid Host"), (400, ""), why=SERVER_HOST),
    "an empty Host": checked(header("Host", b""), 400, "valid Host"),
    "Host twice": parsed(more(b"Host: localhost")),
    "two hosts in Host": checked(header("Host", b"localhost, localhost"), 400, "valid Host"),
    "userinfo in Host": checked(header("Host", b"user@localhost"), 400, "valid Host"),
    "a path in Host": checked(header("Host", b"localhost/echo"), 400, "valid Host"),
    "a space in Host": checked(header("Host", b"local host"), 400, "valid Host"),
    "a backslash in Host": checked(header("Host", b"local\\host"), 400, "valid Host"),
    "a high byte in Host": checked(header("Host", b"lo\xe9alhost"), 400, "valid Host"),
    "a no-break space behind Host": checked(header("Host", b"localhost\xa0"), 400, "valid Host"),
    "a name for the port in Host": checked(header("Host", b"localhost:http"), 400, "valid Host"),
    "IPv6 without brackets": checked(header("Host", b"::1"), 400, "valid Host"),
    "IPv6 with one bracket": checked(header("Host", b"[::1"), 400, "valid Host"),
    "IPv6 with a zone": checked(header("Host", b"[fe80::1%eth0]"), 400, "valid Host"),
    # (4): Connection; for (3), Upgrade, see below: without it no handshake was meant
    "no Connection": checked(header("Connection", None), 400, "Connection header must contain upgrade"),
    "an empty Connection": checked(header("Connection", b""), 400, "must contain upgrade"),
    "Connection: keep-alive": checked(header("Connection", b"keep-alive"), 400, "must contain upgrade"),
    "Connection: close": checked(header("Connection", b"close"), 400, "must contain upgrade"),
    "Connection: upgraded": checked(header("Connection", b"upgraded"), 400, "must contain upgrade"),
    "Connection in quotes": checked(header("Connection", b'"upgrade"'), 400, "must contain upgrade"),
    "Connection without a comma": checked(header("Connection", b"keep-alive upgrade"), 400, "must contain upgrade"),
    # (5): Sec-WebSocket-Key
    "no key": checked(header("Sec-WebSocket-Key", None), 400, "must be 16 bytes in base64"),
    "an empty key": checked(header("Sec-WebSocket-Key", b""), 400, "must be 16 bytes in base64"),
    "a key of 15 bytes": checked(header("Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25j"), 400, "must be 16 bytes"),
    "a key of 18 bytes": checked(header("Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZTEh"), 400, "must be 16 bytes"),
    "a key without its padding": checked(header("Sec-WebSocket-Key", KEY[:-2]), 400, "must be 16 bytes"),
    "a key that is no base64": checked(header("Sec-WebSocket-Key", b"*" * 24), 400, "must be 16 bytes"),
    "a key in base64url": checked(header("Sec-WebSocket-Key", b"dGhlIHNhbXBs-SBub25jZQ=="), 400, "must be 16 bytes"),
    "a key with a high byte": checked(header("Sec-WebSocket-Key", KEY[:-3] + b"\xe9=="), 400, "must be 16 bytes"),
    "a no-break space behind the key": checked(header("Sec-WebSocket-Key", KEY + b"\xa0"), 400, "must be 16 bytes"),
    "NEL behind the key": checked(header("Sec-WebSocket-Key", KEY + b"\x85"), 400, "must be 16 bytes"),
    "a key twice": checked(more(b"Sec-WebSocket-Key: " + KEY), 400, "must be 16 bytes"),
    "a key with underscores": checked(
        GOOD.replace(b"Sec-WebSocket-Key", b"Sec_WebSocket_Key"), 400, "must be 16 bytes"
    ),
    # (6): Sec-WebSocket-Version
    "no version": checked(header("Sec-WebSocket-Version", None), 400, "Sec-WebSocket-Version header is missing"),
    "an empty version": checked(header("Sec-WebSocket-Version", b""), 426, "must be 13, not ''"),
    "version 8": checked(header("Sec-WebSocket-Version", b"8"), 426, "must be 13, not '8'"),
    "version 14": checked(header("Sec-WebSocket-Version", b"14"), 426, "must be 13, not '14'"),
    "version 013": checked(header("Sec-WebSocket-Version", b"013"), 426, "must be 13, not '013'"),
    "version +13": checked(header("Sec-WebSocket-Version", b"+13"), 426, "must be 13, not '+13'"),
    "a version with a superscript": checked(header("Sec-WebSocket-Version", b"1\xb3"), 426, "must be 13, not '1³'"),
    "a version twice": checked(more(b"Sec-WebSocket-Version: 13"), 426, "must be 13, not '13,13'"),
    "a list of versions": checked(header("Sec-WebSocket-Version", b"13, 8"), 426, "must be 13, not '13, 8'"),
    "a version with underscores": checked(
        GOOD.replace(b"Sec-WebSocket-Version", b"Sec_WebSocket_Version"), 400, "Sec-WebSocket-Version header is missing"
    ),
    # (7): Origin
    "a foreign Origin": checked(request("/echo", Origin="https://evil.example"), 403, "'https://evil.example' is not"),
    "the Origin null": checked(request("/echo", Origin="null"), 403, "origin 'null' is not allowed"),
    "an empty Origin": checked(request("/echo", Origin=""), 403, "origin '' is not allowed"),
    "an Origin without a scheme": checked(request("/echo", Origin="localhost"), 403, "origin 'localhost' is not"),
    "an Origin with a path": checked(request("/echo", Origin="http://localhost/"), 403, "is not allowed"),
    "an Origin with userinfo": checked(request("/echo", Origin="http://localhost@evil.example"), 403, "is not allowed"),
    "an Origin that begins like ours": checked(
        request("/echo", Origin="http://localhost.evil.example"), 403, "is not allowed"
    ),
    "an Origin with a port": checked(request("/echo", Origin="http://localhost:8000"), 403, "is not allowed"),
    "a no-break space behind the Origin": checked(request("/echo", Origin="http://localhost\xa0"), 403, "is not"),
    "the own Origin twice": checked(more(b"Origin: http://localhost", b"Origin: http://localhost"), 403, "is not"),
    "the own Origin and a foreign one": checked(
        more(b"Origin: http://localhost", b"Origin: https://evil.example"), 403, "is not allowed"
    ),
    # (8): Sec-WebSocket-Protocol
    "only commas for subprotocols": checked(request("/echo", Sec_WebSocket_Protocol=", ,"), 400, "malformed"),
    "a space in a subprotocol": checked(request("/echo", Sec_WebSocket_Protocol="a b"), 400, "malformed"),
    "a slash in a subprotocol": checked(request("/echo", Sec_WebSocket_Protocol="a/b"), 400, "malformed"),
    "a subprotocol in quotes": checked(request("/echo", Sec_WebSocket_Protocol='"a"'), 400, "malformed"),
    "a subprotocol twice in one header": checked(request("/echo", Sec_WebSocket_Protocol="a, a"), 400, "twice"),
    "a subprotocol twice in two headers": checked(
        more(b"Sec-WebSocket-Protocol: a", b"Sec-WebSocket-Protocol: a"), 400, "subprotocol a is offered twice"
    ),
    # (9): Sec-WebSocket-Extensions
    "an extension without a name": checked(request("/echo", Sec_WebSocket_Extensions="; b"), 400, "malformed"),
    "an empty parameter": checked(request("/echo", Sec_WebSocket_Extensions="a;;b"), 400, "malformed"),
    "a parameter without its value": checked(request("/echo", Sec_WebSocket_Extensions="a; b="), 400, "malformed"),
    "a high byte for an extension": checked(request("/echo", Sec_WebSocket_Extensions="\xe9"), 400, "malformed"),
    "an empty quoted value": checked(request("/echo", Sec_WebSocket_Extensions='a; b=""'), 400, "malformed quoted"),
    "a comma in a quoted value": checked(request("/echo", Sec_WebSocket_Extensions='a; b="c,d"'), 400, "malformed q"),
    "a quote in a quoted value": checked(request("/echo", Sec_WebSocket_Extensions=r'a; b="\""'), 400, "malformed q"),
    "a backslash for the end": checked(request("/echo", Sec_WebSocket_Extensions='a; b="\\'), 400, "malformed"),
    "a quoted quote for the end": checked(request("/echo", Sec_WebSocket_Extensions=r'a; b="c\"'), 400, "malformed"),
    "a quoted value over two headers": checked(
        more(b'Sec-WebSocket-Extensions: a; b="c', b'Sec-WebSocket-Extensions: d"'), 400, "malformed quoted"
    ),
    "a deflate offer with a control character": parsed(
        request("/echo", Sec_WebSocket_Extensions="permessage-deflate;\x0bclient_max_window_bits")
    ),
    # Header lines: RFC 9112 §5
    "a folded header": parsed(more(b"X-Value: a", b" b")),
    "a header folded by a tab": parsed(more(b"X-Value: a", b"\tb")),
    "a folded Upgrade": parsed(header("Upgrade", b"\r\n websocket")),
    "a folded key": parsed(header("Sec-WebSocket-Key", b"\r\n " + KEY)),
    "a space before the first header": parsed(GOOD.replace(b"\r\nHost", b"\r\n Host")),
    "a tab before the first header": parsed(GOOD.replace(b"\r\nHost", b"\r\n\tHost")),
    "a line of a space": parsed(more(b" ")),
    "a space before a colon": parsed(GOOD.replace(b"Upgrade:", b"Upgrade :")),
    "a tab before a colon": parsed(GOOD.replace(b"Upgrade:", b"Upgrade\t:")),
    "a space before the colon of Host": parsed(GOOD.replace(b"Host:", b"Host :")),
    "a space in a header's name": parsed(more(b"X Value: a")),
    "a header without a name": parsed(more(b": a")),
    "a header without a colon": parsed(more(b"X-Value")),
    "a header's name that is no token": parsed(more(b"X(Value): a")),
    "a high byte in a header's name": parsed(more(b"X-V\xe9lue: a")),
    "NUL in a header's name": parsed(more(b"X\0Value: a")),
    "CR in a header's name": parsed(more(b"X\rValue: a")),
    "LF in a header's name": parsed(more(b"X\nValue: a")),
    "ESC in a header's name": parsed(more(b"X\x1bValue: a")),
    "NUL in a header": parsed(more(b"X-Value: a\0b")),
    "CR in a header": parsed(more(b"X-Value: a\rb")),
    "a header behind a bare CR": parsed(more(b"X-Value: a\rX-Other: b")),
    "LF in a header": parsed(more(b"X-Value: a\nb")),
    "a header behind a bare LF": parsed(more(b"X-Value: a\nX-Other: b")),
    "a vertical tab in a header": parsed(more(b"X-Value: a\x0bb")),
    "ESC in a header": parsed(more(b"X-Value: a\x1b[31mb")),
    "DEL in a header": parsed(more(b"X-Value: a\x7fb")),
    "a unit separator behind the key": parsed(header("Sec-WebSocket-Key", KEY + b"\x1f")),
    "a header line of 8191 bytes": limited(more(b"X-Value: " + b"a" * 8180), 431, "limit_request_field_size"),
    "a header line without an end": limited(GOOD[:-2] + b"X-Value: " + b"a" * 20_000, 431, "limit_request_field_size"),
    "101 headers": limited(more(*[b"X-Value: a"] * 96), 431, "limit_request_fields"),
    "2000 headers": limited(more(*[b"X-Value: a"] * 1995), 431, "limit_request_fields"),
    # A body: RFC 9112 §6
    "Content-Length 5 with its body": checked(more(b"Content-Length: 5") + b"hello", 400, "a handshake has no body"),
    "Content-Length 00": checked(more(b"Content-Length: 00"), 400, "a handshake has no body"),
    "Content-Length -5": parsed(more(b"Content-Length: -5")),
    "Content-Length -0": parsed(more(b"Content-Length: -0")),
    "Content-Length +5": parsed(more(b"Content-Length: +5") + b"hello"),
    "Content-Length 0x5": parsed(more(b"Content-Length: 0x5") + b"hello"),
    "Content-Length 1_0": parsed(more(b"Content-Length: 1_0")),
    "Content-Length with a superscript": parsed(more(b"Content-Length: \xb2")),
    "Content-Length five": parsed(more(b"Content-Length: five") + b"hello"),
    "an empty Content-Length": parsed(more(b"Content-Length:")),
    "Content-Length of 5000 digits": parsed(more(b"Content-Length: " + b"9" * 5_000)),
    "Content-Length twice": parsed(more(b"Content-Length: 5", b"Content-Length: 5") + b"hello"),
    "two different Content-Lengths": parsed(more(b"Content-Length: 0", b"Content-Length: 5") + b"hello"),
    "a list of Content-Lengths": parsed(more(b"Content-Length: 0, 0")),
    "Content-Length before Transfer-Encoding": parsed(
        more(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n"
    ),
    "Transfer-Encoding before Content-Length": parsed(
        more(b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n"
    ),
    "chunked": checked(more(b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 400, "a handshake has no body"),
    "chunked with no number": checked(more(b"Transfer-Encoding: chunked") + b"zz\r\n\r\n", 400, "has no body"),
    "Chunked": checked(more(b"Transfer-Encoding: Chunked") + b"0\r\n\r\n", 400, "has no body"),
    "gzip, chunked": Row(
        more(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", (400, "has no body"), (400, ""), why=GUNICORN_CODING
    ),
    "identity": parsed(more(b"Transfer-Encoding: identity")),
    "chunked twice": parsed(more(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + b"0\r\n\r\n"),
    "chunked behind a vertical tab": parsed(more(b"Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n"),
    "NEL behind chunked": Row(
        more(b"Transfer-Encoding: chunked\x85") + b"0\r\n\r\n", (501, ""), (400, ""), why=GUNICORN_501
    ),
    "an unknown coding": Row(more(b"Transfer-Encoding: xchunked"), (501, ""), (400, ""), why=GUNICORN_501),
    "chunked in HTTP/1.0": parsed(request("/echo", version="HTTP/1.0", Transfer_Encoding="chunked") + b"0\r\n\r\n"),
}

# Before 27 gunicorn calls a long request line a bad request and wants no empty line before it, and lets control
# characters and high bytes through; we mind those in the handshake's own headers only.
SINCE_GUNICORN_27 = {
    "a long request line",
    "a request line without an end",
    "NUL in the target",
    "ESC in the target",
    "DEL in the target",
    "UTF-8 in the target",
    "a high byte in the query",
    "a vertical tab in a header",
    "ESC in a header",
    "DEL in a header",
    "NEL behind chunked",
    "one empty line first",
}


@pytest.fixture
def settled_by_gunicorn(front_end: str, name: str) -> None:
    if front_end == "worker" and name in SINCE_GUNICORN_27 and gunicorn.version_info < (27,):
        pytest.skip("gunicorn before 27 answers it otherwise")


@pytest.mark.usefixtures("settled_by_gunicorn")
@pytest.mark.parametrize("name", ROWS)
def test_a_bad_handshake_is_refused_and_nothing_behind_it_is_read(
    server: Server, front_end: str, at_rest: dict[str, int], name: str
) -> None:
    status, word = getattr(ROWS[name], front_end)
    before, logged = counts(server), len(server.log)
    sent = ROWS[name].sent + SECOND
    if len(sent) > ONE_READ:
        answer = server.exchange(sent)
    else:
        with Raw(server, sent) as raw:
            answer = raw.rest()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert statuses(answer) == [status], answer
    assert b"\r\nconnection: close" in head.lower()
    assert body or name == "HEAD"
    if word:
        assert b"\r\nContent-Type: text/plain; charset=utf-8" in head
        assert word in body.decode()
    if word and ROWS[name].worker == ROWS[name].server:  # refused by the handshake
        assert re.search(rb"\r\nGeventws-Refused: [a-z-]+(\r\n|$)", head)
    assert counts(server) == before
    assert "Traceback" not in server.log[logged:]


LOGGED = {"worker": r"WARNING\] Invalid request from ip=127\.0\.0\.1: ", "server": r'"GET /echo HTTP/1\.1" 400 '}


def test_what_cannot_be_read_is_logged_with_its_own_status(server: Server, front_end: str) -> None:
    logged = len(server.log)
    with Raw(server, SECOND + ROWS["a space before a colon"].sent) as raw:
        assert statuses(raw.rest()) == [200, 400]
    wait_for(lambda: re.search(LOGGED[front_end], server.log[logged:]), "a line about it")


NOT_OURS = {
    "no Upgrade": header("Upgrade", None),
    "an empty Upgrade": header("Upgrade", b""),
    "another protocol": header("Upgrade", b"h2c"),
    "websocket with a version": header("Upgrade", b"websocket/13"),
    "websocket in quotes": header("Upgrade", b'"websocket"'),
    "a no-break space behind websocket": header("Upgrade", b"websocket\xa0"),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_request_that_asks_for_no_websocket_gets_none(server: Server, name: str) -> None:
    """RFC 6455 §4.2.1 (3): it is plain HTTP, whose connection lives on until the client ends it."""
    before = counts(server)
    with Raw(server, NOT_OURS[name]) as raw:
        raw.half_close()
        answer = raw.rest()
    assert statuses(answer) == [426]
    assert b"/echo is a WebSocket endpoint, and the request has a Sec-WebSocket-Key and no Upgrade" in answer
    assert b"proxy_set_header Upgrade $http_upgrade;" in answer
    assert b"\r\nGeventws-Refused: upgrade\r\n" in answer
    assert counts(server) == before


def test_a_plain_get_is_told_what_the_url_is_for_and_no_more(server: Server) -> None:
    sent = header("Upgrade", None).replace(b"Sec-WebSocket-Key: " + KEY + b"\r\n", b"")
    with Raw(server, sent) as raw:
        raw.half_close()
        answer = raw.rest()
    assert statuses(answer) == [426]
    assert b"/echo is a WebSocket endpoint: connect with new WebSocket(...)" in answer
    assert b"\r\nGeventws-Refused: upgrade\r\n" in answer


def test_a_lost_upgrade_still_reaches_a_page_and_is_logged_once_with_its_cure(server: Server) -> None:
    for _ in range(2):
        with Raw(server, header("Upgrade", None).replace(b"/echo", b"/page")) as raw:
            raw.half_close()
            assert raw.rest().endswith(b"page:")
    (line,) = re.findall(r"WARNING\] .* a request has a Sec-WebSocket-Key and no Upgrade.*", server.log)
    assert "proxy_set_header Upgrade $http_upgrade;" in line
    assert "upgrade=websocket" in line


def test_a_bad_handshake_behind_a_page_ends_the_connection_too(server: Server) -> None:
    before = counts(server)
    with Raw(server, SECOND + header("Sec-WebSocket-Version", b"8") + SECOND) as raw:
        assert statuses(raw.rest()) == [200, 426]
    assert counts(server) == {**before, "pages": before["pages"] + 1}


UNFINISHED = {
    "Content-Length 5": more(b"Content-Length: 5"),
    "a terabyte": more(b"Content-Length: 1000000000000") + b"x" * 1_000,
    "half a POST": request("/echo", method="POST", Content_Length="10") + b"hello",
    "no chunk": more(b"Transfer-Encoding: chunked"),
    "half a chunk": more(b"Transfer-Encoding: chunked") + b"10\r\nhello",
    "half a body behind an Origin": request("/echo", Origin="https://evil.example", Content_Length="10") + b"hello",
}


@pytest.mark.parametrize("name", UNFINISHED)
def test_a_refused_handshake_ends_without_waiting_for_its_body(server: Server, name: str) -> None:
    with Raw(server, UNFINISHED[name]) as raw:
        answer = raw.rest()
    assert len(statuses(answer)) == 1
    assert statuses(answer)[0] in {400, 403, 405}


# Requests that are no handshake, and no way to smuggle one


@pytest.mark.parametrize("upgrade", [b"", b"Upgrade: h2c\r\n"])
def test_the_body_of_another_upgrade_ends_where_its_length_says(server: Server, upgrade: bytes) -> None:
    post = (
        b"POST /page HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\n%sContent-Length: 5\r\n\r\nhello" % upgrade
    )
    with Raw(server, post + SECOND) as raw:
        for body in (b"page:hello", b"page:"):
            assert raw.head().startswith("HTTP/1.1 200 ")
            assert raw.take(len(body)) == body


def test_nothing_behind_a_broken_body_is_taken_for_a_request(server: Server) -> None:
    before = counts(server)
    with Raw(server, b"POST /page HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZ" + SECOND) as raw:
        assert len(statuses(raw.rest())) == 1
    assert counts(server)["pages"] == before["pages"] + 1


# Good handshakes that look odd

ODD = {
    "absolute form": request("http://localhost/echo"),
    "absolute form with https": request("https://localhost/echo"),
    "absolute form in capitals": request("HTTP://LOCALHOST/echo"),
    "absolute form with port and query": request("http://localhost:8000/echo?a=b"),
    "absolute form with IPv6": request("http://[::1]:8000/echo"),
    "a query with every character": request("/echo?!$&'()*+,-./09:;=?@AZ[]_az~%00"),
    "percent in the path": request("/%65cho"),
    "a request line of 4,000 characters": request("/echo?" + "a" * 4_000),
    "one empty line first": b"\r\n" + GOOD,  # RFC 9112 §2.2: to be ignored
    "IPv6 Host": header("Host", b"[::1]"),
    "IPv6 Host with a port": header("Host", b"[2001:DB8::7]:8000"),
    "Host with an empty port": header("Host", b"localhost:"),
    "no space behind the colons": GOOD.replace(b": ", b":"),
    "blanks around the values": re.sub(rb": (.*)\r\n", rb": \t \1 \t\r\n", GOOD),
    "names in lower case": re.sub(rb"\r\n.*?:", lambda name: name[0].lower(), GOOD),
    "a header line of 8190 bytes": more(b"X-Value: " + b"a" * 8179),
    "100 headers": more(*[b"X-Value: a"] * 95),
    "high bytes in a header": more(b"X-Value: \x85\xa0\xc3\xa9\xff"),
    "Upgrade twice": more(b"Upgrade: websocket"),
    "another Upgrade before": GOOD.replace(b"Upgrade:", b"Upgrade: h2c\r\nUpgrade:", 1),
    "Connection: close, upgrade": header("Connection", b"close, upgrade"),
    "Connection: keep-alive, Upgrade": header("Connection", b"keep-alive, Upgrade"),
    "Connection twice": more(b"Connection: keep-alive"),
    "Content-Length 0": more(b"Content-Length: 0"),
    "an empty header of subprotocols": more(b"Sec-WebSocket-Protocol:"),
    "an empty header of extensions": more(b"Sec-WebSocket-Extensions: "),
    "an empty header and one of subprotocols": more(b"Sec-WebSocket-Protocol:", b"Sec-WebSocket-Protocol: b"),
    "two headers of subprotocols": more(b"Sec-WebSocket-Protocol: a", b"Sec-WebSocket-Protocol: b"),
    "two headers of extensions": more(b"Sec-WebSocket-Extensions: a", b"Sec-WebSocket-Extensions: a; b"),
    "a backslash in a quoted value": request("/echo", Sec_WebSocket_Extensions=r'a; b="\c\d"'),
    "another key with underscores": more(b"Sec_WebSocket_Key: AAAAAAAAAAAAAAAAAAAAAA=="),
    "a foreign origin with underscores": more(b"Origin_: https://evil.example"),
    "a length with underscores": more(b"Content_Length: 5"),
    "a coding with underscores": more(b"Transfer_Encoding: chunked"),
}


@pytest.mark.usefixtures("settled_by_gunicorn")
@pytest.mark.parametrize("name", ODD)
def test_a_good_handshake_that_looks_odd_is_taken(server: Server, name: str) -> None:
    assert f"Sec-WebSocket-Accept: {ACCEPT}" in assert_echoes(server, ODD[name]).split("\r\n")


def test_an_expectation_is_answered_before_the_handshake(server: Server, front_end: str) -> None:
    # RFC 9110 §10.1.1: our server leaves the 100 out, as there is no body that could wait for it.
    first = [100] if front_end == "worker" else []
    expect = b"Expect: 100-continue"
    with Raw(server, more(expect) + close_frame(1000)) as raw:
        assert statuses(raw.rest()) == [*first, 101]
    with Raw(server, more(expect, b"Content-Length: 5") + b"hello") as raw:
        assert statuses(raw.rest()) == [*first, 400]


def test_a_handshake_may_be_cut_in_two_anywhere(server: Server) -> None:
    sent = GOOD + frame(TEXT, b"hello")
    with ExitStack() as stack:
        cut = [stack.enter_context(Raw(server, sent[:position])) for position in range(1, len(sent))]
        counts(server)  # its connection is behind theirs: by now the server has read all of them
        for position, raw in enumerate(cut, 1):
            raw.send(sent[position:])
        for raw in cut:
            assert raw.head().startswith("HTTP/1.1 101 ")
            assert raw.frame() == (TEXT, b"hello")


LISTS = {
    "subprotocols": [
        b"Sec-WebSocket-Protocol: " + b",".join(b"%x" % n for n in range(k, k + 1_000)) for k in range(90)
    ],
    "extensions": [b"Sec-WebSocket-Extensions: " + b",".join([b"a"] * 4_000)] * 90,
    "offers": [b"Sec-WebSocket-Extensions: " + b",".join([b"permessage-deflate;client_max_window_bits=9"] * 180)] * 90,
    "parameters": [b"Sec-WebSocket-Extensions: permessage-deflate" + b";b" * 4_000] * 90,
    "backslashes": [b'Sec-WebSocket-Extensions: permessage-deflate;b="' + b"\\c" * 4_000 + b'"'] * 90,
    "commas": [b"Sec-WebSocket-Extensions: a" + b"," * 8_000] * 90,
    "spaces": [b"Sec-WebSocket-Extensions: a" + b" " * 8_000 + b";"] * 90,
    "Connections": [b"Connection: " + b"a," * 4_000] * 90,
    "Upgrades": [b"Upgrade: " + b"a," * 4_000] * 90,
    "origins": [b"Origin: " + b"http://localhost" * 500] * 90,
}


@pytest.mark.parametrize("name", LISTS)
def test_a_head_full_of_offers_costs_no_more_than_another_of_its_size(
    server: Server, front_end: str, name: str
) -> None:
    lines = LISTS[name][: 90 if front_end == "worker" else 7]  # nearly as many as its parser lets through

    def cost(sent: bytes) -> float:
        before = cpu_seconds(process_id(server))
        for _ in range(3):
            assert len(statuses(server.exchange(sent + close_frame(1000)))) == 1
        return cpu_seconds(process_id(server)) - before

    plain = [b"X-Value: " + b"a" * (len(header) - 9) for header in lines]
    assert cost(more(*lines)) < 2 * cost(more(*plain)) + 0.3


# Limits of the server's own, in gunicorn's names

SIZED: dict[str, Callable[[int], bytes]] = {
    "limit_request_line": lambda size: line(b"GET /echo?%s HTTP/1.1" % (b"a" * (size - 19))),
    "limit_request_fields": lambda count: more(*[b"X-Value: a"] * (count - GOOD.count(b"\r\n") + 2)),
    "limit_request_field_size": lambda size: more(b"X-Value: " + b"a" * (size - 11)),
}
DEFAULTS = {"limit_request_line": 8190, "limit_request_fields": 100, "limit_request_field_size": 8190}
OTHERS = {"limit_request_line": 100, "limit_request_fields": 300, "limit_request_field_size": 70_000}


@pytest.mark.parametrize("way", ["default", "flags", "variables", "flags before variables"])
def test_a_request_head_has_gunicorns_limits_to_the_byte(tmp_path: Path, way: str) -> None:
    limits = DEFAULTS if way == "default" else OTHERS
    flags = [f"--{name.replace('_', '-')}={limit}" for name, limit in limits.items() if "flags" in way]
    variables = {f"GEVENTWS_{name.upper()}": str(limit) for name, limit in limits.items() if "variables" in way}
    if way == "flags before variables":
        variables = dict.fromkeys(variables, "50")
    with serve(APP, tmp_path, front_end="server", arguments=flags, env=variables) as server:
        for name, limit in limits.items():
            assert_echoes(server, SIZED[name](limit))
            answer = server.exchange(SIZED[name](limit + 1))
            assert statuses(answer) == [414 if name == "limit_request_line" else 431]
            assert answer.endswith(b" %s allows\n" % name.encode())
            server.wait_for_log(rf"ERROR\] .* {name} allows$")
        lines = 8 * limits["limit_request_field_size"] // 2000
        assert_echoes(server, more(*[b"X-Value: " + b"a" * 1989] * (lines - 1)))
        assert b"all header lines together" in server.exchange(more(*[b"X-Value: " + b"a" * 1989] * (lines + 1)))


OWN_SERVERS = {
    "of gevent": "gevent.pywsgi.WSGIServer(('127.0.0.1', 0), app, handler_class=geventws.WebSocketHandler)",
    "of geventws": "geventws.WebSocketServer(('127.0.0.1', 0), app, options={'limit_request_line': 100})",
}


@pytest.mark.parametrize("made", OWN_SERVERS)
def test_the_server_of_a_program_has_limits_too(tmp_path: Path, made: str) -> None:
    code = f"""
import gevent.pywsgi
import geventws
from tests.apps_bad_handshakes import app
server = {OWN_SERVERS[made]}
server.start()
print(f'serves app on http://127.0.0.1:{{server.server_port}}', flush=True)
server.serve_forever()
"""
    env = {"PYTHONPATH": str(ROOT), "GEVENTWS_LIMIT_REQUEST_LINE": "100" if made == "of gevent" else "50"}
    server = Server([sys.executable, "-c", code], "127.0.0.1:0", None, tmp_path / "log", env)
    try:
        assert_echoes(server, SIZED["limit_request_line"](100))
        assert statuses(server.exchange(SIZED["limit_request_line"](101))) == [414]
    finally:
        server.stop()


@pytest.mark.parametrize("tls", [False, True], ids=["TCP", "TLS"])
def test_a_refusal_is_not_lost_by_what_the_client_still_sends(
    tmp_path: Path, certificate: Certificate, tls: bool
) -> None:
    with serve(APP, tmp_path, front_end="server", certificate=certificate if tls else None) as server:
        for _ in range(20):
            answer = server.exchange(more(b"X-Value: " + b"a" * 400_000))
            assert statuses(answer) == [431]
            assert answer.endswith(b"limit_request_field_size allows\n")
        assert server.log.count('"GET /echo HTTP/1.1" 431 ') == 20


def test_limits_that_are_gunicorns_are_told_to_be(tmp_path: Path) -> None:
    with serve(APP, tmp_path, front_end="worker", env={"GEVENTWS_LIMIT_REQUEST_LINE": "100"}) as server:
        server.wait_for_log(r"WARNING\] GEVENTWS_LIMIT_REQUEST_LINE .*use --limit-request-line$")


# Slow handshakes


def cut_off(sockets: dict[str, socket.socket], drips: dict[str, bytes]) -> dict[str, bytes]:
    """Send each drip byte by byte until the server has ended all connections; return what it sent on each."""
    received = dict.fromkeys(sockets, b"")
    sent = 0
    end = time.monotonic() + DEADLINE
    with selectors.DefaultSelector() as selector:
        for name, sock in sockets.items():
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ, name)
        while waiting := {key.data for key in selector.get_map().values()}:
            assert time.monotonic() < end, f"still open: {waiting}"
            for name in waiting & drips.keys():
                with suppress(ConnectionError):
                    sockets[name].send(drips[name][sent : sent + 1])
            sent += 1
            for key, _ in selector.select(0.1):
                data = b""
                with suppress(ConnectionError):
                    data = sockets[key.data].recv(65536)
                received[key.data] += data
                if not data:
                    selector.unregister(sockets[key.data])
    return received


def test_a_head_that_dribbles_in_is_cut_and_leaves_nothing(server: Server, at_rest: dict[str, int]) -> None:
    logged = len(server.log)
    hello = client_hello().replace(b"\n", b"\r")  # a line without an end, as most are
    begun = {"silence": b"", "a method": GOOD[:3], "a line": GOOD[:24], "all but the end": GOOD[:-1], "TLS": hello}
    drips = {"a dribble": GOOD, "a dribble behind a page": GOOD}
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(server.socket()) for name in [*begun, *drips]}
        for name, sent in begun.items():
            sockets[name].sendall(sent)
        sockets["a dribble behind a page"].sendall(SECOND)
        assert_echoes(server)
        received = cut_off(sockets, drips)
    assert received.pop("a dribble behind a page").endswith(b"page:")
    assert set(received.values()) == {b""}
    wait_for(lambda: held(server) == at_rest, "the end of what was slow")
    assert "Traceback" not in server.log[logged:]


def test_gunicorn_without_keep_alive_cuts_a_slow_head_too(tmp_path: Path) -> None:
    with (
        serve(APP, tmp_path, front_end="worker", arguments=("--keep-alive", "0")) as server,
        server.socket() as sock,
    ):
        assert_echoes(server)
        sock.sendall(GOOD[:-1])
        assert sock.recv(1) == b""


def test_a_tls_handshake_that_dribbles_in_is_cut_and_leaves_nothing(tls_server: Server) -> None:
    assert_echoes(tls_server)
    held(tls_server)
    at_rest = held(tls_server)
    begun = {"silence": b"", "half a hello": client_hello()[:100], "a hello": client_hello()}
    drips = {"a dribble": client_hello()}
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(plain_socket(tls_server)) for name in [*begun, *drips]}
        for name, sent in begun.items():
            sockets[name].sendall(sent)
        assert_echoes(tls_server)
        received = cut_off(sockets, drips)
    assert received.pop("a hello")[:1] == b"\x16"  # its own hello, in vain
    assert set(received.values()) == {b""}
    timed_out = "TLS handshake failed: TLS handshake timed out"
    wait_for(lambda: tls_server.log.count(timed_out) == len(sockets), "a line about each")
    wait_for(lambda: held(tls_server) == at_rest, "the end of what was slow")
    assert "Traceback" not in tls_server.log


@pytest.mark.parametrize("sent", [GOOD, SECOND])
def test_http_on_the_tls_port_gets_no_answer_in_http(tls_server: Server, sent: bytes) -> None:
    before = counts(tls_server)
    answer = b""
    with plain_socket(tls_server) as sock, suppress(ConnectionResetError):  # what it leaves unread makes that
        sock.sendall(sent)
        while data := sock.recv(65536):
            answer += data
    assert statuses(answer) == []
    assert counts(tls_server) == before
    assert "Traceback" not in tls_server.log


# The end


def test_after_all_that_an_echo_comes_and_nothing_is_left(server: Server, at_rest: dict[str, int]) -> None:
    assert_echoes(server)
    wait_for(lambda: held(server) == at_rest, "the end of every greenlet and descriptor")
    assert server.log.count("Booting worker") <= 1
