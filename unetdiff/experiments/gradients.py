"""Where the two losses of joint runs pull the shared weights the same way, read from what the runs logged."""

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
class Cosines:
    """The cosines of a layer group on the logged steps of one run; steps where a gradient is zero are left out."""

    images: list[float]
    values: list[float]


def read_cosines(run: Path) -> dict[str, Cosines]:
    """By layer group, in the order of the network."""
    groups: dict[str, Cosines] = {}
    for entry in read_metrics(run / METRICS):
        if entry.get("kind") != "gradients":
            continue
        for key, value in entry.items():
            group, _, figure = key.rpartition("/")
            if figure != "cosine":
                continue
            found = groups.setdefault(
                group, Cosines([], [])
            )  # without a gradient at first it has its place all the same
            if value is not None:
                found.images.append(float(entry["images"]))
                found.values.append(float(value))
    return groups


@dataclass(frozen=True)
class Pull:
    """How two losses pull a layer group, over all logged steps of all seeds."""

    mean: float
    error: float
    """Standard error of the mean, the steps taken as independent."""
    against: float
    """Share of the steps with a cosine below zero."""
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Pull:
        """Of the cosines themselves."""
        n = len(values)
        mean = sum(values) / n
        spread = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1)) if n > 1 else math.inf
        return cls(mean, spread / math.sqrt(n), sum(x < 0 for x in values) / n, n)

    @property
    def sign(self) -> int:
        """1 together, -1 against each other, 0 where the mean is within two standard errors of zero."""
        return 0 if abs(self.mean) <= 2 * self.error else int(math.copysign(1, self.mean))


Pulls = Mapping[str, Mapping[str, Pull]]
"""By weighting, then by group."""


def pulls_of(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Pull]]:
    """Of the runs of each weighting, which differ in their seed."""
    found: dict[str, dict[str, Pull]] = {}
    for name, each in runs.items():
        values: dict[str, list[float]] = {}
        for run in each:
            for group, cosines in read_cosines(run.path).items():
                values.setdefault(group, []).extend(cosines.values)
        found[name] = {group: Pull.of(them) for group, them in values.items() if them}
    return found


def gradient_table(pulls: Pulls) -> Table:
    """A row a group: mean cosine, and the share of steps against each other."""
    names = [name for name, groups in pulls.items() if groups]
    groups = list(dict.fromkeys(group for name in names for group in pulls[name]))
    columns = []
    for name in names:
        columns += [
            Column(f"{name}: cosine", unit="fraction", note="mean over the logged steps"),
            Column(f"{name}: steps against", unit="percent", note="share of the logged steps with a cosine below zero"),
        ]
    rows = []
    for group in groups:
        values = []
        for name in names:
            pull = pulls[name].get(group)
            values += [Value(None), Value(None)] if pull is None else [Value(pull.mean), Value(pull.against)]
        rows.append((group, values))
    note = "Groups go from the image to the heads; conditioning is what tells timestep and class; all is all of them."
    return Table("Do the two losses pull the same way?", columns, rows, note)


def gradient_chart(name: str, runs: Sequence[Run], windows: int) -> Chart:
    """The cosine by group over training, each point the mean over a part of the run; a line a group."""
    read = [read_cosines(run.path) for run in runs]
    groups = list(dict.fromkeys(group for each in read for group in each))
    most = max((image for each in read for cosines in each.values() for image in cosines.images), default=1.0)
    lines = []
    for group in groups:
        xs, ys = [], []
        for window in range(windows):
            low, high = most * window / windows, most * (window + 1) / windows
            means = []
            for each in read:
                there = each.get(group, Cosines([], []))
                inside = [v for x, v in zip(there.images, there.values, strict=True) if low < x <= high]
                means += [sum(inside) / len(inside)] if inside else []
            if means:
                xs.append((low + high) / 2)
                ys.append(Value.of(means))
        if xs:
            lines.append(Line(group, xs, ys))
    title = f"Cosine between the two losses' gradients: {name}"
    note = (
        "1: the same way. 0: nothing to do with each other. Below 0: against each other. A point is the mean of a part."
    )
    return Chart(title, "images seen", "cosine", lines, note=note)


def gradient_findings(pulls: Pulls) -> list[str]:
    """Where they help and where they fight, a sentence a weighting."""
    return [_sentence(name, groups) for name, groups in pulls.items() if groups]


def _sentence(name: str, groups: Mapping[str, Pull]) -> str:
    by_sign = {sign: [g for g, pull in groups.items() if g != ALL and pull.sign == sign] for sign in (1, -1, 0)}

    def listed(sign: int) -> str:
        ranked = sorted(by_sign[sign], key=lambda group: -abs(groups[group].mean))
        return ", ".join(f"{group} ({groups[group].mean:+.3f})" for group in ranked)

    parts = [f"together in {listed(1)}"] if by_sign[1] else []
    parts += [f"against each other in {listed(-1)}"] if by_sign[-1] else []
    whole = groups.get(ALL)
    over = f", {whole.mean:+.3f} over all weights" if whole is not None else ""
    n = max(pull.n for pull in groups.values())
    if not parts:
        return f"{name}: in no layer group is the gradients' mean cosine told from zero ({n} steps{over})."
    rest = f"; not told from zero in {', '.join(by_sign[0])}" if by_sign[0] else ""
    return f"{name}: the two losses' gradients pull {' and '.join(parts)}{rest} (mean cosine of {n} steps{over})."
