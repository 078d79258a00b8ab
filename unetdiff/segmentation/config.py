"""The typed `segmentation:` section of a config file (loss and judgement), and how a trained head is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from unetdiff.errors import config_error

LOSS_NAMES = ("cross_entropy", "focal", "dice", "lovasz")
"""The keys of `SegmentationConfig.losses`."""


@dataclass
class OHEMConfig:
    """Online hard example mining: cross_entropy averages over hard pixels alone."""

    threshold: float = 0.7
    """A pixel is hard where its true class has a probability below this; 0: min_fraction alone decides."""
    min_fraction: float = 0.2
    """Share of the valid pixels that is kept at least, the hardest first (mmsegmentation keeps 100,000 of 512 x
    1024)."""


@dataclass
class SegmentationConfig:
    """Loss and judgement of the segmentation head."""

    losses: dict[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0, "dice": 1.0})
    """Weighted sum of losses, by name: cross_entropy, focal, dice, lovasz (Lovász-softmax)."""
    class_weights: list[float] | Literal["median_frequency", "inverse_log"] | None = None
    """A weight for each class in cross_entropy and focal; None: all 1. computed: from the training split's pixels when
    a run starts, by median frequency (Eigen & Fergus 2015); inverse_log: by the inverse logarithm (ENet, Paszke 2016);
    `unetdiff data stats` shows both."""
    class_weights_anneal_until: float | None = None
    """Share of the run after which every class weighs 1: the weights go there in a straight line, so that rare classes
    are found early and not overrated at the end; None: the weights stay."""
    label_smoothing: float = 0.0
    """Share of a pixel's target that cross_entropy spreads over all classes, 0 to below 1 (torch's definition)."""
    ohem: OHEMConfig | None = None
    """Average cross_entropy over the hard pixels alone; null: over all."""
    ignore_index: int = 255
    """Void: counted in no loss and no metric. Nor is 255, whatever this says: it fills what a crop has beyond the
    image."""
    noise: float = 0.0
    """Share of the training images that are noised to a uniform timestep of `diffusion.noise`, as a denoiser sees
    them; 0: none. With model.conditioning.timestep true the network is told the timestep, else it is not."""


@dataclass(frozen=True)
class InferenceConfig:
    """How an image becomes logits: in one piece or in tiles, seen once or in several views.

    With more than one view (flip, scales) the views' softmax probabilities are averaged, and the logits are their
    logarithm; the one view of the defaults gives the network's own logits.
    """

    tile: list[int] | None = None
    """[height, width] that the network sees at once; None: the whole image. Smaller images are mirrored to it."""
    overlap: float = 0.25
    """Share of a tile, at least, that it has in common with its neighbour, 0 to 0.9; seams are blended there."""
    flip: bool = False
    """See each image mirrored left to right as well."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """See each image at these sizes; a tile stays as it is and covers more of a smaller image."""
    batch_size: int = 8
    """Tiles (of any images and views) that the network sees together; whole images, where there are no tiles."""

    @property
    def views(self) -> list[tuple[float, bool]]:
        """(scale, mirrored) of each view."""
        return [(scale, flip) for scale in self.scales for flip in ([False, True] if self.flip else [False])]

    @property
    def is_whole_image(self) -> bool:
        """Whether an image is seen whole, once, as it is."""
        return self.tile is None and self.views == [(1.0, False)]


def validate_inference(config: InferenceConfig, prefix: str = "") -> None:
    """Check tile, overlap, scales and batch size.

    Args:
        config: the options.
        prefix: of the keys in messages, e.g. "--".

    Raises:
        UserError: an option out of range.
    """
    if config.tile is not None and (len(config.tile) != 2 or min(config.tile) < 1):
        raise config_error(
            f"{prefix}tile", config.tile, "[height, width], two positive integers", "Give e.g. [512, 512]."
        )
    if not 0 <= config.overlap <= 0.9:
        raise config_error(f"{prefix}overlap", config.overlap, "in [0, 0.9], a fraction of the tile", "Give e.g. 0.25.")
    if not config.scales or not all(0 < scale < math.inf for scale in config.scales):
        constraint = "a list of positive factors"
        raise config_error(f"{prefix}scales", config.scales, constraint, "Give e.g. [0.75, 1.0, 1.25].")
    if config.batch_size < 1:
        raise config_error(f"{prefix}batch_size", config.batch_size, "at least 1")
