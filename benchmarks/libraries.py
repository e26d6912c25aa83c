"""Whether zlib-ng and isal do a message by itself faster than zlib at the same size: what the extra `speed` rests on.

Both ends of a connection without takeover, in one process. The runs go round over the libraries, so that what else the
machine does meets all of them alike; a time is the median of its runs.
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from random import Random
from statistics import median
from time import process_time
from typing import Any, NamedTuple

from .deflate import Writer
from .echo import machine
from .report import table

README = Path(__file__).with_name("README.md")
TABLE = re.compile(r"(?<=<!-- table of libraries.py -->\n).*?(?=<!-- end -->)", re.DOTALL)
DOCS = README.parents[1] / "docs"
TAIL = b"\x00\x00\xff\xff"
LAST_BLOCK = b"\x03\x00"  # what geventws adds to a message by itself, to see that it is whole
AT_ONCE = 1 << 19  # bytes of messages of one kind
SIZES = (256, 1024, 4096, 65536)


class Library(NamedTuple):
    module: str
    level: int

    def __str__(self) -> str:
        return f"{self.module.rpartition('.')[2]} {self.level}"


OURS = Library("zlib", 4)  # the level that is geventws' default
OTHERS = (Library("zlib_ng.zlib_ng", 3), Library("zlib_ng.zlib_ng", 4), Library("isal.isal_zlib", 3))


class Sample(NamedTuple):
    size: float  # bytes of a message on the wire
    compress: float  # µs
    inflate: float  # µs


def kinds() -> Iterator[tuple[str, list[bytes]]]:
    """Yield different messages, kind by kind: JSON and HTML that are made up, our docs, and base64 of noise."""
    writer, random = Writer(), Random(7692)
    prose = b"".join(path.read_bytes() for path in sorted(DOCS.glob("*.md")))
    for size in SIZES:
        count = min(AT_ONCE // size, 400)
        starts = [random.randrange(len(prose) - size) for _ in range(count)]
        shown = f"{size >> 10} KiB" if size >= 1024 else f"{size} bytes"
        yield f"JSON, {shown}", [writer.json(size) if size > 256 else writer.event(size) for _ in range(count)]
        yield f"text, {shown}", [prose[start : start + size] for start in starts]
        yield f"HTML, {shown}", [writer.text(size) for _ in range(count)]
        yield f"base64, {shown}", [base64.b64encode(random.randbytes(size * 3 // 4)) for _ in range(count)]


def run(library: Library, messages: Sequence[bytes], from_peer: Sequence[bytes]) -> Sample:
    """Compress messages by one compressor that forgets after each, and inflate what zlib made of them."""
    module: Any = import_module(library.module)
    compressor = module.compressobj(library.level, module.DEFLATED, -15, 8)
    begin = process_time()
    sent = [compressor.compress(message) + compressor.flush(module.Z_FULL_FLUSH) for message in messages]
    middle = process_time()
    received = [module.decompressobj(-15).decompress(payload, 1 << 20) for payload in from_peer]
    end = process_time()
    if received != messages or any(
        zlib.decompress(payload, -15) != message for payload, message in whole(sent, messages)
    ):
        sys.exit(f"{library} changed a message")
    count = len(messages)
    wire = sum(map(len, sent)) / count - len(TAIL)
    return Sample(wire, 1e6 * (middle - begin) / count, 1e6 * (end - middle) / count)


def whole(sent: Sequence[bytes], messages: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield each payload as a stream that has an end, with its message."""
    return zip((payload + LAST_BLOCK for payload in sent), messages, strict=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.libraries", description=__doc__)
    parser.add_argument("--runs", type=int, default=9, help="of each library with each kind of message")
    parser.add_argument("--write", action="store_true", help=f"put the table into {README.name} as well")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs is at least 1")
    lines = list(report(options.runs))
    print(*lines, sep="\n")
    if options.write:
        written = "\n".join(["", *lines, "", ""])
        README.write_text(TABLE.sub(lambda _: written, README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def installed(library: Library) -> bool:
    try:
        import_module(library.module)
    except ImportError:
        return False
    return True


def report(runs: int) -> Iterator[str]:
    """Yield lines of Markdown: for each kind zlib's figures, and how the others compare."""
    others = [library for library in OTHERS if installed(library)]
    yield f"{machine()}, zlib {zlib.ZLIB_RUNTIME_VERSION}. {runs} runs. A library stands with its level."
    yield ""
    rows = []
    for kind, messages in kinds():
        print(kind, file=sys.stderr)
        peer = [zlib.compressobj(wbits=-15) for _ in messages]
        from_peer = [
            each.compress(message) + each.flush(zlib.Z_SYNC_FLUSH) + LAST_BLOCK
            for each, message in zip(peer, messages, strict=True)
        ]
        taken: dict[Library, list[Sample]] = {library: [] for library in (OURS, *others)}
        for _ in range(runs):
            for library, samples in taken.items():
                samples.append(run(library, messages, from_peer))
        ours, *rest = (Sample(*map(median, zip(*samples, strict=True))) for samples in taken.values())
        cells = [
            f"{each.size / ours.size:.3f}, {ours.compress / each.compress:.2f}, {ours.inflate / each.inflate:.2f}"
            for each in rest
        ]
        rows.append([kind, f"{ours.size:.0f}, {ours.compress:.1f}, {ours.inflate:.1f}", *cells])
    heads = [f"{OURS}: bytes, µs to compress, to inflate", *(f"{each}: size, times as fast" for each in others)]
    yield from table(["messages", *heads], rows)


if __name__ == "__main__":
    sys.exit(main())
