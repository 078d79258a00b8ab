"""Metrics of semantic segmentation from an int64 confusion matrix over a dataset."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetdiff.data.transforms import ignore_mask
from unetdiff.errors import UserError

__all__ = ["ConfusionMatrix"]


def check_indices(
    prediction: Tensor | np.ndarray, target: Tensor | np.ndarray, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Prediction and target as tensors of class indices of the same shape, on the prediction's device.

    Raises:
        UserError: the shapes differ, the dtype is not an integer, or a pixel that is not ignored has a class outside of
            0..C-1.
    """
    prediction, target = torch.as_tensor(prediction), torch.as_tensor(target)
    if prediction.shape != target.shape:
        raise UserError(
            f"prediction: shape must be the target's (got {tuple(prediction.shape)} and {tuple(target.shape)}). "
            "Resize the logits to the target's size, then take the argmax."
        )
    if prediction.is_floating_point() or target.is_floating_point():
        raise UserError("prediction and target: dtype must be an integer. Pass class indices, not logits.")
    target = target.to(prediction.device)
    valid = ~ignore_mask(target, ignore_index)
    for name, values in (("target", target[valid]), ("prediction", prediction[valid])):
        if values.numel() == 0:
            continue
        low, high = (int(value) for value in torch.stack(torch.aminmax(values)))
        if low < 0 or high >= num_classes:
            raise UserError(
                f"{name}: classes must be in 0..{num_classes - 1} or {ignore_index} (ignore) "
                f"(got {low if low < 0 else high})."
            )
    return prediction, target


class ConfusionMatrix:
    """Counts of (target, prediction) over the pixels whose target is not ignored.

    `matrix` is (C, C), int64, rows target, columns prediction. Each process counts its own images (each image once:
    `gather_for_metrics` or `even_batches=False`) and `reduce` sums the matrices.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, device: torch.device | str | None = None) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Count class indices, (H, W) or (B, H, W), at the size of evaluation.

        The matrix moves to the prediction's device. Errors as of `check_indices`.
        """
        prediction, target = check_indices(prediction, target, self.num_classes, self.ignore_index)
        valid = ~ignore_mask(target, self.ignore_index)
        n = self.num_classes
        pairs = target[valid].long() * n + prediction[valid].long()  # (pixels,)
        counts = torch.bincount(pairs, minlength=n * n).view(n, n)
        self.matrix = self.matrix.to(counts.device) + counts

    def compute(self) -> dict[str, Any]:
        """The metrics, in [0, 1]. With T = row sums, P = column sums and d = diagonal:

        pixel_accuracy = sum d / sum T; accuracy = d / T; IoU = d / (T + P - d); fw_iou = sum T IoU / sum T;
        Dice = F1 = 2 d / (T + P); precision = d / P; recall = d / T. The means (mean_accuracy, mean_iou, mean_dice,
        mean_precision, mean_recall) are over the classes with a value. Classes neither in target nor in prediction are
        nan everywhere; of a class only in predictions the accuracy is nan, and all else 0; the precision of a class
        that is never predicted is 0, as in torchmetrics. All values are nan before the first pixel.
        """
        matrix = self.matrix.cpu().double()
        target, predicted, correct = matrix.sum(dim=1), matrix.sum(dim=0), matrix.diagonal()  # (C,)
        accuracy = correct / target  # 0 / 0 is nan
        iou = correct / (target + predicted - correct)
        frequency = target / target.sum()
        occurs = (target + predicted).where(target + predicted > 0, math.nan)  # nan: neither in target nor predicted
        dice = 2 * correct / occurs
        precision, recall = (correct / total.clamp(min=1) + 0 * occurs for total in (predicted, target))
        return {
            "pixel_accuracy": float(correct.sum() / target.sum()),
            "mean_accuracy": float(accuracy.nanmean()),
            "mean_iou": float(iou.nanmean()),
            "fw_iou": float((frequency * iou.nan_to_num(0.0)).sum()),
            "mean_dice": float(dice.nanmean()),
            "mean_precision": float(precision.nanmean()),
            "mean_recall": float(recall.nanmean()),
            "iou_per_class": iou.tolist(),
            "accuracy_per_class": accuracy.tolist(),
            "dice_per_class": dice.tolist(),
            "precision_per_class": precision.tolist(),
            "recall_per_class": recall.tolist(),
        }

    def reset(self) -> None:
        """Set all counts to 0."""
        self.matrix = torch.zeros_like(self.matrix)

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Add another matrix's counts; returns self."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise UserError(
                f"merge: matrices must have the same classes and ignore_index (got {other.num_classes} and "
                f"{self.num_classes} classes, ignore_index {other.ignore_index} and {self.ignore_index})."
            )
        self.matrix = self.matrix + other.matrix.to(self.matrix.device)
        return self

    def reduce(self, accelerator: Any) -> ConfusionMatrix:
        """The sum over all processes of an `accelerate.Accelerator`, as a new matrix on each of them.

        Collective: every process calls it. This matrix is unchanged.
        """
        total = ConfusionMatrix(self.num_classes, self.ignore_index)
        total.matrix = accelerator.reduce(self.matrix.to(accelerator.device), reduction="sum")
        return total
