"""Opening: nothing is sent before the first use, which completes the handshake."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from time import monotonic
from types import SimpleNamespace

import gevent.event
import pytest

from geventws.connection import Close
from geventws.deadlines import Deadline
from geventws.errors import ConnectionClosed, HandshakeError, WebSocketError
from geventws.frames import TEXT
from geventws.opening import warn_of_subprotocols
from geventws.websocket import WebSocket

from .pairs import LAST_WORDS, WITHIN, Opener, echo, masked, reset, settle, until, until_closed, usable

pytestmark = pytest.mark.usefixtures("errors")


def test_a_first_use_by_two_greenlets_makes_one_101(opened: Opener) -> None:
    ws, peer = opened(accept=False)
    users = [opened.spawn(ws.send, "one"), opened.spawn(ws.send, "two"), opened.spawn(ws.receive)]
    assert peer.open().count("HTTP/1.1 101") == 1
    assert [peer.receive(), peer.receive()] == ["one", "two"]
    settle()
    assert [user.ready() for user in users] == [True, True, False]
    with pytest.raises(WebSocketError, match="already complete"):
        ws.accept()


def test_accept_makes_choices(opened: Opener) -> None:
    ws, peer = opened(accept=False)
    with pytest.raises(TypeError, match="not the string 'chat'"):
        ws.accept("chat")  # a str is a sequence of str to the type checker
    with pytest.raises(TypeError, match="did you mean max_queue"):
        ws.accept(max_queu=1)
    with pytest.raises(ValueError, match="header"):
        ws.accept(headers=[("X-Bad", "a\r\nb")])
    settle()
    assert not peer.has_data()
    ws.accept(headers=[("Set-Cookie", "a=b")], max_message_size=10)
    assert "\r\nSet-Cookie: a=b" in peer.open()
    peer.send("more than ten bytes")
    assert ws.receive() is None
    assert (ws.close_code, ws.subprotocol, ws.protocol) == (1009, None, None)


@pytest.mark.parametrize("end", LAST_WORDS)
@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("kind", ["unix", "tls"])
def test_frames_that_came_with_the_request_are_the_first(opened: Opener, kind: str, count: int, end: str) -> None:
    last, code = LAST_WORDS[end]
    frames = [masked(TEXT, b"%d" % number) for number in range(2 * count)]
    ws, peer = opened(kind, leftover=b"".join(frames[:count]), accept=False)
    peer.sock.sendall(b"".join(frames[count:]) + last)
    viewing = opened.spawn(echo, ws)
    peer.open()
    events = peer.read_all()
    assert events[:-1] == [str(number) for number in range(2 * count)]
    assert isinstance(events[-1], Close)
    assert events[-1].code == code
    peer.sock.close()
    viewing.join()
    assert viewing.value is None


@pytest.mark.parametrize("end", LAST_WORDS)
def test_an_end_that_came_with_the_request_is_answered_behind_the_101(opened: Opener, end: str) -> None:
    last, code = LAST_WORDS[end]
    ws, peer = opened(leftover=last, accept=False)
    assert ws.receive() is None
    peer.open()
    event = peer.receive()
    assert isinstance(event, Close)
    assert event.code == ws.close_code == code


@pytest.mark.parametrize("gone", ["closed", "reset"])
@pytest.mark.parametrize("use", ["receive", "send"])
def test_a_first_use_when_the_peer_is_gone_is_the_end_of_the_connection(opened: Opener, use: str, gone: str) -> None:
    ws, peer = opened("tcp", accept=False)
    if gone == "reset":
        reset(peer.sock)
    else:
        peer.sock.close()
    if use == "send":
        with pytest.raises(ConnectionClosed):
            while True:
                ws.send("anybody?")
                settle()
    else:
        assert ws.receive() is None
    until_closed(ws)
    assert ws.close_code == 1006


def test_accept_after_completes_the_handshake_of_a_silent_view(opened: Opener) -> None:
    ws, peer = opened(accept=False, accept_after=0.05)
    ws.accept_soon()
    assert peer.open().startswith("HTTP/1.1 101 ")
    assert ws.accepted
    peer.send("hello")
    assert ws.receive() == "hello"


def test_accept_after_does_nothing_once_answered(opened: Opener) -> None:
    ws, peer = opened(accept=False, accept_after=0.03)
    ws.accept_soon()
    ws.answer("404 NOT FOUND")
    ran: list[int] = []
    later = Deadline(lambda: ran.append(1))
    later.set(monotonic() + 0.1)
    until(lambda: ran, "a later deadline")
    assert not peer.has_data()
    with pytest.raises(WebSocketError, match="404 NOT FOUND"):
        ws.receive()


@pytest.mark.parametrize(
    "use",
    [
        lambda ws: ws.receive(timeout=0),
        lambda ws: ws.send("x"),
        lambda ws: ws.post("x"),
        lambda ws: ws.ping(timeout=0),
        lambda ws: ws.closed,
        lambda ws: ws.close(),
        lambda ws: ws.accept(),
    ],
)
def test_any_first_use_completes_the_handshake(opened: Opener, use: Callable[[WebSocket], object]) -> None:
    ws, peer = opened(accept=False)
    settle()
    assert not peer.has_data()
    with suppress(TimeoutError):
        use(ws)
    assert peer.open().startswith("HTTP/1.1 101 ")


def test_looking_at_it_is_no_use_of_it(opened: Opener) -> None:
    ws, peer = opened(accept=False)
    assert (ws.close_code, ws.close_reason, ws.path, ws.origin, ws.subprotocol) == (None, "", "/path", None, None)
    assert (ws.latency, ws.opened_at, ws.bytes_sent, ws.bytes_received, ws.accepted) == (None, None, 0, 0, False)
    assert (ws.remote_address, ws.version, bool(ws), {ws: 1}[ws]) == (None, "13", True, 1)
    assert "not accepted" in repr(ws)
    ws.user = "any attribute"
    settle()
    assert not peer.has_data()


def test_accept_after_of_none_leaves_a_silent_view_alone(opened: Opener) -> None:
    ws, peer = opened(accept=False, accept_after=None)
    ws.accept_soon()
    settle()
    assert not peer.has_data()
    assert not ws.accepted


def test_accept_after_leaves_alone_whom_the_server_says_so(opened: Opener) -> None:
    ws, peer = opened(accept=False, accept_after=0.01)
    asked: list[bool] = []

    def may_accept() -> bool:
        asked.append(True)
        return False

    ws.accept_soon(may_accept)
    until(lambda: asked, "the question")
    settle()
    assert asked == [True]
    assert not peer.has_data()


def test_origins_and_hosts_are_no_choice_of_the_view(opened: Opener) -> None:
    ws, peer = opened(accept=False)
    for choice in ({"origins": ["*"]}, {"hosts": ["*"]}):
        with pytest.raises(TypeError, match=f"{next(iter(choice))} are judged before the view runs"):
            ws.accept((), **choice)  # type: ignore[arg-type]
    assert not peer.has_data()


def test_every_use_raises_the_refusal_of_an_origin_until_a_route_allows_it(opened: Opener) -> None:
    refusal = HandshakeError(HTTPStatus.FORBIDDEN, "a stranger")
    ws, peer = opened(accept=False, refusal=refusal, accept_after=0.01)
    ws.environ["HTTP_ORIGIN"] = "https://other.example"
    ws.accept_soon()
    for use in (ws.receive, partial(ws.send, "x"), ws.accept):
        with pytest.raises(HandshakeError, match="403 Forbidden: a stranger"):
            use()
    with pytest.raises(HandshakeError, match=r"https://other\.example"):
        ws.prepare(ws.options)
    assert ws.refusal is refusal
    gevent.sleep(0.03)  # until after accept_after
    assert not peer.has_data()
    ws.prepare(ws.options.replace(origins=["https://other.example"], max_message_size=10))
    assert ws.refusal is None
    ws.prepare(ws.options)
    ws.send("welcome")
    peer.open()
    assert peer.receive() == "welcome"
    assert ws.options.max_message_size == 10


def test_client_that_is_not_admitted_is_refused_at_every_use(opened: Opener) -> None:
    asked: list[bool] = []

    def admit() -> None:
        asked.append(True)
        raise HandshakeError(HTTPStatus.TOO_MANY_REQUESTS, "no place")

    ws, peer = opened(accept=False, admit=admit)
    with pytest.raises(ValueError, match="belongs to the handshake"):
        ws.accept(headers={"Upgrade": "x"})
    assert not asked
    for use in (ws.receive, ws.accept):
        with pytest.raises(HandshakeError, match="no place"):
            use()
    assert asked == [True]
    assert ws.refusal is not None
    assert not peer.has_data()


def test_silent_view_whose_client_is_not_admitted_is_told(opened: Opener) -> None:
    def admit() -> None:
        raise HandshakeError(HTTPStatus.TOO_MANY_REQUESTS, "no place")

    ws, _ = opened(accept=False, admit=admit, accept_after=0.01)
    view = opened.spawn(gevent.event.Event().wait)
    ws.belongs_to(view)
    ws.accept_soon()
    view.join(WITHIN)
    assert isinstance(view.value, HandshakeError)


def test_options_of_a_route_come_too_late_behind_the_handshake(opened: Opener) -> None:
    ws, _ = opened()
    with pytest.raises(WebSocketError, match="already complete, without the options of the route"):
        ws.prepare(ws.options)


def test_an_answer_in_http_behind_the_handshake_changes_nothing(opened: Opener) -> None:
    ws, peer = opened()
    ws.answer("200 OK")
    assert usable(ws, peer)


def test_a_forked_child_lets_go_of_a_websocket_that_is_not_accepted(opened: Opener) -> None:
    ws, peer = opened(accept=False, accept_after=0.01)
    ws.accept_soon()
    ws.abandon()
    gevent.sleep(0.03)  # until after accept_after
    assert not ws.accepted
    assert not peer.has_data()


def test_subprotocols_of_which_none_is_chosen_are_told_once_for_each_route(caplog: pytest.LogCaptureFixture) -> None:
    rule = SimpleNamespace(url_rule="/chat/<room>")
    for path in ("/chat/a", "/chat/b"):
        warn_of_subprotocols({"werkzeug.request": rule}, "peer", path, ["one", "two"])
    warn_of_subprotocols({}, "peer", "/without a framework", ["one"])
    settle()
    assert [line.partition(" for which ")[0] for line in caplog.messages] == [
        "peer /chat/<room> offers the subprotocols one, two and none is chosen,",
        "peer /without a framework offers the subprotocols one and none is chosen,",
    ]
