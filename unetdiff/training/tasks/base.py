"""The interface of a task: the loss of a step, evaluation, previews and export. The loop knows nothing else of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from unetdiff.data.base import ImageDataset
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.codecs import LatentCodec
from unetdiff.diffusion.objectives import sample_noise
from unetdiff.errors import UserError
from unetdiff.models.unet import UNet
from unetdiff.training.draws import RowDraws, whole_batch
from unetdiff.training.step_layers import StepLayers
from unetdiff.training.sums import Sums, add

Batch = dict[str, Any]
Previews = tuple[dict[str, Image.Image], dict[str, float]]


class Task(nn.Module, ABC):
    """A network with its objective.

    The loss of an optimizer step is a function (`losses`) of sums over all its images; `forward` computes those of a
    micro-batch, and is what DDP wraps. So the loss does not depend on how the step's batch is cut.

    Attributes:
        unet: the network.
        best_metric: the validation metric that selects the best weights, and its direction.
        channels_last: the memory format of the network's input.
        process: (process index, number of processes).
        progress: fraction of the run's steps done, 0 to 1, for losses that change over the run.
    """

    unet: UNet
    best_metric: tuple[str, Literal["max", "min"]]
    channels_last: bool = False
    process: tuple[int, int] = (0, 1)
    progress: float = 0.0

    @abstractmethod
    def forward(self, batch: Batch, draws: RowDraws) -> Sums:
        """The sums of a batch, or of a part of one; all randomness but the network's dropout comes from `draws`."""

    @abstractmethod
    def losses(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean loss of a whole step from its sums as "loss", and its parts for the log."""

    def batch_losses(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """`losses` of a batch that is a whole step."""
        return self.losses(self(batch, whole_batch(seed, len(batch["name"]), self.unet.device)))

    def reference(self, parts: Sequence[tuple[Batch, RowDraws]], layers: StepLayers) -> Sums:
        """What the gradient of the loss at the step's sums depends on, summed over this process's micro-batches.

        A pass without gradients, where the loss is not linear in what the network predicts; else the sums that depend
        on the targets alone. The pass changes BatchNorm's running statistics, which the caller restores.
        """
        with torch.no_grad():
            return reduce(add, (self._sums(batch, draws, layers) for batch, draws in parts))

    def _sums(self, batch: Batch, draws: RowDraws, layers: StepLayers) -> Sums:
        with self.step_part(draws, layers):
            return self(batch, draws)

    def step_part(self, draws: RowDraws, layers: StepLayers) -> AbstractContextManager[None]:
        """The context of the forward and backward pass of a micro-batch with these places in the step's batch."""
        rows = range(draws.first, draws.first + draws.count)
        return layers.part(draws.step.seed, rows, [rows[row] for row in self.clean_rows(draws)])

    def clean_rows(self, draws: RowDraws) -> list[int]:
        """The rows of a micro-batch that the network sees twice, clean ones before all noisy ones; none by default."""
        return []

    def observer(self) -> Callable[[dict[str, Tensor]], None] | None:
        """Takes the losses of both heads before each backward pass (see `optimizer_step`); None: not needed."""
        return None

    def end_step(self, finite: bool) -> None:
        """Called after every optimizer step; `finite`: whether the weights were updated. Collective."""

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
        require_one_size(images)
        assert isinstance(images, Tensor)
        x = to_model_range(images.to(self.unet.device, non_blocking=True)).to(self.unet.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x  # (B, 3, H, W)

    def moments(self, batch: Batch, codec: LatentCodec) -> Tensor:
        """What `codec.sample` makes latents of, (B, K, h, w): a batch's cached "latents", or its encoded images.

        Raises:
            UserError: images of different sizes.
        """
        if "latents" not in batch:
            return codec.encode_moments(self.pixels(batch["image"]))
        require_one_size(batch["latents"])
        return batch["latents"].to(self.unet.device, non_blocking=True)

    def image_noise(self, draws: RowDraws, images: Tensor, offset: float = 0.0) -> Tensor:
        """Training noise of images (B, C, H, W), of their shape and type (`objectives.sample_noise`)."""
        shape = tuple(images.shape[1:])
        noise = draws(lambda count, generator: sample_noise((count, *shape), generator, offset), shape).to(images)
        return noise.contiguous(memory_format=torch.channels_last) if self.channels_last else noise


def network_input(batch: Batch) -> Tensor | list[Tensor]:
    """The images of a batch, or their cached latents; a list where they differ in size."""
    return batch["latents"] if "latents" in batch else batch["image"]


def require_one_size(images: Tensor | list[Tensor]) -> None:
    """Raises UserError where the images of a batch are of several sizes."""
    if isinstance(images, list):
        sizes = sorted({(i.shape[-2], i.shape[-1]) for i in images})
        raise UserError(
            f"data.size: must be set if the images differ in size (got {sizes[0]} and {sizes[-1]}). "
            "Give data.size or data.augment.crop as [height, width]."
        )


def freeze_unused_heads(unet: UNet, used: str) -> None:
    """Disable the gradients of every head but `used`, and of decoder levels that only the other one reads."""
    for name, head in unet.heads.items():
        if name != used:
            head.requires_grad_(False)
    if used == "segmentation":
        for parameter in unet.unshared_parameters():
            parameter.requires_grad_(False)


class ValidationData:
    """The validation split and its image size; not copied when a task is deep-copied (for its EMA)."""

    def __init__(self, val: ImageDataset, size: list[int] | int | None) -> None:
        self.val, self.size = val, size

    def __deepcopy__(self, memo: dict[int, Any]) -> ValidationData:
        return self
