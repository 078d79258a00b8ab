"""Online hard example mining (OHEM): selection of the hard pixels of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    nll = nll.detach()
    hard = (torch.exp(-nll) < threshold) & valid
    valid_nll = nll[valid]  # (P,)
    min_kept = math.ceil(min_fraction * len(valid_nll) - 1e-9)
    if min_kept < 1:
        return hard
    bound = valid_nll.kthvalue(len(valid_nll) - min_kept + 1).values  # the min_kept-th largest
    return hard | (valid & (nll >= bound))
