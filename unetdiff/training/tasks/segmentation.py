"""Training and validation of the segmentation head; metrics come from one confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor

from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion import objectives
from unetdiff.kernels.losses import accelerate_loss
from unetdiff.models.blocks import center_crop
from unetdiff.models.unet import UNet
from unetdiff.segmentation.config import SegmentationConfig
from unetdiff.segmentation.inference import eval_mode, resize_logits, segment_whole
from unetdiff.segmentation.losses import combined
from unetdiff.segmentation.metrics import ConfusionMatrix
from unetdiff.segmentation.overlays import preview
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training.tasks.base import Batch, Previews, Task, ValidationData, freeze_unused_heads

PREVIEW_IMAGES = 6
"""Validation images shown with mask and prediction."""


class SegmentationTask(Task):
    """Semantic segmentation.

    Args:
        unet: a UNet with a segmentation head.
        config: loss and inference.
        val: the validation split, for previews, class names and palette.
        size: (height, width) that images are resized to for the network, or their longest side, or None.
        scheduler: forward process for the fraction `config.noise` of the images; None: all images are clean.
    """

    best_metric = ("segmentation/mean_iou", "max")

    def __init__(
        self,
        unet: UNet,
        config: SegmentationConfig,
        val: ImageDataset,
        size: list[int] | int | None = None,
        scheduler: objectives.Scheduler | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.config, self.scheduler = unet, config, scheduler
        self.data = ValidationData(val, size)
        self.loss = accelerate_loss(
            combined(
                config.losses,
                config.ignore_index,
                config.class_weights,
                label_smoothing=config.label_smoothing,
                ohem=config.ohem,
            )
        )
        freeze_unused_heads(unet, "segmentation")

    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        pixels, timesteps = self.add_noise(self.pixels(batch["image"]), seed)
        return self.compute_loss(self.unet.segment(pixels, timesteps), batch["mask"])

    def add_noise(self, pixels: Tensor, seed: int) -> tuple[Tensor, Tensor | None]:
        """Images (B, 3, H, W), a fraction of them noised at random timesteps, and the network's timesteps (B,).

        The timestep of a clean image is 0. Timesteps are None without `config.noise`, or for a network without time
        embedding.
        """
        if self.scheduler is None or not self.config.noise:
            return pixels, None
        generator = torch.Generator(pixels.device).manual_seed(seed)
        num_timesteps = len(self.scheduler.alphas_cumprod)
        timesteps = objectives.sample_timesteps(len(pixels), num_timesteps, generator, True, *self.process)
        noise = objectives.sample_noise(pixels, generator)
        is_noisy = torch.rand(len(pixels), generator=generator, device=pixels.device) < self.config.noise  # (B,)
        sample = objectives.add_noise(self.scheduler, pixels, noise, timesteps)
        sample = torch.where(rearrange(is_noisy, "b -> b 1 1 1"), sample, pixels)
        has_time_embedding = self.unet.config["conditioning"]["timestep"]
        return sample, torch.where(is_noisy, timesteps, 0) if has_time_embedding else None

    def compute_loss(self, logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """The loss of logits (B, C, H, W) and masks (B, H, W), in total and by part."""
        target = masks.to(logits.device, non_blocking=True)
        if target.shape[-2:] != logits.shape[-2:]:  # valid padding: the logits cover the center
            target = center_crop(target, (logits.shape[-2], logits.shape[-1]))
        until = self.config.class_weights_anneal_until
        loss = self.loss if until is None else self.loss.anneal_class_weights(max(0.0, 1 - self.progress / until))
        total, parts = loss(logits, target)
        return {"loss": total, **{f"loss_{name}": part for name, part in parts.items() if len(parts) > 1}}

    def evaluate(self, loader: Iterable[Batch], accelerator: Accelerator) -> dict[str, Any]:
        unet = self.unet
        matrix = ConfusionMatrix(unet.num_classes or 0, self.config.ignore_index, accelerator.device)
        sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)  # loss, images
        for batch in loader:
            for images, masks in _same_size(batch):
                with eval_mode(unet, accelerator.device.type, None), accelerator.autocast():
                    logits = segment_whole(unet, self.pixels(images))
                    target = masks.to(logits.device)
                    logits = resize_logits(logits, (target.shape[-2], target.shape[-1]))
                    matrix.update(logits.argmax(dim=1), target)
                    loss, _ = self.loss(logits, target)
                    sums += torch.stack([loss * len(images), loss.new_tensor(len(images))])
        sums = accelerator.reduce(sums)  # type: ignore[assignment]
        metrics = matrix.reduce(accelerator).compute()
        return {
            "segmentation/loss": float(sums[0] / sums[1]),
            "segmentation/images": int(sums[1]),
            **{f"segmentation/{name}": value for name, value in metrics.items()},
        }

    def preview(self, accelerator: Accelerator) -> Previews:
        val = self.data.val
        items = [val[i] for i in evenly_spaced_indices(len(val), PREVIEW_IMAGES)]
        predictions = []
        for item in items:
            with eval_mode(self.unet, accelerator.device.type, None), accelerator.autocast():
                logits = segment_whole(self.unet, self.pixels(collate([item])["image"]))
            mask = item["mask"]
            predictions.append(resize_logits(logits, (mask.shape[-2], mask.shape[-1]))[0].argmax(dim=0).cpu())
        image = preview(
            [item["image"] for item in items],
            [item["mask"] for item in items],
            predictions,
            val.palette,
            val.classes,
            self.config.ignore_index,
            [item["name"] for item in items],
        )
        return {"segmentation": image}, {}

    def save(self, directory: Path) -> None:
        val = self.data.val
        pipeline = SegmentationPipeline(self.unet, val.classes, val.palette, self.data.size, self.config.ignore_index)
        pipeline.save_pretrained(directory)


def _same_size(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """A batch as pairs (images, masks) of equal size: the batch itself, or one pair per image."""
    images, masks = batch["image"], batch["mask"]
    if isinstance(images, Tensor) and isinstance(masks, Tensor):
        return [(images, masks)]
    return [(image[None], mask[None]) for image, mask in zip(images, masks, strict=True)]
