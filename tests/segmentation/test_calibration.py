"""Calibration against torchmetrics, cross-entropy, and four pixels by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassCalibrationError

from unetdiff.errors import UserError
from unetdiff.segmentation.calibration import Calibration


def case(sharpness: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 5, 20, 24, generator=generator) * sharpness
    target = torch.randint(5, (4, 20, 24), generator=generator)
    target = torch.where(torch.rand(target.shape, generator=generator) < 0.5, logits.argmax(dim=1), target)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    return logits, target


@pytest.mark.parametrize("bins", [15, 4])
@pytest.mark.parametrize("sharpness", [0.5, 3.0])
def test_agrees_with_torchmetrics_however_it_is_cut(bins, sharpness):
    logits, target = case(sharpness, bins)
    actual = Calibration(bins)
    actual.update(logits[:1], target[:1])
    for one, truth in zip(logits[1:], target[1:], strict=True):
        actual.update(one, truth)
    reference = MulticlassCalibrationError(5, n_bins=bins, norm="l1", ignore_index=255)
    # Probabilities and their targets as lists of pixels: torchmetrics' own flattening is not what is judged here.
    expected = reference(logits.movedim(1, -1).reshape(-1, 5).softmax(dim=-1), target.reshape(-1))
    metrics = actual.compute()
    assert metrics["ece"] == pytest.approx(expected.item(), abs=1e-6)
    assert metrics["nll"] == pytest.approx(F.cross_entropy(logits, target, ignore_index=255).item(), abs=1e-5)
    counted = target != 255
    sure = logits.softmax(dim=1).amax(dim=1)[counted].double().numpy()
    assert metrics["mean_confidence"] == pytest.approx(sure.mean(), abs=1e-6)
    assert metrics["reliability"]["count"] == np.histogram(sure, bins, range=(0, 1))[0].tolist()


def test_by_hand():
    # Confidences 0.6 (right), 0.6 (wrong), 0.9 (right), 0.99 (at ignored pixels), in two bins: (0, 0.5] and (0.5, 1].
    p = torch.tensor([0.6, 0.4, 0.9, 0.99])
    logits = torch.stack([p, 1 - p]).log()[:, None]  # (2, 1, 4)
    target = torch.tensor([[0, 0, 0, 255]], dtype=torch.uint8)
    calibration = Calibration(2)
    calibration.update(logits, target)
    metrics = calibration.compute()
    assert calibration.count.dtype == torch.int64 and metrics["reliability"]["count"] == [0, 3]
    assert metrics["reliability"]["accuracy"][1] == pytest.approx(2 / 3)
    assert metrics["reliability"]["confidence"][1] == pytest.approx(0.7)
    assert math.isnan(metrics["reliability"]["accuracy"][0])
    assert metrics["ece"] == pytest.approx(0.7 - 2 / 3)
    assert metrics["nll"] == pytest.approx(-np.log([0.6, 0.4, 0.9]).mean())


def test_void_counts_nowhere():
    logits, target = case(2.0, 0)
    first, second = Calibration(), Calibration()
    first.update(logits, target)
    second.update(logits + (target == 255)[:, None] * torch.arange(5.0)[:, None, None] * 9, target)
    for name in ("count", "correct", "confidence", "nll"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_certainty_is_in_the_last_bin():
    calibration = Calibration()
    calibration.update(torch.tensor([200.0, 0.0, 0.0])[:, None, None].expand(3, 2, 2), torch.zeros(2, 2).long())
    assert calibration.compute()["reliability"]["count"][-1] == 4
    assert calibration.compute()["ece"] == 0


def test_refusals():
    with pytest.raises(UserError, match="bins=0: must be at least 1"):
        Calibration(0)
    with pytest.raises(UserError, match="size must be the target"):
        Calibration().update(torch.zeros(3, 4, 4), torch.zeros(4, 5).long())
    assert math.isnan(Calibration().compute()["ece"])
