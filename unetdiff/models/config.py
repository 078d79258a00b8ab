"""The typed form of a `UNet`'s config.json."""

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
RGB = 3
TIMM_PREFIX = "timm/"
"""Before the name of a network of timm, in `encoder.name`."""
ENCODERS = (CLASSIC, RESIDUAL, *PRETRAINED_ENCODERS)
STOCK_CLASSES = ("UNet2DModel", "UNet2DConditionModel")
"""diffusers' U-Nets, as their config.json calls them."""

Norm = Literal["none", "batch", "frozen", "group"]
MID_BLOCK_RESNETS = {"attention": 2, "resnets": 2, "resnet": 1, "none": 0}
"""Number of residual blocks by `ResidualConfig.mid_block`."""


@dataclass
class EncoderConfig:
    """Encoder: from the image to the skips and the deepest map."""

    name: str = RESIDUAL
    """classic (the 2015 network), residual (DDPM / Stable Diffusion blocks), or a pretrained encoder (a
    torchvision classifier by its name, or timm/NAME: any network of timm with feature maps, e.g. timm/convnext_nano,
    with the extra `timm`)."""
    channels: list[int] | None = None
    """Width of each level, full resolution first (classic, residual); None: 64, 128, 256, 512, and 1024 for
    classic."""
    weights: str | None = None
    """Pretrained encoders only: "imagenet", the path of a safetensors file with torchvision's (or timm's) names, or
    None (random initialization)."""
    norm: Norm | None = None
    """None: batch; with a diffusion head frozen (with weights) or group. residual: always group."""
    padding: Literal["same", "valid"] = "same"
    """classic only: "valid" is the paper's unpadded convolution, 572 x 572 in, 388 x 388 out."""
    statistics: Literal["imagenet", "none"] = "imagenet"
    """Pretrained encoders only: normalize pixels with ImageNet's mean and standard deviation, or map them to [0, 1]
    ("none"). Of no effect with mean and std."""
    mean: list[float] | None = None
    """classic and pretrained encoders: mean of each channel of the input, for pixels in [0, 1], which is subtracted.
    None: as `statistics` says (classic: pixels in [-1, 1]). Training a segmenter without pretrained weights, or with
    images of other than three channels, counts mean and std over the training images."""
    std: list[float] | None = None
    """Standard deviation of each channel, by which the input is divided; set with mean."""
    dropout: float = 0.0
    """classic only: dropout at the end of the contracting path, after its last two levels (Ronneberger et al. 2015,
    section 3.1, whose network has 0.5)."""


@dataclass
class ResidualConfig:
    """Residual blocks of encoder.name residual; the defaults are those of a small class-conditional DDPM."""

    layers_per_block: int = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    norm_num_groups: int = 32
    """Groups of the GroupNorms of residual blocks, of a residual network's heads, and of attention blocks with every
    encoder; reduced to the greatest common divisor with a level's channels. `norm: group` of classic and pretrained
    networks has at most 32 groups of at least four channels instead."""
    time_scale_shift: Literal["default", "scale_shift"] = "default"
    """How the timestep enters a block: added after the first convolution, or as scale and shift of the second norm."""
    mid_block: Literal["attention", "resnets", "resnet", "none"] | None = None
    """Mid block: residual - attention - residual, two residual blocks, a single one, or none. None: attention if the
    deepest level attends, else two residual blocks."""
    dropout: float = 0.0
    """Dropout inside the residual blocks."""


@dataclass
class DecoderConfig:
    """Decoder of classic and pretrained encoders: from the deepest map and the skips to a full-resolution map."""

    channels: list[int] | None = None
    """Width of each level, deepest first; None: 512, 256, 128, 64, 64 for pretrained encoders, for classic the
    encoder's. Fewer values stop early (three of five: at a quarter of the size) and the logits are upsampled: the
    finest maps cost most. A diffusion head needs all of them."""
    norm: Norm | None = None
    """None: batch, or group with a diffusion head. "none": as bubbliiiing/unet-pytorch, the reference decoder."""
    upsample: Literal["bilinear", "nearest", "transposed"] | None = None
    """Upsampling to the size of the skip. None: transposed for classic (as in 2015), nearest for pretrained encoders
    (bilinear with align_corners)."""
    align_corners: bool = False
    """Bilinear only; True in bubbliiiing/unet-pytorch."""


@dataclass
class ConditioningConfig:
    """Changes 1 and 2 of the three that turn the segmenter into the denoiser."""

    timestep: bool | None = None
    """Time embedding in every block. None: with a diffusion head."""
    cross_attention_dim: int | None = None
    """Width of encoder_hidden_states' tokens; None: no cross-attention."""
    pooled_context: bool = False
    """Add the tokens' mean, projected, to the time embedding as well, so that it reaches every block (Imagen)."""
    attention_levels: list[int] | None = None
    """Levels (0 = the finest map) with attention. None: the two coarsest for residual or with cross_attention_dim, else
    none."""
    attention_head_dim: int = 32
    """Channels of one attention head."""


