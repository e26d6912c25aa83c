"""Both front ends as a client meets them: TCP and Unix sockets, plain and TLS, all with the same behaviour."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from email.message import Message
from pathlib import Path
from typing import NamedTuple

import pytest
from werkzeug.http import dump_cookie

from geventws.command.arguments import version

from .raw import ACCEPT, BINARY, CLOSE, PING, PONG, TEXT, Raw, close_frame, frame, request
from .servers import FRONT_ENDS, ROOT, Server, serve, upgrade_request, wait_for

pytestmark = pytest.mark.slow  # it starts servers or installs packages

Certificate = tuple[str, str, ssl.SSLContext]

KINDS = {
    f"{front_end}-{'unix' if unix else 'tcp'}-{'tls' if tls else 'plain'}": (front_end, unix, tls)
    for front_end, unix, tls in itertools.product(FRONT_ENDS, (False, True), (False, True))
}
# Where all eight would take long: each front end once, and each kind of socket.
on_two = pytest.mark.parametrize("server", ["worker-tcp-plain", "server-unix-tls"], indirect=True)

# gunicorn's access line as ours is: the duration in seconds at its end.
ACCESS_FORMAT = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s %(L)s'
TUNED = {
    "GEVENTWS_PING_INTERVAL": "0.2",
    "GEVENTWS_PING_TIMEOUT": "0.2",
    "GEVENTWS_ACCEPT_AFTER": "0.3",
    "GEVENTWS_CLOSE_TIMEOUT": "0.3",
    "GEVENTWS_SUBPROTOCOLS": "chat.v2, chat.v1",
    "GEVENTWS_ORIGINS": "https://app.example, *.example.org",
}

_ids = itertools.count(1)

PLAIN = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

Start = Callable[..., Server]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Start]:
    """start(app, kind, env) serves an app until the module ends; the same again gives the same server."""
    running: dict[tuple[str, str, str], Server] = {}
    with ExitStack() as stack:

        def start(app: str, kind: str, env: dict[str, str] | None = None) -> Server:
            key = (app, kind, repr(env))
            if key not in running:
                front_end, unix, tls = KINDS[kind]
                running[key] = stack.enter_context(
                    serve(
                        app,
                        tmp_path_factory.mktemp("live"),
                        front_end=front_end,
                        unix=unix,
                        certificate=certificate if tls else None,
                        arguments=("--access-logformat", ACCESS_FORMAT) if front_end == "worker" else (),
                        env=env,
                    )
                )
            return running[key]

        yield start
        for server in running.values():  # all at once: each takes its second
            server.process.terminate()


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, start: Start) -> Server:
    return start("tests.apps_live:app", request.param)


@pytest.fixture(params=FRONT_ENDS)
def tuned(request: pytest.FixtureRequest, start: Start) -> Server:
    return start("tests.apps_live:app", f"{request.param}-tcp-plain", TUNED)


@pytest.fixture(params=FRONT_ENDS)
def bare(request: pytest.FixtureRequest, start: Start) -> Server:
    return start("tests.apps_live:bare", f"{request.param}-tcp-plain")


class Answer(NamedTuple):
    status: int
    headers: Message
    body: str


def unique(path: str) -> str:
    """Return the path with a query by which its access line can be found."""
    return f"{path}?id={next(_ids)}"


def ask(server: Server, sent: bytes) -> Answer:
    """Return the HTTP answer to a request, behind which the server must close the connection."""
    with server.socket() as sock:
        sock.sendall(sent)
        with http.client.HTTPResponse(sock) as response:
            response.begin()
            body = response.read().decode()
            assert sock.recv(1) == b"", "the connection was left open"
            return Answer(response.status, response.headers, body)


def access_line(server: Server, path: str) -> tuple[int, int, float]:
    """Return status, bytes sent and seconds of the only access line for a path, once it is written."""
    pattern = rf'"GET {re.escape(path)} HTTP/1\.1" (\d+) (\d+|-) (\d+\.\d+)$'
    server.wait_for_log(pattern)
    ((status, size, seconds),) = re.findall(pattern, server.log, re.MULTILINE)
    return int(status), int(size.replace("-", "0")), float(seconds)


@contextmanager
def logged(server: Server) -> Iterator[Callable[[], str]]:
    """Give a function that returns what the server logged since here."""
    start = len(server.log)
    yield lambda: server.log[start:]


# The opening handshake


def test_the_handshake_of_the_rfc_gets_the_accept_value_of_the_rfc(server: Server) -> None:
    with Raw(server, upgrade_request("/echo")) as raw:
        status, *headers = raw.head().split("\r\n")
        assert status == "HTTP/1.1 101 Switching Protocols"
        assert headers == ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {ACCEPT}"]
        raw.send(frame(TEXT, b"Hello"))
        assert raw.frame() == (TEXT, b"Hello")


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(request("/echo", Upgrade="WebSocket", Connection="keep-alive, UPGRADE"), id="case"),
        pytest.param(request("/echo", Upgrade="h2c, websocket"), id="list"),
        pytest.param(request("/echo", Content_Length="0"), id="length 0"),
        pytest.param(request("http://localhost/echo"), id="absolute form"),
    ],
)
def test_a_handshake_may_be_written_in_other_ways(server: Server, sent: bytes) -> None:
    with Raw(server, sent) as raw:
        assert raw.head().startswith("HTTP/1.1 101 ")


@on_two
def test_a_handshake_may_come_byte_by_byte(server: Server) -> None:
    with Raw(server, b"") as raw:
        for byte in request("/echo") + frame(TEXT, b"slow"):
            raw.send(bytes([byte]))
        raw.head()
        assert raw.frame() == (TEXT, b"slow")


@pytest.mark.parametrize(
    "early",
    [
        pytest.param([b"early"], id="one"),
        pytest.param([b"x" * 9_000], id="more than a reader's buffer"),
        pytest.param([b"x" * 50_000, b"y"], id="several TLS records"),
        pytest.param([b"%d" % number for number in range(3_000)], id="more than the queue holds"),
    ],
)
@pytest.mark.parametrize("path", ["/echo", "/environ"])
def test_frames_that_come_with_the_handshake_are_the_first_messages(
    server: Server, path: str, early: list[bytes]
) -> None:
    with Raw(server, request(path) + b"".join(frame(TEXT, payload) for payload in early)) as raw:
        raw.head()
        assert [raw.frame() for _ in early] == [(TEXT, payload) for payload in early]


def test_a_ping_that_comes_with_the_handshake_is_answered_behind_the_101(server: Server) -> None:
    with Raw(server, request("/echo") + frame(PING, b"early") + frame(TEXT, b"then")) as raw:
        assert raw.head().startswith("HTTP/1.1 101")
        assert [raw.frame(), raw.frame()] == [(PONG, b"early"), (TEXT, b"then")]


def test_a_close_that_comes_with_the_handshake_is_answered_behind_the_101(server: Server) -> None:
    with Raw(server, request("/echo") + close_frame(4001)) as raw:
        assert raw.head().startswith("HTTP/1.1 101")
        assert raw.closes() == (4001, "")
        assert raw.rest() == b""


def test_two_greenlets_that_use_it_first_at_once_make_one_101(server: Server) -> None:
    with Raw(server, request("/two-uses") + frame(TEXT, b"hi")) as raw:
        assert raw.head().startswith("HTTP/1.1 101")
        assert {raw.frame(), raw.frame()} == {(TEXT, b"from the other greenlet"), (TEXT, b"got 'hi'")}
        assert raw.closes() == (1000, "")


def test_asking_whether_it_is_closed_is_a_first_use(server: Server) -> None:
    with Raw(server, request("/asks-closed")) as raw:
        assert raw.head().startswith("HTTP/1.1 101")
        raw.send(close_frame(1000))
        assert raw.closes() == (1000, "")


def test_cookies_and_subprotocol_leave_on_the_101(server: Server) -> None:
    with Raw(server, request("/cookie", Sec_WebSocket_Protocol="other, chat.v1, chat.v2")) as raw:
        headers = raw.head().split("\r\n")[1:]
        assert "Sec-WebSocket-Protocol: chat.v1" in headers
        assert "Set-Cookie: room=7; Path=/" in headers
        assert raw.frame() == (TEXT, b"chat.v1")


def test_without_a_common_subprotocol_none_is_chosen(server: Server) -> None:
    with Raw(server, request("/cookie", Sec_WebSocket_Protocol="Chat.v1, chat")) as raw:
        assert "Sec-WebSocket-Protocol" not in raw.head()
        assert raw.frame() == (TEXT, b"None")


def test_an_unknown_extension_is_declined(server: Server) -> None:
    with Raw(server, request("/echo", Sec_WebSocket_Extensions='x-unknown; size="12", other')) as raw:
        assert "Sec-WebSocket-Extensions" not in raw.head()


def test_a_view_cannot_inject_a_header(server: Server) -> None:
    with Raw(server, request("/injects")) as raw:
        assert "X-Value" not in raw.head()
        assert len(json.loads(raw.frame()[1])) == 4


def test_a_second_accept_gets_a_clear_error(server: Server) -> None:
    with Raw(server, request("/accept-twice")) as raw:
        raw.head()
        assert b"the handshake is already complete" in raw.frame()[1]


REFUSALS = {
    "POST": (request("/echo", method="POST"), 405, "the method must be GET", {"Allow": "GET"}),
    "HTTP/1.0": (request("/echo", version="HTTP/1.0"), 400, "must be HTTP/1.1", {}),
    "version 8": (
        request("/echo", Sec_WebSocket_Version="8"),
        426,
        "Sec-WebSocket-Version must be 13",
        {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"},
    ),
    "no version": (request("/echo", Sec_WebSocket_Version=None), 400, "Sec-WebSocket-Version header is missing", {}),
    "no key": (request("/echo", Sec_WebSocket_Key=None), 400, "Sec-WebSocket-Key must be 16 bytes", {}),
    "short key": (request("/echo", Sec_WebSocket_Key="c2hvcnQ="), 400, "Sec-WebSocket-Key must be 16 bytes", {}),
    "no base64": (request("/echo", Sec_WebSocket_Key="*" * 24), 400, "Sec-WebSocket-Key must be 16 bytes", {}),
    "Connection": (request("/echo", Connection="keep-alive"), 400, "Connection header must contain upgrade", {}),
    "body": (request("/echo", Content_Length="5") + b"hello", 400, "a handshake has no body", {}),
    "chunked": (request("/echo", Transfer_Encoding="chunked") + b"0\r\n\r\n", 400, "a handshake has no body", {}),
    "extensions": (request("/echo", Sec_WebSocket_Extensions="a;;b"), 400, "malformed Sec-WebSocket-Extensions", {}),
    "subprotocol": (request("/echo", Sec_WebSocket_Protocol="a b"), 400, "malformed Sec-WebSocket-Protocol", {}),
    "offered twice": (request("/echo", Sec_WebSocket_Protocol="a, a"), 400, "subprotocol a is offered twice", {}),
    "bad Host": (request("/echo", Host="a/b"), 400, "Host header", {}),
    "Origin": (
        request("/echo", Origin="https://evil.example"),
        403,
        "origin 'https://evil.example' is not allowed",
        {},
    ),
    "null Origin": (request("/echo", Origin="null"), 403, "origin 'null' is not allowed for host 'localhost'", {}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_names_the_rule_and_closes_the_connection(server: Server, name: str) -> None:
    sent, status, rule, headers = REFUSALS[name]
    answer = ask(server, sent)
    assert (answer.status, answer.headers["Connection"]) == (status, "close")
    assert answer.headers.get_content_type() == "text/plain"
    assert rule in answer.body
    assert {header: answer.headers[header] for header in headers} == headers


def test_a_refusal_of_head_has_no_body(server: Server) -> None:
    head, _, body = server.exchange(request("/echo", method="HEAD")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405 ")
    assert body == b""


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(request("/echo", Host=None), id="no Host"),
        pytest.param(request("/echo", Host=""), id="empty Host"),
        pytest.param(request("/echo").replace(b"\r\n\r\n", b"\r\nHost: other\r\n\r\n"), id="two Hosts"),
        pytest.param(request("/echo", X_Value="a\rb"), id="CR in a header"),
        pytest.param(request("/echo", X_Value="a\0b"), id="NUL in a header"),
        pytest.param(request("/echo").replace(b"Upgrade:", b"Upgrade :"), id="space before a colon"),
        pytest.param(request("/echo", Content_Length="+5") + b"hello", id="signed Content-Length"),
    ],
)
def test_a_request_that_can_be_misread_is_refused_with_400(server: Server, sent: bytes) -> None:
    with logged(server) as log:
        answer = server.exchange(sent)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert "Traceback" not in log()


@pytest.mark.parametrize("sent", [REFUSALS["POST"][0], REFUSALS["Origin"][0], request("/unauthorized")])
def test_nothing_behind_a_refused_handshake_is_taken_for_a_request(server: Server, sent: bytes) -> None:
    assert server.exchange(sent + b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("protocol", ["h2c", "TLS/1.0", "websocketish"])
def test_another_upgrade_passes_through_untouched(server: Server, protocol: str) -> None:
    sent = f"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n".encode()
    with Raw(server, sent) as raw:
        for _ in range(2):  # and the connection lives on
            head = raw.head()
            assert head.startswith("HTTP/1.1 200 OK\r\n")
            assert "connection: close" not in head.lower()
            assert raw.take(5) == b"hello"
            raw.send(sent)


def test_a_foreign_origin_is_logged_with_the_cure(server: Server) -> None:
    with logged(server) as log:
        ask(server, request("/echo", Host="intern:8000", Origin="https://shop.example"))
        (line,) = (line for line in log().splitlines() if "refused" in line)
    for part in ("/echo", "https://shop.example", "intern:8000", "origins", "proxy_set_header Host $http_host;"):
        assert part in line


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("localhost:8000", "http://LOCALHOST:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("shop.example", "https://shop.example:443"),
    ],
)
def test_the_own_origin_is_welcome(server: Server, host: str, origin: str) -> None:
    with Raw(server, request("/echo", Host=host, Origin=origin)) as raw:
        assert raw.head().startswith("HTTP/1.1 101")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://app.example", 101),
        ("https://a.example.org", 101),
        (None, 101),
        ("http://app.example", 403),
        ("https://example.org", 403),
        ("https://example.org.evil.example", 403),
        ("http://localhost", 403),
    ],
)
def test_the_option_origins_decides(tuned: Server, origin: str | None, status: int) -> None:
    with Raw(tuned, request("/echo", Origin=origin)) as raw:
        assert raw.head().startswith(f"HTTP/1.1 {status} ")


@pytest.mark.parametrize("unix", [False, True], ids=["TCP", "Unix"])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_page_whose_name_was_made_to_lead_here_is_refused_by_the_option_hosts(
    tmp_path: Path, front_end: str, unix: bool
) -> None:
    env = {"GEVENTWS_HOSTS": "loopback, app.example"}
    with serve("tests.apps:app", tmp_path, front_end=front_end, unix=unix, env=env) as server:
        for host in ("127.0.0.1:8000", "[::1]", "app.localhost", "APP.example.:444"):
            with Raw(server, request("/echo", Host=host, Origin=f"http://{host}")) as raw:
                assert raw.head().startswith("HTTP/1.1 101 ")
        for sent in (
            request("/echo", Host="evil.example:8000", Origin="http://evil.example:8000"),
            request("http://evil.example:8000/echo", Host="localhost", Origin="http://evil.example:8000"),
        ):
            answer = ask(server, sent)
            assert (answer.status, answer.headers["Connection"]) == (421, "close")
            assert answer.body == (
                "421 Misdirected Request: host 'evil.example:8000' is not allowed by the option hosts\n"
            )
        assert ask(server, request("/echo", Host=None)).status == 400
        server.wait_for_log(r"WARNING.* /echo refused: 421 .*hosts; if it is a name of this server, add it .*HOSTS=")


# The view decides: HTTP answers to requests for a WebSocket

ANSWERS: dict[str, tuple[int, str, dict[str, str]]] = {
    "/unauthorized": (401, "Unauthorized", {}),
    "/unauthorized-cookie": (401, "log in first", {"Set-Cookie": "seen=yes", "WWW-Authenticate": "Basic"}),
    "/login": (302, "Redirecting", {"Location": "/login-page", "Set-Cookie": dump_cookie("seen", "yes")}),
    "/echo?deny": (403, "denied before the view", {}),
    "/nothing-here": (404, "Not Found", {}),
    "/stream": (200, "one two", {}),
    "/answered": (200, "answer; this request was already answered with HTTP 200 OK", {}),
    "/raise-early": (500, "Internal Server Error", {}),
    "/exit-early": (500, "Internal Server Error", {}),
}


@pytest.mark.parametrize("path", ANSWERS)
def test_a_view_that_did_not_use_it_answers_in_http(server: Server, path: str) -> None:
    status, body, headers = ANSWERS[path]
    answer = ask(server, request(path))
    assert (answer.status, answer.headers["Connection"]) == (status, "close")
    assert body in answer.body
    assert {header: answer.headers[header] for header in headers} == headers


@pytest.mark.parametrize("path", ["/exit-early", "/raise-early"])
def test_an_error_before_the_first_use_is_logged_once(server: Server, path: str) -> None:
    with logged(server) as log:
        ask(server, request(path))
        ask(server, request("/unauthorized"))
        words = log()
    assert words.count("Traceback") - words.count("direct cause of the following") == 1, words


def test_a_plain_get_on_a_sockets_route_gets_426(server: Server) -> None:
    with Raw(server, request("/echo", Upgrade=None, Connection="close")) as raw:
        head, body = raw.head(), raw.rest()
    assert head.startswith("HTTP/1.1 426 ")
    assert "\r\nUpgrade: websocket" in head
    assert b"/echo is a WebSocket endpoint" in body


def test_http_before_the_handshake_shares_its_connection(server: Server) -> None:
    plain = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    path = unique("/echo")
    with Raw(server, plain) as raw:
        for following in (plain, plain + request(path) + frame(TEXT, b"in one segment"), close_frame(1000)):
            assert raw.head().startswith("HTTP/1.1 200 ")
            assert raw.take(5) == b"hello"
            raw.send(following)
        assert raw.head().startswith("HTTP/1.1 101 ")
        assert raw.frame() == (TEXT, b"in one segment")
        assert raw.closes() == (1000, "")
    assert access_line(server, path)[0] == 101


def test_a_blueprint_and_url_parameters_work(server: Server) -> None:
    with Raw(server, request("/rooms/blue/7")) as raw:
        raw.head()
        assert raw.frame() == (TEXT, b"blue 7")
        assert raw.closes() == (1000, "")


# Options from the environment


def test_a_sockets_view_that_dawdles_is_accepted_for_it(tuned: Server) -> None:
    with Raw(tuned, request("/dawdle")) as raw:
        assert raw.head().startswith("HTTP/1.1 101")
        assert raw.frame() == (TEXT, b"accepted by the clock")


def test_a_plain_view_that_dawdles_is_too(tuned: Server) -> None:
    with Raw(tuned, request("/dawdle-plain")) as raw:
        assert raw.head().startswith("HTTP/1.1 101")


def test_the_option_subprotocols_chooses(tuned: Server) -> None:
    with Raw(tuned, request("/echo", Sec_WebSocket_Protocol="other, chat.v2, chat.v1")) as raw:
        assert "Sec-WebSocket-Protocol: chat.v2" in raw.head().split("\r\n")


# What the view sees


def test_attributes_tell_what_is_known(server: Server) -> None:
    early = frame(TEXT, b"first")
    with Raw(server, request("/attributes", Origin="http://localhost") + early) as raw:
        head = raw.head()
        opcode, payload = raw.frame()
        assert opcode == TEXT
        assert json.loads(payload) == {
            "before": [None, None, 0, 0],
            "first": "first",
            "path": "/attributes",
            "origin": "http://localhost",
            "version": "13",
            "subprotocol": None,
            "protocol": None,
            "scheme": "https" if server.tls else "http",
            "remote": bool(server.port),
            "user": "ann",
            "true": True,
            "same": True,
            "opened": True,
            "closed": False,
            "messages": [1, 0],
            "bytes": [len(early), len(head) + 4],
        }
        assert raw.frame() == (TEXT, b"timeout: no message within 0.01 s")
        raw.send(frame(TEXT, b'{"a": [1]}'))
        assert raw.frame() == (TEXT, b'{"echo":{"a":[1]}}')


def test_a_ping_of_the_view_measures_the_round_trip(server: Server) -> None:
    with Raw(server, request("/about")) as raw:
        raw.head()
        opcode, payload = raw.frame()
        assert opcode == PING
        raw.send(frame(PONG, payload))
        told = json.loads(raw.frame()[1])
        assert 0 < told["round_trip"] == told["latency"] < 5


def test_a_ping_is_answered_while_the_view_sleeps(server: Server) -> None:
    with Raw(server, request("/nap")) as raw:
        raw.head()
        raw.send(frame(PING, b"awake?"))
        assert [raw.frame(), raw.frame()] == [(PONG, b"awake?"), (TEXT, b"awake")]


@pytest.mark.parametrize(
    ("end", "seen"),
    [
        pytest.param(lambda raw: raw.send(close_frame(4001, "bye")), "4001 bye", id="Close"),
        pytest.param(Raw.close, "1006", id="EOF"),
    ],
)
def test_a_view_that_only_sleeps_sees_the_end(server: Server, end: Callable[[Raw], None], seen: str) -> None:
    with logged(server) as log, Raw(server, request("/wait-closed")) as raw:
        raw.head()
        end(raw)
        wait_for(lambda: f"view saw close {seen}" in log(), "the end in the view")


def test_eof_without_close_is_1006_and_a_half_closed_peer_hears_no_more(server: Server) -> None:
    path = unique("/says-end")
    with Raw(server, request(path)) as raw:
        raw.head()
        raw.send(frame(TEXT, b"last words"))
        assert raw.frame() == (TEXT, b"last words")
        raw.half_close()
        # TLS takes an end without close_notify for an attack, and sends an alert.
        with pytest.raises(ssl.SSLError, match="ALERT") if server.tls else nullcontext():
            assert raw.rest() == b""
    server.wait_for_log(rf"view saw {path.partition('=')[2]} 1006 ''")


def test_a_half_closed_peer_gets_the_answer_to_its_close(server: Server) -> None:
    with Raw(server, request("/echo")) as raw:
        raw.head()
        raw.send(frame(TEXT, b"one") + frame(TEXT, b"two") + close_frame(4001))
        raw.half_close()
        assert [raw.frame(), raw.frame()] == [(TEXT, b"one"), (TEXT, b"two")]
        assert raw.closes() == (4001, "")
        assert raw.rest() == b""


# The end


@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4999])
def test_the_view_closes_with_code_and_reason(server: Server, code: int) -> None:
    with Raw(server, request(f"/close/{code}")) as raw:
        raw.head()
        assert raw.closes() == (code, f"closed with {code}")
        raw.send(close_frame(code))
        assert raw.rest() == b""


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going"), (3000, "é" * 61), (4999, "bye")])
def test_the_peer_closes_with_code_and_reason(server: Server, code: int, reason: str) -> None:
    path = unique("/says-end")
    with Raw(server, request(path)) as raw:
        raw.head()
        raw.send(close_frame(code, reason))
        assert raw.closes()[0] == code
        assert raw.rest() == b""
    server.wait_for_log(rf"view saw {path.partition('=')[2]} {code} {re.escape(repr(reason))}")


def test_a_close_without_a_code_is_1005_and_echoed_without_one(server: Server) -> None:
    path = unique("/says-end")
    with Raw(server, request(path)) as raw:
        raw.head()
        raw.send(frame(CLOSE))
        assert raw.frame() == (CLOSE, b"")
        assert raw.rest() == b""
    server.wait_for_log(rf"view saw {path.partition('=')[2]} 1005 ''")


BROKEN_RULES = {
    "no mask": (bytes.fromhex("810548656c6c6f"), 1002),
    "reserved bit": (b"\xc1" + frame(TEXT, b"x")[1:], 1002),
    "opcode 3": (frame(3), 1002),
    "long ping": (frame(PING, b"x" * 126), 1002),
    "code 1005": (close_frame(1005), 1002),
    "bad UTF-8": (frame(TEXT, b"\xff"), 1007),
    "bad UTF-8 in a fragment": (frame(TEXT, b"ok\xff", fin=False), 1007),
    "too big": (frame(BINARY, b"x" * ((1 << 20) + 1))[:1000], 1009),
    "announced as 2**63 - 1": (bytes.fromhex("82ff7fffffffffffffff00000000"), 1009),
}


@pytest.mark.parametrize("name", BROKEN_RULES)
def test_a_broken_rule_ends_the_connection_with_its_code(server: Server, name: str) -> None:
    sent, code = BROKEN_RULES[name]
    with logged(server) as log, Raw(server, request("/echo")) as raw:
        raw.head()
        raw.send(sent)
        assert raw.closes()[0] == code
        assert raw.rest() == b""
        assert "Traceback" not in log()


# path: close code, what the log holds exactly once where the view failed
VIEW_ENDS = {
    "/return": (1000, None),
    "/greenlet-exit": (1001, None),
    "/raise": (1011, "KeyError: 'in a plain view'"),
    "/raise-sockets": (1011, "KeyError: 'in a Sockets view'"),
    "/raise-middle": (1011, "KeyError: 'behind much data'"),
    "/raise-odd": (1011, "Odd: in a plain view"),
    "/exit": (1011, "SystemExit: 3"),
    "/timeout": (1011, "Timeout: 0.05 seconds"),
}
BARE_ENDS = {
    "/return": (1000, None),
    "/answers-late": (1000, None),
    "/generator": (1000, None),
    "/raise-disconnect": (1000, None),
    "/raise": (1011, "KeyError: 'in a bare app'"),
    "/raise-odd": (1011, "Odd: in a bare app"),
    "/raise-os-error": (1011, "BrokenPipeError: of something else"),
    "/closes-badly": (1000, "KeyError: 'in close()'"),
    "/exit": (1011, "SystemExit: 3"),
}


def check_end_of_view(server: Server, path: str, code: int, error: str | None) -> str:
    """Let a view end by itself; return what was logged meanwhile."""
    name, path = path, unique(path)
    with logged(server) as log:
        with Raw(server, request(path)) as raw:
            raw.head()
            if name != "/timeout":  # which is to wait in vain
                raw.send(frame(TEXT, b"go"))
            if name == "/generator":
                assert raw.frame() == (TEXT, b"go")
                raw.send(close_frame(1000))
            while (received := raw.frame())[0] != CLOSE:
                assert received[0] in (TEXT, BINARY)
            assert int.from_bytes(received[1], "big") == code
            raw.send(close_frame(code))
            assert raw.rest() == b"", "the server wrote behind its Close"
        assert access_line(server, path)[0] == 101
        words = log()
    assert words.count("Traceback") == (0 if error is None else 1), words
    assert error is None or words.count(error) == 1, words
    assert ask(server, PLAIN).body == "hello"
    assert server.log.count("Booting worker") <= 1
    return words


@pytest.mark.parametrize("path", VIEW_ENDS)
def test_a_view_that_ends_closes_and_is_logged_at_most_once(server: Server, path: str) -> None:
    words = check_end_of_view(server, path, *VIEW_ENDS[path])
    if VIEW_ENDS[path][1]:
        assert re.search(rf"ERROR.*{path}\b", words), "no error line names the path"


@pytest.mark.parametrize("path", BARE_ENDS)
def test_a_bare_app_that_ends_closes_and_is_logged_at_most_once(bare: Server, path: str) -> None:
    words = check_end_of_view(bare, path, *BARE_ENDS[path])
    if BARE_ENDS[path][1]:
        assert re.search(rf"ERROR.* 127\.0\.0\.1:\d+ {path} ", words), "no error line names peer and path"


# What is sent last, and how the connection ends behind it
DISCONNECTS: dict[str, tuple[bytes, Callable[[Raw], object]]] = {
    "clean": (close_frame(1000), Raw.half_close),
    "Close, then gone": (close_frame(1000), Raw.close),
    "EOF": (b"", Raw.close),
    "half-closed": (b"", Raw.half_close),
    "reset": (b"", Raw.reset),
    "inside a frame": (frame(TEXT, b"x" * 100)[:50], Raw.close),
    "reset behind data": (frame(TEXT, b"x" * 100) * 10, Raw.reset),
}


@pytest.mark.parametrize("how", DISCONNECTS)
@pytest.mark.parametrize("path", ["/echo", "/environ", "/closed", "/asks-closed", "/says-end", "/flood"])
def test_an_ordinary_disconnect_leaves_no_traceback(server: Server, path: str, how: str) -> None:
    path = unique(path)
    with logged(server) as log, Raw(server, request(path)) as raw:
        raw.head()
        last, end = DISCONNECTS[how]
        raw.send(last)
        end(raw)
        access_line(server, path)
        assert "Traceback" not in log()


@pytest.mark.parametrize("size", [0, 1, 60])
def test_a_client_that_leaves_inside_the_handshake_leaves_no_traceback(server: Server, size: int) -> None:
    with logged(server) as log:
        for end in (Raw.reset, Raw.close):
            with Raw(server, request("/echo")[:size]) as raw:
                end(raw)
        with Raw(server, request(unique("/return"))) as raw:
            raw.head()
        assert "Traceback" not in log()


@pytest.mark.parametrize("end", [Raw.close, Raw.reset])
def test_a_client_that_left_before_the_first_use_is_1006(server: Server, end: Callable[[Raw], None]) -> None:
    path = unique("/late-use")
    with logged(server) as log:
        with Raw(server, request(path)) as raw:
            server.wait_for_log(f"view began {path.partition('=')[2]}$")  # a reset overtakes what is not read yet
            end(raw)
        access_line(server, path)
        assert "Traceback" not in log()
        assert f"view saw {path.partition('=')[2]} None 1006" in log()


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_client_that_left_before_it_was_accepted_stops_no_clock(start: Start, front_end: str) -> None:
    # A server of its own: without its clock no other test could pass on it.
    server = start("tests.apps_live:app", f"{front_end}-tcp-plain", {"GEVENTWS_ACCEPT_AFTER": "0.1"})
    with logged(server) as log:
        path = unique("/dawdle")
        with Raw(server, request(path)) as raw:
            server.wait_for_log(f"view began {path.partition('=')[2]}$")
            raw.reset()
        access_line(server, path)
        with Raw(server, request("/dawdle")) as raw:
            assert raw.head().startswith("HTTP/1.1 101 ")
        assert "Traceback" not in log()


def test_a_silent_peer_is_given_up(tuned: Server) -> None:
    path = unique("/says-end")
    with Raw(tuned, request(path)) as raw:
        raw.head()
        assert raw.frame()[0] == PING
        with pytest.raises(ConnectionResetError):
            raw.rest()
    tuned.wait_for_log(rf"view saw {path.partition('=')[2]} 1006 'no sign of life within 0.2 s of a ping'")


def test_a_peer_that_answers_pings_is_kept(tuned: Server) -> None:
    with Raw(tuned, request("/says-end?id=kept")) as raw:
        raw.head()
        for _ in range(4):
            opcode, payload = raw.frame()
            assert opcode == PING
            raw.send(frame(PONG, payload))
        raw.send(frame(TEXT, b"still here"))
        while (received := raw.frame())[0] == PING:
            pass
        assert received == (TEXT, b"still here")


def test_a_peer_that_never_answers_a_close_is_given_up(tuned: Server) -> None:
    path = unique("/close/4000")
    with Raw(tuned, request(path)) as raw:
        raw.head()
        assert raw.closes()[0] == 4000
        assert 0.2 < access_line(tuned, path)[2] < 3


def test_a_peer_that_does_not_read_is_given_up(server: Server) -> None:
    path = unique("/flood")
    with Raw(server, request(path)) as raw:
        raw.head()
        server.wait_for_log(rf"view saw {path.partition('=')[2]} 1006 'the peer took nothing for 0.3 s'")
        access_line(server, path)


# Logs


def test_the_access_line_tells_status_bytes_and_duration(server: Server) -> None:
    path = unique("/echo")
    start = time.monotonic()
    with Raw(server, request(path)) as raw:
        raw.head()
        for size in (0, 5, 200, 70_000):
            raw.send(frame(BINARY, b"x" * size))
            assert raw.frame() == (BINARY, b"x" * size)
        time.sleep(0.3)  # a duration to see
        raw.send(close_frame(1000))
        raw.rest()
    status, size, seconds = access_line(server, path)
    elapsed = time.monotonic() - start
    assert (status, size) == (101, raw.total)
    assert 0.3 <= seconds <= elapsed


def test_end_is_logged_with_code_reason_and_cause(server: Server) -> None:
    peer = r"127\.0\.0\.1:\d+" if server.port else r"unix#\d+"
    path = unique("/echo")
    with logged(server) as log:
        with Raw(server, request(path)) as raw:
            raw.head()
            raw.send(close_frame(4002, "logged"))
            raw.rest()
        access_line(server, path)
        assert re.search(rf"INFO\] {peer} /echo close 4002 logged \(client, ", log())


def test_no_peer_can_forge_a_line_of_the_log(server: Server) -> None:
    with logged(server) as log:
        with Raw(server, request("/says-end%0aFORGED%1b[31m?id=1")) as raw:
            raw.head()
        ask(server, request("/echo%0aFORGED", Origin="https://evil.example"))
        path = unique("/echo")
        with Raw(server, request(path)) as raw:
            raw.head()
            raw.send(close_frame(4000, "bye\nFORGED\x1b[31m"))
            raw.rest()
        access_line(server, path)
        assert not [line for line in log().splitlines() if line.startswith("FORGED")]
        assert "\x1b" not in log()


# Other ways to run it


def test_servers_of_a_run_in_pure_python_run_in_pure_python(server: Server) -> None:
    """They inherit GEVENTWS_PURE: what .ci/run shows without C is shown of Python."""
    told = ask(server, PLAIN.replace(b" / ", b" /version ")).body
    assert told == version()
    if os.environ.get("GEVENTWS_PURE"):
        assert told.endswith(" in pure Python")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "tcp" in kind])
def test_an_app_of_flask_sock_runs_unmodified(start: Start, kind: str) -> None:
    server = start("tests.apps_flask_sock:app", kind)
    path = unique("/echo")
    with server.connect(path) as ws:
        for message in ("hi", b"x" * 70_000):
            ws.send(message)
            assert ws.recv() == message
    access_line(server, path)
    assert "Traceback" not in server.log


SCRIPT = """
from gevent import monkey; monkey.patch_all()
from gevent import pywsgi
import geventws
from tests.apps_live import app
server = {server}
server.start()
print(f"script serves it on http://127.0.0.1:{{server.server_port}}", flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize(
    "constructor",
    [
        'pywsgi.WSGIServer(("127.0.0.1", 0), app, handler_class=geventws.WebSocketHandler)',
        'geventws.WebSocketServer(("127.0.0.1", 0), app, options={"max_message_size": 1000})',
    ],
)
def test_a_script_may_start_the_server(tmp_path: Path, constructor: str) -> None:
    command = [sys.executable, "-c", SCRIPT.format(server=constructor)]
    server = Server(command, "127.0.0.1:0", None, tmp_path / "log", {"PYTHONPATH": str(ROOT)})
    try:
        check_end_of_view(server, "/raise", 1011, "KeyError: 'in a plain view'")
        check_end_of_view(server, "/return", 1000, None)
        ask(server, request("/unauthorized"))
        with Raw(server, request("/echo") + frame(TEXT, b"x" * 1001)) as raw:
            raw.head()
            assert raw.frame()[0] == (CLOSE if "max_message_size" in constructor else TEXT)
    finally:
        server.stop()
