"""Calibration of a segmentation model: confidence against accuracy (Guo et al. 2017)."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from unetdiff.data.transforms import ignore_mask
from unetdiff.errors import UserError

__all__ = ["Calibration"]


class Calibration:
    """Expected calibration error over a dataset, from counts per confidence bin.

    Confidence is the softmax probability of the predicted class. Bin m of M has the confidences in
    ((m - 1) / M, m / M], with counts of its pixels and correct pixels and the sum of their confidences. The sum of
    -log p(target) is over all bins. Ignored pixels do not count.
    """

    def __init__(self, bins: int = 15, ignore_index: int = 255, device: torch.device | str | None = None) -> None:
        if bins < 1:
            raise UserError(f"bins={bins}: must be at least 1.")
        self.bins, self.ignore_index = bins, ignore_index
        self.count = torch.zeros(bins, dtype=torch.int64, device=device)
        self.correct = torch.zeros(bins, dtype=torch.int64, device=device)
        self.confidence = torch.zeros(bins, dtype=torch.float64, device=device)
        self.nll = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count logits (B, C, H, W) or (C, H, W) and class indices (B, H, W) or (H, W) of the same size.

        Raises UserError if the sizes differ.
        """
        if logits.shape[:-3] + logits.shape[-2:] != target.shape:
            raise UserError(
                f"logits: size must be the target's (got {tuple(logits.shape)} and {tuple(target.shape)}). "
                "Resize the logits."
            )
        target = target.to(logits.device)
        valid = ~ignore_mask(target, self.ignore_index)
        logits = rearrange(logits.float(), "... c h w -> ... h w c")[valid]  # (pixels, C)
        target = target[valid].long()  # (pixels,)
        max_logit, prediction = logits.max(dim=-1)
        log_normalizer = logits.logsumexp(dim=-1)
        confidence = (max_logit - log_normalizer).exp().double()  # (pixels,)
        correct = prediction == target
        bin_index = (confidence * self.bins).ceil().long().sub(1).clamp(0, self.bins - 1)
        count = torch.bincount(bin_index, minlength=self.bins)
        self.count = self.count.to(count.device) + count
        self.correct = self.correct.to(count.device) + torch.bincount(bin_index[correct], minlength=self.bins)
        summed = torch.bincount(bin_index, weights=confidence, minlength=self.bins)
        self.confidence = self.confidence.to(count.device) + summed
        target_logit = logits.gather(-1, target[:, None])[:, 0]
        self.nll = self.nll.to(count.device) + (log_normalizer - target_logit).double().sum()

    def compute(self) -> dict[str, Any]:
        """`ece`, the expected calibration error: sum over bins of n_m / n |accuracy_m - confidence_m| (eq. 3);
        `mean_confidence`; `nll`, the mean of -log p(target), in nats; and `reliability`: lists `count`, `accuracy` and
        `confidence` by bin (nan for empty bins). All values are nan before the first pixel.
        """
        count, correct, confidence = (x.cpu().double() for x in (self.count, self.correct, self.confidence))
        gap = (correct - confidence).abs()  # n_m |accuracy_m - confidence_m|
        return {
            "ece": float(gap.sum() / count.sum()),
            "mean_confidence": float(confidence.sum() / count.sum()),
            "nll": float(self.nll.cpu() / count.sum()),
            "reliability": {
                "count": self.count.tolist(),
                "accuracy": (correct / count).tolist(),
                "confidence": (confidence / count).tolist(),
            },
        }