@dataclass
class SegmentationHeadConfig:
    """Logits (B, num_classes, H, W)."""

    num_classes: int = 21
    """Classes, including background."""
    pyramid: int | None = None
    """Channels of a pyramid over the last map of every decoder level (semantic FPN, Kirillov et al. 2019): for both
    heads on one backbone, where labels then reach the deep levels at once, and for backbones at a fraction of the
    image's size, such as denoisers of latents. None: a 1x1 convolution of the last map."""
    attention_maps: bool = False
    """pyramid only: the cross-attention maps of num_classes tokens, one per class, as further channels of each level
    that attends (VPD, Zhao et al. 2023)."""
    own_decoder_levels: int = 0
    """Levels of a decoder of its own, finest first; the diffusion head keeps those of the backbone. 0: one decoder for
    both heads. As many as the network has: both share the encoder and the mid block only."""
    task_embedding: bool = False
    """A learned vector that is added to the time embedding when the segmentation head is asked, so that the shared part
    knows what it computes its maps for."""


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
class ImportedConfig:
    """Options of networks imported from diffusers and segmentation_models_pytorch; the defaults suit all others."""

    norm_eps: float = 1e-5
    """Epsilon of the GroupNorms of residual blocks, self-attention blocks and heads (1e-6 in google/ddpm-*).
    Transformer blocks always have 1e-6, `norm: group` of classic and pretrained networks 1e-5."""
    resample: Literal["conv", "resnet"] = "conv"
    """Down- and upsampling by a convolution, or inside a residual block (ADM)."""
    resnet_downsample_levels: list[int] | None = None
    """residual: levels of the encoder that end with downsampling inside a residual block; None: as `resample` says."""
    resnet_upsample_levels: list[int] | None = None
    """The same for upsampling in the decoder."""
    downsample_padding: int = 1
    """1, or 0 for google/ddpm-* (padded on the right and bottom only)."""
    flip_sin_to_cos: bool = True
    """Order of the sinusoids: cosines first (True), sines first (google/ddpm-*)."""
    freq_shift: float = 0.0
    """Shift of the divisor in the sinusoids' exponent (1 in google/ddpm-*)."""
    linear_projection: bool = False
    """Transformer blocks project with a linear layer (SD 2.x) instead of a 1x1 convolution (SD 1.x)."""
    transformer_depth: int | list[int] = 1
    """Layers of each transformer block; residual: one number, or one per level."""
    upcast_attention: bool = False
    """Attention of transformer blocks in float32 (SD 2.x, whose float16 overflows)."""
    attention_heads: list[int] | None = None
    """Attention heads per level (SD 1.x: 8 at every level); None: channels / conditioning.attention_head_dim."""
    mid_block_attention_groups: int | None = None
    """Groups of the norm before the mid block's self-attention; None: residual.norm_num_groups, 0: no norm."""
    num_class_embeds: int | None = None
    """Classes of an embedding added to the time embedding (class_labels); None: no such embedding."""
    class_embed_type: Literal["timestep", "identity"] | None = None
    """class_labels without a table of classes: numbers (B,), embedded as the timestep is, or vectors
    (B, 4 * channels[0]) added to its embedding."""
    time_cond_proj_dim: int | None = None
    """Size of a vector (timestep_cond) that is projected and added to the timestep's sinusoids: the guidance scale's
    embedding in Latent Consistency Models."""
    addition_embed_type: Literal["text_time"] | None = None
    """Stable Diffusion XL's added condition: a pooled text embedding and sizes (added_cond_kwargs), embedded by an MLP
    and added to the time embedding."""
    addition_time_embed_dim: int | None = None
    """Sinusoids of each of those sizes."""
    projection_class_embeddings_input_dim: int | None = None
    """Inputs of that MLP: the text embedding and all sinusoids."""
    segmentation_kernel_size: int = 1
    """Kernel size of the segmentation head, odd: 1 as in 2015, 3 as in segmentation_models_pytorch."""

    def resamples_by_resnet(self, way: Literal["down", "up"], level: int) -> bool:
        """Whether a level of the encoder ("down") or the decoder ("up") ends with a resampling residual block."""
        levels = self.resnet_downsample_levels if way == "down" else self.resnet_upsample_levels
        return self.resample == "resnet" if levels is None else level in levels


@dataclass
class ModelConfig:
    """One U-Net: encoder, mid block, decoder, heads."""

    in_channels: int = 3
    """Channels of the input image."""
    patch_size: int = 1
    """classic and residual: side of the square patches of pixels that become channels; the network computes at
    1 / patch_size of the height and width (2: about a quarter of the multiply-adds)."""
    sample_size: int | list[int] | None = None
    """Height and width the denoiser was trained at, the default of `sample`; one number for both."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Encoder."""
    residual: ResidualConfig = field(default_factory=ResidualConfig)
    """Residual blocks of encoder.name residual."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Decoder."""
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    """Timestep and cross-attention."""
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    """Heads; training fills them in from the task and the dataset."""
    imported: ImportedConfig = field(default_factory=ImportedConfig)
    """Options of imported networks."""


def image_channels(config: ModelConfig) -> int:
    """Channels of the image in the input: all, or those of the noise, which a denoiser's condition follows."""
    diffusion = config.heads.diffusion
    return config.in_channels if diffusion is None else min(config.in_channels, diffusion.out_channels)


def in_rgb(values: list[float] | None) -> list[float] | None:
    """Mean or deviation of gray images as those of RGB."""
    return values * RGB if values is not None and len(values) == 1 else values
