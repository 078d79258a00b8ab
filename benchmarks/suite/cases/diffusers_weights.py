"""A diffusers `UNet2DConditionModel`'s weights in our network: the same tensors under other names."""

from __future__ import annotations

from torch import nn

FIRST = {
    "conv_norm_out": "heads.diffusion.norm",
    "conv_out": "heads.diffusion.conv",
    "conv_in": "encoder.conv_in",
    "down_blocks": "encoder.down_blocks",
    "mid_block": "middle",
    "up_blocks": "decoder.up_blocks",
}
"""The first part of a tensor's name there, and here; what is not named is called the same."""


def load_diffusers_weights(unet: nn.Module, theirs: nn.Module) -> None:
    """Copy every tensor of `theirs` into our network, strictly; precision and memory format stay ours."""
    parts = {name: name.partition(".") for name in theirs.state_dict()}
    names = {name: f"{FIRST.get(first, first)}{dot}{rest}" for name, (first, dot, rest) in parts.items()}
    unet.load_state_dict({names[name]: tensor for name, tensor in theirs.state_dict().items()}, strict=True)
