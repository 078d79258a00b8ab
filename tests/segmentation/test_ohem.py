"""Hard pixels, counted by hand."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
import torch.nn.functional as F

from unetdiff.segmentation.config import OHEMConfig
from unetdiff.segmentation.losses import cross_entropy
from unetdiff.segmentation.ohem import hard_bound, hard_pixels

P = torch.tensor([0.9, 0.2, 0.6, 0.95, 0.5, 0.8, 0.1, 0.3])  # of the true class; the last two pixels are ignored
VALID = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0], dtype=torch.bool)


def chosen(threshold: float, min_fraction: float, p: torch.Tensor = P, valid: torch.Tensor = VALID) -> list[int]:
    hard = hard_pixels(-p.log().view(1, 2, -1), valid.view(1, 2, -1), threshold, min_fraction)
    assert hard.shape == (1, 2, len(p) // 2)
    return hard.flatten().nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("threshold", "min_fraction", "pixels"),
    [
        (0.7, 0.0, [1, 2, 4]),  # below the threshold
        (0.55, 0.0, [1, 4]),
        (0.55, 0.5, [1, 2, 4]),  # three of six at least
        (0.55, 0.51, [1, 2, 4, 5]),  # four: rounded up
        (0.7, 0.2, [1, 2, 4]),  # more than the share
        (0.0, 1 / 3, [1, 4]),  # the share alone
        (0.0, 0.01, [1]),
        (0.05, 0.0, []),
        (0.0, 1.0, [0, 1, 2, 3, 4, 5]),
        (1.0, 0.0, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_which_pixels_are_hard(threshold, min_fraction, pixels):
    assert chosen(threshold, min_fraction) == pixels


def test_pixels_as_hard_as_the_last_one_are_kept_too():
    assert chosen(0.0, 0.25, torch.tensor([0.5, 0.5, 0.9, 0.5]), torch.ones(4, dtype=torch.bool)) == [0, 1, 3]


def test_nothing_valid_nothing_hard():
    assert chosen(0.7, 0.5, valid=torch.zeros(8, dtype=torch.bool)) == []


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes, class 1 everywhere but at pixel 1, the probabilities of `P`, two ignored pixels."""
    target = torch.tensor([[[1, 0, 1, 1], [1, 1, 255, 255]]])
    toward = torch.log(P / (1 - P)).view(1, 2, 4) * torch.where(target == 0, -1, 1)
    return torch.stack([torch.zeros_like(toward), toward], dim=1), target


def test_cross_entropy_is_averaged_over_the_hard_pixels():
    logits, target = scene()
    logits.requires_grad_()
    loss = cross_entropy(logits, target, ohem=OHEMConfig(0.55, 0.5))
    assert loss.item() == pytest.approx(-math.log(0.2 * 0.6 * 0.5) / 3)
    loss.backward()
    felt = logits.grad.abs().sum(1).flatten().nonzero()[:, 0].tolist()
    assert felt == [1, 2, 4]


def test_the_choice_ignores_weights_and_smoothing_and_the_mean_uses_them():
    logits, target = scene()
    weights = [0.1, 5.0]  # weighed first, pixel 1 would not be among the three hardest
    kept = target.clone().fill_(255)
    for i in (1, 2, 4):
        kept.view(-1)[i] = target.view(-1)[i]
    expected = F.cross_entropy(logits, kept, torch.tensor(weights), ignore_index=255, label_smoothing=0.2)
    loss = cross_entropy(logits, target, class_weights=weights, label_smoothing=0.2, ohem=OHEMConfig(0.55, 0.5))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("min_fraction", [0.0, 1e-3, 0.2, 0.5, 1.0])
def test_the_bound_of_several_processes_is_that_of_all_their_pixels(dtype: torch.dtype, min_fraction: float) -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=dtype).mul_(20).round_(decimals=1)
    values[:5], values[5] = -0.0, torch.inf  # and ties, by rounding
    parts = [values[:300], values[300:300], values[300:]]
    barrier, posted = Barrier(len(parts)), [torch.zeros(0)] * len(parts)

    def bound(rank: int) -> torch.Tensor:
        def sum_over(value: torch.Tensor) -> torch.Tensor:
            posted[rank] = value
            barrier.wait(10)
            total = torch.stack(posted).sum(dim=0)
            barrier.wait(10)
            return total

        return hard_bound(parts[rank], min_fraction, sum_over)

    with ThreadPoolExecutor(len(parts)) as processes:
        bounds = list(processes.map(bound, range(len(parts))))
    assert all(torch.equal(found, hard_bound(values, min_fraction)) for found in bounds)
