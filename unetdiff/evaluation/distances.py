"""Distances of samples to real images in a feature space: Fréchet and kernel distance, precision and recall."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.errors import UserError

NUM_SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance, as in its paper
MAX_PRECISION_RECALL_IMAGES = 10_000  # on each side
MAX_BLOCK_ENTRIES = 1 << 23  # of a distance matrix in float64: 64 MB


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) of n features, float64."""

    mean: Tensor
    covariance: Tensor
    n: int

    @classmethod
    def fit(cls, features: Tensor) -> Self:
        """Fit to features (N, D), in chunks, so that not all are held in float64 at once.

        Raises:
            UserError: fewer than two.
        """
        if len(features) < 2:
            raise UserError(f"features: at least 2 images are required for a covariance (got {len(features)}).")
        mean = features.mean(dim=0, dtype=torch.float64)  # (D,)
        scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for part in features.split(4096):
            centered = part.double() - mean
            scatter += centered.T @ centered
        return cls(mean, scatter / (len(features) - 1), len(features))

    @cached_property
    def root(self) -> Tensor:
        """Symmetric square root of the covariance, (D, D); eigenvalues that are negative by rounding become 0."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(first: Gaussian | Tensor, second: Gaussian | Tensor) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017, equation 6).

    |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁ Σ₂)^½. The last trace is computed from the eigenvalues of the symmetric
    Σ₁^½ Σ₂ Σ₁^½.

    Biased: it decreases with the number of samples. Compare values of the same n only.

    Args:
        first: a Gaussian (which caches its square root), or features (N, D) to fit one to.
        second: the other.
    """
    a, b = (side if isinstance(side, Gaussian) else Gaussian.fit(side) for side in (first, second))
    shared = torch.linalg.eigvalsh(a.root @ b.covariance @ a.root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * shared
    return max(0.0, distance.item())


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation over subsets of `size` images."""

    mean: float
    deviation: float
    subsets: int
    size: int


def kernel_distance(
    real: Tensor, samples: Tensor, generator: torch.Generator, subsets: int = NUM_SUBSETS, size: int = SUBSET_SIZE
) -> KernelDistance:
    """Squared maximum mean discrepancy with the kernel (x·y / D + 1)³, unbiased (Bińkowski et al. 2018, section 4).

    Unlike the Fréchet distance it is unbiased in the number of samples; the estimate can be negative.

    Args:
        real: features (N, D).
        samples: features (M, D).
        generator: for drawing the subsets.
        subsets: number of subsets.
        size: images of each side in a subset; limited to half of the smaller side, so that subsets differ.

    Raises:
        UserError: fewer than four images on a side.
    """
    n = min(len(real), len(samples))
    if n < 4:
        raise UserError(f"features: at least 4 images are required for a kernel distance (got {n}).")
    size = min(size, n // 2)
    values = []
    for _ in range(subsets):
        a, b = (side[torch.randperm(len(side), generator=generator)[:size]].double() for side in (real, samples))
        values.append(poly_mmd(a, b))
    distances = torch.stack(values)
    return KernelDistance(distances.mean().item(), distances.std(correction=0).item(), subsets, size)


def precision_recall(
    real: Tensor, samples: Tensor, k: int = 3, entries: int = MAX_BLOCK_ENTRIES
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2).

    A manifold is the union of balls around the features whose radius is the distance to the k-th nearest neighbor.
    Precision is the fraction of samples in the manifold of the real images, recall the fraction of real images in that
    of the samples. Use the same number of both, as in the paper.

    Args:
        real: features (N, D).
        samples: features (M, D).
        k: nearest neighbor that sets the radius.
        entries: size of the blocks of the distance matrix.

    Raises:
        UserError: k images or fewer on a side.
    """
    if min(len(real), len(samples)) <= k:
        raise UserError(f"features: more than k = {k} images are required (got {min(len(real), len(samples))}).")
    real, samples = real.double(), samples.double()
    real_radius, sample_radius = _knn_radius(real, k, entries), _knn_radius(samples, k, entries)
    in_real = torch.zeros(len(samples), dtype=torch.bool)
    in_samples = torch.zeros(len(real), dtype=torch.bool)
    for rows in _blocks(len(samples), len(real), entries):
        distance = torch.cdist(samples[rows], real)  # (b, N)
        in_real[rows] = (distance <= real_radius).any(dim=1)
        in_samples |= (distance <= sample_radius[rows, None]).any(dim=0)
    return in_real.double().mean().item(), in_samples.double().mean().item()


def _knn_radius(points: Tensor, k: int, entries: int) -> Tensor:
    """Distance of each point of (N, D) to its k-th nearest neighbor, (N,)."""
    radius = points.new_empty(len(points))
    for rows in _blocks(len(points), len(points), entries):
        distance = torch.cdist(points[rows], points)  # (b, N)
        distance[torch.arange(len(rows)), rows] = torch.inf  # itself
        radius[rows] = distance.kthvalue(k, dim=1).values
    return radius


def _blocks(rows: int, columns: int, entries: int) -> tuple[Tensor, ...]:
    """Row indices of a (rows, columns) matrix, in blocks of at most `entries`."""
    return torch.arange(rows).split(max(1, entries // columns))


@dataclass(frozen=True)
class Distance:
    """A distance with its feature network, number of samples and reference dataset."""

    name: str
    """Including the feature network."""
    value: float
    deviation: float | None
    """Standard deviation over subsets, for the kernel distance."""
    n: int
    """Number of samples."""
    reference: str
    """Dataset and split of the real images."""
    reference_n: int
    """Number of real images."""
    note: str = ""


def compute_distances(
    frechet_name: str,
    kernel_name: str,
    features: str,
    real: Tensor,
    gaussian: Gaussian,
    samples: Tensor,
    reference: str,
) -> list[Distance]:
    """All distances between samples and real images that n allows: Fréchet from 2, the others from 4.

    Args:
        frechet_name: of the Fréchet distance (`FeatureExtractor.frechet_name`).
        kernel_name: of the kernel distance.
        features: name of the feature network.
        real: features (N, D).
        gaussian: fitted to `real`.
        samples: features (M, D).
        reference: dataset and split of the real images.
    """
    n, total, k = len(samples), len(real), 3
    distances = []
    if min(n, total) >= 2:
        note = "n is at most the feature dimension: compare at this n only" if n <= real.shape[1] else ""
        distance = frechet_distance(gaussian, samples)
        distances.append(Distance(frechet_name, distance, None, n, reference, total, note))
    if min(n, total) >= 4:
        mmd = kernel_distance(real, samples, torch.Generator().manual_seed(0))
        note = f"{mmd.subsets} subsets of {mmd.size}"
        distances.append(Distance(kernel_name, mmd.mean, mmd.deviation, n, reference, total, note))
        n_each = min(n, total, MAX_PRECISION_RECALL_IMAGES)
        precision, recall = precision_recall(
            real[evenly_spaced_indices(total, n_each)], samples[evenly_spaced_indices(n, n_each)], k
        )
        for name, value in (("precision", precision), ("recall", recall)):
            distances.append(
                Distance(f"{name} ({features} features)", value, None, n_each, reference, n_each, f"k = {k}")
            )
    return distances
