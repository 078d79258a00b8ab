"""Segmenters judged by the class probabilities that they give: how right they are, and how well they know it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unetdiff.data.transforms import ignore_mask
from unetdiff.diffusion.mask_sampling import log_probabilities, uncertainty
from unetdiff.segmentation.calibration import Calibration
from unetdiff.segmentation.metrics import ConfusionMatrix


@dataclass(frozen=True)
class MaskFigures:
    """What is said of a segmenter; NaN where there was nothing to count."""

    mean_iou: float
    pixel_accuracy: float
    ece: float
    """Expected calibration error (`unetdiff.segmentation.calibration`)."""
    nll: float
    """Mean of -log p(truth), nats; no probability is taken to be below `segmenting.LEAST`."""
    unsure_right: float
    """Mean uncertainty of the pixels that are right, 0 to 1 (`segmenting.uncertainty`)."""
    unsure_wrong: float
    """The same of those that are wrong."""


class MaskJudge:
    """Counts over a set, image by image; void counts nowhere."""

    def __init__(self, num_classes: int, ignore_index: int = 255, device: torch.device | str | None = None) -> None:
        self.matrix = ConfusionMatrix(num_classes, ignore_index, device)
        self.calibration = Calibration(ignore_index=ignore_index, device=device)
        self.ignore_index = ignore_index
        self.unsure = torch.zeros(2, 2, dtype=torch.float64, device=device)  # wrong, right: uncertainty, pixels

    def update(self, probabilities: Tensor, truth: Tensor) -> None:
        """Count class probabilities (B, C, H, W) against class indices (B, H, W)."""
        truth = truth.to(probabilities.device)
        answer = probabilities.argmax(dim=1)
        self.matrix.update(answer, truth)
        self.calibration.update(log_probabilities(probabilities), truth)
        counts = ~ignore_mask(truth, self.ignore_index)
        right = (answer == truth)[counts].long()  # (pixels,)
        values = uncertainty(probabilities)[counts].double()
        self.unsure.index_add_(0, right, torch.stack([values, torch.ones_like(values)], dim=1))

    def figures(self) -> MaskFigures:
        """What was counted, as figures."""
        counted, known = self.matrix.compute(), self.calibration.compute()
        wrong, right = (self.unsure[:, 0] / self.unsure[:, 1]).tolist()
        return MaskFigures(counted["mean_iou"], counted["pixel_accuracy"], known["ece"], known["nll"], right, wrong)
