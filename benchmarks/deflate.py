"""What permessage-deflate saves and costs, setting by setting: bytes on the wire, processor time, memory.

The defaults of the deflate options are chosen by it. A sweep changes one option and leaves the others at their
defaults; websockets' own extension, as its server sets it up, stands beside. The runs go round over the settings, so
that what else the machine does meets all of them alike; a time is the median of its runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from random import Random
from statistics import median
from time import process_time
from typing import Any, NamedTuple

from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, enable_server_permessage_deflate
from websockets.frames import Frame, Opcode

from geventws.frames import encode_header
from geventws.options import Options
from geventws.permessage_deflate import NAME, Deflate, negotiate, zlib_ng

from .echo import machine

RESULTS = Path(__file__).with_suffix(".md")
PASSES = 3  # of a run; the fastest counts
HISTORY = 40 << 10  # bytes that a connection has seen before it is measured: more than the widest window, 32 KiB
MEMORY_CONNECTIONS = 500
TCP_IP = 40  # bytes of headers before each segment, without options


class Websockets(NamedTuple):
    """The extension of websockets as its server sets it up, for a client that allows takeover or not."""

    takeover: bool


Setting = Options | Websockets

DEFAULT = Options()
TAKEOVER = DEFAULT.replace(deflate_context_takeover=True)
# Windows that do with less memory, with the memory levels that suit them.
NARROW = tuple(
    TAKEOVER.replace(deflate_window_bits=bits, deflate_memory_level=level)
    for bits, level in ((15, 8), (14, 7), (13, 6), (12, 5), (11, 5), (11, 4), (10, 5), (9, 5))
)
LIKE_WEBSOCKETS = NARROW[3].replace(deflate_level=6)
BESIDE: tuple[Setting, ...] = (DEFAULT, Websockets(False), TAKEOVER, LIKE_WEBSOCKETS, Websockets(True))
MEMORY: tuple[Setting, ...] = (DEFAULT, *NARROW, Websockets(True))
SWEEPS = {
    "deflate_level": (1, 2, 3, 4, 5, 6, 9),
    "deflate_window_bits": (9, 10, 11, 12, 13, 15),
    "deflate_memory_level": (1, 3, 5, 7, 8, 9),
}


class Writer:
    """Writes what applications send: the same at every start."""

    def __init__(self) -> None:
        self._random = Random(7692)
        syllables = [first + vowel + last for first in "bcdfglmnprst" for vowel in "aeio" for last in ("", *"nrs")]
        lengths = [1 + (rank > 100) + (rank > 1500) for rank in range(5000)]
        self._frequencies = list(accumulate(1 / (rank + 2.7) for rank in range(5000)))  # Zipf's law
        self._words = ["".join(self._random.choices(syllables, k=length)) for length in lengths]
        self._phrases = [" ".join(self._pick(self._words, 1 + rank % 4)) for rank in range(5000)]

    def chat(self, size: int) -> bytes:
        """Return an event of two to four thirds of size."""
        return self.event(self._random.randint(size * 2 // 3, size * 4 // 3))

    def event(self, size: int) -> bytes:
        """Return a JSON object of exactly size: as many fields as leave room for a text."""
        number = self._random.randrange(10**6)
        fields: dict[str, object] = {"type": self._random.choice(("chat", "edit", "like"))}
        fields |= {"user": self._random.choice(self._words[100:150]), "room": self._random.choice(self._words[200:220])}
        fields |= {"id": number, "ts": 1763700000000 + 1237 * number}
        while len(_json({**fields, "text": ""})) > size * 5 // 6:
            fields.popitem()
        text = " ".join(self._pick(self._phrases, size // 4))
        return _json({**fields, "text": text[: size - len(_json({**fields, "text": ""}))]})

    def json(self, size: int) -> bytes:
        """Return a JSON list of records as an API answers with: as many as fit."""
        records: list[bytes] = []
        while sum(map(len, records)) + len(records) + 1 < size:
            first, last = (word.capitalize() for word in self._pick(self._words, 2))
            number, cents, hour = (self._random.randrange(limit) for limit in (10**6, 10**5, 24))
            record: dict[str, object] = {"id": number, "name": f"{first} {last}"}
            record |= {"email": f"{first}.{last}@example.org".lower(), "price": cents / 100, "active": cents % 3 > 0}
            record |= {"updated": f"2026-11-{1 + cents % 30:02}T{hour:02}:{number % 60:02}:{cents % 60:02}Z"}
            record |= {"tags": self._pick(self._words, cents % 4), "note": " ".join(self._pick(self._phrases, 3))}
            records.append(_json(record))
        return b"[" + b",".join(records[:-1]) + b"]"

    def text(self, size: int) -> bytes:
        """Return HTML: words and phrases by Zipf's law, in sentences, links and paragraphs."""
        html = bytearray()
        while len(html) < size:
            sentence = " ".join(self._pick(self._phrases, self._random.randint(4, 9))).capitalize()
            form = self._random.choice(('</p>\n<p class="{}">{}. ', '<a href="/{}">{}</a>, ', *["{1}. "] * 6))
            html += form.format(self._random.choice(self._words[:50]), sentence).encode()
        return bytes(html[:size])

    def random(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def _pick(self, among: Sequence[str], count: int) -> list[str]:
        return self._random.choices(among, cum_weights=self._frequencies, k=count)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class Kind(NamedTuple):
    """Messages of one kind, and the connections that send them in turn.

    Many connections, as in a server: a processor's cache has no room for the zlib states of all.
    """

    name: str  # of a method of Writer
    size: int  # bytes, about
    connections: int = 64
    messages: int = 3  # on each connection in a pass

    def __str__(self) -> str:
        return f"{self.name}, {self.size >> 10} KiB" if self.size >= 1024 else f"{self.name}, {self.size} bytes"


SWEPT = (Kind("chat", 150, messages=16), Kind("json", 4096), Kind("text", 65536, connections=8, messages=1))
RANDOM = (Kind("random", 4096), Kind("random", 65536, connections=8, messages=1))
CROWDS = tuple(Kind("json", 4096, connections) for connections in (1, 16, 64, 256))
EVENTS = tuple(Kind("event", size, messages=16) for size in (32, 64, 96, 128, 192, 256, 512, 1024))


class Traffic:
    """What the connections of one kind send: history once, then the payloads of each pass, none of them twice."""

    def __init__(self, kind: Kind) -> None:
        write = partial(getattr(Writer(), kind.name), kind.size)
        self.connections, self.messages = kind.connections, kind.messages
        self.history = b"".join(write() for _ in range(HISTORY // kind.size + 1))
        self.passes = [[write() for _ in range(kind.connections * kind.messages)] for _ in range(PASSES)]


class End(NamedTuple):
    """One end of a connection. A message is bytes for geventws, a Frame for websockets."""

    compress: Callable[[Any], Any]
    inflate: Callable[[Any], Any]


def connect(setting: Setting) -> tuple[End, End]:
    """Return a server's end and a client's, agreed on what browsers offer."""
    if isinstance(setting, Websockets):
        server = enable_server_permessage_deflate(None)[0]
        client = ClientPerMessageDeflateFactory(not setting.takeover, not setting.takeover)
        response, here = server.process_request_params(list(client.get_request_params()), [])
        there = client.process_response_params(response, [])
        return End(here.encode, here.decode), End(there.encode, there.decode)
    agreement = negotiate([(NAME, [("client_max_window_bits", None)])], setting)
    assert agreement is not None
    near, far = Deflate(agreement, setting), Deflate(agreement, setting, client=True)
    inflate_near, inflate_far = (partial(end.inflate, most=setting.max_message_size, last=True) for end in (near, far))
    return End(near.compress, inflate_near), End(far.compress, inflate_far)


def message(setting: Setting, payload: bytes) -> Any:
    return Frame(Opcode.TEXT, payload) if isinstance(setting, Websockets) else payload


def content(message: Any) -> Any:
    return message.data if isinstance(message, Frame) else message


def frame_size(message: Any) -> int:
    size = len(content(message))
    return len(encode_header(0, 0, size)) + size


class Sample(NamedTuple):
    """Of one run, for each message."""

    plain: float  # bytes of the frame, were it not compressed
    wire: float  # bytes of the frame that travels
    compress: float  # µs
    inflate: float  # µs


def run(setting: Setting, traffic: Traffic) -> Sample:
    """Send it all through new connections, from the servers' ends to the clients'."""
    ends = [connect(setting) for _ in range(traffic.connections)]
    exchange(ends, [message(setting, traffic.history)] * len(ends))
    passes = [[message(setting, payload) for payload in payloads] for payloads in traffic.passes]
    wires, compress, inflate = zip(*(exchange(ends * traffic.messages, messages) for messages in passes), strict=True)
    plain = sum(frame_size(each) for messages in passes for each in messages)
    count = len(passes[0])
    microseconds = [1e6 * min(seconds) / count for seconds in (compress, inflate)]
    return Sample(plain / count / PASSES, sum(wires) / count / PASSES, *microseconds)


def exchange(ends: Sequence[tuple[End, End]], messages: Sequence[Any]) -> tuple[int, float, float]:
    """Send one message from each near end to its far end.

    Returns the bytes of the frames that travel, and the seconds that compressing and inflating took.
    """
    compressors, inflaters = [near.compress for near, _ in ends], [far.inflate for _, far in ends]
    begin = process_time()
    sent = [compress(each) for compress, each in zip(compressors, messages, strict=True)]
    middle = process_time()
    received = [None if each is None else inflate(each) for inflate, each in zip(inflaters, sent, strict=True)]
    end = process_time()
    wire = 0
    for before, travelled, after in zip(messages, sent, received, strict=True):
        assert travelled is None or content(after) == content(before), "a message came back changed"
        wire += frame_size(before if travelled is None else travelled)  # None is better sent as it is
    return wire, middle - begin, end - middle


def memory(setting: Setting) -> tuple[float, float]:
    """Return the KiB that a connection holds once it has sent, and once it has received as well.

    Asks for a process of its own.
    """
    write = Writer().json
    messages = [message(setting, write(4096)) for _ in range(HISTORY // 4096)]
    _, peer = connect(setting)
    arriving = [peer.compress(each) for each in messages]
    before = resident()
    ends = [connect(setting)[0] for _ in range(MEMORY_CONNECTIONS)]
    for end in ends:
        for each in messages:
            end.compress(each)
    sent = resident()
    for end in ends:
        for each in arriving:
            end.inflate(each)
    return (sent - before) / MEMORY_CONNECTIONS, (resident() - before) / MEMORY_CONNECTIONS


def resident() -> float:
    """Return the KiB of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


class Results:
    """Takes samples of each job in rounds, and tells them as cells of tables."""

    def __init__(self, jobs: Iterable[tuple[Setting, Kind]], runs: int) -> None:
        self._samples: dict[tuple[Setting, Kind], list[Sample]] = {job: [] for job in jobs}
        traffic = {kind: Traffic(kind) for _, kind in self._samples}
        for number in range(runs):
            print(f"run {number + 1} of {runs}", file=sys.stderr)
            for (setting, kind), samples in self._samples.items():
                samples.append(run(setting, traffic[kind]))

    def size(self, setting: Setting, kind: Kind, headers: int = 0) -> str:
        sample = self._samples[setting, kind][0]
        return f"{100 * (sample.wire + headers) / (sample.plain + headers):.1f} %"

    def saved(self, setting: Setting, kind: Kind) -> float:
        sample = self._samples[setting, kind][0]
        return sample.plain - sample.wire

    def price(self, setting: Setting, kind: Kind) -> str:
        """Return the µs of compressing for each byte saved."""
        saved = self.saved(setting, kind)
        spent = median(sample.compress for sample in self._samples[setting, kind])
        return f"{spent / saved:.2f}" if saved >= 1 else "none saved"

    def compress(self, setting: Setting, kind: Kind) -> str:
        return _times([sample.compress for sample in self._samples[setting, kind]])

    def inflate(self, setting: Setting, kind: Kind) -> str:
        return _times([sample.inflate for sample in self._samples[setting, kind]])

    def cells(self, setting: Setting, kind: Kind) -> tuple[str, str, str]:
        return self.size(setting, kind), self.compress(setting, kind), self.inflate(setting, kind)


def _times(values: Sequence[float]) -> str:
    """Return the median with the lowest and the highest behind it."""
    digits = 0 if median(values) >= 100 else 1
    middle, lowest, highest = (f"{value:.{digits}f}" for value in (median(values), min(values), max(values)))
    return f"{middle} ({lowest} to {highest})"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deflate", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each setting with each kind of message")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {RESULTS.name} as well")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs is at least 1")
    swept = [setting for option in SWEEPS for _, setting in sweep(option)]
    jobs: list[tuple[Setting, Kind]] = [(setting, kind) for kind in SWEPT for setting in (*BESIDE, *swept, *NARROW)]
    jobs += [(setting, kind) for kind in (*RANDOM, *CROWDS) for setting in BESIDE]
    jobs += [(setting, kind) for kind in EVENTS for setting in (DEFAULT, TAKEOVER)]
    results = Results(jobs, options.runs)
    print("memory", file=sys.stderr)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        held = pool.map(memory, MEMORY, chunksize=1)
    lines = list(report(results, options.runs, held))
    print(*lines, sep="\n")
    if options.write:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def sweep(option: str) -> Iterator[tuple[int, Options]]:
    """Yield the values of an option, each with the setting that has it: without takeover, then with it."""
    for base in (DEFAULT, TAKEOVER):
        for value in SWEEPS[option]:
            yield value, base.replace(**{option: value})


def report(results: Results, runs: int, held: Sequence[tuple[float, float]]) -> Iterator[str]:
    """Yield lines of Markdown."""
    yield "# What the deflate options save and cost\n"
    yield "Written by `python -m benchmarks.deflate --write`; the README beside it tells how it measures.\n"
    swift = f", zlib-ng {zlib_ng.ZLIBNG_RUNTIME_VERSION}" if zlib_ng else ""
    yield f"{machine()}, zlib {zlib.ZLIB_RUNTIME_VERSION}{swift}, websockets {version('websockets')}."
    yield f"{runs} runs; a time is the median, with the lowest and the highest. 15/8 is window bits 15, memory level 8."
    rows: list[Sequence[str]]

    yield "\n## Beside websockets\n"
    rows = [
        [str(kind), name(setting), *results.cells(setting, kind)] for kind in (*SWEPT, *RANDOM) for setting in BESIDE
    ]
    yield from table(["messages", "setting", "size", "compress µs", "inflate µs"], rows)

    heads = [head for kind in SWEPT for head in (f"{kind}: size", "compress µs", "inflate µs")]
    for option in SWEEPS:
        yield f"\n## {option}\n"
        rows = []
        for value, setting in sweep(option):
            shown = f"{value} (default)" if setting in (DEFAULT, TAKEOVER) else str(value)
            rows.append([shown, takeover(setting), *(cell for kind in SWEPT for cell in results.cells(setting, kind))])
        yield from table([option, "takeover", *heads], rows)

    yield f"\n## Memory, over {MEMORY_CONNECTIONS} connections\n"
    rows = []
    for (sent, received), each in zip(held, MEMORY, strict=True):
        cells = [cell for kind in SWEPT for cell in results.cells(each, kind)[:2]]
        rows.append([name(each), f"{sent:.1f}", f"{received:.1f}", *cells])
    heads = [head for kind in SWEPT for head in (f"{kind}: size", "compress µs")]
    yield from table(["setting", "KiB a connection, having sent", "and received", *heads], rows)

    yield f"\n## Connections that take turns: {CROWDS[0]}, compress µs\n"
    rows = [[str(kind.connections), *(results.compress(each, kind) for each in BESIDE)] for kind in CROWDS]
    yield from table(["connections", *map(name, BESIDE)], rows)

    yield "\n## deflate_threshold\n"
    rows = []
    for setting in (DEFAULT, TAKEOVER):
        for kind in EVENTS:
            size, *times = results.cells(setting, kind)
            sizes = [f"{results.saved(setting, kind):.1f}", size, results.size(setting, kind, TCP_IP)]
            rows.append([str(kind.size), takeover(setting), *sizes, *times, results.price(setting, kind)])
    heads = ["saved bytes", "size", f"with {TCP_IP} bytes of TCP/IP", "compress µs", "inflate µs"]
    yield from table(["JSON bytes", "takeover", *heads, "compress µs a saved byte"], rows)


def name(setting: Setting) -> str:
    if isinstance(setting, Websockets):
        return "websockets" + ", takeover" * setting.takeover
    numbers = f"level {setting.deflate_level}, {setting.deflate_window_bits}/{setting.deflate_memory_level}"
    return f"geventws, {numbers}" + ", takeover" * setting.deflate_context_takeover


def takeover(setting: Options) -> str:
    return "yes" if setting.deflate_context_takeover else "no"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{'---:|' * (len(heads) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    sys.exit(main())
