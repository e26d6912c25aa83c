"""Bar charts of what the benchmarks measured, as PNG files beside this one.

matplotlib is in the benchmarks' own environment only: draw() has its Python run this module, which gets the charts on
stdin.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COLOURS = {"limit": "#b4b4b4", "ours": "#d1495b", "peer": "#7c9fb8"}
LEGEND = {"limit": "raw TCP, no WebSocket", "ours": "geventws", "peer": "peers"}


@dataclass(frozen=True)
class Bar:
    name: str
    value: float
    lowest: float
    highest: float
    kind: str  # limit, ours or peer


@dataclass(frozen=True)
class Chart:
    file: str  # without .png
    title: str
    unit: str
    bars: Sequence[Bar]  # the first on top
    digits: int = 0  # of the values, behind the point


def draw(python: Path, charts: Sequence[Chart]) -> None:
    """Draw charts by the Python of the benchmarks' environment."""
    given = json.dumps([asdict(chart) for chart in charts])
    subprocess.run([python, "-m", "benchmarks.plots"], check=True, cwd=HERE.parent, input=given, text=True)


def main() -> int:
    for chart in json.load(sys.stdin):
        draw_bars(chart)
    return 0


def draw_bars(chart: dict[str, Any]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from PIL import Image

    bars = chart["bars"]
    figure = Figure(figsize=(8, 1.3 + 0.27 * len(bars)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    values = [bar["value"] for bar in bars]
    spreads = [[bar["value"] - bar["lowest"] for bar in bars], [bar["highest"] - bar["value"] for bar in bars]]
    whiskers = {"ecolor": "#333333", "elinewidth": 1, "capsize": 2}
    axes.barh(range(len(bars)), values, xerr=spreads, color=[COLOURS[bar["kind"]] for bar in bars], error_kw=whiskers)
    most = max(bar["highest"] for bar in bars)
    for place, bar in enumerate(bars):
        shown = f"{bar['value']:,.{chart['digits']}f}"
        axes.text(bar["highest"] + most / 100, place, shown, va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [bar["name"] for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, most * 1.14)
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.{chart['digits']}f}")
    axes.set_xlabel(chart["unit"])
    axes.set_title(chart["title"], fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    kinds = [kind for kind in COLOURS if any(bar["kind"] == kind for bar in bars)]
    axes.legend(
        handles=[Patch(color=COLOURS[kind], label=LEGEND[kind]) for kind in kinds], loc="lower right", frameon=False
    )
    path = HERE / f"{chart['file']}.png"
    figure.savefig(path, metadata={"Software": None})
    with Image.open(path) as image:  # 64 colours do, at a third of the size
        image.convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
