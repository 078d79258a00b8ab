"""What is judged, as functions: nothing here knows of networks or of how they are told a condition."""

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
    """How samples are drawn."""

    steps: int = 50
    """Denoising steps."""
    guidance_scale: float = 1.0
    """1: none."""
    seed: int = 0
    """Seed of the noise."""
    scheduler: str | None = None
    """The sampler by name; None: the model's own."""


@dataclass(frozen=True)
class SampleBatch:
    """Some samples."""

    images: Tensor
    """uint8 (B, 3, H, W)."""
    labels: Tensor | None
    """The classes (B,) that they were asked for; None: none."""


def together(parts: Iterable[SampleBatch]) -> tuple[Tensor, Tensor | None]:
    """Samples that were drawn part by part: uint8 (N, 3, H, W), and the classes (N,) that they were asked for."""
    drawn = list(parts)
    labels = [part.labels for part in drawn if part.labels is not None]
    return torch.cat([part.images for part in drawn]), torch.cat(labels) if labels else None


@dataclass(frozen=True)
class Denoiser:
    """A trained denoiser."""

    draw: Callable[[int, SamplingConfig], Iterable[SampleBatch]]
    """Draws so many images, part by part, their classes in turn; the first are the same however many are drawn."""
    denoise: Callable[[dict[str, Any]], Denoise] | None
    """The network, told what it is trained to be told of a batch of real images; None: it denoises latents."""
    scheduler: Scheduler
    """Its forward process."""
    classes: list[str]
    """Names of the classes that it draws; [] for one that is told none."""
    uses_guidance: bool
    """Whether it is told anything that guidance can move away from."""


@dataclass(frozen=True)
class EvalSplits:
    """Real images, never augmented."""

    name: str
    """The set's name."""
    train: ImageDataset
    """What the denoiser has seen."""
    val: ImageDataset
    """What it has not."""
    split: str
    """The split that is judged on, train or val."""

    def __getitem__(self, split: str) -> ImageDataset:
        return self.train if split == "train" else self.val
