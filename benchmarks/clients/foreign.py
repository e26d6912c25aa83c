"""Foreign clients of the soak: connections of the websockets package, half of them with permessage-deflate."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from . import PATIENCE, Corpus, Message, Plan, Tally, run

FRAGMENTED = 0.2  # of the messages
ABORTED = 0.2  # of the connections, in the end
OPENING_AT_ONCE = 16
BURST = 4  # messages, at most


class Crowd:
    """The connections of this process."""

    def __init__(self, plan: Plan, told: asyncio.Event) -> None:
        self.plan = plan
        self.tally = Tally()
        self._told = told
        self._rng = random.Random(plan.seed)
        self._corpus = Corpus(self._rng)
        self._opening = asyncio.Semaphore(OPENING_AT_ONCE)

    async def run(self) -> None:
        """Keep the plan until told to leave."""
        reports = asyncio.create_task(self._report())
        await asyncio.gather(*(self._keep_one() for _ in range(self.plan.connections)))
        reports.cancel()
        self.tally.report()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.tally.report()

    async def _keep_one(self) -> None:
        """Have one connection after another."""
        while not self._told.is_set():
            try:
                await self._live()
            except asyncio.TimeoutError:
                self.tally.error(f"no echo in {PATIENCE:g} s", "websockets")
            except (OSError, WebSocketException) as exc:
                self.tally.error("unexpected end", f"websockets: {type(exc).__name__}: {exc}")

    async def _live(self) -> None:
        counts = self.tally.counts
        compression = self._rng.choice(("deflate", None))
        client = connect(
            f"ws://127.0.0.1:{self.plan.port}/echo",
            compression=compression,
            open_timeout=PATIENCE,
            close_timeout=PATIENCE,
            ping_timeout=PATIENCE,
            max_size=None,
        )
        async with self._opening:
            connection = await client
        self.tally.live += 1
        counts["opened"] += 1
        counts["opened with deflate"] += bool(connection.protocol.extensions)
        try:
            await self._talk(connection)
            if not self._told.is_set() and self._rng.random() < ABORTED:
                counts["ended by drop"] += 1
                connection.transport.abort()
            else:
                counts["ended by close"] += 1
                await connection.close()
                if connection.close_code != 1000:
                    self.tally.error("wrong close code", f"websockets: {connection.close_code}")
        finally:
            self.tally.live -= 1
            connection.transport.abort()

    async def _talk(self, connection: ClientConnection) -> None:
        end = monotonic() + self._rng.expovariate(1 / self.plan.lifetime)
        while monotonic() < end and not self._told.is_set():
            messages = [self._corpus.pick() for _ in range(self._rng.randint(1, BURST))]
            for message in messages:
                await connection.send(self._content(message))
            for message in messages:
                self._check(message, await asyncio.wait_for(connection.recv(), PATIENCE))
            pause = self._rng.expovariate(self.plan.rate / self.plan.connections / len(messages))
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._told.wait(), min(pause, end - monotonic()))

    def _content(self, message: Message) -> str | bytes | Iterator[str] | Iterator[bytes]:
        data = self._corpus.data[message.start : message.stop]
        cut = self._rng.randint(0, len(data)) if self._rng.random() < FRAGMENTED else None
        if message.is_text:
            text = data.decode()
            return text if cut is None else iter((text[:cut], text[cut:]))
        return data if cut is None else iter((data[:cut], data[cut:]))

    def _check(self, message: Message, echo: str | bytes) -> None:
        data = self._corpus.data[message.start : message.stop]
        if echo == (data.decode() if message.is_text else data):
            self.tally.counts["messages"] += 1
            self.tally.counts["bytes"] += len(data)
        else:
            what = f"{type(echo).__name__} of {len(echo)}, sent were {len(data)} bytes"
            self.tally.error("wrong bytes", f"websockets: {what}")


async def main(told: asyncio.Event) -> None:
    await Crowd(Plan.from_argument(), told).run()


if __name__ == "__main__":
    os.nice(5)  # the server and the probe come first
    run(main)
