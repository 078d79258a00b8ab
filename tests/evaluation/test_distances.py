"""Distances against torchmetrics, closed forms and small manifolds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from unetdiff.errors import UserError
from unetdiff.evaluation.distances import (
    Gaussian,
    compute_distances,
    frechet_distance,
    kernel_distance,
    precision_recall,
)


def normal(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Flat(nn.Module):
    """The pixels themselves as features, for torchmetrics."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double() / 255


def images(count: int, seed: int, highest: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, highest, (count, 3, 2, 2), generator=generator).to(torch.uint8)


def test_frechet_is_torchmetrics() -> None:
    real, fake = images(90, 0, 256), images(70, 1, 180)
    metric = FrechetInceptionDistance(feature=Flat())
    metric.update(real, real=True)
    metric.update(fake, real=False)
    extract = Flat()
    assert frechet_distance(extract(real), extract(fake)) == pytest.approx(metric.compute().item(), rel=1e-9)


def test_frechet_of_known_gaussians() -> None:
    """Commuting covariances: |μ₁ - μ₂|² + Σ (√λ₁ - √λ₂)²."""
    first = Gaussian(torch.tensor([1.0, 2.0]).double(), torch.diag(torch.tensor([4.0, 9.0])).double(), 10)
    second = Gaussian(torch.tensor([0.0, 4.0]).double(), torch.diag(torch.tensor([1.0, 25.0])).double(), 10)
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + 1 + 4)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    turn = torch.linalg.qr(normal(2, 2, 3)).Q  # a rotation of the space changes nothing
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T, g.n) for g in (first, second)]
    assert frechet_distance(*turned) == pytest.approx(10)


def test_frechet_of_fewer_samples_than_features() -> None:
    """Rank-deficient covariances, where a matrix square root of the product fails."""
    points = normal(10, 50, 0)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(points, points + 0.5) == pytest.approx(50 * 0.25, rel=1e-5)


def test_gaussian_is_torchs_covariance() -> None:
    features = normal(5000, 4, 0).float() + 100  # more than one part; a large mean costs no precision
    gaussian = Gaussian.fit(features)
    assert torch.allclose(gaussian.covariance, torch.cov(features.double().T), rtol=1e-9)
    assert torch.allclose(gaussian.mean, features.double().mean(dim=0)) and gaussian.n == 5000
    with pytest.raises(UserError, match="at least 2 images are required .* .got 1."):
        Gaussian.fit(features[:1])


def test_kernel_distance_is_torchmetrics() -> None:
    real, fake = images(60, 0, 256), images(40, 1, 180)
    extract = Flat()
    result = kernel_distance(extract(real), extract(fake), torch.Generator().manual_seed(0), subsets=400, size=15)
    metric = KernelInceptionDistance(feature=Flat(), subsets=400, subset_size=15)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    torch.manual_seed(0)
    mean, deviation = metric.compute()
    error = result.deviation / 400**0.5
    assert result.mean == pytest.approx(mean.item(), abs=5 * error)
    assert result.deviation == pytest.approx(deviation.item(), rel=0.2)
    assert (result.subsets, result.size) == (400, 15)


def test_kernel_distance_of_one_subset_and_its_size() -> None:
    real, fake = normal(9, 3, 0), normal(30, 3, 1)
    result = kernel_distance(real, fake, torch.Generator().manual_seed(5), subsets=1, size=1000)
    generator = torch.Generator().manual_seed(5)
    a = real[torch.randperm(9, generator=generator)[:4]]  # half of the smaller side
    b = fake[torch.randperm(30, generator=generator)[:4]]
    assert (result.size, result.mean) == (4, pytest.approx(poly_mmd(a, b).item()))
    with pytest.raises(UserError, match="at least 4 images are required .* .got 3."):
        kernel_distance(real[:3], fake, generator)


def test_kernel_distance_of_one_distribution_is_around_zero() -> None:
    result = kernel_distance(normal(400, 8, 0), normal(400, 8, 1), torch.Generator().manual_seed(0), subsets=50)
    apart = kernel_distance(normal(400, 8, 0), normal(400, 8, 1) + 1, torch.Generator().manual_seed(0), subsets=50)
    assert abs(result.mean) < 0.05 < apart.mean


def test_precision_and_recall_on_a_line() -> None:
    """Radii to the nearest neighbor: real 0, 1, 3, 10 -> 1, 1, 2, 7; samples 2, 2.5, 20 -> 0.5, 0.5, 17.5."""
    real, samples = torch.tensor([[0.0], [1.0], [3.0], [10.0]]), torch.tensor([[2.0], [2.5], [20.0]])
    precision, recall = precision_recall(real, samples, k=1)
    assert precision == pytest.approx(2 / 3)  # 20 is 10 from the ball of 7 around 10
    assert recall == pytest.approx(2 / 4)  # 3 is within 0.5 of 2.5, and 10 within 17.5 of 20; 0 and 1 are in no ball
    for entries in (1, 4, 5):  # for any block size
        assert precision_recall(real, samples, k=1, entries=entries) == (precision, recall)
    two = precision_recall(real, samples, k=2)  # radii: 3, 2, 3, 9 and 18, 17.5, 18
    assert two == (pytest.approx(2 / 3), 1.0)
    with pytest.raises(UserError, match="more than k = 3 images are required .got 3."):
        precision_recall(real, samples, k=3)


def test_precision_and_recall_of_a_narrow_and_a_wide_generator() -> None:
    real = normal(300, 4, 0)
    narrow, wide = precision_recall(real, normal(300, 4, 1) * 0.3), precision_recall(real, normal(300, 4, 1) * 3)
    assert narrow[0] > 0.95 and narrow[1] < 0.6
    assert wide[0] < 0.5 and wide[1] > 0.8


def test_distances_have_n_and_reference() -> None:
    real, samples = normal(50, 6, 0).float(), normal(40, 6, 1).float()
    distances = compute_distances("FID", "KID", "inception", real, Gaussian.fit(real), samples, "scenes train")
    assert [f.name for f in distances] == [
        "FID",
        "KID",
        "precision (inception features)",
        "recall (inception features)",
    ]
    assert [(f.n, f.reference_n) for f in distances] == [(40, 50), (40, 50), (40, 40), (40, 40)]
    assert {f.reference for f in distances} == {"scenes train"}
    assert distances[0].value == pytest.approx(frechet_distance(real, samples)) and distances[0].note == ""
    assert distances[1].deviation is not None and distances[1].note == "100 subsets of 20"
    few = compute_distances("FID", "KID", "inception", real, Gaussian.fit(real), samples[:3], "scenes train")
    assert [f.name for f in few] == ["FID"] and "at most the feature dimension" in few[0].note
    assert compute_distances("FID", "KID", "inception", real, Gaussian.fit(real), samples[:1], "scenes train") == []
