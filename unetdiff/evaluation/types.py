"""What is judged, as functions: nothing here knows of networks or of how they are told a condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unetdiff.data import PictureDataset
from unetdiff.diffusion.objectives import Scheduler

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, H, W), timesteps (B,)) -> the network's output (B, C, H, W)."""


@dataclass(frozen=True)
class Setting:
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
class Drawn:
    """Some samples."""

    pictures: Tensor
    """uint8 (B, 3, H, W)."""
    labels: Tensor | None
    """The classes (B,) that they were asked for; None: none."""


def together(parts: Iterable[Drawn]) -> tuple[Tensor, Tensor | None]:
    """Samples that were drawn part by part: uint8 (N, 3, H, W), and the classes (N,) that they were asked for."""
    drawn = list(parts)
    labels = [part.labels for part in drawn if part.labels is not None]
    return torch.cat([part.pictures for part in drawn]), torch.cat(labels) if labels else None


@dataclass(frozen=True)
class Denoiser:
    """A trained denoiser."""

    draw: Callable[[int, Setting], Iterable[Drawn]]
    """Draws so many pictures, part by part, their classes in turn; the first are the same however many are drawn."""
    denoise: Callable[[dict[str, Any]], Denoise] | None
    """The network, told what it is trained to be told of a batch of real pictures; None: it denoises latents."""
    scheduler: Scheduler
    """Its forward process."""
    classes: list[str]
    """Names of the classes that it draws; [] for one that is told none."""
    guided: bool
    """Whether it is told anything that guidance can move away from."""


@dataclass(frozen=True)
class Sets:
    """Real pictures, never augmented."""

    name: str
    """The set's name."""
    train: PictureDataset
    """What the denoiser has seen."""
    val: PictureDataset
    """What it has not."""
    split: str
    """The split that is judged on, train or val."""

    def __getitem__(self, split: str) -> PictureDataset:
        return self.train if split == "train" else self.val
