"""A record's charts as inline SVG: a line and a marker for each curve, its spread, and its name at its end."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from unetdiff.reports.curves import thousands
from unetdiff.reports.record import Chart, Line
from unetdiff.reports.svg import RUNS, render_axes

SIZE = (4.7, 2.9)
"""Inches; narrower than the learning curves, so that letters are larger on a phone."""
MARKERS = "os^DvPX*"
BARS = 8
"""Points up to which each has an error bar; beyond, a band."""
TICKS = 8
"""Different abscissae up to which each is a tick of a logarithmic axis."""
NAME_WIDTH, NAME_LINES = 16, 3
"""Letters and lines of a name that stands beside the axes."""
MARK = (0.42, 0.17)
"""Width and height of a curve's mark in a legend, in inches."""
_LINE_HEIGHT = 0.075
"""Of a name's line, as a share of the axes' height."""


def draw_chart(chart: Chart, salt: str) -> tuple[str, bool]:
    """The drawing, and whether the names stand in it; where they have no room, the page needs a legend.

    salt: see `svg.drawn`.
    """
    beside = _fit([line.name for line in chart.lines])

    def plot(axes: Axes) -> None:
        for index, line in enumerate(chart.lines):
            _draw_line(axes, index, line)
        _scale(axes, "x", chart.log_x, [x for line in chart.lines for x in line.x])
        _scale(axes, "y", chart.log_y, [y for line in chart.lines for y in _reach(line, chart.log_y)])
        axes.set_xlabel(chart.across, parse_math=False)
        if beside:
            _name_lines(axes, chart.lines)

    return render_axes(plot, salt, SIZE), bool(beside)


def legend_mark(index: int, salt: str) -> str:
    """The line and marker of a curve as a small drawing, for a legend outside of the chart."""

    def plot(axes: Axes) -> None:
        axes.plot([0, 0.5, 1], [0, 0, 0], markevery=[1], **_style(index))
        axes.set_axis_off()

    return render_axes(plot, f"{salt} {index}", MARK)


def _draw_line(axes: Axes, index: int, line: Line) -> None:
    xs = np.array(line.x, dtype=float)
    ys = np.array([_number(value.mean) for value in line.y])
    spread = np.array([_number(value.spread) for value in line.y])
    style = _style(index)
    if not np.isnan(spread).all():
        if len(xs) > BARS:
            axes.fill_between(xs, ys - spread, ys + spread, color=style["color"], alpha=0.16, linewidth=0)
        else:
            axes.errorbar(xs, ys, spread, fmt="none", color=style["color"], elinewidth=1.1, capsize=2.6, alpha=0.8)
    if len(xs) > 4 * BARS:
        style["markevery"] = max(1, len(xs) // BARS)
    axes.plot(xs, ys, **style)


def _style(index: int) -> dict[str, Any]:
    """Colour, marker and, where the colours begin again, dashes."""
    return {
        "color": RUNS[index % len(RUNS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4.4,
        "linewidth": 1.9,
        "linestyle": "-" if index < len(RUNS) else (0, (4, 2)),
    }


def _scale(axes: Axes, which: Literal["x", "y"], log: bool, numbers: Sequence[float]) -> None:
    """Limits and ticks of an axis; a logarithmic one that has zeros or less is linear around zero."""
    known = sorted({number for number in numbers if math.isfinite(number)})
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    if not known:
        axis.set_major_locator(NullLocator())
        return
    low, high = known[0], known[-1]
    if log and high > low:
        if low > 0:
            _set(axes, which, "log", {})
            room = (high / low) ** 0.05
            limits = (low / room, high * room)
        else:
            _set(axes, which, "symlog", {"linthresh": min(abs(number) for number in known if number)})
            limits = (low * 1.1 if low < 0 else low, high * 1.1)
        if which == "x" and len(known) <= TICKS:
            axis.set_ticks(known)
        elif low > 0:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 200 else (1.0,)))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    else:
        room = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
        limits = (low - room, high + room)
        axis.set_major_locator(MaxNLocator(6 if which == "x" else 5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(lambda number, _: thousands(number) if which == "x" else f"{number:g}")
    (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)


def _set(axes: Axes, which: str, scale: Any, options: dict[str, float]) -> None:
    (axes.set_xscale if which == "x" else axes.set_yscale)(scale, **options)


def _fit(names: Sequence[str]) -> list[str]:
    """Names as they stand beside the axes, in lines; [] where one is too long, or all are too high together."""
    wrapped = [textwrap.wrap(name, NAME_WIDTH, break_long_words=False) or [""] for name in names]
    lines = sum(len(name) for name in wrapped)
    too_wide = any(len(line) > NAME_WIDTH for name in wrapped for line in name)
    if too_wide or lines * _LINE_HEIGHT > 0.95 or any(len(name) > NAME_LINES for name in wrapped):
        return []
    return ["\n".join(name) for name in wrapped]


def _name_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Each name at the height of its curve's last point, pushed apart where they would touch."""
    names = _fit([line.name for line in lines])
    ends = []
    for line in lines:
        known = [(x, y) for x, y in zip(line.x, (_number(v.mean) for v in line.y), strict=True) if math.isfinite(y)]
        at = axes.transAxes.inverted().transform(axes.transData.transform(max(known)))[1] if known else 0.5
        ends.append(float(np.clip(at, 0.0, 1.0)))
    heights = [_LINE_HEIGHT * (1 + name.count("\n")) for name in names]
    for index, place in enumerate(spaced(ends, heights)):
        axes.annotate(
            names[index], (1.0, place), (7, 0), xycoords="axes fraction", textcoords="offset points", va="center",
            color=RUNS[index % len(RUNS)], fontsize=9.5, annotation_clip=False, parse_math=False, linespacing=1.05,
        )  # fmt: skip


def spaced(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Centres as near to `places` as they can be in [0, 1] without touching, in the same order from low to high.

    Args:
        places: where each would be.
        heights: of each; together at most 1.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    found = list(places)
    floor = 0.0
    for index in order:
        found[index] = max(found[index], floor + heights[index] / 2)
        floor = found[index] + heights[index] / 2
    ceiling = 1.0
    for index in reversed(order):
        found[index] = min(found[index], ceiling - heights[index] / 2)
        ceiling = found[index] - heights[index] / 2
    return found


def _reach(line: Line, log: bool) -> list[float]:
    """Ordinates that the drawing must show: means, and what their spread reaches."""
    found = []
    for value in line.y:
        mean, spread = _number(value.mean), _number(value.spread)
        ends = [mean] if math.isnan(spread) else [mean - spread, mean, mean + spread]
        # A band that reaches zero has no lower end on a logarithmic axis.
        found += [end for end in ends if not (log and mean > 0 >= end)]
    return found


def _number(number: float | None) -> float:
    return math.nan if number is None else float(number)
