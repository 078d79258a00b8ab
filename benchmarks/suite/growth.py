"""How the cost grows with the pixels of a picture and with the batch: the exponent of a power law through the times.

1 is growth in proportion. What a call costs whatever its size lowers the exponent where the work is small, so the times
themselves are told beside it, and what each further pixel or picture costs between the ends, which it does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from suite.cases.case import Case
from suite.cases.segmentation import TINY, SegmentationInference, SegmentationTraining
from suite.compare import race
from unetdiff.benchmark.timing import Spread

Axis = Literal["pixels", "batch"]

WORSE = 0.05  # exponents that differ by less are taken for the same


@dataclass(frozen=True)
class Growth:
    """Times of both sides along one axis."""

    name: str
    axis: Axis
    values: list[int]
    """Pixels of a picture, or pictures of a batch."""
    names: tuple[str, str]
    ours: list[Spread]
    theirs: list[Spread]

    @property
    def exponents(self) -> tuple[float, float]:
        """Ours, and the peer's."""
        ours, theirs = ([spread.median for spread in side] for side in (self.ours, self.theirs))
        return exponent(self.values, ours), exponent(self.values, theirs)

    @property
    def slopes(self) -> tuple[float, float]:
        """Seconds for each further pixel or picture, between the ends: ours, and the peer's."""
        more = self.values[-1] - self.values[0]
        ours, theirs = ((side[-1].median - side[0].median) / more for side in (self.ours, self.theirs))
        return ours, theirs

    @property
    def reached(self) -> bool:
        """Whether ours grows no faster."""
        ours, theirs = self.exponents
        return ours <= theirs + WORSE


def exponent(values: Sequence[float], seconds: Sequence[float]) -> float:
    """p of seconds = a values^p, by least squares of the logarithms."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def plans(quick: bool) -> list[tuple[Case, Axis, list[int]]]:
    """A case, what is varied of it, and the sides or batches it takes."""
    options = TINY if quick else {}
    sides, batches = ([32, 64], [1, 2]) if quick else ([64, 128, 256, 512], [1, 2, 4, 8, 16])
    kinds = (SegmentationInference,) if quick else (SegmentationTraining, SegmentationInference)
    by_pixels = [(kind("best", 2, 64, **options), "pixels", sides) for kind in kinds]
    return by_pixels + [(kind("best", 2, 64 if quick else 128, **options), "batch", batches) for kind in kinds]


def grow(case: Case, axis: Axis, values: Sequence[int], device: torch.device, rounds: int, warmups: int) -> Growth:
    """Time a case at every side (for "pixels") or batch."""
    ours, theirs, names = [], [], ("", "")
    for value in values:
        result = race(replace(case, **{"size" if axis == "pixels" else "batch": value}), device, rounds, warmups)
        names = result.names
        ours.append(Spread.of(result.times[0].wall))
        theirs.append(Spread.of(result.times[1].wall))
    fixed = f"batch {case.batch}" if axis == "pixels" else f"{case.size} x {case.size}"
    points = [value**2 if axis == "pixels" else value for value in values]
    return Growth(f"{case.work}, {fixed}, {case.setting}", axis, points, names, ours, theirs)
