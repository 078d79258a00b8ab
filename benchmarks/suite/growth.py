"""How the cost grows with the pixels of an image and with the batch: a power law beside a cost of every call.

An exponent of 1 is growth in proportion. What a call costs whatever its size is no growth, but through the times as
they are it lowers a power law's exponent, and most for who is slowest at small work: that exponent is told too, with
how far either law is from the times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from suite.cases.case import Case
from suite.cases.segmentation import TINY, SegmentationInference, SegmentationTraining
from suite.compare import prepare, race
from unetdiff.benchmark.memory import release_memory
from unetdiff.benchmark.timing import Spread

Axis = Literal["pixels", "batch"]

WORSE = 0.05  # exponents that differ by less are taken for the same
ENOUGH = 4  # times for a law of three numbers
EXPONENTS = np.arange(0.3, 2.0, 0.005)


@dataclass(frozen=True)
class Law:
    """seconds = fixed + a values^exponent."""

    exponent: float
    fixed: float
    """Seconds of a call whatever its size."""
    error: float
    """Root mean square of how far it is from the times, relative to them."""


@dataclass(frozen=True)
class Growth:
    """Times of both sides along one axis."""

    name: str
    axis: Axis
    values: list[int]
    """Pixels of an image, or images of a batch."""
    names: tuple[str, str]
    ours: list[Spread]
    theirs: list[Spread]

    @cached_property
    def laws(self) -> tuple[Law, Law]:
        """Ours, and the peer's."""
        return self._each(fit)

    @property
    def plain(self) -> tuple[Law, Law]:
        """The same with nothing for a call itself."""
        return self._each(power_law)

    def _each(self, law: Callable[[Sequence[float], Sequence[float]], Law]) -> tuple[Law, Law]:
        ours, theirs = (law(self.values, [spread.median for spread in side]) for side in (self.ours, self.theirs))
        return ours, theirs

    @property
    def slopes(self) -> tuple[float, float]:
        """Seconds for each further pixel or image, between the ends: ours, and the peer's."""
        more = self.values[-1] - self.values[0]
        ours, theirs = ((side[-1].median - side[0].median) / more for side in (self.ours, self.theirs))
        return ours, theirs

    @property
    def reached(self) -> bool:
        """Whether ours grows no faster."""
        ours, theirs = self.laws
        return ours.exponent <= theirs.exponent + WORSE


def fit(values: Sequence[float], seconds: Sequence[float]) -> Law:
    """seconds = fixed + a values^p by least squares of relative errors; of less than four times, with nothing fixed."""
    n, t = np.asarray(values, float), np.asarray(seconds, float)
    found = power_law(values, seconds)
    if len(n) < ENOUGH:
        return found
    for p in EXPONENTS:
        columns = np.stack([1 / t, n**p / t], axis=1)
        (fixed, rate), *_ = np.linalg.lstsq(columns, np.ones_like(t), rcond=None)
        if fixed >= 0 and rate > 0:
            found = min(found, Law(float(p), float(fixed), _error(fixed + rate * n**p, t)), key=lambda law: law.error)
    return found


def power_law(values: Sequence[float], seconds: Sequence[float]) -> Law:
    """seconds = a values^p, by least squares of the logarithms."""
    n, t = np.asarray(values, float), np.asarray(seconds, float)
    p, log_rate = np.polyfit(np.log(n), np.log(t), 1)
    return Law(float(p), 0.0, _error(np.exp(log_rate) * n**p, t))


def _error(said: np.ndarray, seconds: np.ndarray) -> float:
    return float(np.sqrt(np.mean((said / seconds - 1) ** 2)))


def plans(quick: bool) -> list[tuple[Case, Axis, list[int]]]:
    """A case, what is varied of it, and the sides or batches it takes."""
    options = TINY if quick else {}
    sides, batches = ([32, 64], [1, 2]) if quick else ([64, 128, 256, 512], [1, 2, 4, 8, 16])
    kinds = (SegmentationInference,) if quick else (SegmentationTraining, SegmentationInference)
    by_pixels = [(kind("best", 2, 64, **options), "pixels", sides) for kind in kinds]
    return by_pixels + [(kind("best", 2, 64 if quick else 128, **options), "batch", batches) for kind in kinds]


def grow(case: Case, axis: Axis, values: Sequence[int], device: torch.device, rounds: int, warmups: int) -> Growth:
    """Time a case at every side (for "pixels") or batch, all of them in turns."""
    release_memory(device)  # the networks of the growth before are gone
    varied = [replace(case, **{"size" if axis == "pixels" else "batch": value}) for value in values]
    contests = [prepare(each, device) for each in varied]
    times = race(contests, device, rounds, warmups)  # all sizes in turns: a neighbour slows all of them down, or none
    ours, theirs = ([Spread.of(both[side].wall) for both in times] for side in (0, 1))
    fixed = f"batch {case.batch}" if axis == "pixels" else f"{case.size} x {case.size}"
    points = [value**2 if axis == "pixels" else value for value in values]
    return Growth(f"{case.work}, {fixed}, {case.setting}", axis, points, contests[0].names, ours, theirs)
