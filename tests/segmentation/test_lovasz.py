"""Lovász-softmax against algorithm 1 of the paper, restated by sets and worked out, and against IoU itself."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from unetdiff.segmentation.lovasz import jaccard_gradient, lovasz
from unetdiff.segmentation.metrics import ConfusionMatrix

CLASSES = 4


def case(
    seed: int, spread: float, ignored: float = 0.2, shape: tuple[int, int, int] = (2, 9, 8), present: int = CLASSES
):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, present, shape, generator=generator)
    noise = torch.randn(shape[0], CLASSES, *shape[1:], generator=generator, dtype=torch.float64)
    logits = noise + spread * F.one_hot(target, CLASSES).permute(0, 3, 1, 2)  # spread > 0: mostly right
    target[torch.rand(shape, generator=generator) < ignored] = 255
    return logits, target


def one_minus_iou(wrong: set[int], members: set[int]) -> float:
    """Delta(M) of equation 6: M of the pixels are mispredicted, members are of the class."""
    return len(wrong) / len(members | wrong) if wrong else 0.0


def by_the_definition(logits: torch.Tensor, target: torch.Tensor) -> float:
    """Sum of m_(i) (Delta({1..i}) - Delta({1..i-1})), errors m in decreasing order (equation 8), sets and a loop."""
    valid = target != 255
    p = logits.softmax(1).movedim(1, -1)[valid]  # (P, C)
    own = target[valid]
    losses = []
    for c in own.unique().tolist():
        members = set((own == c).nonzero()[:, 0].tolist())
        errors = [(1 - p[i, c] if i in members else p[i, c]).item() for i in range(len(p))]
        order = sorted(range(len(p)), key=lambda i: -errors[i])
        wrong: set[int] = set()
        loss = 0.0
        for i in order:
            before = one_minus_iou(wrong, members)
            wrong.add(i)
            loss += errors[i] * (one_minus_iou(wrong, members) - before)
        losses.append(loss)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("spread", [0.0, 2.0, 6.0])
@pytest.mark.parametrize("present", [1, 3, CLASSES])
def test_it_is_the_papers_definition(spread, present):
    logits, target = case(0, spread, present=present)
    assert lovasz(logits, target).item() == pytest.approx(by_the_definition(logits, target), rel=1e-12)
    assert lovasz(logits.float(), target).item() == pytest.approx(by_the_definition(logits, target), rel=1e-5)


def test_three_pixels_by_hand():
    # two classes; class 1 at the pixels {0, 1} of three; p_1 = 0.9, 0.4, 0.7
    p = torch.tensor([0.9, 0.4, 0.7])
    logits = torch.stack([torch.zeros(3), torch.log(p / (1 - p))]).view(1, 2, 1, 3)
    target = torch.tensor([[[1, 1, 0]]])
    # class 1, errors 0.7 (outside), 0.6, 0.1: 1 - IoU goes 1/3, 2/3, 1; class 0 (pixel 2), errors 0.7, 0.6, 0.1:
    # 1 - IoU goes 1 with its own pixel, and stays
    class_1, class_0 = (0.7 + 0.6 + 0.1) / 3, 0.7
    assert lovasz(logits, target).item() == pytest.approx((class_0 + class_1) / 2)
    assert lovasz(logits, target, class_weights=[1.0, 3.0]).item() == pytest.approx((class_0 + 3 * class_1) / 4)


def test_of_sure_predictions_it_is_one_minus_the_mean_iou():
    _, target = case(1, 0, shape=(2, 16, 16), present=3)
    prediction = torch.randint(0, 3, target.shape, generator=torch.Generator().manual_seed(3))
    logits = 200.0 * F.one_hot(prediction, CLASSES).permute(0, 3, 1, 2)
    matrix = ConfusionMatrix(CLASSES, 255)
    matrix.update(prediction, target)
    assert lovasz(logits, target).item() == pytest.approx(1 - matrix.compute()["mean_iou"], rel=1e-6)


def test_gradient_is_that_of_sorting_all_pixels():
    """The gradient of every pixel, sorted with none left out and differentiated by torch."""
    logits, target = case(2, 2.0)
    logits.requires_grad_()
    valid = target != 255
    p, own = logits.softmax(1).movedim(1, -1)[valid], target[valid]
    losses = []
    for c in range(CLASSES):
        inside = (own == c).double()
        errors, order = (inside - p[:, c]).abs().sort(descending=True)
        inside = inside[order]
        jaccard = 1 - (inside.sum() - inside.cumsum(0)) / (inside.sum() + (1 - inside).cumsum(0))
        losses.append(errors @ jaccard.diff(prepend=torch.zeros(1, dtype=torch.float64)))
    expected = torch.autograd.grad(torch.stack(losses).mean(), logits)[0]
    actual = torch.autograd.grad(lovasz(logits, target), logits)[0]
    torch.testing.assert_close(actual, expected)


def test_gradients_in_float32_hold_for_millions_of_pixels():
    inside = torch.zeros(3_000_000, dtype=torch.bool)
    inside[::3] = True
    gradient = jaccard_gradient(inside)
    exact = jaccard_gradient(inside, torch.float64)
    # neighbouring differences of 1 - IoU are off by 7 % in the median here
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-6, atol=0)
    assert exact.sum().item() == pytest.approx(1, rel=1e-12)


def test_only_valid_pixels_that_can_matter_are_sorted(monkeypatch):
    lengths = []
    sort = torch.Tensor.sort
    monkeypatch.setattr(torch.Tensor, "sort", lambda self, **k: (lengths.append(len(self)), sort(self, **k))[1])
    logits = torch.zeros(1, 2, 1, 10)
    target = torch.tensor([[[0, 0, 1, 1, 1, 1, 255, 255, 255, 255]]])
    logits[0, 0, 0, 3:] = -9.0  # four pixels that are surely not of class 0: below its easiest pixel, at 0.5
    lovasz(logits, target)
    assert lengths == [3, 6]  # class 0: its two and the one at 0.5; class 1: its easiest error is near 0


def test_per_image_is_the_mean_over_images_with_a_valid_pixel():
    logits, target = case(4, 1.0, shape=(3, 6, 6))
    target[1] = 255
    each = [lovasz(logits[i : i + 1], target[i : i + 1]) for i in (0, 2)]
    torch.testing.assert_close(lovasz(logits, target, per_image=True), sum(each) / 2)
    assert not math.isclose(lovasz(logits, target).item(), (sum(each) / 2).item(), rel_tol=1e-3)
