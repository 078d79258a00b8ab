"""The typed `segmentation:` section of a config file (loss and judgement), and how a trained head is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


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
    preview_images: int = 6
    """Validation images drawn with truth and prediction."""


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
