"""Linear CKA between many layers at once, over a stream of minibatches.

Centred kernel alignment (Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", equations 3
and 4): HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X^T and L = Y Y^T. It does not change when features are
rotated or scaled as a whole. The plain estimate of HSIC is too high when there are fewer examples than features; this
is the unbiased one (Song et al. 2012, equation 5), averaged over minibatches, numerator and denominator each by itself
(Nguyen et al. 2021, equations 2 and 3). What is held is a batch's Gram matrices and one number for each pair of layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

FEWEST = 4
"""Examples of a batch that the unbiased estimate needs."""


class CKA:
    """The CKA of every two layers of a list, of one network or of several."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def update(self, layers: Sequence[Tensor]) -> None:
        """Count a batch: features (n, C) of the same n examples from every layer, C each one's own.

        Raises:
            ValueError: other numbers of examples, or fewer than four.
        """
        n = len(layers[0])
        if n < FEWEST or any(len(layer) != n for layer in layers):
            raise ValueError(f"layers of {sorted({len(layer) for layer in layers})} examples; give {FEWEST} or more")
        found = unbiased_hsic(torch.stack([_gram(layer) for layer in layers]))
        self.total = found if self.total is None else self.total + found

    def compute(self) -> Tensor:
        """(layers, layers), float64 on the CPU; NaN where a layer says nothing (the same for all examples)."""
        assert self.total is not None
        own = self.total.diagonal()
        own = torch.where(own > 0, own, torch.nan).sqrt()
        return (self.total / (own[:, None] * own)).cpu()


def unbiased_hsic(grams: Tensor) -> Tensor:
    """HSIC of every two Gram matrices (L, n, n): (L, L) (Song et al. 2012, equation 5)."""
    n = grams.shape[-1]
    grams = grams.clone()
    grams.diagonal(dim1=-2, dim2=-1).zero_()
    rows = grams.sum(dim=-1)  # (L, n)
    sums = rows.sum(dim=-1)  # (L,)
    flat = rearrange(grams, "l i j -> l (i j)")
    traces = flat @ flat.T  # tr(K L) of symmetric K and L
    return (traces + sums[:, None] * sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows @ rows.T) / (n * (n - 3))


def _gram(features: Tensor) -> Tensor:
    """(n, C) -> (n, n) in float64. Centred and scaled first: neither changes CKA, and both keep its digits."""
    x = features.double()
    x = x - x.mean(dim=0)
    return (x @ x.T) / x.shape[1]


def examples(maps: Tensor, grid: int) -> Tensor:
    """Maps (B, C, h, w) as examples (B grid^2, C): the mean of each cell of a grid of `grid` x `grid` over the image.

    A map with fewer cells than the grid gives a cell of its own to several.
    """
    return rearrange(F.adaptive_avg_pool2d(maps, grid), "b c h w -> (b h w) c")
