"""The `segmentation:` section of a config: losses, class imbalance; and the options of inference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from unetdiff.data.config import validate_image_range
from unetdiff.errors import config_error

MAX_SIDE = 1 << 16
"""Largest height or width of a tile or of the size that images are resized to."""
MAX_SCALES, MAX_SCALE, MAX_BATCH, MAX_MARGIN = 32, 16.0, 4096, 4096
LOSS_NAMES = ("cross_entropy", "focal", "dice", "lovasz")
"""The keys of `SegmentationConfig.losses`."""


@dataclass
class OHEMConfig:
    """Online hard example mining: cross-entropy averaged over hard pixels only (Shrivastava et al. 2016)."""

    threshold: float = 0.7
    """A pixel is hard if the probability of its true class is below this; 0: only min_fraction counts."""
    min_fraction: float = 0.2
    """Minimum fraction of the valid pixels that is kept, the hardest first (mmsegmentation: 100,000 of 512 x 1024)."""


@dataclass
class BorderWeightsConfig:
    """Weights of the background between close objects (Ronneberger et al. 2015, equation 2)."""

    w0: float = 10.0
    """Largest weight, between objects that touch."""
    sigma: float = 5.0
    """Its decay with the sum of the distances to the two nearest objects, in pixels of the training images."""
    background: int = 0
    """The class between the objects. Objects are the connected components of each other class."""


@dataclass
class PseudoLabelsConfig:
    """Training on images without masks (FixMatch, Sohn et al. 2020): the network's own labels of a clean image, where
    it is confident, are the mask of the same image with noise."""

    confidence: float = 0.95
    """Probability from which a pixel's class is its pseudo-label."""
    weight: float = 1.0
    """Weight of the cross-entropy over these pixels."""
    max_noise: float = 0.5
    """The images are noised as for a denoiser, at this fraction of the timesteps that `diffusion.noise` draws."""
    labelled_fraction: float = 0.5
    """Fraction of each batch that has masks. In a joint run: joint.segmentation_fraction, and as many without."""


@dataclass
class SegmentationConfig:
    """Losses and class imbalance of the segmentation head."""

    losses: dict[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0, "dice": 1.0})
    """Weights of the losses: cross_entropy, focal, dice, lovasz (Lovász-softmax)."""
    class_weights: list[float] | Literal["median_frequency", "inverse_log"] | None = None
    """Class weights of cross_entropy and focal; None: all 1. median_frequency (Eigen & Fergus 2015) and inverse_log
    (ENet, Paszke et al. 2016) are computed from the training masks; `unetdiff data stats` shows both."""
    class_weights_anneal_until: float | None = None
    """Fraction of the run over which the class weights are annealed linearly to 1, so that rare classes are learned
    early without being over-predicted at the end; None: constant weights."""
    label_smoothing: float = 0.0
    """Label smoothing of cross_entropy, in [0, 1) (torch's definition)."""
    ohem: OHEMConfig | None = None
    """Average cross_entropy over hard pixels only; null: over all."""
    border_weights: BorderWeightsConfig | None = None
    """Added to the class weights of cross_entropy in training: the background between close objects counts more; null:
    nothing is added."""
    ignore_index: int = 255
    """Mask value excluded from losses and metrics. 255 is excluded as well, as it pads crops."""
    timestep: int = 0
    """Timestep that the network receives, in training and inference; 0: that of a clean image. Small ones suit
    denoisers (Baranchuk et al. 2022: 50 to 250 of 1000)."""
    noised: bool = False
    """Noise the images to segmentation.timestep of `diffusion.noise`: with new noise in each training step, with the
    same noise for every image in inference; false: clean images (Zhao et al. 2023)."""
    context: Literal["none", "empty", "classes", "caption"] = "none"
    """Tokens of the cross-attention (model.conditioning.cross_attention_dim): none (one zero token), empty (the empty
    prompt), classes (one embedding per class name, with a trained residual adapter: VPD, Zhao et al. 2023), or caption
    (each image's own, a fraction diffusion.condition_dropout of them empty), by the text encoder of
    `diffusion.text.encoder`."""
    noise: float = 0.0
    """Fraction of the training images that are noised to a uniform timestep of `diffusion.noise`, as for a denoiser; 0:
    none. The network receives the timestep if model.conditioning.timestep is true."""
    pseudo_labels: PseudoLabelsConfig | None = None
    """Learn from the images without masks, too (data.label_fraction, data.unlabelled_root); null: not from them."""


