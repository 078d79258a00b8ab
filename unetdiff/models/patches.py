"""Square patches of pixels as channels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def patchify(sample: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, C patch^2, ceil(H / patch), ceil(W / patch)); the border is replicated."""
    if patch == 1:
        return sample
    height, width = sample.shape[-2:]
    padding = (0, round_up(width, patch) - width, 0, round_up(height, patch) - height)
    return F.pixel_unshuffle(F.pad(sample, padding, mode="replicate"), patch)


def round_up(side: int, patch: int) -> int:
    """The smallest multiple of `patch` that is at least `side`."""
    return (side + patch - 1) // patch * patch
