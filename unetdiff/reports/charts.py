"""The charts of a record as inline SVG: lines with markers, standard deviations, and names at their ends."""

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
"""Width and height in inches; narrower than the training curves, so that text is larger on a phone."""
MARKERS = "os^DvPX*"
MAX_ERROR_BARS = 8
"""Lines with more points have a band instead of error bars."""
MAX_TICKS = 8
"""A logarithmic axis with at most this many distinct x values has a tick at each."""
MAX_NAME_CHARS, MAX_NAME_LINES = 16, 3
"""Characters per line, and lines, of a name next to the axes."""
MARK_SIZE = (0.42, 0.17)
"""Width and height of a line's mark in the legend, in inches."""
_LINE_HEIGHT = 0.075
"""Height of a name's text line, as a fraction of the axes' height."""


def draw_chart(chart: Chart, salt: str) -> tuple[str, bool]:
    """The SVG, and whether it contains the names of the lines; otherwise the page needs a legend.

    salt: see `svg.render_axes`.
    """
    names = _fit([line.name for line in chart.lines])

    def plot(axes: Axes) -> None:
        for index, line in enumerate(chart.lines):
            _draw_line(axes, index, line)
        _scale(axes, "x", chart.log_x, [x for line in chart.lines for x in line.x])
        _scale(axes, "y", chart.log_y, [y for line in chart.lines for y in _reach(line, chart.log_y)])
        axes.set_xlabel(chart.across, parse_math=False)
        if names:
            _name_lines(axes, chart.lines)

    return render_axes(plot, salt, SIZE), bool(names)


def legend_mark(index: int, salt: str) -> str:
    """Line and marker as a small SVG, for a legend outside of the chart."""

    def plot(axes: Axes) -> None:
        axes.plot([0, 0.5, 1], [0, 0, 0], markevery=[1], **_style(index))
        axes.set_axis_off()

    return render_axes(plot, f"{salt} {index}", MARK_SIZE)


def _draw_line(axes: Axes, index: int, line: Line) -> None:
    xs = np.array(line.x, dtype=float)
    ys = np.array([_number(value.mean) for value in line.y])
    spread = np.array([_number(value.spread) for value in line.y])
    style = _style(index)
    if not np.isnan(spread).all():
        if len(xs) > MAX_ERROR_BARS:
            axes.fill_between(xs, ys - spread, ys + spread, color=style["color"], alpha=0.16, linewidth=0)
        else:
            axes.errorbar(xs, ys, spread, fmt="none", color=style["color"], elinewidth=1.1, capsize=2.6, alpha=0.8)
    if len(xs) > 4 * MAX_ERROR_BARS:
        style["markevery"] = max(1, len(xs) // MAX_ERROR_BARS)
    axes.plot(xs, ys, **style)


def _style(index: int) -> dict[str, Any]:
    """Color and marker; dashed where the colors repeat."""
    return {
        "color": RUNS[index % len(RUNS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4.4,
        "linewidth": 1.9,
        "linestyle": "-" if index < len(RUNS) else (0, (4, 2)),
    }


def _scale(axes: Axes, which: Literal["x", "y"], log: bool, numbers: Sequence[float]) -> None:
    """Limits and ticks of an axis; a logarithmic axis with values of zero or less is linear around zero."""
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
        if which == "x" and len(known) <= MAX_TICKS:
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
    """Names wrapped to fit next to the axes; [] if they do not fit."""
    wrapped = [textwrap.wrap(name, MAX_NAME_CHARS, break_long_words=False) or [""] for name in names]
    lines = sum(len(name) for name in wrapped)
    too_wide = any(len(line) > MAX_NAME_CHARS for name in wrapped for line in name)
    if too_wide or lines * _LINE_HEIGHT > 0.95 or any(len(name) > MAX_NAME_LINES for name in wrapped):
        return []
    return ["\n".join(name) for name in wrapped]


def _name_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Each name at the height of its line's last point, moved apart where they would overlap."""
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
    """Centers close to `places`, in the same order, in [0, 1] and without overlap.

    Args:
        places: preferred centers.
        heights: height of each; at most 1 in total.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    centers = list(places)
    floor = 0.0
    for index in order:
        centers[index] = max(centers[index], floor + heights[index] / 2)
        floor = centers[index] + heights[index] / 2
    ceiling = 1.0
    for index in reversed(order):
        centers[index] = min(centers[index], ceiling - heights[index] / 2)
        ceiling = centers[index] - heights[index] / 2
    return centers


def _reach(line: Line, log: bool) -> list[float]:
    """y values that the axis must contain: means and the ends of their spread."""
    values = []
    for value in line.y:
        mean, spread = _number(value.mean), _number(value.spread)
        ends = [mean] if math.isnan(spread) else [mean - spread, mean, mean + spread]
        # A band that reaches zero has no lower end on a logarithmic axis.
        values += [end for end in ends if not (log and mean > 0 >= end)]
    return values


def _number(number: float | None) -> float:
    return math.nan if number is None else float(number)
