"""What a `UNet` is made of: the typed form of its config.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

CLASSIC = "classic"
RESIDUAL = "residual"
PRETRAINED_ENCODERS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
)
ENCODERS = (CLASSIC, RESIDUAL, *PRETRAINED_ENCODERS)

Norm = Literal["none", "batch", "frozen", "group"]
MIDDLE_RESNETS = {"attention": 2, "resnets": 2, "resnet": 1, "none": 0}
"""Residual blocks of each kind of middle (`ResidualConfig.middle`)."""


@dataclass
class EncoderConfig:
    """The way down: from the image to the skips and the deepest map."""

    name: str = RESIDUAL
    """classic (the 2015 network), residual (DDPM / Stable Diffusion blocks), or a torchvision trunk by its name."""
    channels: list[int] | None = None
    """Width of each level, full resolution first (classic, residual); None: 64, 128, 256, 512(, 1024 for classic)."""
    weights: str | None = None
    """Trunks only: "imagenet", the path of a safetensors file with torchvision's names, or None (random start)."""
    norm: Norm | None = None
    """Trunks and classic. None: batch, or with a diffusion head frozen (pretrained trunk) or group. residual: group."""
    padding: Literal["same", "valid"] = "same"
    """classic only: "valid" is the paper's unpadded convolution, 572 x 572 in, 388 x 388 out."""
    statistics: Literal["imagenet", "none"] = "imagenet"
    """Trunks only: pixels in [-1, 1] are restated with ImageNet's mean and deviation, or in [0, 1] ("none")."""


@dataclass
class ResidualConfig:
    """The fine print of the residual family; the defaults are those of a small class-conditional DDPM."""

    layers_per_block: int = 2
    """Residual blocks a level on the way down; one more on the way up."""
    norm_num_groups: int = 32
    """Groups of every GroupNorm (lowered to a divisor where a level is narrower)."""
    norm_eps: float = 1e-5
    """Epsilon of the residual blocks' GroupNorm (1e-6 in google/ddpm-*)."""
    time_scale_shift: Literal["default", "scale_shift"] = "default"
    """How the timestep enters a block: added after the first convolution, or as scale and shift of the second norm."""
    resample: Literal["conv", "resnet"] = "conv"
    """Down- and upsampling by a strided convolution, or inside a residual block (ADM)."""
    downsample_padding: int = 1
    """1, or 0 for google/ddpm-* (padded on the right and bottom only)."""
    flip_sin_to_cos: bool = True
    """Order of the sinusoids: cosines first (True), sines first (google/ddpm-*)."""
    freq_shift: float = 0.0
    """Shift of the sinusoids' exponent divisor (1 in google/ddpm-*)."""
    linear_projection: bool = False
    """Transformer blocks project with a linear layer (SD 2.x) instead of a 1x1 convolution (SD 1.x)."""
    transformer_depth: int | list[int] = 1
    """Transformer layers in each transformer block; residual: one number, or one for each level."""
    upcast_attention: bool = False
    """Transformer blocks attend in float32 whatever the precision (SD 2.x, whose float16 overflows there)."""
    attention_heads: list[int] | None = None
    """Number of heads at each level (SD 1.x: 8 at all); None: as many as conditioning.attention_head_dim makes."""
    middle: Literal["attention", "resnets", "resnet", "none"] | None = None
    """Middle block: residual - attention - residual, two residual blocks, a single one, or none at all. None: attention
    where the deepest level has it, else two residual blocks."""
    middle_attention_groups: int | None = None
    """Groups of the norm before the middle's self-attention; None: norm_num_groups, 0: no such norm."""
    dropout: float = 0.0
    """Dropout inside the residual blocks."""


@dataclass
class DecoderConfig:
    """The way up: from the deepest map and the skips to a full-resolution map (classic and trunks)."""

    channels: list[int] | None = None
    """Width of each up step, deepest first; None: 512, 256, 128, 64, 64 for trunks, the encoder's for classic. Fewer
    values stop early (three of a trunk's five: at a quarter of the size), and the logits are enlarged: the finest maps
    cost most. Not with a diffusion head, which needs every pixel."""
    norm: Norm | None = None
    """None: batch, or group with a diffusion head. "none" is the reference decoder."""
    upsample: Literal["bilinear", "nearest", "transposed"] | None = None
    """How a map grows to the size of its skip. None: transposed for classic (as in 2015), nearest for trunks
    (bilinear with align_corners)."""
    align_corners: bool = False
    """Bilinear only; True in the reference."""


@dataclass
class ConditioningConfig:
    """Changes 1 and 2 of the three that turn the segmenter into the denoiser."""

    timestep: bool | None = None
    """Time embedding in every block. None: where there is a diffusion head."""
    cross_attention_dim: int | None = None
    """Width of encoder_hidden_states' tokens; None: no cross-attention."""
    pooled_context: bool = False
    """Add the tokens' mean, projected, to the time embedding as well, so that it reaches every block (Imagen)."""
    attention_levels: list[int] | None = None
    """Levels (0 = the finest map) with attention; None: the two coarsest."""
    attention_head_dim: int = 32
    """Channels of one attention head."""
    num_class_embeds: int | None = None
    """Classes of an embedding that is added to the time embedding (class_labels); None: no such embedding."""
    class_embed_type: Literal["timestep", "identity"] | None = None
    """class_labels without a table of classes: numbers (B,) that are embedded as the timestep is, or vectors
    (B, 4 * channels[0]) that are added to its embedding as they are."""


@dataclass
class SegmentationHeadConfig:
    """Logits (B, num_classes, H, W)."""

    num_classes: int = 21
    """Classes, background included."""
    kernel_size: int = 1
    """Side of the head's convolution, odd: 1 as in 2015, 3 as in segmentation_models_pytorch."""


@dataclass
class DiffusionHeadConfig:
    """Change 3: norm, SiLU and a 3x3 convolution with the noise's channels."""

    out_channels: int = 3
    """Channels of the noise."""


@dataclass
class HeadsConfig:
    """The heads on the one backbone: either or both."""

    segmentation: SegmentationHeadConfig | None = None
    """The segmentation head, or none."""
    diffusion: DiffusionHeadConfig | None = None
    """The diffusion head, or none."""


@dataclass
class ModelConfig:
    """One U-Net: encoder, middle, decoder, heads."""

    in_channels: int = 3
    """Channels of the input image."""
    patch_size: int = 1
    """classic and residual: the network works on squares of this many pixels a side, as channels; 2 costs a quarter."""
    sample_size: int | list[int] | None = None
    """Height and width that the denoiser was trained at (what `sample` draws when not told); one number for both."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The way down."""
    residual: ResidualConfig = field(default_factory=ResidualConfig)
    """Fine print of the residual family."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The way up."""
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    """Timestep and cross-attention."""
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    """Filled in from the task and the data set when training."""
