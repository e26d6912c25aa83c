"""Census: what is told of each open WebSocket of this process, and how many are closed at once."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import Any

import gevent
import pytest

import geventws
from geventws import ConnectionClosed
from geventws.census import check_private, close_all, connections, directory, publish
from geventws.testing import Client, connect

from .pairs import MEGABYTE, until
from .servers import ROOT

pytestmark = pytest.mark.usefixtures("errors")

HERE = {"user": "ann", "weight": float("inf"), "tags": {"a"}, "_token": "secret"}


def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    ws = environ["wsgi.websocket"]
    for name, value in HERE.items():
        setattr(ws, name, value)
    for message in ws:
        if message == "flood":
            ws.post(bytes(8 * MEGABYTE))
        else:
            ws.send(message)
    return []


@pytest.fixture
def client() -> Iterator[Client]:
    address = {"REMOTE_ADDR": "10.0.0.9", "REMOTE_PORT": "4000", "HTTP_X_FORWARDED_FOR": "198.51.100.7"}
    with connect(view, "/chat?secret=1", environ=address) as client:
        client.send("hello")
        assert client.receive() == "hello"
        yield client


def end_of(client: Client) -> tuple[int, str]:
    """Return close code and reason of a connection that ends now."""
    with pytest.raises(ConnectionClosed) as caught:
        client.receive()
    return caught.value.code, caught.value.reason


def test_connection_is_told_with_its_request_its_counts_and_the_apps_attributes(client: Client) -> None:
    (seen,) = connections()
    assert seen.id.startswith(f"{os.getpid()}-")
    assert (seen.path, seen.route, seen.peer) == ("/chat", None, "10.0.0.9:4000")
    assert seen.forwarded_for == "198.51.100.7"
    assert seen.attributes == {name: value for name, value in HERE.items() if name != "_token"}
    assert (seen.messages_received, seen.messages_sent) == (1, 1)
    assert seen.bytes_received == 11
    assert seen.bytes_sent > 100  # the 101 is in it
    assert seen.since <= time()
    assert 0 <= seen.idle < 60
    assert (seen.outbox, seen.blocked, seen.latency, seen.close_code) == (0, False, None, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.path = "/"  # type: ignore[misc]


def test_peer_that_does_not_read_is_seen(client: Client) -> None:
    client._transport.pause_reading()
    client.send("flood")
    until(lambda: connections()[0].blocked, "a peer that takes no more")
    assert connections()[0].outbox > MEGABYTE
    client._transport.resume_reading()
    assert client.receive() == bytes(8 * MEGABYTE)


def test_route_is_the_rule_of_its_url() -> None:
    from .apps_watched import app

    with connect(app, "/chat/lobby?user=ann") as ws:
        ws.receive()
        (seen,) = connections()
        assert (seen.route, seen.path) == ("/chat/<room>", "/chat/lobby")


def test_what_is_not_accepted_or_has_ended_is_not_told(client: Client) -> None:
    def waits(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert len(connections()) == 1
        environ["wsgi.websocket"].accept()
        assert len(connections()) == 2
        return []

    with connect(waits, "/") as other:
        end_of(other)
    client.close()
    until(lambda: not connections(), "the end of all")


def test_close_all_closes_those_it_is_told_and_says_how_many(client: Client) -> None:
    with connect(view, "/other") as other:
        other.send("hello")
        assert other.receive() == "hello"
        assert close_all(lambda ws: ws.path == "/other", 4001, "logged out") == 1
        assert end_of(other) == (4001, "logged out")
    client.send("still here")
    assert client.receive() == "still here"


def test_close_all_counts_none_twice(client: Client) -> None:
    assert geventws.close_all(lambda ws: True, 4001) == 1
    assert geventws.close_all(lambda ws: True, 4001) == 0


def test_close_all_closes_none_where_it_is_told_nonsense(client: Client) -> None:
    with pytest.raises(AttributeError):
        close_all(lambda ws: ws.no_such_attribute)
    with pytest.raises(ValueError, match="1006"):
        close_all(lambda ws: True, 1006)
    assert connections()[0].close_code is None


def test_another_thread_may_ask_and_close(client: Client) -> None:
    found: list[int] = []

    def ask() -> None:
        found.extend((len(connections()), close_all(lambda ws: True, 4002)))

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: not thread.is_alive(), "the other thread's end")
    assert found == [1, 1]
    assert end_of(client) == (4002, "")


# The Unix socket


def test_directory_is_this_users_unless_the_variable_names_another() -> None:
    default = directory({})
    assert default is not None
    assert default.name == f"geventws-{os.geteuid()}"
    assert directory({"GEVENTWS_LIVE": "/run/app"}) == Path("/run/app")
    assert directory({"GEVENTWS_LIVE": "off"}) is None


def test_directory_is_made_for_this_user_alone_and_another_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish({"GEVENTWS_LIVE": "off"})
    where = tmp_path / "live"
    where.mkdir(0o755)
    publish({"GEVENTWS_LIVE": str(where)})
    assert list(where.iterdir()) == []
    assert "must be a directory of this user alone" in caplog.text
    link = tmp_path / "link"
    where.chmod(0o700)
    link.symlink_to(where)
    with pytest.raises(PermissionError):
        check_private(link)
    caplog.clear()
    publish({"GEVENTWS_LIVE": str(tmp_path / ("x" * 200))})
    assert "will not see this process" in caplog.text


@pytest.fixture
def asked(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the path of this process's socket, in a directory that publish() has made."""
    monkeypatch.chdir(tmp_path_factory.mktemp("live"))  # a socket's path has 107 bytes at most
    publish({"GEVENTWS_LIVE": "made"})
    yield Path("made", f"{os.getpid()}.sock")


