"""Fold the time embedding of timestep 0 into convolutions and norms: from a denoiser to a network of clean images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.models.blocks import DoubleConv, ResnetBlock
from unetdiff.models.unet import UNet


@torch.no_grad()
def fold_timestep(network: UNet) -> None:
    """Make a residual or classic backbone compute without time embedding what it computes at timestep 0, in place.

    At one timestep, without a condition, the embedding is a constant vector, and its projection in each block a
    constant per channel: a bias of the convolution it is added to, or a scale and shift of the norm it modulates. The
    projections stay in the network and must not be used afterwards.
    """
    temb = network.embed(torch.zeros(1, device=network.device, dtype=network.dtype)).temb
    assert temb is not None
    for name, block in network.named_modules():
        if name.startswith("heads."):
            continue
        if isinstance(block, ResnetBlock) and block.time_emb_proj is not None:
            time = block.time_emb_proj(F.silu(temb))[0]  # (C,) or (2C,)
            if block.scale_shift:
                _modulate(block.norm2, *time.chunk(2))
            else:
                block.conv1.bias.add_(time)  # type: ignore[union-attr]
        elif isinstance(block, DoubleConv) and block.time is not None:
            layer = block.conv1 if isinstance(block.norm1, nn.Identity) else block.norm1
            _modulate(layer, *block.time.linear(block.time.act(temb))[0].chunk(2))


def _modulate(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """y -> y * (1 + scale) + shift, for a layer whose output y (B, C, H, W) is affine in its weight and bias."""
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    weight.mul_((1 + scale).view(-1, *[1] * (weight.ndim - 1)))
    bias.mul_(1 + scale).add_(shift)
