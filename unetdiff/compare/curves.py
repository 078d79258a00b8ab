"""Learning curves as inline SVG that takes its colours from the page: losses and validation figures of every run."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from unetdiff.compare.runs import Run

# Colours that matplotlib writes and the page's CSS variables that take their place. No other mark uses them.
_INK, _RULE = "#0a0b01", "#0a0b02"
_RUNS = [f"#0a0c{index:02x}" for index in range(8)]


@dataclass(frozen=True)
class Curve:
    """One quantity against the pictures seen or the minutes trained, a line for each run."""

    title: str
    across: str
    svg: str


_QUANTITIES = (
    # title, kind of line, key, log scale
    ("Segmentation loss", "train", "segmentation/loss", False),
    ("Diffusion loss", "train", "diffusion/loss", True),
    ("Validation mIoU", "validation", "segmentation/mean_iou", False),
    ("Validation diffusion loss", "validation", "diffusion/loss", True),
)
_ACROSS = (("images", "pictures seen"), ("minutes", "minutes"))


def learning_curves(runs: Sequence[Run]) -> list[Curve]:
    """Every quantity that at least one run has, against pictures and against minutes, in this order of pairs."""
    curves = []
    for title, kind, key, log in _QUANTITIES:
        for across, label in _ACROSS:
            lines = [(index, points(run, kind, key, across)) for index, run in enumerate(runs)]
            drawn = [(index, xs, ys) for index, (xs, ys) in lines if xs]
            if drawn:
                svg = _plot(drawn, label, log, smooth=kind == "train", salt=f"{key}{kind}{across}")
                curves.append(Curve(title, label, svg))
    return curves


def points(run: Run, kind: str, key: str, across: str) -> tuple[list[float], list[float]]:
    """Abscissae and ordinates of a quantity in metrics.jsonl; empty where the run has none.

    A run of one task may call its loss "loss" instead of "TASK/loss" in its training lines.
    """
    task, _, name = key.partition("/")
    entries = run.train if kind == "train" else run.validation
    found: list[tuple[float, float]] = []
    for entry in entries:
        value = entry.get(key)
        if value is None and kind == "train" and run.task == task:
            value = entry.get(name)
        if _is_number(value) and _is_number(entry.get(across)):
            found.append((float(entry[across]), float(value)))  # type: ignore[arg-type]
    return [x for x, _ in found], [y for _, y in found]


def smoothed(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average without the bias of its start (Adam's correction)."""
    total, norm, result = 0.0, 0.0, []
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append(total / norm)
    return result


def _plot(lines: Sequence[tuple[int, list[float], list[float]]], label: str, log: bool, smooth: bool, salt: str) -> str:
    style: Any = {
        "svg.fonttype": "none",  # text stays text; `themed` gives it the page's font
        "svg.hashsalt": salt,  # ids are the same in every run and differ between the page's drawings
        "font.size": 10.5,
        "axes.edgecolor": _RULE,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.labelcolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(style):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for index, xs, ys in lines:
            color = _RUNS[index % len(_RUNS)]
            if smooth and len(xs) > 5:
                axes.plot(xs, ys, color=color, linewidth=0.8, alpha=0.28)
                axes.plot(xs, smoothed(ys), color=color, linewidth=1.9)
            else:
                axes.plot(xs, ys, color=color, linewidth=1.9, marker="o", markersize=3.6)
        every = [y for _, _, ys in lines for y in ys]
        log = log and min(every) > 0 and max(every) / min(every) > 5
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
        if not log:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(color=_RULE, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, which="both")
        axes.set_xlabel(label)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return themed(buffer.getvalue())


def themed(svg: str) -> str:
    """matplotlib's SVG file as an inline drawing: no prologue, no metadata, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace(_INK, "var(--dim)").replace(_RULE, "var(--rule)")
    for index, color in enumerate(_RUNS):
        svg = svg.replace(color, f"var(--run-{index})")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would style the whole page
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg)  # matplotlib's names of groups, the same in every drawing
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    return re.sub(r"\s*\n\s*", " ", svg)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")
