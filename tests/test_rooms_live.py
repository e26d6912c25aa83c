"""Rooms through Flask and real servers, and what docs/rooms.md shows."""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import ClientConnection

from .crowd import allow_descriptors
from .servers import DEADLINE, FRONT_ENDS, ROOT, Server, serve, upgrade_request, wait_for
from .test_readme import blocks

pytestmark = pytest.mark.slow  # it starts servers or installs packages

MEGABYTE = 1 << 20


@pytest.fixture(params=FRONT_ENDS, scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    allow_descriptors(2000)
    directory = tmp_path_factory.mktemp("rooms")
    with serve("tests.apps_rooms:app", directory, front_end=request.param) as server:
        yield server


def ask(server: Server, path: str, body: str | None = None) -> str:
    """Return what a GET brings, or a POST of a body."""
    data = (body or "").encode()
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    answer = server.exchange(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    assert answer.startswith(b"HTTP/1.1 200 ")
    return answer.partition(b"\r\n\r\n")[2].decode()


def state(server: Server) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(ask(server, "/state"))
    return answer


def say(server: Server, room: str, text: str) -> str:
    return ask(server, f"/say/{room}", text)


def hear(client: ClientConnection) -> Any:
    return json.loads(client.recv(DEADLINE))


def test_a_chat_hears_its_room_and_a_form_view(server: Server) -> None:
    with server.connect("/chat/lobby?user=ann") as ann, server.connect("/chat/lobby?user=bob") as bob:
        assert hear(ann)["here"] == ["ann"]
        assert hear(bob)["here"] == ["ann", "bob"]
        bob.send("hello")
        heard = [hear(client) for client in (ann, bob)]
        assert heard[0] == heard[1]
        assert (heard[0]["from"], heard[0]["text"]) == ("bob", "hello")
        say(server, "lobby", "from a form")
        assert ann.recv(DEADLINE) == bob.recv(DEADLINE) == "from a form"


def test_a_client_that_was_away_catches_up(server: Server) -> None:
    with server.connect("/chat/away?user=ann") as ann:
        at = hear(ann)["at"]
    for number in range(5):
        say(server, "away", str(number))
    with server.connect(f"/chat/away?user=ann&since={at}") as ann:
        assert hear(ann)["complete"] is True
        assert [ann.recv(DEADLINE) for _ in range(5)] == list("01234")
    with server.connect("/chat/away?user=ann&since=1-1") as ann:
        assert hear(ann)["complete"] is False


def test_clients_that_vanish_leave(server: Server) -> None:
    for number in range(5):
        member(server, f"/chat/vanishing?user=user-{number}").close()
    wanted = {f"user-{number} left vanishing" for number in range(5)}
    wait_for(lambda: wanted <= set(state(server)["events"]), "leaving of all")


def test_one_broadcast_suits_every_kind_of_compression(server: Server) -> None:
    takeover = [ClientPerMessageDeflateFactory(server_no_context_takeover=False)]
    forgetful = [ClientPerMessageDeflateFactory(server_no_context_takeover=True)]
    small = [ClientPerMessageDeflateFactory(server_max_window_bits=9, client_max_window_bits=True)]
    with ExitStack() as stack:
        clients = [
            stack.enter_context(server.connect("/chat/mixed", extensions=extensions))
            for extensions in (None, takeover, forgetful, small)
        ]
        for client in clients:
            hear(client)
        for number in range(20):
            text = f"{number} " * 100
            clients[number % 4].send(text)
            heard = [hear(client) for client in clients]
            assert all(message == heard[0] for message in heard)
            assert heard[0]["text"] == text


class Readers(threading.Thread):
    """Reads what sockets get, and counts it."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__(daemon=True)
        self.counts = dict.fromkeys(sockets, 0)
        self.is_over = False
        self._selector = selectors.DefaultSelector()
        for sock in sockets:
            self._selector.register(sock, selectors.EVENT_READ)

    def run(self) -> None:
        while not self.is_over:
            for key, _ in self._selector.select(0.05):
                sock: Any = key.fileobj
                data = sock.recv(1 << 18)
                self.counts[sock] += len(data)
                if not data:
                    self._selector.unregister(sock)


def member(server: Server, path: str) -> socket.socket:
    """Return a client whose handshake is answered."""
    sock = server.socket()
    sock.sendall(upgrade_request(path))
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    return sock


def test_300_stalled_of_320_members_cost_no_copies_and_hold_nobody_up(server: Server) -> None:
    sockets: list[socket.socket] = []
    try:
        sockets += [member(server, "/hear/flooded") for _ in range(320)]
        readers = Readers(sockets[:20])
        readers.start()
        before = state(server)["stats"]["closed_slow"]
        grown = int(ask(server, f"/flood/flooded/{12 * MEGABYTE // 16_384}/16384"))
        wait_for(lambda: min(readers.counts.values()) >= 12 * MEGABYTE, "reading of all that was said")
        readers.is_over = True
        readers.join()
        stats = state(server)["stats"]
        assert stats["closed_slow"] - before == 300
        assert grown < 64 * MEGABYTE
    finally:
        for sock in sockets:
            sock.close()
    wait_for(lambda: state(server)["stats"]["members"] == 0, "leaving of all")


# docs/rooms.md


def test_programs_of_the_page_run(tmp_path: Path) -> None:
    written = 0
    for block in blocks((ROOT / "docs" / "rooms.md").read_text()):
        name = block.code.partition("\n")[0].removeprefix("# ")
        if name.endswith(".py"):
            with (tmp_path / name).open("a") as program:
                program.write(block.code)
            written += 1
        else:
            assert block.language != "python", f"a block without a name: {name}"
    assert written > 3
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
