"""Further input channels of a network: those of a condition, which start at zero, and RGB in the place of gray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from einops import repeat
from torch import nn

from unetdiff.models import loading
from unetdiff.models.config import RGB, in_rgb
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


def is_gray(config: Mapping[str, Any]) -> bool:
    """Whether a network's config is that of a segmenter of gray images."""
    return bool(config["in_channels"] == 1 and config["heads"]["diffusion"] is None)


def gray_to_rgb(unet: UNet) -> UNet:
    """A network of RGB images with the maps that a network of gray images has of the same images, read as RGB.

    Each channel has a third of the weights; `encoder.mean` and `encoder.std` are those of gray in every channel.
    """
    config = loading.plain(unet.config) | {"in_channels": RGB}
    for key in ("mean", "std"):
        config["encoder"][key] = in_rgb(config["encoder"][key])
    result = loading.build(UNet, config)
    nn.Module.to(result, unet.dtype)  # not ModelMixin.to, which warns about every dtype
    state = dict(unet.state_dict())
    for name, target in result.state_dict().items():
        if target.shape != state[name].shape:  # of a patch: (channel, row, column), see `patchify`
            state[name] = repeat(state[name], "o i h w -> o (c i) h w", c=RGB) / RGB
    result.load_state_dict(state)
    return result.train(unet.training)
