"""How well segmenters see through noise: their mean IoU at timesteps of a forward process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.hashing import generator_of
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.objectives import Scheduler, noised
from unetdiff.errors import UserError
from unetdiff.models.unet import UNet
from unetdiff.segmentation.inference import eval_mode, resize_logits, segment_whole
from unetdiff.segmentation.metrics import ConfusionMatrix

Segment = Callable[[Tensor, int], Tensor]
"""Images in [-1, 1] (B, 3, H, W), noised to a timestep, to logits (B, classes, H, W)."""
CLEAN = 0
"""The timestep at which nothing is added here: what a network takes for a clean image."""


@dataclass(frozen=True)
class Noises:
    """The images and their noise, the same for every segmenter and timestep."""

    images: ImageDataset
    """With masks."""
    scheduler: Scheduler
    """The forward process."""
    seed: int = 0
    """Of the noise."""

    def at(self, index: int, timestep: int) -> Tensor:
        """An image noised to a timestep, floats about in [-1, 1], (3, H, W); clean at `CLEAN`."""
        return self.of(self.images[index]["image"], index, timestep)

    def of(self, image: Tensor, index: int, timestep: int) -> Tensor:
        """The same of an image that was read already, uint8 (3, H, W)."""
        x0 = to_model_range(image)
        if timestep == CLEAN:
            return x0
        noise = torch.randn(x0.shape, generator=generator_of(self.seed, index))
        return noised(self.scheduler, x0[None], noise[None], torch.tensor([timestep]))[0]


def asks(unet: UNet, told: bool, autocast: torch.dtype | None = None, always: int | None = None) -> Segment:
    """A network as `Segment`.

    Args:
        unet: with a segmentation head.
        told: whether it is told the timestep.
        autocast: precision; None: the weights'.
        always: tell it this timestep, whatever the truth.
    """

    def segment(images: Tensor, timestep: int) -> Tensor:
        with eval_mode(unet, unet.device.type, autocast):
            said = (timestep if always is None else always) if told else None
            return segment_whole(unet, images.to(unet.device), said).float()

    return segment


def mean_iou_by_timestep(
    segmenters: Mapping[str, Segment],
    noises: Noises,
    indices: Sequence[int],
    timesteps: Sequence[int],
    ignore_index: int = 255,
    batch_size: int = 50,
) -> dict[str, list[float]]:
    """Mean IoU of each segmenter at each timestep, by its name; logits are resized to the masks.

    Args:
        segmenters: by name; each is shown the same noised images.
        noises: images and noise.
        indices: the images that count.
        timesteps: how noisy they are.
        ignore_index: void.
        batch_size: images seen at once.

    Raises:
        UserError: a timestep that the forward process has not.
    """
    check_timesteps(timesteps, noises.scheduler)
    classes = len(noises.images.classes)
    counts = {name: [ConfusionMatrix(classes, ignore_index) for _ in timesteps] for name in segmenters}
    parts = list(torch.tensor(list(indices)).split(batch_size))
    for part in tqdm(parts, desc="noise", unit="batch", leave=False, disable=None):
        items = {index: noises.images[index] for index in part.tolist()}
        masks = [item["mask"] for item in items.values()]
        for place, timestep in enumerate(timesteps):
            noisy = [noises.of(item["image"], index, timestep) for index, item in items.items()]
            for images, numbers in _by_size(noisy):
                for name, segment in segmenters.items():
                    logits = segment(images, timestep)
                    for one, number in zip(logits, numbers, strict=True):
                        truth = masks[number].to(one.device)
                        guess = resize_logits(one[None], (truth.shape[-2], truth.shape[-1])).argmax(dim=1)
                        counts[name][place].update(guess, truth[None])
    return {name: [matrix.compute()["mean_iou"] for matrix in matrices] for name, matrices in counts.items()}


def check_timesteps(timesteps: Sequence[int], scheduler: Scheduler) -> None:
    """Refuse timesteps that a forward process has not (UserError)."""
    most = len(scheduler.alphas_cumprod) - 1
    wrong = [timestep for timestep in timesteps if not 0 <= timestep <= most]
    if wrong or not timesteps:
        raise UserError(f"timesteps: {wrong[0] if wrong else 'none'} cannot be; use 0 (clean) to {most}")


def _by_size(images: Sequence[Tensor]) -> Iterator[tuple[Tensor, list[int]]]:
    """Images in batches of one size, with their places: all together, or one by one."""
    together = collate([{"image": image} for image in images])["image"]
    if isinstance(together, Tensor):
        yield together, list(range(len(images)))
        return
    for number, image in enumerate(images):
        yield image[None], [number]
