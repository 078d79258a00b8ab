"""Online hard example mining (OHEM): selection of the hard pixels of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SumOver = Callable[[Tensor], Tensor]
"""Sums a tensor of counts over the processes that share a batch."""


def hard_pixels(nll: Tensor, valid: Tensor, threshold: float, min_fraction: float) -> Tensor:
    """Pixels whose target class has a probability below `threshold`, at least `min_fraction` of the valid ones.

    Shrivastava et al. 2016 ("Training region-based object detectors with online hard example mining"), by pixel as in
    mmsegmentation's OHEMPixelSampler, with `min_kept` as a fraction. If too few pixels are below the threshold, the
    hardest `ceil(min_fraction * valid)` are selected, and ties with the last of them. Over the whole batch, without
    gradient.

    Args:
        nll: -log p_t, (B, H, W).
        valid: bool, (B, H, W); other pixels are never selected.
        threshold: probability in [0, 1]; 0: min_fraction only.
        min_fraction: of the valid pixels, in [0, 1].

    Returns:
        bool (B, H, W).
    """
    return select_hard(nll, valid, threshold, hard_bound(nll.detach()[valid], min_fraction))


def select_hard(nll: Tensor, valid: Tensor, threshold: float, bound: Tensor) -> Tensor:
    """`hard_pixels` of a part of a batch, bool (B, H, W), with the `hard_bound` of the whole."""
    nll = nll.detach()
    return valid & ((torch.exp(-nll) < threshold) | (nll >= bound))


def hard_bound(nll: Tensor, min_fraction: float, sum_over: SumOver | None = None) -> Tensor:
    """The smallest nll among the `min_fraction` hardest pixels, a scalar; infinite where that is none of them.

    Args:
        nll: of the valid pixels, (P,).
        min_fraction: as in `hard_pixels`.
        sum_over: the pixels of several processes are one batch, and so P differs; None: these pixels are all.
    """
    pixels = len(nll) if sum_over is None else int(sum_over(torch.tensor(len(nll), device=nll.device)))
    min_kept = math.ceil(min_fraction * pixels - 1e-9)
    if min_kept < 1:
        return nll.new_full((), torch.inf)
    if sum_over is None:
        return nll.kthvalue(pixels - min_kept + 1).values  # the min_kept-th largest
    return _kth_largest(nll, min_kept, sum_over)


def _kth_largest(values: Tensor, k: int, sum_over: SumOver) -> Tensor:
    """The k-th largest of non-negative values (P,) of all processes, by the digits of their bits (radix select).

    Non-negative floats are ordered as the integers of the same bits. Exact, and only counts are exchanged.
    """
    integer, width = (torch.int64, 64) if values.dtype == torch.float64 else (torch.int32, 32)
    bits = values.abs().view(integer).long()  # abs: -0.0 has the sign bit
    found = 0
    for shift in range(width - 8, -1, -8):
        digits = (bits >> shift) & 0xFF
        counts = sum_over(torch.bincount(digits, minlength=256))  # (256,)
        at_least = counts.flip(0).cumsum(0)  # from digit 255 down
        place = int((at_least < k).sum())
        digit = 255 - place
        k -= int(at_least[place] - counts[digit])
        bits = bits[digits == digit]
        found |= digit << shift
    return torch.tensor(found, dtype=torch.int64, device=values.device).to(integer).view(values.dtype)
