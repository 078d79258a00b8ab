"""The `segmentation:` section of a config file, and inference options of a trained segmentation head."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from unetdiff.errors import config_error

LOSS_NAMES = ("cross_entropy", "focal", "dice", "lovasz")
"""The keys of `SegmentationConfig.losses`."""


@dataclass
class OHEMConfig:
    """Online hard example mining (OHEM): cross_entropy averages over hard pixels only."""

    threshold: float = 0.7
    """A pixel is hard if the probability of its target class is below this; 0: min_fraction only."""
    min_fraction: float = 0.2
    """Minimum fraction of the valid pixels that is kept, hardest first (mmsegmentation: 100,000 of 512 x 1024)."""


@dataclass
class SegmentationConfig:
    """Losses and previews of the segmentation head."""

    losses: dict[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0, "dice": 1.0})
    """Weighted sum of losses, by name: cross_entropy, focal, dice, lovasz (Lovász-softmax)."""
    class_weights: list[float] | Literal["median_frequency", "inverse_log"] | None = None
    """Class weights of cross_entropy and focal; None: all 1. Computed from the training split at the start of a run:
    median_frequency (Eigen & Fergus 2015) or inverse_log (ENet, Paszke 2016); `unetdiff data stats` shows both."""
    class_weights_anneal_until: float | None = None
    """Fraction of the run over which class weights are linearly annealed to 1, so that rare classes are learned early
    and not over-predicted at the end; None: constant."""
    label_smoothing: float = 0.0
    """Fraction of the target that cross_entropy distributes over all classes, in [0, 1) (torch's definition)."""
    ohem: OHEMConfig | None = None
    """Average cross_entropy over hard pixels only; null: over all."""
    ignore_index: int = 255
    """Mask value that is ignored in losses and metrics, in addition to 255, which pads crops."""
    noise: float = 0.0
    """Fraction of the training images that are noised to a uniformly drawn timestep of `diffusion.noise`; with
    model.conditioning.timestep the network is conditioned on the timestep."""
    preview_images: int = 6
    """Validation images in previews of target and prediction."""


@dataclass(frozen=True)
class InferenceConfig:
    """Sliding-window and multi-scale inference.

    With several views (flip, scales), logits are the logarithm of the views' mean softmax probabilities; with a single
    view, the network's own logits.
    """

    tile: list[int] | None = None
    """[height, width] of the network's input; None: the whole image. Smaller images are padded by reflection."""
    overlap: float = 0.25
    """Minimum overlap of neighboring tiles as a fraction of a tile, in [0, 0.9]; they are blended there."""
    flip: bool = False
    """Average with the horizontally flipped image."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Average over these scales of the image; the size of a tile stays the same."""
    batch_size: int = 8
    """Tiles (of any images and views), or whole images, per forward pass."""

    @property
    def views(self) -> list[tuple[float, bool]]:
        """(scale, flip) of each view."""
        return [(scale, flip) for scale in self.scales for flip in ([False, True] if self.flip else [False])]

    @property
    def is_whole_image(self) -> bool:
        """Whether inference is a single forward pass of the whole image."""
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
