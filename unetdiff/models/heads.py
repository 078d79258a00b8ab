"""The two heads on the full-resolution map. Change 3 of 3 is the diffusion head's output convolution."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.models.attention import AttentionRecorder
from unetdiff.models.blocks import ResnetBlock, norm_groups
from unetdiff.models.config import RESIDUAL, ModelConfig
from unetdiff.models.decoders import PyramidDecoder, ResidualDecoder
from unetdiff.models.pyramid_head import PyramidHead


class SegmentationHead(nn.Module):
    """One logit per class by a 1x1 convolution (Ronneberger et al. 2015), on residual backbones after norm and SiLU.

    Args:
        channels: of the decoder's last map.
        num_classes: number of logits.
        groups: of the GroupNorm; None: no norm and no SiLU.
        eps: its epsilon.
        kernel_size: of the convolution, odd.
    """

    def __init__(self, channels: int, num_classes: int, groups: int | None, eps: float, kernel_size: int = 1) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups(channels, groups), channels, eps) if groups else None
        self.conv = nn.Conv2d(channels, num_classes, kernel_size, padding=kernel_size // 2)

    map_names: tuple[str, ...] = ()
    """Maps of `UNet.features` that the head reads in addition to the decoder's last."""
    tokens: Mapping[str, int] = {}
    """Channels of cross-attention maps that it reads (`PyramidHead`)."""

    def forward(
        self, h: Tensor, maps: Mapping[str, Tensor] | None = None, attention: AttentionRecorder | None = None
    ) -> Tensor:
        # `maps` and `attention` are unused: the same signature as `PyramidHead`
        if self.norm is not None:
            h = F.silu(self.norm(h))
        return self.conv(h)  # (B, num_classes, H, W)


class DiffusionHead(nn.Module):
    """Change 3 of 3: norm, SiLU, 3x3 convolution with as many channels as the noise.

    A pretrained encoder with a strided stem has no full-resolution map of the noise: there, the head takes a skip from
    the input (`skip`), fused by a residual block with the time embedding (`fuse`).
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        groups: int,
        eps: float,
        time_dim: int | None,
        skip_channels: int | None,
    ) -> None:
        super().__init__()
        self.skip = self.fuse = None
        if skip_channels is not None:
            self.skip = nn.Conv2d(skip_channels, channels, 3, padding=1)
            self.fuse = ResnetBlock(2 * channels, channels, time_dim, groups=groups, eps=eps, scale_shift=True)
        self.norm = nn.GroupNorm(norm_groups(channels, groups), channels, eps)
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, h: Tensor, sample: Tensor, temb: Tensor | None) -> Tensor:
        if self.skip is not None and self.fuse is not None:
            h = self.fuse(torch.cat([h, self.skip(sample)], dim=1), temb)  # the skip last, as in `ResidualDecoder`
        return self.conv(F.silu(self.norm(h)))  # (B, out_channels, H, W)


def build_heads(
    config: ModelConfig,
    decoder: PyramidDecoder | ResidualDecoder,
    time_dim: int | None,
    strided: bool,
    own_decoder: PyramidDecoder | ResidualDecoder | None = None,
) -> nn.ModuleDict:
    """The heads of a resolved config.

    Args:
        config: the network's.
        decoder: whose maps they read.
        time_dim: of the time embedding, or None.
        strided: the finest skip is below full resolution.
        own_decoder: of the segmentation head, or None.
    """
    width = decoder.out_channels
    segmentation, diffusion, pixels = config.heads.segmentation, config.heads.diffusion, config.patch_size**2
    residual, eps = config.encoder.name == RESIDUAL, config.imported.norm_eps
    groups = config.residual.norm_num_groups if residual else max(1, min(32, width // 4))
    heads = nn.ModuleDict()
    if segmentation is not None and segmentation.pyramid is not None:
        levels, classes = decoder.level_maps, segmentation.num_classes * pixels
        attending = config.conditioning.attention_levels if segmentation.attention_maps else None
        tokens = {name: segmentation.num_classes for level, (name, _) in levels.items() if level in (attending or [])}
        heads["segmentation"] = PyramidHead(dict(levels.values()), segmentation.pyramid, classes, groups, eps, tokens)
    elif segmentation is not None:
        kernel_size = config.imported.segmentation_kernel_size
        classes = segmentation.num_classes * pixels
        heads["segmentation"] = SegmentationHead(width, classes, groups if residual else None, eps, kernel_size)
    if segmentation is not None:
        embedding = nn.Parameter(torch.zeros(time_dim or 0)) if segmentation.task_embedding else None  # no effect yet
        heads["segmentation"].register_module("own_decoder", own_decoder)
        heads["segmentation"].register_parameter("task_embedding", embedding)
    if diffusion is not None:
        skip_channels = config.in_channels if strided else None
        heads["diffusion"] = DiffusionHead(width, diffusion.out_channels * pixels, groups, eps, time_dim, skip_channels)
    return heads
