"""The two heads on the one full-resolution map. Change 3 of 3 is the second one's output convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unetdiff.kernels.norm_silu_conv import norm_silu
from unetdiff.models.blocks import ResnetBlock, norm_groups


class SegmentationHead(nn.Module):
    """A convolution to one logit a class (1x1: Ronneberger et al. 2015), after norm and SiLU where it lacks them."""

    def __init__(self, channels: int, num_classes: int, groups: int | None, kernel_size: int = 1) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups(channels, groups), channels) if groups else None
        self.conv = nn.Conv2d(channels, num_classes, kernel_size, padding=kernel_size // 2)

    def forward(self, h: Tensor) -> Tensor:
        if self.norm is not None:
            h = norm_silu(self.norm, h)
        return self.conv(h)  # (B, num_classes, H, W)


class DiffusionHead(nn.Module):
    """Norm, SiLU, 3x3 convolution with as many channels as the noise.

    A trunk with a strided stem never sees the noise at full resolution: there, the head takes a skip from the input
    (`skip_in`), joined by a residual block that knows the timestep.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        groups: int,
        eps: float,
        time_dim: int | None,
        skip_in: int | None,
    ) -> None:
        super().__init__()
        self.skip = nn.Conv2d(skip_in, channels, 3, padding=1) if skip_in else None
        self.fuse = ResnetBlock(2 * channels, channels, time_dim, groups=groups, scale_shift=True) if skip_in else None
        self.norm = nn.GroupNorm(norm_groups(channels, groups), channels, eps)
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, h: Tensor, sample: Tensor, temb: Tensor | None) -> Tensor:
        if self.skip is not None and self.fuse is not None:
            h = self.fuse(torch.cat([h, self.skip(sample)], dim=1), temb)
        return self.conv(norm_silu(self.norm, h))  # (B, out_channels, H, W)
