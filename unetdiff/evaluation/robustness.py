"""Robustness of segmenters to noise: mean IoU by timestep of a forward process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unetdiff.console import progress_bar
from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.noise import noise_for
from unetdiff.diffusion.objectives import Scheduler
from unetdiff.diffusion.processes.load import process_of
from unetdiff.errors import UserError
from unetdiff.models.unet import UNet
from unetdiff.segmentation.inference import eval_mode, resize_logits, segment_whole
from unetdiff.segmentation.metrics import ConfusionMatrix
from unetdiff.segmentation.segmenter import Segmenter, as_segmenter

Segment = Callable[[Tensor, int], Tensor]
"""(images in [-1, 1] noised to a timestep (B, 3, H, W), timestep) -> logits (B, classes, H, W)."""
CLEAN = 0
"""The timestep of clean images: no noise is added."""


@dataclass(frozen=True)
class NoisedImages:
    """Images with a fixed noise each, the same for every segmenter and timestep."""

    images: ImageDataset
    """Includes masks."""
    scheduler: Scheduler
    """The forward process."""
    seed: int = 0
    """Seed of the noise."""

    def noised_image(self, index: int, timestep: int) -> Tensor:
        """x_t of an image, (3, H, W), for x_0 in [-1, 1]; the clean image at `CLEAN`."""
        return self.add_noise(self.images[index]["image"], index, timestep)

    def add_noise(self, image: Tensor, index: int, timestep: int) -> Tensor:
        """`noised_image` of an image that is already loaded, uint8 (3, H, W)."""
        x0 = to_model_range(image)
        if timestep == CLEAN:
            return x0
        noise = noise_for(self.seed, index, x0.shape)
        return process_of(self.scheduler).add_noise(x0[None], noise[None], torch.tensor([timestep]))[0]


def as_segment_function(
    network: UNet | Segmenter,
    use_timestep: bool,
    autocast: torch.dtype | None = None,
    fixed_timestep: int | None = None,
) -> Segment:
    """A segmenter as `Segment`.

    Args:
        network: a segmenter of pixels, or its network if it has no context.
        use_timestep: whether the network is conditioned on the timestep.
        autocast: dtype of autocast; None: that of the weights.
        fixed_timestep: condition on this timestep instead of the true one.
    """
    segmenter = as_segmenter(network)
    unet = segmenter.unet

    def segment(images: Tensor, timestep: int) -> Tensor:
        with eval_mode(unet, unet.device.type, autocast):
            condition = timestep if fixed_timestep is None else fixed_timestep
            return segment_whole(segmenter, images.to(unet.device), condition if use_timestep else None).float()

    return segment


def mean_iou_by_timestep(
    segmenters: Mapping[str, Segment],
    noises: NoisedImages,
    indices: Sequence[int],
    timesteps: Sequence[int],
    ignore_index: int = 255,
    batch_size: int = 50,
) -> dict[str, list[float]]:
    """Mean IoU of each segmenter at each timestep, by its name; logits are resized to the masks.

    Args:
        segmenters: by name; all see the same noisy images.
        noises: images and noise.
        indices: of the evaluated images.
        timesteps: noise levels.
        ignore_index: label of ignored pixels.
        batch_size: images per batch.

    Raises:
        UserError: a timestep outside the forward process.
    """
    check_timesteps(timesteps, noises.scheduler)
    classes = len(noises.images.classes)
    matrices = {name: [ConfusionMatrix(classes, ignore_index) for _ in timesteps] for name in segmenters}
    parts = list(torch.tensor(list(indices)).split(batch_size))
    for part in progress_bar(parts, desc="noise levels", unit="batch", leave=False):
        items = {index: noises.images[index] for index in part.tolist()}
        masks = [item["mask"] for item in items.values()]
        for place, timestep in enumerate(timesteps):
            noisy = [noises.add_noise(item["image"], index, timestep) for index, item in items.items()]
            for images, numbers in _by_size(noisy):
                for name, segment in segmenters.items():
                    logits = segment(images, timestep)
                    for one, number in zip(logits, numbers, strict=True):
                        target = masks[number].to(one.device)
                        prediction = resize_logits(one[None], (target.shape[-2], target.shape[-1])).argmax(dim=1)
                        matrices[name][place].update(prediction, target[None])
    return {name: [matrix.compute()["mean_iou"] for matrix in by_timestep] for name, by_timestep in matrices.items()}


def check_timesteps(timesteps: Sequence[int], scheduler: Scheduler) -> None:
    """Raise UserError for timesteps outside the forward process."""
    process = process_of(scheduler)
    process.require_clean_timestep("timesteps")
    last = int(process.at_fraction(torch.tensor(1.0)))
    if not timesteps or not all(0 <= timestep <= last for timestep in timesteps):
        raise UserError(f"timesteps={list(timesteps)}: must be one or more of 0 (clean) to {last}.")


def _by_size(images: Sequence[Tensor]) -> Iterator[tuple[Tensor, list[int]]]:
    """(batch, indices): one batch if all images have the same size, else one for each image."""
    batch = collate([{"image": image} for image in images])["image"]
    if isinstance(batch, Tensor):
        yield batch, list(range(len(images)))
        return
    for number, image in enumerate(images):
        yield image[None], [number]
