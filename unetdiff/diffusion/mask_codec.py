"""Masks as x_0: a denoiser conditioned on an image samples its mask (Amit et al. 2021, "SegDiff")."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from unetdiff.diffusion.conditioning.base import Size
from unetdiff.diffusion.conditioning.layouts import IGNORE_INDEX
from unetdiff.errors import FileError, UserError
from unetdiff.files import records
from unetdiff.models.class_names import require_class_names, require_colors

INDEX, MASKS = "model_index.json", "masks"


class MaskCodec:
    """x_0 is the one-hot mask: one channel per class, 1 for the pixel's class and -1 for the others.

    One-hot, not the bits of the class index (Chen et al. 2023, "A Generalist Framework for Panoptic Segmentation"): all
    classes are equally far apart, and the minimum of the squared error is the probability of each class, so samples can
    be averaged. Bits would need fewer channels, but their mean is not a class probability.

    See `unetdiff.diffusion.codecs.LatentCodec` for the methods.

    Args:
        classes: names of the mask's values 0..C-1.
        palette: their colors, each [r, g, b] in 0..255.
    """

    factor, bound = 1, 1.0

    def __init__(self, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> None:
        self.classes = list(classes)
        self.palette = [[int(level) for level in colour] for colour in palette]

    @classmethod
    def saved(cls, directory: Path) -> Self | None:
        """The codec of the pipeline in a model directory; None: not a denoiser of masks.

        Raises:
            FileError: model_index.json is damaged.
        """
        index = directory / INDEX
        section = records.read_object(index).get(MASKS) if index.is_file() else None
        return None if section is None else cls.parse(index, section)

    @classmethod
    def parse(cls, path: Path, section: Any) -> Self:
        """The codec of the section "masks" of a file.

        Raises:
            FileError: a key that is missing or unknown, names that are no texts or occur twice, or another number of
                colors than of names.
        """
        if not isinstance(section, dict) or set(section) != {"classes", "palette"}:
            raise FileError.of(path, f"'{MASKS}' must be an object with the keys classes and palette")
        classes = require_class_names(path, f"{MASKS}.classes", section["classes"])
        require_colors(path, f"{MASKS}.palette", section["palette"], len(classes))
        return cls(**section)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments, as JSON holds them."""
        return {"classes": self.classes, "palette": self.palette}

    @property
    def channels(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def grid(self, size: Size, key: str) -> Size:
        """The size itself."""
        return size

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Not defined for images: see `encode_masks`."""
        raise UserError("image: must be None for a denoiser of masks.")

    def encode_masks(self, masks: Tensor) -> Tensor:
        """Class indices and 255 (B, H, W) as x_0, (B, C, H, W) float32; ignored pixels are 0 in every channel."""
        ignored = masks == IGNORE_INDEX
        planes = F.one_hot(torch.where(ignored, 0, masks.long()), self.channels)
        coded = 2 * rearrange(planes, "b h w c -> b c h w").float() - 1
        return coded.masked_fill(rearrange(ignored, "b h w -> b 1 h w"), 0.0)

    def probabilities(self, x0: Tensor) -> Tensor:
        """Sampled x_0 (..., C, H, W) as class probabilities that sum to 1; uniform where all channels are -1."""
        scores = ((x0.float() + 1) / 2).clamp(0, 1)
        total = reduce(scores, "... c h w -> ... 1 h w", "sum")
        return torch.where(total > 0, scores / total.clamp(min=torch.finfo(total.dtype).tiny), 1 / self.channels)

    def decode(self, x0: Tensor) -> Tensor:
        """The most probable class of every pixel in its color, (B, C, H, W) -> (B, 3, H, W) in [-1, 1]."""
        return 2 * self.colours(x0.argmax(dim=1)).to(x0.device) - 1

    def colours(self, masks: Tensor) -> Tensor:
        """Class indices (B, H, W) in their colors, ignored pixels gray: (B, 3, H, W) in [0, 1], on the CPU."""
        table = torch.tensor([*self.palette, [128, 128, 128]]) / 255
        indices = torch.where(masks == IGNORE_INDEX, self.channels, masks.long()).cpu()
        return rearrange(table[indices], "b h w c -> b c h w")


def loss_mask(masks: Tensor) -> Tensor:
    """Pixels that count in the loss, bool (B, 1, H, W): all but the ignored ones of the masks (B, H, W)."""
    return rearrange(masks != IGNORE_INDEX, "b h w -> b 1 h w")