def ask(path: Path, question: bytes) -> list[Any]:
    with gevent.socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(path))
        sock.sendall(question + b"\n")
        with sock.makefile("rb") as answer:
            return [json.loads(line) for line in answer]


def test_who_asks_is_told_in_json_and_may_close(asked: Path, client: Client) -> None:
    assert stat.S_IMODE(asked.parent.stat().st_mode) == 0o700
    seen, end = ask(asked, b"{}")
    assert end == {"done": 1}
    (own,) = connections()
    assert set(seen) == {field.name for field in dataclasses.fields(own)}
    assert seen["attributes"] == {"user": "ann", "weight": "inf", "tags": "{'a'}"}
    question = {"close": own.id, "code": 4001, "reason": "by hand"}
    assert ask(asked, json.dumps(question).encode()) == [{"done": 1}]
    assert end_of(client) == (4001, "by hand")


@pytest.mark.parametrize("nonsense", [b"", b"[]", b"no JSON", b'{"close": 1}', b'{"close": "1-1", "code": "x"}'])
def test_who_asks_nonsense_gets_no_answer(asked: Path, nonsense: bytes) -> None:
    assert [line for line in ask(asked, nonsense) if line != {"done": 0}] == []


def test_many_are_told_and_others_have_their_turn_meanwhile(asked: Path) -> None:
    clients = [connect(view, f"/{number}") for number in range(210)]
    for client in clients:
        client.send("hello")
    until(lambda: sum(seen.messages_received for seen in connections()) == 210, "all messages")
    *seen, end = ask(asked, b"{}")
    assert end == {"done": 210}
    assert {each["path"] for each in seen} == {f"/{number}" for number in range(210)}
    for client in clients:
        client.close()


# docs/observing.md


def test_logout_of_the_docs_closes_what_its_user_has_open() -> None:
    text = (ROOT / "docs" / "observing.md").read_text()
    found: dict[str, Any] = {"__name__": __name__}
    exec(text.partition("```python\n")[2].partition("```")[0], found)
    client = found["app"].test_client()
    with client.session_transaction() as session:
        session["user"] = "ann"
    with connect(client, "/inbox") as inbox, connect(found["app"], "/inbox") as other:
        for ws in (inbox, other):
            ws.send("hello")
            assert ws.receive() == "hello"
        assert client.post("/logout").status_code == 204
        assert end_of(inbox) == (4001, "logged out")
        other.send("still here")
        assert other.receive() == "still here"


def test_docs_name_each_attribute() -> None:
    text = (ROOT / "docs" / "observing.md").read_text()
    assert {field.name for field in dataclasses.fields(geventws.LiveConnection)} <= set(re.findall(r"`(\w+)`", text))
