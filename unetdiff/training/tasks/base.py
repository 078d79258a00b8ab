"""What a task is: it says what a batch costs and how a model is judged; the loop knows nothing else of it."""

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
    """A network with its objective. `forward` is what is differentiated (and, with several processes, wrapped).

    Attributes:
        unet: the network.
        best: the validation figure that says which weights are best, and whether more is better.
        channels_last: the memory format of the network's input.
        process: index of this process and number of processes, for what is spread over the whole batch.
        done: share of the run's steps that were made, 0 to 1, for what changes on the way.
    """

    unet: UNet
    best: tuple[str, Literal["max", "min"]]
    channels_last: bool = False
    process: tuple[int, int] = (0, 1)
    progress: float = 0.0

    @abstractmethod
    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """The mean loss of a batch under "loss", and its parts for the log; randomness comes from `seed` alone."""

    @abstractmethod
    def evaluate(self, loader: Iterable[Batch], accelerator: Accelerator) -> dict[str, Any]:
        """Validation figures over all processes (each image counted once), by name. Collective."""

    @abstractmethod
    def preview(self, accelerator: Accelerator) -> Previews:
        """Images to look at while training, and figures read off them, by name. Main process only."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write a model directory that the pipelines can load."""

    def trainable_modules(self) -> dict[str, nn.Module]:
        """Everything that is trained, each tensor once."""
        return {"unet": self.unet}

    def set_memory_format(self, channels_last: bool, process: tuple[int, int] = (0, 1)) -> None:
        """Set the memory format, and which of how many processes this is, here and in the tasks it is made of."""
        for part in self.modules():
            if isinstance(part, Task):
                part.channels_last, part.process = channels_last, process
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def set_progress(self, progress: float) -> None:
        """Say, before a step, what share of the run's steps was made; here and in the tasks it is made of."""
        for part in (self, *self.children()):  # not modules(): this is called at every step
            if isinstance(part, Task):
                part.progress = progress

    def pixels(self, images: Tensor | list[Tensor]) -> Tensor:
        """uint8 images (B, 3, H, W) as the network's input, floats in [-1, 1].

        Raises:
            UserError: images of several sizes.
        """
        if isinstance(images, list):
            sizes = sorted({(i.shape[-2], i.shape[-1]) for i in images})
            raise UserError(
                f"images of one batch differ in size ({sizes[0]}, {sizes[-1]}): "
                "set data.size or data.augment.crop to [height, width]"
            )
        x = to_model_range(images.to(self.unet.device, non_blocking=True))
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x  # (B, 3, H, W)


def freeze_unused_heads(unet: UNet, used: str) -> None:
    """A head that the task never asks is not trained: its parameters take no gradient."""
    for name, head in unet.heads.items():
        if name != used:
            head.requires_grad_(False)


class DataFacts:
    """What a task knows of its data; one object, so that copying a task (for its average) does not copy images."""

    def __init__(self, val: ImageDataset, size: list[int] | int | None) -> None:
        self.val, self.size = val, size

    def __deepcopy__(self, memo: dict[int, Any]) -> DataFacts:
        return self
