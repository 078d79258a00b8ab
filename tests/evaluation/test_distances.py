"""Distances against torchmetrics, closed forms and manifolds counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from unetdiff.errors import UserError
from unetdiff.evaluation.distances import Gaussian, compare, frechet_distance, kernel_distance, precision_recall


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
    judge = FrechetInceptionDistance(feature=Flat())
    judge.update(real, real=True)
    judge.update(fake, real=False)
    extract = Flat()
    assert frechet_distance(extract(real), extract(fake)) == pytest.approx(judge.compute().item(), rel=1e-9)


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
    """Covariances of no full rank, where a matrix root of the product breaks: still the distance of shifted sets."""
    points = normal(10, 50, 0)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(points, points + 0.5) == pytest.approx(50 * 0.25, rel=1e-5)


def test_gaussian_is_torchs_covariance() -> None:
    features = normal(5000, 4, 0).float() + 100  # more than one part; a large mean costs no precision
    gaussian = Gaussian.of(features)
    assert torch.allclose(gaussian.covariance, torch.cov(features.double().T), rtol=1e-9)
    assert torch.allclose(gaussian.mean, features.double().mean(dim=0)) and gaussian.n == 5000
    with pytest.raises(UserError, match="1 image has no spread"):
        Gaussian.of(features[:1])


def test_kernel_distance_is_torchmetrics() -> None:
    real, fake = images(60, 0, 256), images(40, 1, 180)
    extract = Flat()
    found = kernel_distance(extract(real), extract(fake), torch.Generator().manual_seed(0), subsets=400, size=15)
    judge = KernelInceptionDistance(feature=Flat(), subsets=400, subset_size=15)
    judge.update(real, real=True)
    judge.update(fake, real=False)
    torch.manual_seed(0)
    mean, deviation = judge.compute()
    error = found.deviation / 400**0.5
    assert found.mean == pytest.approx(mean.item(), abs=5 * error)
    assert found.deviation == pytest.approx(deviation.item(), rel=0.2)
    assert (found.subsets, found.size) == (400, 15)


def test_kernel_distance_of_one_subset_and_its_size() -> None:
    real, fake = normal(9, 3, 0), normal(30, 3, 1)
    found = kernel_distance(real, fake, torch.Generator().manual_seed(5), subsets=1, size=1000)
    generator = torch.Generator().manual_seed(5)
    a = real[torch.randperm(9, generator=generator)[:4]]  # half of the smaller side
    b = fake[torch.randperm(30, generator=generator)[:4]]
    assert (found.size, found.mean) == (4, pytest.approx(poly_mmd(a, b).item()))
    with pytest.raises(UserError, match="3 images are too few"):
        kernel_distance(real[:3], fake, generator)


def test_kernel_distance_of_one_distribution_is_around_zero() -> None:
    found = kernel_distance(normal(400, 8, 0), normal(400, 8, 1), torch.Generator().manual_seed(0), subsets=50)
    apart = kernel_distance(normal(400, 8, 0), normal(400, 8, 1) + 1, torch.Generator().manual_seed(0), subsets=50)
    assert abs(found.mean) < 0.05 < apart.mean


def test_precision_and_recall_counted_by_hand() -> None:
    """On a line. Reach to the first neighbour: real 0, 1, 3, 10 -> 1, 1, 2, 7; samples 2, 2.5, 20 -> 0.5, 0.5, 17.5."""
    real, samples = torch.tensor([[0.0], [1.0], [3.0], [10.0]]), torch.tensor([[2.0], [2.5], [20.0]])
    precision, recall = precision_recall(real, samples, k=1)
    assert precision == pytest.approx(2 / 3)  # 20 is 10 from the ball of 7 around 10
    assert recall == pytest.approx(2 / 4)  # 3 is within 0.5 of 2.5, and 10 within 17.5 of 20; 0 and 1 are in no ball
    for entries in (1, 4, 5):  # in blocks of any size
        assert precision_recall(real, samples, k=1, entries=entries) == (precision, recall)
    two = precision_recall(real, samples, k=2)  # reach: 3, 2, 3, 9 and 18, 17.5, 18
    assert two == (pytest.approx(2 / 3), 1.0)
    with pytest.raises(UserError, match="3 images have no 3 neighbours"):
        precision_recall(real, samples, k=3)


def test_precision_and_recall_of_a_narrow_and_a_wide_generator() -> None:
    real = normal(300, 4, 0)
    narrow, wide = precision_recall(real, normal(300, 4, 1) * 0.3), precision_recall(real, normal(300, 4, 1) * 3)
    assert narrow[0] > 0.95 and narrow[1] < 0.6
    assert wide[0] < 0.5 and wide[1] > 0.8


def test_compare_tells_everything_with_its_n() -> None:
    real, samples = normal(50, 6, 0).float(), normal(40, 6, 1).float()
    figures = compare("FID", "KID", "inception", real, Gaussian.of(real), samples, "scenes train")
    assert [f.name for f in figures] == ["FID", "KID", "precision (inception features)", "recall (inception features)"]
    assert [(f.n, f.reference_n) for f in figures] == [(40, 50), (40, 50), (40, 40), (40, 40)]
    assert {f.reference for f in figures} == {"scenes train"}
    assert figures[0].value == pytest.approx(frechet_distance(real, samples)) and figures[0].note == ""
    assert figures[1].deviation is not None and figures[1].note == "100 subsets of 20"
    few = compare("FID", "KID", "inception", real, Gaussian.of(real), samples[:3], "scenes train")
    assert [f.name for f in few] == ["FID"] and "fewer samples than features" in few[0].note
    assert compare("FID", "KID", "inception", real, Gaussian.of(real), samples[:1], "scenes train") == []
