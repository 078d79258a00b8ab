"""1x1 convolutions of a trunk, whose deep maps have few pixels and many channels: a CPU trains these by products."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.models.shortcuts import by_hand, is_as_written

FEW = 1024
"""Pixels of a batch up to which it is the quicker way: a convolution lays its weights out anew, and again for each of
its gradients; a product reads them as they are. Without gradients it is left alone: a network that predicts is packed,
and MKL would keep 60 MB for itself once a float32 product was made."""


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        down, across = self.stride
        batch, _, height, width = x.shape
        few = batch * -(-height // down) * -(-width // across) <= FEW
        if not (few and torch.is_grad_enabled() and by_hand(x)) or is_as_written():
            return super().forward(x)
        pixels = rearrange(x[:, :, ::down, ::across], "b c h w -> b h w c")
        out = F.linear(pixels, rearrange(self.weight, "o c 1 1 -> o c"), self.bias)
        return rearrange(out, "b h w o -> b o h w")


def use_products(trunk: nn.Module) -> None:
    """Let every plain 1x1 convolution below `trunk` be a `PointwiseConv` with the same parameters."""
    for module in list(trunk.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Conv2d and (child.kernel_size, child.padding, child.groups) == ((1, 1), (0, 0), 1):
                setattr(module, name, _pointwise(child))


def _pointwise(conv: nn.Conv2d) -> PointwiseConv:
    stride: Any = conv.stride
    new = PointwiseConv(conv.in_channels, conv.out_channels, 1, stride, bias=False, device="meta")
    new.weight, new.bias = conv.weight, conv.bias
    return new
