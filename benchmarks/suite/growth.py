"""Growth of the cost with the pixels of an image and with the batch size.

We fit t = overhead + b · n^k and report k (1: linear), with its error. A fit without the overhead, t = b · n^k, is
reported as well: the fixed overhead of a call lowers its exponent.
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
from suite.compare import prepare, time_pairs
from unetdiff.benchmark.memory import release_memory
from unetdiff.benchmark.timing import Quartiles

Axis = Literal["pixels", "batch"]

EXPONENT_TOLERANCE = 0.05
MIN_POINTS = 4  # for a fit of three parameters
EXPONENTS = np.arange(0.3, 2.0, 0.005)


@dataclass(frozen=True)
class Fit:
    """seconds = overhead + b · values^exponent."""

    exponent: float
    overhead: float
    """Seconds of a call, independent of its size."""
    error: float
    """Root mean square of the relative residuals."""


@dataclass(frozen=True)
class Growth:
    """Times of both sides along one axis."""

    name: str
    axis: Axis
    values: list[int]
    """Pixels of an image, or images of a batch."""
    names: tuple[str, str]
    unetdiff: list[Quartiles]
    peer: list[Quartiles]

    @cached_property
    def fits(self) -> tuple[Fit, Fit]:
        """Of unetdiff and the peer."""
        return self._both(fit)

    @property
    def pure_power_laws(self) -> tuple[Fit, Fit]:
        """Fits without overhead."""
        return self._both(power_law)

    def _both(self, fit_function: Callable[[Sequence[float], Sequence[float]], Fit]) -> tuple[Fit, Fit]:
        unetdiff, peer = (
            fit_function(self.values, [times.median for times in side]) for side in (self.unetdiff, self.peer)
        )
        return unetdiff, peer

    @property
    def slopes(self) -> tuple[float, float]:
        """Seconds per pixel or image between the first and the last value, of unetdiff and the peer."""
        difference = self.values[-1] - self.values[0]
        unetdiff, peer = ((side[-1].median - side[0].median) / difference for side in (self.unetdiff, self.peer))
        return unetdiff, peer

    @property
    def passed(self) -> bool:
        """Whether the exponent of unetdiff is at most that of the peer, within `EXPONENT_TOLERANCE`."""
        unetdiff, peer = self.fits
        return unetdiff.exponent <= peer.exponent + EXPONENT_TOLERANCE


def fit(values: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Fit seconds = overhead + b · values^k by least squares of relative errors; no overhead for under 4 values."""
    n, t = np.asarray(values, float), np.asarray(seconds, float)
    best = power_law(values, seconds)
    if len(n) < MIN_POINTS:
        return best
    for p in EXPONENTS:
        columns = np.stack([1 / t, n**p / t], axis=1)
        (overhead, rate), *_ = np.linalg.lstsq(columns, np.ones_like(t), rcond=None)
        if overhead >= 0 and rate > 0:
            best = min(
                best,
                Fit(float(p), float(overhead), _error(overhead + rate * n**p, t)),
                key=lambda candidate: candidate.error,
            )
    return best


def power_law(values: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Fit seconds = b · values^k by least squares of the logarithms."""
    n, t = np.asarray(values, float), np.asarray(seconds, float)
    p, log_rate = np.polyfit(np.log(n), np.log(t), 1)
    return Fit(float(p), 0.0, _error(np.exp(log_rate) * n**p, t))


def _error(predicted: np.ndarray, seconds: np.ndarray) -> float:
    return float(np.sqrt(np.mean((predicted / seconds - 1) ** 2)))


def plans(quick: bool) -> list[tuple[Case, Axis, list[int]]]:
    """(case, axis, values): the sides of the images, or the batch sizes."""
    options = TINY if quick else {}
    sides, batches = ([32, 64], [1, 2]) if quick else ([64, 128, 256, 512], [1, 2, 4, 8, 16])
    kinds = (SegmentationInference,) if quick else (SegmentationTraining, SegmentationInference)
    by_pixels = [(kind("best", 2, 64, **options), "pixels", sides) for kind in kinds]
    return by_pixels + [(kind("best", 2, 64 if quick else 128, **options), "batch", batches) for kind in kinds]


def measure_growth(
    case: Case, axis: Axis, values: Sequence[int], device: torch.device, rounds: int, warmups: int
) -> Growth:
    """Time a case at every image side (for "pixels") or batch size, all interleaved."""
    release_memory(device)  # of the previous networks
    varied = [replace(case, **{"size" if axis == "pixels" else "batch": value}) for value in values]
    pairs = [prepare(each, device) for each in varied]
    times = time_pairs(pairs, device, rounds, warmups)  # interleaves all sizes, too
    unetdiff, peer = ([Quartiles.of(both[side].wall) for both in times] for side in (0, 1))
    constant = f"batch {case.batch}" if axis == "pixels" else f"{case.size} x {case.size}"
    points = [value**2 if axis == "pixels" else value for value in values]
    return Growth(f"{case.work}, {constant}, {case.setting}", axis, points, pairs[0].names, unetdiff, peer)
