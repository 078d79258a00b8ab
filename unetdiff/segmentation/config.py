"""How the segmentation head is trained and judged: the typed `segmentation:` section of a config file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class OHEMConfig:
    """Online hard example mining: cross_entropy averages over hard pixels alone."""

    threshold: float = 0.7
    """A pixel is hard where its true class has a probability below this; 0: min_share alone decides."""
    min_share: float = 0.2
    """Share of the valid pixels that is kept at least, the hardest first (mmsegmentation keeps 100,000 of 512 x
    1024)."""


@dataclass
class SegmentationConfig:
    """Loss and judgement of the segmentation head."""

    losses: dict[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0, "dice": 1.0})
    """Weighted sum of losses, by name: cross_entropy, focal, dice, lovasz (Lovász-softmax)."""
    class_weights: list[float] | Literal["computed", "computed_log"] | None = None
    """A weight for each class in cross_entropy and focal; None: all 1. computed: from the training split's pixels when
    a run starts, by median frequency (Eigen & Fergus 2015); computed_log: by the inverse logarithm (ENet, Paszke 2016);
    `unetdiff data stats` shows both."""
    label_smoothing: float = 0.0
    """Share of a pixel's target that cross_entropy spreads over all classes, 0 to below 1 (torch's definition)."""
    ohem: OHEMConfig | None = None
    """Average cross_entropy over the hard pixels alone; null: over all."""
    ignore_index: int = 255
    """Void: counted in no loss and no metric."""
    preview_pictures: int = 6
    """Validation pictures drawn with truth and prediction."""
