"""Training curves as inline SVG in the colors of the page: losses and validation metrics of every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from unetdiff.reports.runs import Run
from unetdiff.reports.svg import RUNS, render_axes


@dataclass(frozen=True)
class Curve:
    """One metric over the images seen or the training time, a line for each run."""

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
_ACROSS = (("images", "images seen"), ("minutes", "minutes"))


def training_curves(runs: Sequence[Run]) -> list[Curve]:
    """Every metric that at least one run has, over images and over minutes."""
    curves = []
    for title, kind, key, log in _QUANTITIES:
        for across, label in _ACROSS:
            lines = [(index, points(run, kind, key, across)) for index, run in enumerate(runs)]
            present = [(index, xs, ys) for index, (xs, ys) in lines if xs]
            if present:
                svg = _plot(present, label, log, smooth=kind == "train", salt=f"{key}{kind}{across}")
                curves.append(Curve(title, label, svg))
    return curves


def points(run: Run, kind: str, key: str, across: str) -> tuple[list[float], list[float]]:
    """x and y values of a metric in metrics.jsonl; empty if the run does not have it.

    The training lines of a single-task run may have "loss" instead of "TASK/loss".
    """
    task, _, name = key.partition("/")
    entries = run.train if kind == "train" else run.validation
    pairs: list[tuple[float, float]] = []
    for entry in entries:
        value = entry.get(key)
        if value is None and kind == "train" and run.task == task:
            value = entry.get(name)
        if _is_number(value) and _is_number(entry.get(across)):
            pairs.append((float(entry[across]), float(value)))  # type: ignore[arg-type]
    return [x for x, _ in pairs], [y for _, y in pairs]


def smoothed(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average with the bias correction of Adam."""
    total, norm, result = 0.0, 0.0, []
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append(total / norm)
    return result


def _plot(lines: Sequence[tuple[int, list[float], list[float]]], label: str, log: bool, smooth: bool, salt: str) -> str:
    values = [y for _, _, ys in lines for y in ys]
    log = log and min(values) > 0 and max(values) / min(values) > 5

    def plot(axes: Axes) -> None:
        for index, xs, ys in lines:
            color = RUNS[index % len(RUNS)]
            if smooth and len(xs) > 5:
                axes.plot(xs, ys, color=color, linewidth=0.8, alpha=0.28)
                axes.plot(xs, smoothed(ys), color=color, linewidth=1.9)
            else:
                axes.plot(xs, ys, color=color, linewidth=1.9, marker="o", markersize=3.6)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(lambda x, _: thousands(x))
        axes.set_xlabel(label)

    return render_axes(plot, salt)


def thousands(number: float) -> str:
    """A tick label: 1500 -> "1.5k", 0.25 -> "0.25"."""
    return f"{number / 1000:g}k" if abs(number) >= 1000 else f"{number:g}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")
