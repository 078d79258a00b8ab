"""Calibration: whether a segmenter that says 80 % is right in 80 % of the pixels (Guo et al. 2017)."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from unetdiff.data.transforms import ignore_mask
from unetdiff.errors import UserError

__all__ = ["Calibration"]


class Calibration:
    """Bins of the softmax's confidence (the probability of the class it answers) over a whole set.

    Bin m of M holds the confidences in ((m - 1) / M, m / M]; it keeps its number of pixels, how many of them were
    right, and the sum of their confidences. Beside them, the sum of -log p(truth). Void counts nowhere. Nothing else is
    kept, whatever the set's size.
    """

    def __init__(self, bins: int = 15, ignore_index: int = 255, device: torch.device | str | None = None) -> None:
        if bins < 1:
            raise UserError(f"calibration in {bins} bins: use 1 or more, e.g. 15")
        self.bins, self.ignore_index = bins, ignore_index
        self.count = torch.zeros(bins, dtype=torch.int64, device=device)
        self.right = torch.zeros(bins, dtype=torch.int64, device=device)
        self.confidence = torch.zeros(bins, dtype=torch.float64, device=device)
        self.surprise = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count logits (B, C, H, W) or (C, H, W) against class indices (B, H, W) or (H, W) of their size.

        Raises UserError where the sizes differ.
        """
        if logits.shape[:-3] + logits.shape[-2:] != target.shape:
            raise UserError(
                f"logits {tuple(logits.shape)} and target {tuple(target.shape)} differ in size; "
                "resize the logits to the target's size"
            )
        target = target.to(logits.device)
        valid = ~ignore_mask(target, self.ignore_index)
        logits, truth = rearrange(logits.float(), "... c h w -> ... h w c")[valid], target[valid].long()  # (pixels, C)
        highest, answer = logits.max(dim=-1)
        normaliser = logits.logsumexp(dim=-1)
        sure = (highest - normaliser).exp().double()  # softmax of the answer, (pixels,)
        right = answer == truth
        place = (sure * self.bins).ceil().long().sub(1).clamp(0, self.bins - 1)
        count = torch.bincount(place, minlength=self.bins)
        self.count = self.count.to(count.device) + count
        self.right = self.right.to(count.device) + torch.bincount(place[right], minlength=self.bins)
        summed = torch.bincount(place, weights=sure, minlength=self.bins)
        self.confidence = self.confidence.to(count.device) + summed
        told = logits.gather(-1, truth[:, None])[:, 0]
        self.surprise = self.surprise.to(count.device) + (normaliser - told).double().sum()

    def compute(self) -> dict[str, Any]:
        """`ece`, the expected calibration error: sum over bins of n_m / n |accuracy_m - confidence_m| (eq. 3 there);
        `mean_confidence`; `nll`, the mean of -log p(truth), in nats; and `reliability`: lists `count`, `accuracy` and
        `confidence` by bin (nan where a bin is empty). Everything is nan before the first pixel.
        """
        count, right, confidence = (x.cpu().double() for x in (self.count, self.right, self.confidence))
        gap = (right - confidence).abs()  # n_m |accuracy_m - confidence_m|
        return {
            "ece": float(gap.sum() / count.sum()),
            "mean_confidence": float(confidence.sum() / count.sum()),
            "nll": float(self.surprise.cpu() / count.sum()),
            "reliability": {
                "count": self.count.tolist(),
                "accuracy": (right / count).tolist(),
                "confidence": (confidence / count).tolist(),
            },
        }
