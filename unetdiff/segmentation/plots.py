"""Plots of a segmentation model: the confusion matrix and the reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from unetdiff.files.writing import write_file

__all__ = ["draw_confusion", "draw_reliability"]

LIGHT = {"paper": "#ffffff", "ink": "#1c2430", "dim": "#5d6775", "rule": "#d5d2c8", "none": "#efece4",
         "strong": "#064f48", "bar": "#0b7f74", "gap": "#c2325d"}  # fmt: skip
DARK = {"paper": "#181d25", "ink": "#e6e9ee", "dim": "#9aa5b4", "rule": "#39434f", "none": "#272e39",
        "strong": "#6fe3d3", "bar": "#2a7f76", "gap": "#f58aa6"}  # fmt: skip
MAX_NUMBERED_CLASSES = 30  # up to which cells show numbers
MAX_NAME_LENGTH = 24  # characters of a class name


def draw_confusion(target: Path | IO[bytes], matrix: np.ndarray, classes: Sequence[str], dark: bool = False) -> None:
    """Write a confusion matrix (C, C), rows target, as PNG to a path or an open file; rows are normalized, those of
    absent classes blank.

    Sizes of cells and letters depend on the number of classes, so that 2 to 255 classes are readable.
    """
    colors, count = DARK if dark else LIGHT, len(classes)
    with np.errstate(invalid="ignore"):
        fraction = matrix / matrix.sum(axis=1, keepdims=True)  # (C, C), nan in the rows of absent classes
    names = [name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…" for name in classes]
    cell = float(np.interp(count, [2, 12, 30, 60, 255], [1.1, 0.5, 0.36, 0.22, 0.09]))  # inches
    letters = float(np.interp(count, [2, 12, 30, 60, 255], [11, 10, 8.5, 7, 5]))  # points
    margin = 0.4 + 0.0085 * letters * max(map(len, names))
    with rc_context(_style(colors)):
        size, few = (count * cell + margin + 1.2, count * cell + margin + 0.9), count <= MAX_NUMBERED_CLASSES
        figure = Figure(figsize=size, layout="constrained" if few else None)
        if few:
            axes = figure.add_subplot()
        else:  # a constrained layout measures every name several times
            left, bottom = (margin + 0.2) / size[0], (margin + 0.2) / size[1]
            axes = figure.add_axes((left, bottom, count * cell / size[0], count * cell / size[1]))
        gap = 0.05 / (count * cell)
        blend = LinearSegmentedColormap.from_list("fraction", [colors["paper"], colors["strong"]])
        ramp = blend.with_extremes(bad=colors["none"])
        image = axes.imshow(np.ma.masked_invalid(fraction), cmap=ramp, norm=PowerNorm(0.5, 0, 1), aspect="equal")
        if few:
            _numbers(axes, fraction, colors, letters * (0.78 if count > 12 else 0.9))
        axes.set_xticks(range(count) if few else [], names if few else [], parse_math=False)  # names may contain "$"
        axes.set_yticks(range(count) if few else [], names if few else [], parse_math=False)
        axes.tick_params(axis="both", labelsize=letters)
        axes.tick_params(axis="x", labelrotation=90 if count > 3 else 0)
        if not few:  # ticks are slow
            below = axes.get_xaxis_transform()
            for index, name in enumerate(names):
                options: dict[str, Any] = {"fontsize": letters, "parse_math": False, "clip_on": False}
                axes.text(index, -gap, name, transform=below, rotation=90, ha="center", va="top", **options)
                axes.text(-gap, index, name, transform=axes.get_yaxis_transform(), ha="right", va="center", **options)
        edges = np.arange(count + 1) - 0.5
        axes.hlines(edges, -0.5, count - 0.5, color=colors["rule"], linewidth=0.4)
        axes.vlines(edges, -0.5, count - 0.5, color=colors["rule"], linewidth=0.4)
        axes.tick_params(length=0, which="both")
        axes.spines[:].set_visible(False)
        padding = 4 if few else 72 * margin - 8  # points
        axes.set_xlabel("predicted", labelpad=padding)
        axes.set_ylabel("ground truth", labelpad=padding)
        bar_axes = axes.inset_axes((1 + 0.15 / (count * cell), 0, 0.14 / (count * cell), 1))  # 0.14 inches wide
        bar = figure.colorbar(image, cax=bar_axes)
        bar.set_ticks([0, 0.01, 0.1, 0.25, 0.5, 1], labels=["0", "1 %", "10 %", "25 %", "50 %", "100 %"])
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.tick_params(length=0, labelsize=9)
        bar.set_label("fraction of the ground-truth class", fontsize=9)
        large = {"dpi": 160 if count <= 60 else 120, "pil_kwargs": {"compress_level": 1}}
        _save(figure, target, **({"bbox_inches": "tight", "pad_inches": 0.12} if few else large))


def _numbers(axes: Any, fraction: np.ndarray, colors: dict[str, str], size: float) -> None:
    """Percentages in cells of at least 1 %."""
    for row, column in zip(*np.nonzero(np.nan_to_num(fraction) >= 0.005), strict=True):
        value = fraction[row, column]
        ink = colors["paper"] if value > 0.3 else colors["ink"]
        axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize=size)


def draw_reliability(target: Path | IO[bytes], metrics: dict[str, Any], dark: bool = False) -> None:
    """Write a reliability diagram of `Calibration.compute()` as PNG to a path or an open file: accuracy against
    confidence."""
    colors, reliability = DARK if dark else LIGHT, metrics["reliability"]
    count = np.array(reliability["count"], dtype=np.float64)  # (M,) each
    accuracy, confidence = (np.array(reliability[key], dtype=np.float64) for key in ("accuracy", "confidence"))
    bins, filled, pixels = len(count), count > 0, max(count.sum(), 1)
    middles = (np.arange(bins) + 0.5) / bins
    with rc_context(_style(colors)):
        figure = Figure(figsize=(4.8, 5.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        upper.plot([0, 1], [0, 1], color=colors["dim"], linewidth=1, linestyle=(0, (4, 3)), zorder=3)
        upper.bar(middles[filled], accuracy[filled], 0.9 / bins, color=colors["bar"], label="accuracy")
        upper.scatter(
            confidence[filled], confidence[filled], s=16, color=colors["gap"], zorder=4, label="mean confidence"
        )
        upper.vlines(confidence[filled], accuracy[filled], confidence[filled], color=colors["gap"], linewidth=1.4)
        upper.set_ylim(0, 1)
        upper.set_xlim(0, 1)
        upper.set_ylabel("accuracy")
        upper.legend(loc="upper left", frameon=False, fontsize=9)
        overall = float((count[filled] * accuracy[filled]).sum() / pixels)
        upper.set_title(
            f"ECE {metrics['ece']:.3f} · mean confidence {metrics['mean_confidence']:.3f} · accuracy {overall:.3f}",
            fontsize=10,
            loc="left",
        )
        lower.bar(middles, 100 * count / pixels, 0.9 / bins, color=colors["dim"])
        lower.set_ylabel("% of pixels")
        lower.set_xlabel("confidence: softmax probability of the predicted class")
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color=colors["rule"], linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(length=0)
        _save(figure, target)


def _save(figure: Figure, target: Path | IO[bytes], **options: Any) -> None:
    if isinstance(target, Path):
        write_file(target, lambda aside: figure.savefig(aside, format="png", **{"dpi": 160, **options}))
    else:
        figure.savefig(target, format="png", **{"dpi": 160, **options})


def _style(colors: dict[str, str]) -> Any:
    return {
        "figure.facecolor": colors["paper"],
        "axes.facecolor": colors["paper"],
        "savefig.facecolor": colors["paper"],
        "text.color": colors["ink"],
        "axes.labelcolor": colors["dim"],
        "axes.edgecolor": colors["rule"],
        "xtick.color": colors["ink"],
        "ytick.color": colors["ink"],
        "font.family": "DejaVu Sans",
        "font.size": 10,
    }
