"""The table of metrics: one row per metric, one column per run, the best comparable value of each row marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from unetdiff.reports.consistency import Consistency
from unetdiff.reports.dataset_groups import dataset_key, size_key
from unetdiff.reports.runs import JsonDict, Run
from unetdiff.text import Better, best_of

DASH = "–"


@dataclass(frozen=True)
class Value:
    """One cell."""

    number: float | None
    """None: the run does not have this metric."""
    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One metric of every run."""

    key: str
    label: str
    note: str
    group: str
    values: tuple[Value, ...]


@dataclass
class Table:
    """All metrics, in the order of the page."""

    rows: list[Row] = field(default_factory=list)

    @property
    def groups(self) -> list[tuple[str, list[Row]]]:
        """Rows under their headings."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return list(groups.items())

    def row(self, key: str) -> Row | None:
        """The row of a metric; None if no run has it."""
        return next((row for row in self.rows if row.key == key), None)


@dataclass(frozen=True)
class Metric:
    """How one metric is read from a run, formatted and compared."""

    key: str
    label: str
    group: str
    read: Callable[[Run], float | None]
    text: Callable[[float], str]
    better: Better = "neither"
    comparable: Callable[[Run], str] = lambda run: ""
    """Runs are comparable where this key is equal."""
    note: str = ""


def compact(number: float) -> str:
    """1234 -> "1,234", 12345 -> "12.3 k", 1000000 -> "1.00 M"."""
    for size, unit in ((0.9995e9, "G"), (0.9995e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            scaled = number / {"G": 1e9, "M": 1e6, "k": 1e3}[unit]
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f} {unit}"
    return f"{number:,.0f}"


def minutes(number: float) -> str:
    """0.4 -> "24 s", 2.5 -> "2.5 min", 90 -> "1.5 h"."""
    if number < 1:
        return f"{number * 60:.0f} s"
    return f"{number:.1f} min" if number < 60 else f"{number / 60:.1f} h"


def fraction(number: float) -> str:
    """0.8714 -> "0.871"."""
    return f"{number:.3f}"


def percent(number: float) -> str:
    """0.9433 -> "94.3 %"."""
    return f"{100 * number:.1f} %"


def shown_validation(run: Run) -> JsonDict:
    """The validation entry of the weights that the page shows: those in best/, else the last entry."""
    best = (run.summary.get("best") or {}).get("step")
    if best is not None and run.model is not None and run.model.name == "best":
        for entry in run.validation:
            if entry.get("step") == best:
                return entry
    if run.validation:
        return run.validation[-1]
    return dict(run.summary.get("final") or {})


def validation_metric(name: str) -> Callable[[Run], float | None]:
    """A function that reads a validation metric of the weights that the page shows."""

    def read(run: Run) -> float | None:
        return _number(shown_validation(run).get(name)) if name.split("/")[0] in run.heads else None

    return read


def _objective(run: Run) -> str:
    config = run.config.get("diffusion") or {}
    target = [config.get("target", "image"), (run.config.get("latent") or {}).get("vae")]
    loss = [config.get(key) for key in ("prediction_type", "weighting", "snr_gamma", "noise")]
    return size_key(run) + str(target + loss)


def _machine(run: Run) -> str:
    return str([run.summary.get(key) for key in ("device", "threads", "precision")])


def _images(run: Run) -> float | None:
    counts = [entry.get("images") for entry in (*run.train, *run.validation)]
    return max((float(count) for count in counts if count is not None), default=None)


_NETWORK, _COST = "Parameters", "Training"
_SEGMENTATION, _DIFFUSION = "Segmentation (validation)", "Diffusion"

METRICS: tuple[Metric, ...] = (
    Metric("parameters.shared", "backbone", _NETWORK, lambda run: run.shared_parameters, compact,
           note="encoder, mid block, decoder, conditioning"),
    Metric("parameters.segmentation", "segmentation head", _NETWORK,
           lambda run: run.head_parameters("segmentation"), compact),
    Metric("parameters.diffusion", "diffusion head", _NETWORK,
           lambda run: run.head_parameters("diffusion"), compact),
    Metric("minutes", "time", _COST, lambda run: _number(run.summary.get("minutes")), minutes),
    Metric("images", "images seen", _COST, _images, compact),
    Metric("images_per_second", "images per second", _COST,
           lambda run: _number(run.summary.get("images_per_second")), lambda n: f"{n:,.0f}" if n >= 10 else f"{n:.1f}",
           "higher", _machine),
    Metric("segmentation.mean_iou", "mIoU", _SEGMENTATION, validation_metric("segmentation/mean_iou"), fraction,
           "higher", dataset_key),
    Metric("segmentation.pixel_accuracy", "pixel accuracy", _SEGMENTATION,
           validation_metric("segmentation/pixel_accuracy"), fraction, "higher", dataset_key),
    Metric("diffusion.loss", "validation loss", _DIFFUSION, validation_metric("diffusion/loss"), lambda n: f"{n:.4f}",
           "lower", _objective),
    Metric("diffusion.color_mean_error", "color error", _DIFFUSION, validation_metric("diffusion/color_mean_error"),
           lambda n: f"{n:.4f}", "lower", dataset_key, note="difference of mean color, samples vs. data"),
)  # fmt: skip
"""The metrics read from the run directory; class consistency is computed from the samples."""


def build_table(runs: Sequence[Run], scores: Mapping[int, Consistency] | None = None) -> Table:
    """The table of the runs; `scores` are the samples' class consistencies by the index of the run."""
    table = Table()
    for metric in METRICS:
        cells = [(metric.read(run), "") for run in runs]
        _add(table, metric, runs, cells)
    if scores:
        metric = Metric(
            key="diffusion.class_consistency",
            label="class consistency",
            group=_DIFFUSION,
            read=lambda run: None,
            text=percent,
            better="higher",
            comparable=size_key,
            note="accuracy of an independent classifier on the samples",
        )
        cells = [
            (scores[i].value, f"{100 * scores[i].low:.1f}–{percent(scores[i].high)}, n = {scores[i].n}")
            if i in scores
            else (None, "")
            for i in range(len(runs))
        ]
        _add(table, metric, runs, cells)
    return table


def _add(table: Table, metric: Metric, runs: Sequence[Run], cells: Sequence[tuple[float | None, str]]) -> None:
    if all(number is None for number, _ in cells):
        return
    texts = [DASH if number is None else metric.text(number) for number, _ in cells]
    best = best_of([number for number, _ in cells], texts, metric.better, [metric.comparable(run) for run in runs])
    values = tuple(
        Value(number, text, note, marked) for (number, note), text, marked in zip(cells, texts, best, strict=True)
    )
    table.rows.append(Row(metric.key, metric.label, metric.note, metric.group, values))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
