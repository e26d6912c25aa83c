"""Fuzz target: a request head of any bytes, through the handler of WebSocketServer, then through the handshake.

What it takes for a handshake must be one for gunicorn's parser, and so for Worker, too.
"""

from __future__ import annotations

import io
import re
import socket
from collections.abc import Iterable, Iterator

import gevent
from gevent.pywsgi import MAX_REQUEST_LINE
from gunicorn.config import Config
from gunicorn.http import RequestParser

from geventws.server import WebSocketHandler, WebSocketServer

from .handshake import answer

SERVER = WebSocketServer(("127.0.0.1", 0), lambda environ, start_response: [])  # never started
SOCKET = socket.socket()  # which a handler has, though it reads from a BufferedReader here
SOCKET.close()
LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\0-\x08\n-\x1f\x7f]*)\r\n")
CONTROL = re.compile(r"[\0-\x08\n-\x1f\x7f]")
GUNICORN = Config()
ABSOLUTE_FORM = re.compile(r"https?://([^/?#]+)", re.IGNORECASE)


def run(data: bytes) -> None:
    """Raise whatever an input proves to be wrong."""
    reader = io.BufferedReader(io.BytesIO(data))
    handler = WebSocketHandler(SOCKET, ("127.0.0.1", 1), SERVER, reader)
    handler._patience = gevent.Timeout()
    handler.requestline = handler.read_requestline()
    if not handler.requestline or len(handler.requestline) >= MAX_REQUEST_LINE:
        return
    try:
        handler.read_request(handler.requestline)
    except (ValueError, OSError):
        return  # which pywsgi answers with 400, or not at all
    environ = handler.get_environ()
    head = data.removeprefix(b"\r\n")  # RFC 9112 §2.2: one empty line may come first
    expected, rest = _headers(head)
    is_absolute = ABSOLUTE_FORM.match(handler.requestline.split()[1])
    if is_absolute:
        expected["HTTP_HOST"] = is_absolute[1]
    assert {name: value for name, value in environ.items() if name.startswith("HTTP_")} == expected
    assert not any(CONTROL.search(value) for value in expected.values())
    assert handler.path.isascii() and handler.path.isprintable()
    assert reader.read() == rest
    # gunicorn leaves Host as it is, and answers an Expect that it does not know with 417.
    if answer(environ, SERVER.gateway.options) and not is_absolute and "HTTP_EXPECT" not in expected:
        request = next(RequestParser(GUNICORN, iter([head]), ("127.0.0.1", 1)))
        assert request.method == environ["REQUEST_METHOD"] and request.version == (1, 1)
        assert _joined(request.headers) == expected


def _headers(data: bytes) -> tuple[dict[str, str], bytes]:
    """Return the headers of a head, and what follows it."""
    _, _, rest = data.partition(b"\n")
    headers = []
    while not rest.startswith(b"\r\n"):
        line = LINE.match(rest)
        assert line, "malformed line was let through"
        rest = rest[line.end() :]
        headers.append((line[1].decode(), line[2].decode("latin-1").strip(" \t")))
    return _joined(headers), rest[2:]


def _joined(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers as WSGI has them: PEP 3333's names, values joined as in RFC 9110 §5.3 and RFC 6265 §5.4."""
    joined: dict[str, str] = {}
    for name, value in headers:
        if "_" in name or name.lower() in ("content-type", "content-length"):
            continue
        variable = "HTTP_" + name.upper().replace("-", "_")
        comma = "; " if "COOKIE" in variable else ","  # in any name, as pywsgi does it
        joined[variable] = f"{joined[variable]}{comma}{value}" if variable in joined else value
    return joined


def seeds() -> Iterator[bytes]:
    """Yield requests, good and bad ones, to start from."""
    good = (
        b"Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
    )
    frame = b"\x81\x80\x37\xfa\x21\x3d"
    for line in (
        b"GET /chat?room=1 HTTP/1.1\r\n",
        b"GET http://[::1]:8000?a HTTP/1.1\r\n",
        b"POST HTTPS://a HTTP/1.0\r\n",
        b"OPTIONS * HTTP/1.9\r\n",
        b"GET /\r\n",
        b"GET / HTTP/1\r\n",
        b"GET / HTTP/1.1\n",
        b"GET chat HTTP/1.1\r\n",
        b"GET /\0\xff HTTP/1.1\r\n",
        b"GET http://\0\xff HTTP/1.1\r\n",
        b"CONNECT \0\xff HTTP/1.1\r\n",
        b"\x0bGET  /\x85HTTP/1.1 \r\n",
        b"\r\nGET / HTTP/1.1\r\n",
        b"\r\n\r\nGET / HTTP/1.1\r\n",
    ):
        yield line + good + b"\r\n\r\n" + frame
        yield line + b"\r\n"
    for more in (
        b"Origin: http://localhost\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: v2.chat",
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        b"Cookie: a=b\r\nCookie: c=d\r\nX_Underscore: 1\r\nContent-Type: text/plain",
        b"Content-Length: 0",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nExpect: 100-continue",
        b"Folded: a\r\n b",
        b"Space : a\r\nNul: \0",
        b"Ends-Like-A-Space: \xc3\xa0",
        b"Host: b",
        b"\r\n".join([b"A:"] * 95),
    ):
        yield b"GET / HTTP/1.1\r\n" + good + b"\r\n" + more + b"\r\n\r\n" + frame
