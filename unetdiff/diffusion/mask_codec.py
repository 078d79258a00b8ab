"""Masks as what is noised: a denoiser that is told an image and draws its mask (Amit et al. 2021, "SegDiff")."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from unetdiff.diffusion.conditioning.base import Size
from unetdiff.diffusion.conditioning.layouts import IGNORE_INDEX
from unetdiff.errors import UserError

INDEX = "model_index.json"


class MaskCodec:
    """The space of a denoiser of masks: a channel for each class, 1 where the class is and -1 elsewhere.

    One-hot, not the bits of the class's number (Chen et al. 2023, "A Generalist Framework for Panoptic Segmentation"):
    all classes are equally far from each other, and what the squared error is least for is the probability of each
    class, so that samples can be averaged. Bits would need fewer channels, but half a bit is no class.

    See `unetdiff.diffusion.codecs.Latents` for what each method is about.

    Args:
        classes: names of the mask's values 0..C-1.
        palette: their colours, each [r, g, b] in 0..255.
    """

    factor, bound = 1, 1.0

    def __init__(self, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> None:
        self.classes = list(classes)
        self.palette = [[int(level) for level in colour] for colour in palette]

    @classmethod
    def saved(cls, directory: Path) -> Self | None:
        """The space of the pipeline in a model directory; None: it draws no masks."""
        index = directory / INDEX
        given = json.loads(index.read_text()).get("masks") if index.is_file() else None
        return None if given is None else cls(**given)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments, as JSON holds them."""
        return {"classes": self.classes, "palette": self.palette}

    @property
    def channels(self) -> int:
        """One for each class."""
        return len(self.classes)

    def grid(self, size: Size, key: str) -> Size:
        """The size itself."""
        return size

    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Refuses images: see `encode_masks`."""
        raise UserError("image: this model draws masks, and an image is none; leave it out")

    def encode_masks(self, masks: Tensor) -> Tensor:
        """Class indices and 255 (B, H, W) as what is noised, (B, C, H, W) float32; void is 0 in every channel."""
        void = masks == IGNORE_INDEX
        planes = F.one_hot(torch.where(void, 0, masks.long()), self.channels)
        coded = 2 * rearrange(planes, "b h w c -> b c h w").float() - 1
        return coded.masked_fill(rearrange(void, "b h w -> b 1 h w"), 0.0)

    def probabilities(self, drawn: Tensor) -> Tensor:
        """What was drawn, (..., C, H, W), as shares of the classes that add up to 1; alike where no class is there."""
        shares = ((drawn.float() + 1) / 2).clamp(0, 1)
        total = reduce(shares, "... c h w -> ... 1 h w", "sum")
        return torch.where(total > 0, shares / total.clamp(min=torch.finfo(total.dtype).tiny), 1 / self.channels)

    def decode(self, drawn: Tensor) -> Tensor:
        """The likeliest class of every pixel in its colour, (B, C, H, W) -> (B, 3, H, W) in [-1, 1]."""
        return 2 * self.colours(drawn.argmax(dim=1)).to(drawn.device) - 1

    def colours(self, masks: Tensor) -> Tensor:
        """Class indices (B, H, W) in their colours, void grey: (B, 3, H, W) in [0, 1], on the CPU."""
        table = torch.tensor([*self.palette, [128, 128, 128]]) / 255
        indices = torch.where(masks == IGNORE_INDEX, self.channels, masks.long()).cpu()
        return rearrange(table[indices], "b h w c -> b c h w")


def loss_mask(masks: Tensor) -> Tensor:
    """Where the loss of drawn masks counts, bool (B, 1, H, W): everywhere but in the void of the truth (B, H, W)."""
    return rearrange(masks != IGNORE_INDEX, "b h w -> b 1 h w")
