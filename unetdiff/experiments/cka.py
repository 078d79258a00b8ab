"""Linear CKA between all pairs of layers, accumulated over minibatches.

Centered kernel alignment (Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", equations 3
and 4): HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X^T and L = Y Y^T. It is invariant to rotations and
isotropic scaling of the features. The plain estimate of HSIC is biased upwards when there are fewer examples than
features; we use the unbiased one (Song et al. 2012, equation 5), with numerator and denominator averaged over
minibatches separately (Nguyen et al. 2021, equations 2 and 3). Memory: the Gram matrices of one batch and one number
per pair of layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

MIN_EXAMPLES = 4
"""Minimum examples in a batch for the unbiased estimate."""


class CKA:
    """CKA of every pair of layers, of one or of several networks."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def update(self, layers: Sequence[Tensor]) -> None:
        """Add a batch: features (n, C) of the same n examples from every layer; C may differ between layers.

        Raises:
            ValueError: the numbers of examples differ, or are below `MIN_EXAMPLES`.
        """
        n = len(layers[0])
        if n < MIN_EXAMPLES or any(len(layer) != n for layer in layers):
            counts = sorted({len(layer) for layer in layers})
            raise ValueError(f"layers have {counts} examples: must be equal, and at least {MIN_EXAMPLES}.")
        hsic = unbiased_hsic(torch.stack([_gram(layer) for layer in layers]))
        self.total = hsic if self.total is None else self.total + hsic

    def compute(self) -> Tensor:
        """CKA (layers, layers), float64 on the CPU; NaN for a layer that is constant over the examples."""
        assert self.total is not None
        norm = self.total.diagonal()  # (layers,)
        norm = torch.where(norm > 0, norm, torch.nan).sqrt()
        return (self.total / (norm[:, None] * norm)).cpu()


def unbiased_hsic(grams: Tensor) -> Tensor:
    """HSIC of every pair of Gram matrices (L, n, n), (L, L) (Song et al. 2012, equation 5)."""
    n = grams.shape[-1]
    grams = grams.clone()
    grams.diagonal(dim1=-2, dim2=-1).zero_()
    rows = grams.sum(dim=-1)  # (L, n)
    sums = rows.sum(dim=-1)  # (L,)
    flat = rearrange(grams, "l i j -> l (i j)")
    traces = flat @ flat.T  # tr(K L), K and L symmetric
    return (traces + sums[:, None] * sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows @ rows.T) / (n * (n - 3))


def _gram(features: Tensor) -> Tensor:
    """Gram matrix (n, n) of features (n, C), in float64; centering and scaling do not change CKA but keep precision."""
    x = features.double()
    x = x - x.mean(dim=0)
    return (x @ x.T) / x.shape[1]


def grid_examples(maps: Tensor, grid: int) -> Tensor:
    """Feature maps (B, C, h, w) as examples (B grid^2, C): the mean over each cell of a `grid` x `grid` grid.

    In maps smaller than the grid, several cells share a pixel.
    """
    return rearrange(F.adaptive_avg_pool2d(maps, grid), "b c h w -> (b h w) c")
