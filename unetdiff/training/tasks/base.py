"""The interface of a task: the loss of a batch, evaluation, previews and export. The loop knows nothing else of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from unetdiff.data.base import ImageDataset
from unetdiff.data.transforms import to_model_range
from unetdiff.errors import UserError
from unetdiff.models.unet import UNet

Batch = dict[str, Any]
Previews = tuple[dict[str, Image.Image], dict[str, float]]


class Task(nn.Module, ABC):
    """A network with its objective. `forward` computes the loss; it is what DDP wraps.

    Attributes:
        unet: the network.
        best_metric: the validation metric that selects the best weights, and its direction.
        channels_last: the memory format of the network's input.
        process: (process index, number of processes), e.g. for timesteps stratified over the whole batch.
        progress: fraction of the run's steps done, 0 to 1, for losses that change over the run.
    """

    unet: UNet
    best_metric: tuple[str, Literal["max", "min"]]
    channels_last: bool = False
    process: tuple[int, int] = (0, 1)
    progress: float = 0.0

    @abstractmethod
    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """The mean loss of a batch as "loss", and its parts for the log; all randomness comes from `seed`."""

    @abstractmethod
    def evaluate(self, loader: Iterable[Batch], accelerator: Accelerator) -> dict[str, Any]:
        """Validation metrics over all processes (each image counts once), by name. Collective."""

    @abstractmethod
    def preview(self, accelerator: Accelerator) -> Previews:
        """Preview images, and metrics computed from them, by name. Main process only."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write a model directory that the pipelines can load."""

    def trainable_modules(self) -> dict[str, nn.Module]:
        """The trainable modules by name; each tensor occurs once."""
        return {"unet": self.unet}

    def set_memory_format(self, channels_last: bool, process: tuple[int, int] = (0, 1)) -> None:
        """Set `channels_last` and `process` of this task and its sub-tasks."""
        for part in self.modules():
            if isinstance(part, Task):
                part.channels_last, part.process = channels_last, process
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def set_progress(self, progress: float) -> None:
        """Set `progress` of this task and its sub-tasks, before a step."""
        for part in (self, *self.children()):  # not modules(): this is called at every step
            if isinstance(part, Task):
                part.progress = progress

    def pixels(self, images: Tensor | list[Tensor]) -> Tensor:
        """uint8 images (B, 3, H, W) as the network's input, floats in [-1, 1].

        Raises:
            UserError: images of different sizes.
        """
        if isinstance(images, list):
            sizes = sorted({(i.shape[-2], i.shape[-1]) for i in images})
            raise UserError(
                f"data.size: must be set if the images differ in size (got {sizes[0]} and {sizes[-1]}). "
                "Give data.size or data.augment.crop as [height, width]."
            )
        x = to_model_range(images.to(self.unet.device, non_blocking=True))
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x  # (B, 3, H, W)


def freeze_unused_heads(unet: UNet, used: str) -> None:
    """Disable the gradients of every head but `used`."""
    for name, head in unet.heads.items():
        if name != used:
            head.requires_grad_(False)


class ValidationData:
    """The validation split and its image size; not copied when a task is deep-copied (for its EMA)."""

    def __init__(self, val: ImageDataset, size: list[int] | int | None) -> None:
        self.val, self.size = val, size

    def __deepcopy__(self, memo: dict[int, Any]) -> ValidationData:
        return self
