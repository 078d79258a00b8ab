"""The types of evaluation: a denoiser as a few functions, its samples, and the real images they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.diffusion.objectives import Scheduler

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, H, W), timesteps (B,)) -> the network's output (B, C, H, W)."""


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of the sampler."""

    num_inference_steps: int = 50
    """Denoising steps."""
    guidance_scale: float = 1.0
    """1: no guidance."""
    seed: int = 0
    """Seed of the noise."""
    scheduler: str | None = None
    """Of `unetdiff.diffusion.scheduler_names.SCHEDULERS`; None: the model's own."""


@dataclass(frozen=True)
class SampleBatch:
    """A batch of samples."""

    images: Tensor
    """uint8 (B, 3, H, W)."""
    labels: Tensor | None
    """Classes (B,) they are conditioned on; None for other conditions, or none."""


def concat_batches(batches: Iterable[SampleBatch]) -> tuple[Tensor, Tensor | None]:
    """Images, uint8 (N, 3, H, W), and labels (N,) of all batches."""
    batches = list(batches)
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return torch.cat([batch.images for batch in batches]), torch.cat(labels) if labels else None


@dataclass(frozen=True)
class Denoiser:
    """A trained denoiser, as evaluation sees it."""

    sample: Callable[[int, SamplingConfig], Iterable[SampleBatch]]
    """(n, config) -> n samples in batches, cycling through the classes. Sample i does not depend on n."""
    denoise: Callable[[dict[str, Any]], Denoise] | None
    """batch of real images -> the network with that batch's conditions; None: it denoises latents."""
    scheduler: Scheduler
    """The forward process."""
    classes: list[str]
    """Names of the classes it is conditioned on; [] for other conditions, or none."""
    uses_guidance: bool
    """Whether it has a condition, which classifier-free guidance needs."""


@dataclass(frozen=True)
class EvalSplits:
    """Real images of both splits, without augmentation."""

    name: str
    """Name of the dataset."""
    train: ImageDataset
    val: ImageDataset
    split: str
    """The split that is evaluated on, "train" or "val"."""

    def __getitem__(self, split: str) -> ImageDataset:
        return self.train if split == "train" else self.val
