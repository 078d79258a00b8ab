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
        if images != len(self.clean) + len(self.noisy):
            raise ValueError(f"a pass over {images} images in a micro-batch of {len(self.noisy)}")
        return self.clean + self.noisy


class StepDropout(nn.Dropout):
    """`nn.Dropout` with a generator per image (`StepLayers`)."""

    draws: Draws
    layer: int

    def forward(self, input: Tensor) -> Tensor:
        words = self.draws.words(len(input)) if self.training else None
        if words is None:
            return super().forward(input)
        return input * _keep(input, self.p, words, self.layer)


class StepStochasticDepth(StochasticDepth):
    """torchvision's `StochasticDepth` with a draw per image (`StepLayers`)."""

    draws: Draws
    layer: int

    def forward(self, input: Tensor) -> Tensor:
        words = self.draws.words(len(input)) if self.training else None
        if words is None:
            return super().forward(input)
        ones = input.new_ones(len(input), *[1] * (input.ndim - 1))
        return input * _keep(ones, self.p, words, self.layer)


@torch.compiler.disable
def _keep(like: Tensor, p: float, words: list[int], layer: int) -> Tensor:
    """1 / (1 - p) with probability 1 - p, else 0, in the shape of `like` (B, ...); one word per image."""
    keep, generator = torch.empty_like(like, requires_grad=False), torch.Generator(like.device)
    for row, word in zip(keep, words, strict=True):
        row.bernoulli_(1 - p, generator=generator.manual_seed(hash_words(word, layer) >> 1))
    return keep.div_(1 - p) if p < 1 else keep
