"""What views owe each other: a chat as people write them lives, and nobody waits for a view that computes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from .raw import TEXT, Raw, frame, request
from .servers import DEADLINE, FRONT_ENDS, Server, serve

pytestmark = pytest.mark.slow  # it starts servers or installs packages


@pytest.fixture(scope="module", params=FRONT_ENDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    calm = {"GEVENTWS_PING_INTERVAL": "none"}  # what computes for long meets no ping among its answers
    with serve("tests.apps_flask:wrapped", directory, front_end=request.param, env=calm) as server:
        yield server


def test_talkers_live_where_others_come_and_vanish(server: Server) -> None:
    """A loop over a set in which each send may meet a peer that has just gone, while members join and leave."""
    end = time.monotonic() + 4

    def come_and_go(number: int) -> None:
        while time.monotonic() < end:
            with Raw(server, request("/slow-room/0.05" if number % 2 else "/room")) as raw:
                raw.head()
                raw.send(frame(TEXT, b"hello"))

    with ExitStack() as stack, ThreadPoolExecutor(6) as pool:
        talkers = [stack.enter_context(server.connect("/room", max_queue=None)) for _ in range(3)]
        visitors = [pool.submit(come_and_go, number) for number in range(6)]
        while time.monotonic() < end:
            for number, ws in enumerate(talkers):
                for line in range(100):
                    ws.send(f"talker {number} line {line}")
            for number, ws in enumerate(talkers):
                while ws.recv(DEADLINE) != f"talker {number} line 99":
                    pass
        for visitor in visitors:
            visitor.result()
    assert "Set changed size" not in server.log
    assert "Traceback" not in server.log


def handled_meanwhile(server: Server, busy: str, sent: bytes) -> int:
    """Return how many messages a busy view sends during a round trip of another client: the median of thirty."""
    with Raw(server, request(busy)) as raw, server.connect("/jobs/0.0") as ws:
        raw.head()
        raw.send(sent)
        raw.frame()
        raw.sock.setblocking(False)
        counts = []
        for _ in range(30):
            ws.send("well?")
            assert ws.recv(DEADLINE) == "well?"
            counts.append(arrived(raw))
        return sorted(counts)[15]


def arrived(raw: Raw) -> int:
    """Return how many of a server's frames of three characters at most have come."""
    size = 0
    with suppress(BlockingIOError):
        while data := raw.sock.recv(1 << 20):
            size += len(data)
    return size // 3


@pytest.mark.parametrize(
    ("busy", "sent"),
    [("/rows/0.001", b""), ("/rows/0.012", b""), ("/jobs/0.001", frame(TEXT, b"x") * 5000)],
    ids=["streams rows", "streams rows slowly", "has many messages"],
)
def test_nobody_waits_for_a_view_that_computes(server: Server, busy: str, sent: bytes) -> None:
    # A round trip takes two passes of the loop or three, each of which the view may hold for 5 ms and one message.
    assert handled_meanwhile(server, busy, sent) < 60


def test_answers_of_long_jobs_leave_one_by_one(server: Server) -> None:
    count = 10
    with Raw(server, request("/jobs/0.1")) as raw:
        raw.head()
        raw.send(frame(TEXT, b"x") * count)
        reads: list[int] = []
        while sum(reads) < count * 3:
            data = raw.sock.recv(1 << 20)
            assert data
            reads.append(len(data))
    assert len(reads) > count // 2


def test_what_a_view_says_before_it_computes_leaves_before(server: Server) -> None:
    with Raw(server, request("/announced/0.3")) as raw:
        raw.head()
        for number in range(3):  # the first messages of all, and those behind a message alone
            raw.send(frame(TEXT, b"x") * 3)
            assert raw.sock.recv(1 << 20) == frame_of(b"begin"), f"burst {number}"
            answers = [raw.frame()[1] for _ in range(5)]
            assert answers == [b"end", b"begin", b"end", b"begin", b"end"]
            raw.send(frame(TEXT, b"x"))
            assert [raw.frame()[1], raw.frame()[1]] == [b"begin", b"end"]


def frame_of(text: bytes) -> bytes:
    """Return a short text frame of a server."""
    return bytes((0x80 | TEXT, len(text))) + text
