"""The four figures of semantic segmentation, all from one int64 confusion matrix over the whole set."""

from __future__ import annotations

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
    """Prediction and target as tensors of class indices of one shape, on the prediction's device.

    Raises UserError where the shapes differ, where they are logits, or where a pixel that is not void has a class
    outside 0..C-1.
    """
    prediction, target = torch.as_tensor(prediction), torch.as_tensor(target)
    if prediction.shape != target.shape:
        raise UserError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in size; "
            "resize the logits to the target's size, then take the argmax"
        )
    if prediction.is_floating_point() or target.is_floating_point():
        raise UserError("prediction and target must be class indices (integers), not logits")
    target = target.to(prediction.device)
    valid = ~ignore_mask(target, ignore_index)
    for what, values in (("target", target[valid]), ("prediction", prediction[valid])):
        if values.numel() == 0:
            continue
        low, high = (int(value) for value in torch.stack(torch.aminmax(values)))
        if low < 0 or high >= num_classes:
            raise UserError(
                f"{what} holds the class {low if low < 0 else high}; "
                f"the matrix has classes 0..{num_classes - 1} and void {ignore_index}"
            )
    return prediction, target


class ConfusionMatrix:
    """Counts of (truth, prediction) over pixels that are not void in the truth.

    `matrix` is (C, C), int64, rows truth, columns prediction. Several processes each count their own images
    (each image once: `gather_for_metrics` or `even_batches=False`) and `reduce` sums the matrices.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, device: torch.device | str | None = None) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Count class indices, (H, W) or (B, H, W), at the size at which they are judged.

        The matrix moves to the prediction's device. Raises UserError where the shapes differ, or where a
        pixel that counts has a class outside 0..C-1 in the truth or in the prediction.
        """
        prediction, target = check_indices(prediction, target, self.num_classes, self.ignore_index)
        valid = ~ignore_mask(target, self.ignore_index)
        truth, guess = target[valid].long(), prediction[valid].long()  # (pixels,)
        n = self.num_classes
        counts = torch.bincount(truth * n + guess, minlength=n * n).view(n, n)
        self.matrix = self.matrix.to(counts.device) + counts

    def compute(self) -> dict[str, Any]:
        """The figures, as shares of 1. T = row sums, P = column sums, d = diagonal:

        pixel_accuracy = sum d / sum T; accuracy = d / T; IoU = d / (T + P - d); fw_iou = sum T IoU / sum T;
        mean_accuracy and mean_iou average the classes that have a figure. A class in neither truth nor
        prediction has none (nan in `iou_per_class` and `accuracy_per_class`); one that is only predicted has
        IoU 0 and no accuracy. Everything is nan before the first pixel.
        """
        matrix = self.matrix.cpu().double()
        truth, guess, right = (
            matrix.sum(dim=1),
            matrix.sum(dim=0),
            matrix.diagonal(),
        )  # (C,) each; 0 / 0 is nan
        accuracy = right / truth
        iou = right / (truth + guess - right)
        share = truth / truth.sum()
        return {
            "pixel_accuracy": float(right.sum() / truth.sum()),
            "mean_accuracy": float(accuracy.nanmean()),
            "mean_iou": float(iou.nanmean()),
            "fw_iou": float((share * iou.nan_to_num(0.0)).sum()),
            "iou_per_class": iou.tolist(),
            "accuracy_per_class": accuracy.tolist(),
        }

    def reset(self) -> None:
        """Forget every pixel."""
        self.matrix = torch.zeros_like(self.matrix)

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Add another matrix's counts to this one; returns self."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise UserError(
                f"cannot merge a matrix of {other.num_classes} classes (void {other.ignore_index}) "
                f"into one of {self.num_classes} (void {self.ignore_index})"
            )
        self.matrix = self.matrix + other.matrix.to(self.matrix.device)
        return self

    def reduce(self, accelerator: Any) -> ConfusionMatrix:
        """The sum over all processes of an `accelerate.Accelerator`, as a new matrix on each of them.

        Collective: every process calls it. This one keeps its own counts, so calling it twice counts nothing
        twice.
        """
        total = ConfusionMatrix(self.num_classes, self.ignore_index)
        total.matrix = accelerator.reduce(self.matrix.to(accelerator.device), reduction="sum")
        return total
