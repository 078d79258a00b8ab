"""Plot of a benchmark: speedups, and growth of the cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from suite.compare import Row
from suite.growth import Growth

UNETDIFF_COLOR, PEER_COLOR, FAILED_COLOR, PASSED_COLOR = "#0b7f74", "#5d6775", "#c2325d", "#0b7f74"


def draw(path: Path, rows: Sequence[Row], growths: Sequence[Growth], title: str) -> None:
    """Write a PNG: speedups with quartiles and floors on top, growth on logarithmic axes below."""
    heights = [0.6 + 0.32 * len(rows)] * bool(rows) + [3.4] * bool(growths)
    figure = Figure(figsize=(11, sum(heights) + 1.0), layout="constrained", dpi=150)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    parts = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if rows:
        _speedups(next(parts).subplots(), rows)
    if growths:
        for axes, growth in zip(next(parts).subplots(1, len(growths), squeeze=False)[0], growths, strict=True):
            _growth(axes, growth)
    figure.savefig(path)


def _speedups(axes, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        spread = row.speedup
        color = PASSED_COLOR if spread.median >= row.min_speedup else FAILED_COLOR
        axes.barh(place, spread.median, height=0.6, color=color, alpha=0.85)
        axes.hlines(place, spread.lower, spread.upper, color="black", linewidth=1.5)
        axes.vlines(row.min_speedup, place - 0.42, place + 0.42, color="black", linestyle=(0, (2, 1)), linewidth=1.2)
    axes.axvline(1, color=PEER_COLOR, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row.name} ({row.setting})" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("speedup over the peer; line: quartiles, dashed: floor", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _growth(axes, growth: Growth) -> None:
    sides = zip((UNETDIFF_COLOR, PEER_COLOR), growth.names, (growth.unetdiff, growth.peer), growth.fits, strict=True)
    for color, name, spreads, fit in sides:
        low, middle, high = ([getattr(s, at) * 1e3 for s in spreads] for at in ("lower", "median", "upper"))
        axes.plot(growth.values, middle, marker="o", markersize=3, color=color, label=f"{name}: {fit.exponent:.2f}")
        axes.fill_between(growth.values, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel=growth.axis, ylabel="ms")
    axes.set_title(growth.name, fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.3)
