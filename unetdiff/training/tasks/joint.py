"""Both heads on one backbone in one forward pass: segmentation of clean images, denoising of noisy ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from unetdiff.config.training import JointConfig
from unetdiff.training.tasks.base import Batch, Previews, Task
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.tasks.segmentation import SegmentationTask
from unetdiff.training.weighting import WEIGHTINGS


class JointTask(Task):
    """The weighted sum of a segmentation and a diffusion task that share one UNet."""

    best_metric = ("segmentation/mean_iou", "max")

    def __init__(self, segmentation: SegmentationTask, diffusion: DiffusionTask, config: JointConfig) -> None:
        super().__init__()
        if segmentation.unet is not diffusion.unet:
            raise ValueError("segmentation and diffusion must share one UNet")
        self.unet = segmentation.unet
        self.unet.heads.requires_grad_(True)  # each task froze the other's head
        self.segmentation, self.diffusion, self.config = segmentation, diffusion, config
        self.weighting = WEIGHTINGS[config.weighting](config)

    def trainable_modules(self) -> dict[str, nn.Module]:
        weighting = {"weighting": self.weighting} if self.weighting.state_dict() else {}
        return self.diffusion.trainable_modules() | weighting

    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        noisy = self.diffusion.add_noise(batch, seed)
        num_clean = math.ceil(self.config.segmentation_fraction * len(noisy.sample))
        pixels, masks = self.pixels(batch["image"][:num_clean]), batch["mask"][:num_clean]
        logits, output = self.unet.both(pixels, noisy.sample, noisy.timesteps, noisy.conditioning.tokens)
        parts = {
            "segmentation": self.segmentation.compute_loss(logits, masks),
            "diffusion": self.diffusion.compute_loss(output, noisy),
        }
        totals = {task: losses["loss"] for task, losses in parts.items()}
        total, weights = self.weighting(totals, self.unet, self.process[1])
        logged = {f"{task}/{name}": value for task, losses in parts.items() for name, value in losses.items()}
        return {"loss": total, **logged, **{f"weight/{task}": weight for task, weight in weights.items()}}

    def evaluate(self, loader: Iterable[Batch], accelerator: Accelerator) -> dict[str, Any]:
        return self.segmentation.evaluate(loader, accelerator) | self.diffusion.evaluate(loader, accelerator)

    def preview(self, accelerator: Accelerator) -> Previews:
        images, metrics = self.segmentation.preview(accelerator)
        samples, sample_metrics = self.diffusion.preview(accelerator)
        return images | samples, metrics | sample_metrics

    def save(self, directory: Path) -> None:
        self.segmentation.save(directory)
        self.diffusion.save(directory)
