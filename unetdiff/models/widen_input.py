"""Further input channels of a network, which start at zero."""

from __future__ import annotations

from typing import Any

from torch import nn

from unetdiff.models.unet import UNet


def widen_input_(unet: UNet, in_channels: int) -> None:
    """Let a residual network read more channels, in place; their weights are zero, so it computes the same.

    As Stable Diffusion's inpainting models were made of its text to image models.

    Args:
        unet: changed in place.
        in_channels: more than it has.
    """
    conv: Any = unet.encoder.conv_in
    missing = in_channels - conv.in_channels
    conv.weight = nn.Parameter(nn.functional.pad(conv.weight.detach(), (0, 0, 0, 0, 0, missing)))
    conv.in_channels = in_channels
    unet.register_to_config(in_channels=in_channels)
