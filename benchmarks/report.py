"""How figures are kept and shown: files of samples, tables in Markdown, medians with their spread."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Samples = dict[str, list[Any]]


def load(path: Path | None) -> Samples:
    """Return what save() wrote there; nothing where there is no file."""
    return json.loads(path.read_text()) if path is not None and path.exists() else {}


def save(path: Path | None, samples: Samples) -> None:
    if path is not None:
        path.write_text(json.dumps(samples, indent=1) + "\n")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table, its columns behind the first aligned as numbers."""
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{'---:|' * (len(heads) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def spread(values: Sequence[float], digits: int = 0) -> list[str]:
    """Return the median, and the lowest and the highest."""
    return [f"{median(values):,.{digits}f}", f"{min(values):,.{digits}f} to {max(values):,.{digits}f}"]
