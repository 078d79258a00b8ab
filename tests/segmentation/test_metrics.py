"""The matrix and its figures against torchmetrics and hand-computed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
)

from unetdiff.errors import UserError
from unetdiff.segmentation.calibration import Calibration
from unetdiff.segmentation.losses import cross_entropy
from unetdiff.segmentation.metrics import ConfusionMatrix

CLASSES = 7


def case(truths: list[int], guesses: list[int], seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.tensor(truths)[torch.randint(len(truths), (3, 24, 20), generator=generator)]
    prediction = torch.tensor(guesses)[torch.randint(len(guesses), (3, 24, 20), generator=generator)]
    agree = torch.rand(3, 24, 20, generator=generator) < 0.6
    prediction = torch.where(agree & torch.isin(target, torch.tensor(guesses)), target, prediction)
    target[torch.rand(3, 24, 20, generator=generator) < 0.2] = 255
    return prediction, target


CASES = {
    "all present": (list(range(7)), list(range(7))),
    "absent in both": ([0, 1, 2, 4, 6], [0, 1, 2, 4, 6]),
    "absent in truth": ([0, 1, 2, 4, 6], list(range(7))),
    "never predicted": (list(range(7)), [0, 1, 2]),
    "all three at once": ([0, 1, 2, 3], [0, 1, 4]),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_torchmetrics(name, seed):
    prediction, target = case(*CASES[name], seed)
    actual = ConfusionMatrix(CLASSES)
    for p, t in zip(prediction, target, strict=True):  # one by one: the figures are the whole set's
        actual.update(p, t)
    metrics = actual.compute()

    def reference(metric):
        return metric(prediction, target).double()

    assert torch.equal(actual.matrix, MulticlassConfusionMatrix(CLASSES, ignore_index=255)(prediction, target))
    for key, metric in {
        "pixel_accuracy": MulticlassAccuracy(CLASSES, average="micro", ignore_index=255),
        "mean_iou": MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=255),
        "fw_iou": MulticlassJaccardIndex(CLASSES, average="weighted", ignore_index=255),
    }.items():
        assert metrics[key] == pytest.approx(reference(metric).item(), abs=1e-6), key

    seen = torch.isin(torch.arange(CLASSES), target)  # torchmetrics gives an absent class 0, we give it nan
    either = seen | torch.isin(torch.arange(CLASSES), prediction[target != 255])
    iou = reference(MulticlassJaccardIndex(CLASSES, average="none", ignore_index=255)).where(either, math.nan)
    accuracy = reference(MulticlassAccuracy(CLASSES, average="none", ignore_index=255)).where(seen, math.nan)
    np.testing.assert_allclose(metrics["iou_per_class"], iou.numpy(), atol=1e-6)
    np.testing.assert_allclose(metrics["accuracy_per_class"], accuracy.numpy(), atol=1e-6)
    assert metrics["mean_accuracy"] == pytest.approx(accuracy.nanmean().item(), abs=1e-6)
    for key, metric in {
        "dice": MulticlassF1Score,
        "precision": MulticlassPrecision,
        "recall": MulticlassRecall,
    }.items():
        values = reference(metric(CLASSES, average="none", ignore_index=255)).where(either, math.nan)
        np.testing.assert_allclose(metrics[f"{key}_per_class"], values.numpy(), atol=1e-6)
        mean = reference(metric(CLASSES, average="macro", ignore_index=255))  # over the classes that occur
        assert metrics[f"mean_{key}"] == pytest.approx(mean.item(), abs=1e-6), key


def test_by_hand():
    matrix = ConfusionMatrix(4)
    #            right right miss  void  right
    target = torch.tensor([[0, 0, 1, 255, 1]], dtype=torch.uint8)
    pred = torch.tensor([[0, 0, 2, 3, 1]])
    matrix.update(pred, target)
    metrics = matrix.compute()
    assert matrix.matrix.dtype == torch.int64
    assert matrix.matrix.tolist() == [[2, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert metrics["pixel_accuracy"] == 0.75
    assert metrics["mean_accuracy"] == 0.75  # 1 and 1/2; class 2 was never there
    assert metrics["mean_iou"] == pytest.approx((1 + 0.5 + 0) / 3)  # class 2 is only predicted: 0; class 3 in neither
    assert metrics["fw_iou"] == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert metrics["iou_per_class"][:3] == [1, 0.5, 0] and math.isnan(metrics["iou_per_class"][3])
    assert math.isnan(metrics["accuracy_per_class"][2]) and math.isnan(metrics["accuracy_per_class"][3])


def test_fw_iou_is_pixel_accuracy_less_what_false_positives_cost():
    # FWIoU = PA - sum TP FP / (T + FP) / sum T
    prediction, target = case(*CASES["all present"])
    matrix = ConfusionMatrix(CLASSES)
    matrix.update(prediction, target)
    m, metrics = matrix.matrix.double(), matrix.compute()
    right, truth = m.diagonal(), m.sum(1)
    wrong = m.sum(0) - right
    expected = metrics["pixel_accuracy"] - ((right * wrong) / (truth + wrong)).sum().item() / m.sum().item()
    assert metrics["fw_iou"] == pytest.approx(expected)


def test_merge_reduce_and_reset():
    prediction, target = case(*CASES["all present"])
    whole, left, right = ConfusionMatrix(CLASSES), ConfusionMatrix(CLASSES), ConfusionMatrix(CLASSES)
    whole.update(prediction, target)
    left.update(prediction[:1], target[:1])
    right.update(prediction[1:].numpy(), target[1:].numpy())
    assert left.merge(right) is left
    assert torch.equal(left.matrix, whole.matrix)
    total = left.reduce(Accelerator(cpu=True))
    assert torch.equal(total.matrix, whole.matrix) and total.matrix is not left.matrix
    left.reset()
    assert left.matrix.sum() == 0 and total.matrix.sum() > 0
    with pytest.raises(UserError, match="must have the same classes"):
        left.merge(ConfusionMatrix(3))


def test_an_empty_matrix_is_nan():
    metrics = ConfusionMatrix(3).compute()
    assert all(math.isnan(metrics[key]) for key in ("pixel_accuracy", "mean_accuracy", "mean_iou"))


@pytest.mark.parametrize(
    ("pred", "truth", "says"),
    [
        ([[0, 3]], [[0, 1]], "prediction: classes must be in .*got 3"),
        ([[0, -1]], [[0, 1]], "prediction: classes must be in .*got -1"),
        ([[0, 1]], [[0, 9]], "target: classes must be in .*got 9"),
        ([[0, 1, 1]], [[0, 1]], "shape must be the target"),
        ([[0.0, 1.0]], [[0, 1]], "not logits"),
    ],
)
def test_refuses_what_it_cannot_count(pred, truth, says):
    matrix = ConfusionMatrix(3)
    with pytest.raises(UserError, match=says):
        matrix.update(torch.tensor(pred), torch.tensor(truth))
    assert matrix.matrix.sum() == 0


def test_255_is_void_whatever_else_is() -> None:
    prediction, target = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 2, 255, 1])
    matrix = ConfusionMatrix(2, ignore_index=2)
    matrix.update(prediction, target)
    assert matrix.matrix.tolist() == [[1, 0], [1, 0]]
    logits = F.one_hot(prediction, 2).float().mul(4).T[None, :, None]  # (1, 2, 1, 4)
    calibration = Calibration(ignore_index=2)
    calibration.update(logits, target[None, None])
    assert int(calibration.count.sum()) == 2
    both = F.cross_entropy(logits[..., [0, 3]], target[None, None, [0, 3]])
    torch.testing.assert_close(cross_entropy(logits, target[None, None], ignore_index=2), both)
