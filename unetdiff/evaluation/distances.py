"""How far samples are from real images in a feature space: Fréchet and kernel distance, precision and recall."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.errors import UserError

SUBSETS, SUBSET = 100, 1000  # of the kernel distance, as in its paper
MOST_NEIGHBOURS = 10_000  # images of each side that precision and recall compare
ENTRIES = 1 << 23  # of a block of distances: 64 MB


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) of features, float64, and how many they are of."""

    mean: Tensor
    covariance: Tensor
    n: int

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """The Gaussian of features (N, D), in parts, so that they are never held in float64 at once.

        Raises:
            UserError: fewer than two.
        """
        if len(features) < 2:
            raise UserError(f"features: {len(features)} image has no spread; give two or more")
        mean = features.mean(dim=0, dtype=torch.float64)  # (D,)
        scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for part in features.split(4096):
            centred = part.double() - mean
            scatter += centred.T @ centred
        return cls(mean, scatter / (len(features) - 1), len(features))

    @cached_property
    def root(self) -> Tensor:
        """The covariance's symmetric root, (D, D); an eigenvalue that rounding made negative is 0."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(first: Gaussian | Tensor, second: Gaussian | Tensor) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017, equation 6).

    |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁ Σ₂)^½. The last trace is the sum of the roots of the eigenvalues of
    Σ₁^½ Σ₂ Σ₁^½, which is symmetric, so that they are real, and negative by rounding alone.

    It falls with the number of samples, all else equal: compare at one n.

    Args:
        first: a Gaussian (whose root is kept for the next time), or features (N, D) to take it of.
        second: the other.
    """
    a, b = (given if isinstance(given, Gaussian) else Gaussian.of(given) for given in (first, second))
    shared = torch.linalg.eigvalsh(a.root @ b.covariance @ a.root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * shared
    return max(0.0, distance.item())


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation over subsets, and how many of how many images each."""

    mean: float
    deviation: float
    subsets: int
    size: int


def kernel_distance(
    real: Tensor, samples: Tensor, generator: torch.Generator, subsets: int = SUBSETS, size: int = SUBSET
) -> KernelDistance:
    """Squared maximum mean discrepancy with the kernel (x·y / D + 1)³, unbiased (Bińkowski et al. 2018, section 4).

    Unlike the Fréchet distance its expectation does not depend on the number of samples; it may come out below 0.

    Args:
        real: features (N, D).
        samples: features (M, D).
        generator: of the subsets.
        subsets: how many are drawn.
        size: images of each side in a subset; at most half of the smaller side, so that subsets differ.

    Raises:
        UserError: fewer than four images on a side.
    """
    fewest = min(len(real), len(samples))
    if fewest < 4:
        raise UserError(f"features: {fewest} images are too few for a kernel distance; give four or more")
    size = min(size, fewest // 2)
    values = []
    for _ in range(subsets):
        a, b = (side[torch.randperm(len(side), generator=generator)[:size]].double() for side in (real, samples))
        values.append(poly_mmd(a, b))
    found = torch.stack(values)
    return KernelDistance(found.mean().item(), found.std(correction=0).item(), subsets, size)


def precision_recall(real: Tensor, samples: Tensor, k: int = 3, entries: int = ENTRIES) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2).

    A set's manifold is the union of the balls around its points that reach to their k-th neighbours. Precision is the
    share of samples inside the real images' manifold, recall that of real images inside the samples'. Both sides
    should be of one number, as in the paper.

    Args:
        real: features (N, D).
        samples: features (M, D).
        k: neighbours.
        entries: distances held at once.

    Raises:
        UserError: no more than k images on a side.
    """
    if min(len(real), len(samples)) <= k:
        raise UserError(f"features: {min(len(real), len(samples))} images have no {k} neighbours each; give more")
    real, samples = real.double(), samples.double()
    reach_of_real, reach_of_samples = _reach(real, k, entries), _reach(samples, k, entries)
    precise = torch.zeros(len(samples), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    for rows in _blocks(len(samples), len(real), entries):
        distance = torch.cdist(samples[rows], real)  # (b, N)
        precise[rows] = (distance <= reach_of_real).any(dim=1)
        recalled |= (distance <= reach_of_samples[rows, None]).any(dim=0)
    return precise.double().mean().item(), recalled.double().mean().item()


def _reach(points: Tensor, k: int, entries: int) -> Tensor:
    """Distance of every point of (N, D) to its k-th nearest other one, (N,)."""
    reach = points.new_empty(len(points))
    for rows in _blocks(len(points), len(points), entries):
        distance = torch.cdist(points[rows], points)  # (b, N)
        distance[torch.arange(len(rows)), rows] = torch.inf  # itself
        reach[rows] = distance.kthvalue(k, dim=1).values
    return reach


def _blocks(rows: int, columns: int, entries: int) -> tuple[Tensor, ...]:
    """Numbers of the rows of a (rows, columns) matrix, in blocks of at most `entries`."""
    return torch.arange(rows).split(max(1, entries // columns))


# ------------------------------------------------------------------------------------------ as they are told


@dataclass(frozen=True)
class Figure:
    """A distance, and everything that it means nothing without."""

    name: str
    """With its feature network."""
    value: float
    deviation: float | None
    """Over the subsets, where there are any."""
    n: int
    """Samples behind it."""
    reference: str
    """Set and split of the real images."""
    reference_n: int
    """Real images behind it."""
    note: str = ""


def compare(
    frechet: str, kernel: str, features: str, real: Tensor, gaussian: Gaussian, samples: Tensor, reference: str
) -> list[Figure]:
    """Every distance between samples and real images that their numbers allow.

    Args:
        frechet: what the Fréchet distance is called (`FeatureNetwork.frechet`).
        kernel: what the kernel distance is called.
        features: the network's name.
        real: features (N, D).
        gaussian: of `real`.
        samples: features (M, D).
        reference: set and split of the real images.
    """
    n, total, k = len(samples), len(real), 3
    figures = []
    if min(n, total) >= 2:
        few = "fewer samples than features: compare at this n only" if n <= real.shape[1] else ""
        distance = frechet_distance(gaussian, samples)
        figures.append(Figure(frechet, distance, None, n, reference, total, few))
    if min(n, total) >= 4:
        mmd = kernel_distance(real, samples, torch.Generator().manual_seed(0))
        note = f"{mmd.subsets} subsets of {mmd.size}"
        figures.append(Figure(kernel, mmd.mean, mmd.deviation, n, reference, total, note))
        each = min(n, total, MOST_NEIGHBOURS)
        precision, recall = precision_recall(
            real[evenly_spaced_indices(total, each)], samples[evenly_spaced_indices(n, each)], k
        )
        for name, value in (("precision", precision), ("recall", recall)):
            figures.append(Figure(f"{name} ({features} features)", value, None, each, reference, each, f"k = {k}"))
    return figures
