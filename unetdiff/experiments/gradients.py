"""Cosine similarity of the two losses' gradients in joint runs, read from the logs of the runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unetdiff.reports.record import Chart, Column, Line, Table, Value
from unetdiff.reports.runs import Run, read_metrics
from unetdiff.training.logger import METRICS

ALL = "all"


@dataclass(frozen=True)
class CosineLog:
    """The cosines of one layer group at the logged steps of a run; steps with a zero gradient are left out."""

    images: list[float]
    """Images seen at each step."""
    cosines: list[float]


def read_cosines(run: Path) -> dict[str, CosineLog]:
    """Cosines by layer group, in the order of the network."""
    logs: dict[str, CosineLog] = {}
    for entry in read_metrics(run / METRICS):
        if entry.get("kind") != "gradients":
            continue
        for key, value in entry.items():
            group, _, metric = key.rpartition("/")
            if metric != "cosine":
                continue
            log = logs.setdefault(group, CosineLog([], []))  # in network order, even if the first gradients are zero
            if value is not None:
                log.images.append(float(entry["images"]))
                log.cosines.append(float(value))
    return logs


@dataclass(frozen=True)
class CosineStats:
    """Cosines of a layer group over all logged steps of all seeds."""

    mean: float
    standard_error: float
    """Standard error of the mean, assuming independent steps."""
    negative: float
    """Fraction of the steps with a negative cosine."""
    n: int

    @classmethod
    def of(cls, cosines: Sequence[float]) -> CosineStats:
        """Statistics of the cosines of single steps."""
        n = len(cosines)
        mean = sum(cosines) / n
        std = math.sqrt(sum((x - mean) ** 2 for x in cosines) / (n - 1)) if n > 1 else math.inf
        return cls(mean, std / math.sqrt(n), sum(x < 0 for x in cosines) / n, n)

    @property
    def sign(self) -> int:
        """1 aligned, -1 conflicting, 0 if the mean is within two standard errors of zero."""
        return 0 if abs(self.mean) <= 2 * self.standard_error else int(math.copysign(1, self.mean))


CosinesByRun = Mapping[str, Mapping[str, CosineStats]]
"""By loss weighting, then by layer group."""


def cosine_stats(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, CosineStats]]:
    """Statistics of the runs of each weighting, which differ in their seed."""
    stats: dict[str, dict[str, CosineStats]] = {}
    for name, seeds in runs.items():
        cosines: dict[str, list[float]] = {}
        for run in seeds:
            for group, log in read_cosines(run.path).items():
                cosines.setdefault(group, []).extend(log.cosines)
        stats[name] = {group: CosineStats.of(values) for group, values in cosines.items() if values}
    return stats


def gradient_table(stats: CosinesByRun) -> Table:
    """Mean cosine and fraction of negative cosines by layer group."""
    names = [name for name, groups in stats.items() if groups]
    groups = list(dict.fromkeys(group for name in names for group in stats[name]))
    columns = []
    for name in names:
        columns += [
            Column(f"{name}: cosine", unit="fraction", note="mean over the logged steps"),
            Column(f"{name}: conflicting steps", unit="percent", note="fraction of the logged steps with cosine < 0"),
        ]
    rows = []
    for group in groups:
        values = []
        for name in names:
            one = stats[name].get(group)
            values += [Value(None), Value(None)] if one is None else [Value(one.mean), Value(one.negative)]
        rows.append((group, values))
    note = "Layer groups from input to output; conditioning: timestep and class embeddings; all: all shared weights."
    return Table("Cosine similarity of the two losses' gradients", columns, rows, note)


def gradient_chart(name: str, runs: Sequence[Run], num_windows: int) -> Chart:
    """Mean cosine in consecutive windows of the training, a line per layer group."""
    logs = [read_cosines(run.path) for run in runs]
    groups = list(dict.fromkeys(group for log in logs for group in log))
    num_images = max((image for log in logs for group in log.values() for image in group.images), default=1.0)
    lines = []
    for group in groups:
        xs, ys = [], []
        for window in range(num_windows):
            low, high = num_images * window / num_windows, num_images * (window + 1) / num_windows
            means = []
            for log in logs:
                entries = log.get(group, CosineLog([], []))
                inside = [c for x, c in zip(entries.images, entries.cosines, strict=True) if low < x <= high]
                means += [sum(inside) / len(inside)] if inside else []
            if means:
                xs.append((low + high) / 2)
                ys.append(Value.of(means))
        if xs:
            lines.append(Line(group, xs, ys))
    title = f"Cosine similarity of the two losses' gradients: {name}"
    note = "1: aligned; 0: orthogonal; negative: conflicting. Each point is the mean over a window of the training."
    return Chart(title, "images seen", "cosine", lines, note=note)


def gradient_findings(stats: CosinesByRun) -> list[str]:
    """Aligned and conflicting layer groups, a sentence per weighting."""
    return [_finding(name, groups) for name, groups in stats.items() if groups]


def _finding(name: str, groups: Mapping[str, CosineStats]) -> str:
    by_sign = {sign: [g for g, one in groups.items() if g != ALL and one.sign == sign] for sign in (1, -1, 0)}

    def listed(sign: int) -> str:
        ranked = sorted(by_sign[sign], key=lambda group: -abs(groups[group].mean))
        return ", ".join(f"{group} ({groups[group].mean:+.3f})" for group in ranked)

    parts = [f"aligned in {listed(1)}"] if by_sign[1] else []
    parts += [f"conflicting in {listed(-1)}"] if by_sign[-1] else []
    overall = groups.get(ALL)
    over_all = f"; {overall.mean:+.3f} over all weights" if overall is not None else ""
    n = max(one.n for one in groups.values())
    details = f"mean cosine over {n} steps{over_all}"
    if not parts:
        return (
            f"{name}: no layer group has significantly aligned or conflicting gradients of the two losses ({details})."
        )
    rest = f"; neither in {', '.join(by_sign[0])}" if by_sign[0] else ""
    return f"{name}: the gradients of the two losses are {' and '.join(parts)}{rest} ({details})."
