"""The soak's client processes. This module: what they all send, count and are told.

Each reads its Plan from its first argument, prints what it counted as a line of JSON each second, and leaves when its
standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

LARGEST = 1 << 20  # bytes; the server's max_message_size
EDGES = (125, 126, 127, 65_535, 65_536, 65_537)  # bytes; around where the length in a frame's header grows
PATIENCE = 30.0  # seconds that anything may take which a server does at once
EXAMPLES = 5  # of each kind of error


@dataclass(frozen=True)
class Plan:
    """What one client process does."""

    port: int
    connections: int = 1
    rate: float = 0.0  # messages a second, over all connections
    lifetime: float = 1.0  # seconds, the mean of a connection's
    seed: int = 0

    @classmethod
    def from_argument(cls) -> Plan:
        return cls(**json.loads(sys.argv[1]))

    def as_argument(self) -> str:
        return json.dumps(asdict(self))


class Message(NamedTuple):
    """A message to be echoed: a piece of the corpus."""

    is_text: bool
    start: int
    stop: int


class Corpus:
    """Bytes of which each message is a piece, so that what must come back is known without a copy.

    The first half is noise, the second text with characters of 1 to 4 bytes. Where a piece begins tells it from others.
    """

    def __init__(self, rng: random.Random) -> None:
        alphabet = "etaoin shrdlu 0123456789 äöüßéñ ελληνικά кириллица 漢字仮名 🙂🚀"
        words = ["".join(rng.choices(alphabet, k=rng.randrange(1, 12))) + " " for _ in range(2000)]
        noise = rng.randbytes(2 * LARGEST)
        text = "".join(rng.choices(words, k=LARGEST // 4)).encode()
        self.data = noise + text
        self.text_start = len(noise)
        self._rng = rng

    def pick(self, size: int | None = None) -> Message:
        """Return a message of about this size, or of any: most are small, one in a hundred is near the limit."""
        rng, data = self._rng, self.data
        if size is None:
            size = self._size()
        is_text = rng.random() < 0.5
        start = rng.randrange(self.text_start if is_text else 0, len(data) - size)
        stop = start + size
        if is_text:  # whole characters
            while data[start] & 0xC0 == 0x80:
                start += 1
            while data[stop] & 0xC0 == 0x80:
                stop -= 1
        return Message(is_text, start, max(start, stop))

    def _size(self) -> int:
        roll = self._rng.random()
        if roll < 0.01:
            return self._rng.randint(LARGEST * 7 // 8, LARGEST)
        if roll < 0.03:
            return 0
        if roll < 0.08:
            return self._rng.choice(EDGES)
        return int(2 ** self._rng.uniform(0, 17))


@dataclass
class Tally:
    """What was counted since the last report."""

    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)  # details of the first errors of each kind
    live: int = 0  # connections at this moment
    round_trips: list[float] = field(default_factory=list)  # seconds
    late: float = 0.0  # seconds, the longest that the process itself was woken too late

    def error(self, kind: str, details: str = "") -> None:
        self.errors[kind] += 1
        self._add_examples(kind, [details])

    def _add_examples(self, kind: str, details: Sequence[str]) -> None:
        known = self.examples.setdefault(kind, [])
        known += details[: EXAMPLES - len(known)]

    def add(self, report: Mapping[str, Any]) -> None:
        """Add what another process printed."""
        self.counts.update(report["counts"])
        self.errors.update(report["errors"])
        for kind, details in report["examples"].items():
            self._add_examples(kind, details)
        self.round_trips += report["round_trips"]
        self.late = max(self.late, report["late"])

    def report(self) -> None:
        """Print it for the parent, and count anew."""
        print(json.dumps(vars(self)), flush=True)
        self.__init__(live=self.live)  # type: ignore[misc]


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run a client's coroutine; the event is set when standard input ends."""

    async def until_told() -> None:
        told = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin, told.set)
        await main(told)

    asyncio.run(until_told())
