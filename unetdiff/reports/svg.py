"""Matplotlib plots as inline SVG with the colors and the font of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Placeholder colors in matplotlib's output, replaced with CSS variables of the page.
INK, RULE = "#0a0b01", "#0a0b02"
RUNS = [f"#0a0c{index:02x}" for index in range(8)]
"""Placeholder colors of runs or lines, replaced with --run-0 to --run-7."""

SIZE = (5.2, 2.9)
"""Width and height in inches."""


def render_axes(plot: Callable[[Axes], None], salt: str, size: tuple[float, float] = SIZE) -> str:
    """One pair of axes in the style of the page, as inline SVG.

    Args:
        plot: draws into the axes, with no colors but `INK`, `RULE` and `RUNS`.
        salt: different for each plot of a page, so that ids are unique; the same salt gives the same SVG.
        size: width and height in inches; the page scales the plot to its column.
    """
    style: Any = {
        "svg.fonttype": "none",  # text stays text; `apply_theme` sets the font of the page
        "svg.hashsalt": salt,
        "font.size": 10.5,
        "axes.edgecolor": RULE,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        plot(axes)
        axes.grid(color=RULE, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, which="both")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return apply_theme(buffer.getvalue())


def apply_theme(svg: str) -> str:
    """Matplotlib's SVG for inline use: no prologue, no metadata, the colors and the font of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace(INK, "var(--dim)").replace(RULE, "var(--rule)")
    for index, color in enumerate(RUNS):
        svg = svg.replace(color, f"var(--run-{index})")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg)  # group ids, the same in every plot
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    return re.sub(r"\s*\n\s*", " ", svg)
