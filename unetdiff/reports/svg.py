"""Drawings by matplotlib as inline SVG that takes its colours and its font from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours that matplotlib writes and the page's CSS variables that take their place. No other mark uses them.
INK, RULE = "#0a0b01", "#0a0b02"
RUNS = [f"#0a0c{index:02x}" for index in range(8)]
"""Colours of runs or lines: the page's --run-0 and on."""

SIZE = (5.2, 2.9)
"""Width and height in inches."""


def render_axes(plot: Callable[[Axes], None], salt: str, size: tuple[float, float] = SIZE) -> str:
    """One pair of axes in the page's look, filled by `plot`.

    Args:
        plot: draws into the axes; for colours it uses `INK`, `RULE` and `RUNS` alone.
        salt: different for each drawing of a page, so that no two share an id; the same salt gives the same file.
        size: width and height in inches; the page scales the drawing to its column.
    """
    style: Any = {
        "svg.fonttype": "none",  # text stays text; `themed` gives it the page's font
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
    """matplotlib's SVG file as an inline drawing: no prologue, no metadata, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace(INK, "var(--dim)").replace(RULE, "var(--rule)")
    for index, color in enumerate(RUNS):
        svg = svg.replace(color, f"var(--run-{index})")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would style the whole page
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg)  # matplotlib's names of groups, the same in every drawing
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    return re.sub(r"\s*\n\s*", " ", svg)
