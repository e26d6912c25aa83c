"""A soak of rooms: processes that talk while Redis, and the ways to it, break at random.

By hand: python -m tests.soak_rooms --seconds 1200 [--seed 7]. Each process is a Rooms of its own, behind a proxy of its
own. At the end each member must have heard all that was said, once, and each speaker in order; and all of them what
the stream has.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import gevent

from geventws import Rooms

from .pairs import Opener, until
from .redis_servers import Proxy, RedisServer

WITHIN = 60.0
NAMES = ["a", "b", "c"]


class Soak:
    """Processes, their members, and what happened to them."""

    def __init__(self, directory: Path, seed: int, processes: int = 4) -> None:
        self.chance = random.Random(seed)
        self.server = RedisServer(directory, "--appendonly", "yes", "--appendfsync", "always")
        self.proxies = [Proxy(self.server.port) for _ in range(processes)]
        limits: dict[str, Any] = {"history": 1_000_000, "history_bytes": 1 << 30, "history_seconds": 7200.0}
        self.rooms = [Rooms(proxy.url, lease=1.0, linger=0, **limits) for proxy in self.proxies]
        self.opened = Opener(("", "", None))
        self.said: dict[str, list[str]] = {name: [] for name in NAMES}
        self.heard: dict[tuple[int, str], list[Any]] = {}
        self.done: dict[str, int] = {}
        for number, rooms in enumerate(self.rooms):
            for name in NAMES:
                self._join(number, rooms, name)

    def _join(self, number: int, rooms: Rooms, name: str) -> None:
        ws, peer = self.opened("tcp", ping_interval=None)  # the peer here would not answer
        peer.sock.settimeout(None)
        heard = self.heard[number, name] = []
        rooms[name].join(ws, user=f"{number}")

        def listen() -> None:
            for event in iter(peer.receive, None):
                if isinstance(event, str):
                    heard.append(event)

        self.opened.spawn(listen)

    def _talk(self, speaker: int, end: float) -> None:
        number = 0
        while time.monotonic() < end:
            for name in self.chance.sample(NAMES, 2):
                number += 1
                self.said[name].append(f"{speaker} {number}")
                self.rooms[speaker][name].broadcast(self.said[name][-1])
            gevent.sleep(self.chance.uniform(0, 0.02))

    # What happens

    def cut(self) -> None:
        self.chance.choice(self.proxies).cut()

    def kill_clients(self) -> None:
        self.server.kill_clients(self.chance.choice(["normal", "pubsub"]))

    def refuse(self) -> None:
        proxy = self.chance.choice(self.proxies)
        proxy.refuses = True
        proxy.cut()
        gevent.sleep(self.chance.uniform(0, 2))
        proxy.refuses = False

    def stall(self) -> None:
        proxy = self.chance.choice(self.proxies)
        proxy.stall(True)
        gevent.sleep(self.chance.uniform(0, 4))
        proxy.stall(False)

    def lose_replies(self) -> None:
        proxy, chance = self.chance.choice(self.proxies), self.chance
        proxy.cut_reply = lambda asked, answer: b"EVAL" in asked and chance.random() < 0.3
        gevent.sleep(self.chance.uniform(0, 1))
        proxy.cut_reply = None

    def hang(self) -> None:
        self.server.pause()
        gevent.sleep(self.chance.uniform(0, 4))
        self.server.go_on()

    def restart(self) -> None:
        self.server.stop(self.chance.choice([signal.SIGTERM, signal.SIGKILL]))
        gevent.sleep(self.chance.uniform(0, 2))
        gevent.get_hub().threadpool.apply(self.server.start)

    def run(self, seconds: float) -> None:
        """Talk and break for so many seconds, then check."""
        end = time.monotonic() + seconds
        talkers = [gevent.spawn(self._talk, number, end) for number in range(len(self.rooms))]
        faults = [
            self.cut,
            self.cut,
            self.kill_clients,
            self.refuse,
            self.stall,
            self.lose_replies,
            self.hang,
            self.restart,
        ]
        while time.monotonic() < end:
            fault = self.chance.choice(faults)
            self.done[fault.__name__] = self.done.get(fault.__name__, 0) + 1
            fault()
            gevent.sleep(self.chance.uniform(0, 1))
        gevent.joinall(talkers, raise_error=True)
        self.check()

    def check(self) -> None:
        """Check what was heard. Raises AssertionError."""
        for (number, name), heard in self.heard.items():
            said = self.said[name]
            until(lambda: len(heard) >= len(said), f"hearing of {len(said)} messages in {name} by {number}", WITHIN)  # noqa: B023
            assert len(heard) == len(set(heard)), f"{len(heard) - len(set(heard))} doubled in {name} for {number}"
            assert set(heard) == set(said), f"{len(set(said) - set(heard))} lost in {name} for {number}"
            for speaker in range(len(self.rooms)):
                prefix = f"{speaker} "
                mine = [text for text in heard if text.startswith(prefix)]
                assert mine == [text for text in said if text.startswith(prefix)], f"{name} for {number}: order"
        for name in NAMES:
            until(lambda: len(self.rooms[0][name].history()) >= len(self.said[name]), "end of sending", WITHIN)  # noqa: B023
            kept = list(self.rooms[0][name].history())
            assert sorted(kept) == sorted(self.said[name]), f"{name}: history has other messages than were said"
        gaps = sum(rooms.stats()["gaps"] for rooms in self.rooms)
        assert gaps == 0, f"{gaps} gaps were reported, and nothing was lost"
        for rooms in self.rooms:
            until(lambda: len(rooms["a"].users()) == len(self.rooms), "presence of all", WITHIN)  # noqa: B023

    def close(self) -> None:
        """End it all."""
        for rooms in self.rooms:
            rooms.close()
        self.opened.close()
        for proxy in self.proxies:
            proxy.close()
        self.server.stop()

    def __str__(self) -> str:
        said = sum(map(len, self.said.values()))
        stats = [rooms.stats() for rooms in self.rooms]
        counts = {key: sum(each[key] for each in stats) for key in ("reconnects", "caught_up", "gaps")}
        return f"{said} messages to {len(self.rooms)} processes each, {self.done}, {counts}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak_rooms")
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        soak = Soak(Path(directory), options.seed)
        try:
            soak.run(options.seconds)
            print(soak)
        finally:
            soak.close()


if __name__ == "__main__":
    main()
