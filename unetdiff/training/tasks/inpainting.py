"""The masks of an inpainting network's validation: functions of the images' names."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from unetdiff.data.hashing import generator_of
from unetdiff.diffusion.conditioning.base import Size
from unetdiff.diffusion.conditioning.images import fitted, unit_image
from unetdiff.diffusion.editing import ImageStart
from unetdiff.diffusion.inpainting import mask_numbers, random_masks
from unetdiff.training.tasks.base import Batch


def eval_numbers(names: Sequence[str]) -> Tensor:
    """The random numbers of the masks of validation images, (B, NUMBERS)."""
    return torch.cat([mask_numbers(1, generator_of(zlib.crc32(name.encode()) ^ 1)) for name in names])


def masked_start(items: Sequence[Batch], rows: int, across: int, size: Size) -> tuple[ImageStart, Tensor, Tensor]:
    """What previews start from, and each row's masked image and image, (rows, 3, H, W) in [0, 1].

    Args:
        items: of the validation split, with at least as many captions as rows; the first of each caption is taken.
        rows: captions.
        across: previews of each.
        size: of the previews, in pixels.
    """
    by_caption: dict[str, Batch] = {}
    for item in items:
        by_caption.setdefault(item["caption"], item)
    chosen = list(by_caption.values())[:rows]
    images = torch.cat([fitted(unit_image(item["image"]), size) for item in chosen])
    masks = random_masks(eval_numbers([item["name"] for item in chosen]), size)
    start = ImageStart(images.repeat_interleave(across, dim=0), masks[:, 0].repeat_interleave(across, dim=0), 1.0)
    return start, torch.where(masks > 0, 0.5, images), images
