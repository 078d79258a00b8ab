"""Cross-entropy and Dice, forward and backward in float32, against torch's cross-entropy and
segmentation_models_pytorch's DiceLoss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from suite.cases.case import UNETDIFF, Case, Side
from suite.cases.images import RandomImages
from suite.cases.segmentation import IGNORE_INDEX, PEER
from unetdiff.benchmark.timing import Workload
from unetdiff.kernels.losses import accelerate_loss
from unetdiff.segmentation.config import SegmentationConfig
from unetdiff.segmentation.losses import combined

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, C, H, W), masks (B, H, W)) -> loss ()."""


@dataclass(frozen=True)
class LossCase(Case):
    """The loss of logits (batch, classes, size, size), with its gradient."""

    classes: int = 21
    work: ClassVar[str] = "cross-entropy and Dice"
    min_speedups: ClassVar[dict[str, float]] = {"defaults": 2.5}
    compares_macs: ClassVar[bool] = False

    def _workload(self, loss: Loss, masks: Tensor, device: torch.device) -> Workload:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(self.batch, self.classes, self.size, self.size, generator=generator)
        logits, masks = logits.to(device).requires_grad_(), masks.to(device)

        def forward_backward() -> Tensor:
            logits.grad = None
            value = loss(logits, masks)
            value.backward()
            return value.detach()

        return forward_backward

    @property
    def masks(self) -> Tensor:
        """uint8 (batch, size, size), as loaded from files."""
        return RandomImages(self.batch, self.size, self.classes).batch()["mask"]

    def unetdiff(self, device: torch.device) -> Side:
        loss = accelerate_loss(combined(SegmentationConfig().losses, IGNORE_INDEX))

        def total(logits: Tensor, masks: Tensor) -> Tensor:
            return loss(logits, masks)[0]

        return Side(UNETDIFF, nn.Module(), "float32", lambda: self._workload(total, self.masks, device))

    def peer(self, device: torch.device) -> Side:
        dice, entropy = (
            smp.losses.DiceLoss("multiclass", ignore_index=IGNORE_INDEX),
            nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX),
        )

        def loss(logits: Tensor, masks: Tensor) -> Tensor:
            return dice(logits, masks) + entropy(logits, masks)

        return Side(PEER, nn.Module(), "float32", lambda: self._workload(loss, self.masks.long(), device))


def cases(quick: bool) -> list[Case]:
    """Two images of 512 x 512 and 21 classes."""
    return [LossCase("defaults", 2, 32 if quick else 512)]
