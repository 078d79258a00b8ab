"""Pseudo-labels: a network's own confident labels of clean images teach it on the same images with noise.

FixMatch (Sohn et al. 2020, equations 3 and 4) with a diffusion model's forward process as the strong augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.data.transforms import IGNORE_INDEX
from unetdiff.segmentation.inference import evaluating
from unetdiff.training.sums import Sums

LOSS, PIXELS, CONFIDENT = "pseudo", "pseudo_pixels", "pseudo_confident"
"""Sums of the images without masks: of the cross-entropy, of their pixels, of those with a pseudo-label."""


@contextmanager
def as_teacher(network: nn.Module, device: torch.device) -> Iterator[None]:
    """eval mode without gradients, for a pass in the middle of a training step.

    Autocast keeps its dtype but not its cache: weights that it casts without gradients would be taken for those of the
    training pass.
    """
    kind, enabled = device.type, torch.is_autocast_enabled(device.type)
    autocast = torch.autocast(kind, torch.get_autocast_dtype(kind), enabled, cache_enabled=False)
    with evaluating(network), torch.no_grad(), autocast:
        yield


def confident_labels(logits: Tensor, confidence: float, ignore_index: int) -> Tensor:
    """The most probable class of each pixel, (B, H, W); 255 where its probability is below `confidence`.

    Args:
        logits: (B, C, H, W).
        confidence: in [0, 1].
        ignore_index: a class that never is a label.
    """
    probability, labels = logits.float().softmax(dim=1).max(dim=1)
    return labels.masked_fill((probability < confidence) | (labels == ignore_index), IGNORE_INDEX)


def pseudo_sums(logits: Tensor, labels: Tensor) -> Sums:
    """The sums of logits (B, C, H, W) against `confident_labels` (B, H, W)."""
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return sums_without_labels(labels.numel(), logits.device) | {
        LOSS: loss,
        CONFIDENT: (labels != IGNORE_INDEX).float().sum(),
    }


def sums_without_labels(pixels: int, device: torch.device) -> Sums:
    """`pseudo_sums` of pixels that have no label, and what of them is known before the network has seen the images."""
    zero = torch.zeros((), device=device)
    return {LOSS: zero, CONFIDENT: zero, PIXELS: zero + pixels}


def split_off(sums: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The sums of images with masks, and those of `pseudo_sums`."""
    own = {name: sums[name] for name in (LOSS, PIXELS, CONFIDENT) if name in sums}
    return {name: value for name, value in sums.items() if name not in own}, own


def pseudo_losses(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The cross-entropy over all pixels, those without a pseudo-label as zeros, and the fraction that has one."""
    pixels = sums[PIXELS].clamp(min=1)
    return {"pseudo_loss": sums[LOSS] / pixels, "pseudo_fraction": sums[CONFIDENT] / pixels}
