"""The loss over a dataset: the same whatever batches and processes it is computed in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unetdiff.segmentation.loss_inputs import LossInputs, divisor
from unetdiff.segmentation.losses import WeightedLoss


class DatasetLoss:
    """Cross-entropy, focal loss and Dice over all pixels of a dataset, as if it were one batch.

    What has no sums over a dataset is by image: the hard pixels of OHEM are selected in each, and Lovász is averaged
    over the images with a valid pixel.

    Args:
        loss: the loss.
        num_classes: of the logits.
        device: of the sums, float64.
    """

    def __init__(self, loss: WeightedLoss, num_classes: int, device: torch.device | None = None) -> None:
        self.loss = loss
        self.by_image = loss.ohem is not None or "lovasz" in loss.losses
        shapes = {"dice": (3, num_classes)}  # else a sum and its divisor
        self.sums = {
            name: torch.zeros(shapes.get(name, (2,)), dtype=torch.float64, device=device) for name in loss.losses
        }

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count logits (B, C, H, W) and masks (B, H, W)."""
        inputs = self.loss.prepare(logits, target)
        for part in inputs.images() if self.by_image else [inputs]:
            self._add(part)

    def _add(self, inputs: LossInputs) -> None:
        for name, value in self.loss.sums(inputs).items():
            if name == "lovasz":
                value = torch.stack([value, inputs.valid.any().to(value.dtype)])
            self.sums[name] += value.detach().double()

    def reduce(self, accelerator: Any) -> DatasetLoss:
        """Sum over all processes, in place. Collective."""
        self.sums = {name: accelerator.reduce(value) for name, value in self.sums.items()}
        return self

    def compute(self) -> float:
        """The loss; 0 without a valid pixel."""
        sums = dict(self.sums)
        if "lovasz" in sums:
            total, images = sums["lovasz"]
            sums["lovasz"] = total / divisor(images)
        return float(self.loss.total(sums)[0])
