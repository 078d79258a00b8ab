"""Dropout whose masks are functions of (seed of the step, place of the image in the step's batch, layer)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from unetdiff.data.hashing import hash_words


class Draws:
    """The random words of the images of the current micro-batch, shared by the dropout layers of a network.

    Attributes:
        noisy: one 64-bit word per image; None outside of a training step.
        clean: other words of those images that a joint pass has twice, first among all.
    """

    noisy: list[int] | None = None
    clean: list[int] | None = None

    def words(self, images: int) -> list[int] | None:
        """The words of a pass over so many images, or None outside of a training step."""
        if self.noisy is None or self.clean is None:
            return None
        if images == len(self.noisy):
            return self.noisy
        if images == len(self.clean):  # the two halves of a joint pass, one after the other
            return self.clean
        if images != len(self.clean) + len(self.noisy):
            raise ValueError(f"a pass over {images} images in a micro-batch of {len(self.noisy)}")
        return self.clean + self.noisy


class _StepMask(nn.Module):
    """A layer with a generator per image in a training step (`StepLayers`)."""

    draws: Draws
    layer: int
    p: float

    def mask(self, like: Tensor) -> Tensor | None:
        """Factors of `like` (B, ...); None outside of a training step."""
        words = self.draws.words(len(like)) if self.training else None
        return None if words is None else _keep(like, self.p, words, self.layer)


class StepDropout(_StepMask, nn.Dropout):
    """`nn.Dropout` with a generator per image."""

    def forward(self, input: Tensor) -> Tensor:
        mask = self.mask(input)
        return super().forward(input) if mask is None else input * mask


class StepStochasticDepth(_StepMask, StochasticDepth):
    """torchvision's `StochasticDepth` with a draw per image."""

    def forward(self, input: Tensor) -> Tensor:
        mask = self.mask(input.new_ones(len(input), *[1] * (input.ndim - 1)))
        return super().forward(input) if mask is None else input * mask


@torch.compiler.disable
def _keep(like: Tensor, p: float, words: list[int], layer: int) -> Tensor:
    """1 / (1 - p) with probability 1 - p, else 0, in the shape of `like` (B, ...); one word per image."""
    keep, generator = torch.empty_like(like, requires_grad=False), torch.Generator(like.device)
    for row, word in zip(keep, words, strict=True):
        row.bernoulli_(1 - p, generator=generator.manual_seed(hash_words(word, layer) >> 1))
    return keep.div_(1 - p) if p < 1 else keep