@dataclass(frozen=True)
class InferenceConfig:
    """How logits are computed from an image: whole or in tiles, from one view or several.

    Several views (flip, scales): the logits are the logarithm of the mean softmax probabilities. One view (the
    default): the network's own logits.
    """

    tile: list[int] | None = None
    """[height, width] of overlapping tiles; None: the whole image. Smaller images are padded by reflection."""
    overlap: float = 0.25
    """Minimum overlap of neighboring tiles as a fraction of the tile, 0 to 0.9; logits are blended there."""
    margin: int = 0
    """Pixels around each tile, or the whole image, that the network sees in addition: of the image, mirrored beyond its
    border (Ronneberger et al. 2015, figure 2). Their logits are dropped. Unpadded networks have as many as they lose,
    at least."""
    flip: bool = False
    """Average with the horizontally flipped image."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Average over these image scales; the tile size stays the same."""
    batch_size: int = 8
    """Tiles (of any images and views) per forward pass; whole images without tiles."""
    image_range: list[float] | None = None
    """`data.image_range` of the training: the values of images of more than 8 bits that become 0 and 255."""

    @property
    def views(self) -> list[tuple[float, bool]]:
        """(scale, flip) of each view."""
        return [(scale, flip) for scale in self.scales for flip in ([False, True] if self.flip else [False])]

    @property
    def is_whole_image(self) -> bool:
        """Whether inference is a single forward pass of the whole image."""
        return self.tile is None and self.margin == 0 and self.views == [(1.0, False)]


def validate_inference(config: InferenceConfig, prefix: str = "") -> None:
    """Check tile, overlap, scales and batch size.

    Args:
        config: the options.
        prefix: of the keys in messages, e.g. "--".

    Raises:
        UserError: an option out of range.
    """
    if config.tile is not None and (len(config.tile) != 2 or not 1 <= min(config.tile) <= max(config.tile) <= MAX_SIDE):
        raise config_error(
            f"{prefix}tile", config.tile, f"[height, width], two integers in [1, {MAX_SIDE}]", "Give e.g. [512, 512]."
        )
    if not 0 <= config.overlap <= 0.9:
        raise config_error(f"{prefix}overlap", config.overlap, "in [0, 0.9], a fraction of the tile", "Give e.g. 0.25.")
    if not 0 <= config.margin <= MAX_MARGIN:
        raise config_error(f"{prefix}margin", config.margin, f"in [0, {MAX_MARGIN}], pixels", "Give e.g. 92.")
    if not 1 <= len(config.scales) <= MAX_SCALES:
        shown = config.scales if len(config.scales) <= MAX_SCALES else f"{len(config.scales)} values"
        raise config_error(f"{prefix}scales", shown, f"a list of 1 to {MAX_SCALES} factors", "Give e.g. [1.0].")
    if not all(0 < scale <= MAX_SCALE for scale in config.scales):
        constraint = f"a list of positive factors, at most {MAX_SCALE:g}"
        raise config_error(f"{prefix}scales", config.scales, constraint, "Give e.g. [0.75, 1.0, 1.25].")
    if not 1 <= config.batch_size <= MAX_BATCH:
        raise config_error(f"{prefix}batch_size", config.batch_size, f"in [1, {MAX_BATCH}]")
    validate_image_range(config.image_range, f"{prefix}image_range")
