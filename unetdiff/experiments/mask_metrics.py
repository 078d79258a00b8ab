"""Accuracy and calibration of class probabilities: mIoU, pixel accuracy, ECE, negative log-likelihood, uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unetdiff.data.transforms import ignore_mask
from unetdiff.diffusion.mask_sampling import log_probabilities, uncertainty
from unetdiff.segmentation.calibration import Calibration
from unetdiff.segmentation.metrics import ConfusionMatrix


@dataclass(frozen=True)
class MaskMetrics:
    """Metrics of a segmenter; NaN if no pixels were counted."""

    mean_iou: float
    pixel_accuracy: float
    ece: float
    """Expected calibration error (`unetdiff.segmentation.calibration`)."""
    nll: float
    """Mean negative log-likelihood of the ground truth in nats, with probabilities clipped from below."""
    uncertainty_correct: float
    """Mean uncertainty of the correct pixels, 0 to 1 (`mask_sampling.uncertainty`)."""
    uncertainty_wrong: float
    """Mean uncertainty of the wrong pixels."""


class MaskEvaluator:
    """Accumulates metrics over batches; pixels with the ignore index are excluded."""

    def __init__(self, num_classes: int, ignore_index: int = 255, device: torch.device | str | None = None) -> None:
        self.matrix = ConfusionMatrix(num_classes, ignore_index, device)
        self.calibration = Calibration(ignore_index=ignore_index, device=device)
        self.ignore_index = ignore_index
        self.uncertainty = torch.zeros(2, 2, dtype=torch.float64, device=device)  # (wrong/correct, sum/pixels)

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Add class probabilities (B, C, H, W) with class indices (B, H, W) as the ground truth."""
        target = target.to(probabilities.device)
        prediction = probabilities.argmax(dim=1)  # (B, H, W)
        self.matrix.update(prediction, target)
        self.calibration.update(log_probabilities(probabilities), target)
        valid = ~ignore_mask(target, self.ignore_index)
        correct = (prediction == target)[valid].long()  # (pixels,)
        values = uncertainty(probabilities)[valid].double()  # (pixels,)
        self.uncertainty.index_add_(0, correct, torch.stack([values, torch.ones_like(values)], dim=1))

    def compute(self) -> MaskMetrics:
        """The metrics so far."""
        accuracy, calibration = self.matrix.compute(), self.calibration.compute()
        wrong, correct = (self.uncertainty[:, 0] / self.uncertainty[:, 1]).tolist()
        return MaskMetrics(
            accuracy["mean_iou"], accuracy["pixel_accuracy"], calibration["ece"], calibration["nll"], correct, wrong
        )
