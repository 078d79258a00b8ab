"""Online hard example mining: which pixels of a batch are hard enough to learn from."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hard_pixels(log_loss: Tensor, valid: Tensor, threshold: float, min_fraction: float) -> Tensor:
    """Pixels whose true class has a probability below `threshold`, and at least a share of the valid ones.

    Shrivastava et al. 2016 ("Training region-based object detectors with online hard example mining"), by pixel as in
    mmsegmentation's OHEMPixelSampler, whose `min_kept` is a share here. Where too few pixels are below the threshold,
    the hardest `ceil(min_fraction * valid)` are taken, with all that are as hard as the last of these. Over the whole
    batch; no gradient passes through the choice.

    Args:
        log_loss: -log p_t, (B, H, W).
        valid: bool, (B, H, W); others are never taken.
        threshold: probability, 0 (the share alone) to 1.
        min_fraction: of the valid pixels, 0 to 1.

    Returns:
        bool (B, H, W).
    """
    log_loss = log_loss.detach()
    hard = (torch.exp(-log_loss) < threshold) & valid
    among = log_loss[valid]  # (P,)
    least = math.ceil(min_fraction * len(among) - 1e-9)
    if least < 1:
        return hard
    bound = among.kthvalue(len(among) - least + 1).values  # the least-hardest of them
    return hard | (valid & (log_loss >= bound))
