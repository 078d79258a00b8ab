"""Convolutions of a trunk, whose deep maps have few pixels and many channels: a CPU trains these by products.

A convolution lays its weights out anew for each use, and again for each of its gradients; a product reads them as they
are. Without gradients all of them are left alone: a network that predicts is packed, and MKL would keep 60 MB for
itself once a float32 product was made.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from unetdiff.kernels.conditions import by_hand, computed_in, is_as_written

FEW = {(1, 1): 1024, (3, 3): 256}
"""By the kernel's size: pixels of a batch's result up to which it is the quicker way."""


class ProductConv(nn.Conv2d):
    """A 1x1 convolution, or a strided 3x3 one with padding 1."""

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and by_hand(x) and self._has_few(x)) or is_as_written():
            return super().forward(x)
        if self.kernel_size == (1, 1):
            if self.stride != (1, 1):
                x = F.avg_pool2d(x, 1, self.stride)  # of one pixel each: a slice's gradient would not be channels-last
            weight = rearrange(self.weight, "o c 1 1 -> o c")
            return rearrange(F.linear(rearrange(x, "b c h w -> b h w c"), weight, self.bias), "b h w o -> b o h w")
        out = Unfolded.apply(x, self.weight, self.stride, computed_in(self.weight))
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def _has_few(self, x: Tensor) -> bool:
        """The result has few pixels, and the weights need not be laid out anew for a product either."""
        down, across = self.stride
        batch, _, height, width = x.shape
        pixels = batch * -(-height // down) * -(-width // across)
        laid = self.weight.is_contiguous(memory_format=torch.channels_last)
        return laid and pixels <= FEW[self.kernel_size]  # type: ignore[index]


class Unfolded(torch.autograd.Function):
    """A 3x3 convolution with padding 1 of a map laid out window by window, and so the gradient of its weights.

    The map's own is a convolution's, which is as quick and adds up what windows share.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], precision: torch.dtype) -> Tensor:
        ctx.types, ctx.stride = (x.dtype, weight.dtype), stride
        x, weight = (t.to(precision, memory_format=torch.channels_last) for t in (x, weight))
        ctx.save_for_backward(x, weight)
        rows = windows(x, stride)  # (B, H, W, 9 C)
        return rearrange(F.linear(rows, rearrange(weight, "o c kh kw -> o (kh kw c)")), "b h w o -> b o h w")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, *_ = ctx.needs_input_grad
        dx = dweight = None
        if of_x:
            window = ctx.stride, (1, 1), (1, 1), False, (0, 0), 1
            dx, *_ = torch.ops.aten.convolution_backward(dout, x, weight, None, *window, [True, False, False])
            dx = dx.to(ctx.types[0])
        if of_weight:
            rows = rearrange(windows(x, ctx.stride), "b h w k -> (b h w) k")
            dweight = rearrange(dout, "b o h w -> o (b h w)") @ rows
            dweight = rearrange(dweight, "o (kh kw c) -> o c kh kw", kh=3, kw=3).to(ctx.types[1])
        return dx, dweight, None, None


def windows(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """What a 3x3 kernel with padding 1 sees of (B, C, H, W): (B, H', W', 9 C), row after row of the window."""
    padded = rearrange(F.pad(x, (1, 1, 1, 1)), "b c h w -> b h w c").contiguous()
    seen = padded.unfold(1, 3, stride[0]).unfold(2, 3, stride[1])  # (B, H', W', C, 3, 3)
    return rearrange(seen, "b h w c kh kw -> b h w (kh kw c)")


def use_products(trunk: nn.Module) -> None:
    """Let every plain 1x1 or strided 3x3 convolution below `trunk` be a `ProductConv` with the same parameters."""
    for module in list(trunk.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Conv2d and _fits(child):
                setattr(module, name, _product(child))


def _fits(conv: nn.Conv2d) -> bool:
    """It is one that `ProductConv` knows."""
    if (conv.groups, conv.dilation, conv.padding_mode) != (1, (1, 1), "zeros"):
        return False
    if conv.kernel_size == (1, 1):
        return conv.padding == (0, 0)
    # with a stride of 1 a convolution is as quick; with one of 2 its gradients were found to take twice as long
    return (conv.kernel_size, conv.padding) == ((3, 3), (1, 1)) and conv.stride != (1, 1)


def _product(conv: nn.Conv2d) -> ProductConv:
    window: Any = {"kernel_size": conv.kernel_size, "stride": conv.stride, "padding": conv.padding}
    new = ProductConv(conv.in_channels, conv.out_channels, **window, bias=False, device="meta")
    new.weight, new.bias = conv.weight, conv.bias
    return new
