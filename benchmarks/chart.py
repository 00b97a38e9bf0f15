"""The chart: microseconds of one operation, asyncsess and others, readable on white and on dark."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contest import Contest, Standing
from benchmarks.contestants import ASYNCSESS
from benchmarks.figures import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEXT, _OURS, _OTHERS = "#76808c", "#2f81f7", "#9aa4af"
_STYLE: dict[Any, Any] = {
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "svg.hashsalt": "asyncsess",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
}


def draw(path: Path, contest: Contest) -> None:
    """Write the chart as SVG; the same figures give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels = (("Reading a session", contest.reading), ("Changing a session", contest.changing))
    with mpl.rc_context(_STYLE):
        heights = [len(standings) for _, standings in panels]
        figure = Figure(figsize=(9, 1.4 + 0.36 * sum(heights)), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        for axes, (title, standings) in zip((upper, lower), panels, strict=True):
            _bars(axes, title, standings)
        upper.spines["bottom"].set_visible(False)
        lower.set_xlabel("µs, median of rounds, logarithmic scale: shorter is faster")
        image = io.StringIO()
        figure.savefig(image, format="svg", transparent=True, metadata={"Date": None})
    lines = [line.rstrip() for line in image.getvalue().splitlines()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _bars(axes: Axes, title: str, standings: Sequence[Standing]) -> None:
    """Draw one bar for each, the fastest on top."""
    ordered = sorted(standings, key=lambda standing: standing.timing.median)
    names = [f"{standing.name}: {standing.calls}" for standing in ordered]
    micros = [standing.timing.median * 1e6 for standing in ordered]
    colors = [_OURS if standing.name == ASYNCSESS else _OTHERS for standing in ordered]
    bars = axes.barh(names, micros, color=colors, height=0.66)
    axes.bar_label(bars, [number(value) for value in micros], padding=4)
    for label, standing in zip(axes.get_yticklabels(), ordered, strict=True):
        if standing.name == ASYNCSESS:
            label.set(color=_OURS, fontweight="bold")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xscale("log")
    axes.set_xlim(1, 10 ** (len(str(int(max(micros)))) + 0.2))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.invert_yaxis()
    axes.set_facecolor("none")
    axes.tick_params(which="both", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color=_TEXT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
