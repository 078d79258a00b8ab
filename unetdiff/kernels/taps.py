"""A 3x3 convolution of a map that doubles its size by nearest neighbour, as one matrix product of the small map.

Each of the kernel's nine taps reads the same small map, so all nine products are made of its pixels: a quarter of the
multiply-adds of the grown map. A pixel of the result is the sum of nine of them. In one dimension, with t0, t1, t2 the
three taps' products of the small map's pixels i:

    out[2i] = t0[i - 1] + t1[i] + t2[i],    out[2i + 1] = t0[i] + t1[i] + t2[i + 1]
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

WIDE = 128
"""Channels of the small map from which the products that it saves are worth the sums."""
SUMS = 4096
"""Numbers of the small map's size with the result's channels, for each channel that is read, up to which they are."""


def few_enough(h: Tensor, out_channels: int) -> bool:
    """Whether to take this way for a map (B, C, H, W): wide, and small enough for the sums to stay in a CPU's cache."""
    batch, channels, height, width = h.shape
    return channels >= WIDE and 0 < batch * height * width * out_channels <= SUMS * channels


def tapped_conv(h: Tensor, skip: Tensor | None, weight: Tensor, bias: Tensor | None, precision: torch.dtype) -> Tensor:
    """The convolution, with padding 1, of a skip's channels and then a map's that grows to double its size.

    Where gradients are recorded, theirs are not.

    Args:
        h: (B, C, H, W).
        skip: (B, C_skip, 2 H, 2 W), or None.
        weight: (O, C_skip + C, 3, 3).
        bias: (O,), or None.
        precision: what it computes in.

    Returns:
        (B, O, 2 H, 2 W), channels-last.
    """
    if torch.is_grad_enabled():
        return TappedConv.apply(h, skip, weight, bias, precision)  # type: ignore[no-any-return]
    return TappedConv.forward(None, h, skip, weight, bias, precision)


class TappedConv(torch.autograd.Function):
    """`tapped_conv`; keeps what it reads, in the precision that it is read in."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, skip: Tensor | None, weight: Tensor, bias: Tensor | None, precision: torch.dtype
    ) -> Tensor:
        own = weight.shape[1] - h.shape[1]
        pixels = rearrange(h.to(precision), "b c h w -> (b h w) c")
        taps = matrix(weight[:, own:], precision)
        offset = None if bias is None else bias.to(precision)
        out = spread((pixels @ taps.t()).view(len(h), *h.shape[-2:], 3, 3, -1))
        kernel = None
        if skip is not None:
            skip, kernel = skip.to(precision), weight[:, :own].to(precision, memory_format=torch.channels_last)
            out.add_(F.conv2d(skip, kernel, offset, padding=1))
        elif offset is not None:
            out.add_(offset[:, None, None])
        if ctx is not None:
            ctx.save_for_backward(pixels, taps, skip, kernel, weight)
            ctx.size, ctx.types = h.shape[-2:], (h.dtype, None if bias is None else bias.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        pixels, taps, skip, kernel, weight = ctx.saved_tensors
        height, width = ctx.size
        of_h, of_skip, of_weight, of_bias, _ = ctx.needs_input_grad
        own = weight.shape[1] - pixels.shape[1]
        dtaps = rearrange(gather(dout), "b h w kh kw o -> (b h w) (kh kw o)")
        dh = dskip = dweight = dbias = None
        if of_h:
            dh = rearrange(dtaps @ taps, "(b h w) c -> b c h w", h=height, w=width).to(ctx.types[0])
        if of_weight:
            dweight = torch.empty_like(weight)
            dweight[:, own:] = rearrange(dtaps.t() @ pixels, "(kh kw o) c -> o c kh kw", kh=3, kw=3)
        if skip is not None:
            window = [1, 1], [1, 1], [1, 1], False, [0, 0], 1
            wanted = [of_skip, of_weight, False]
            dskip, dkernel, _ = torch.ops.aten.convolution_backward(dout, skip, kernel, None, *window, wanted)
            if dweight is not None:
                dweight[:, :own] = dkernel
        if of_bias:
            dbias = dout.sum((0, 2, 3), dtype=ctx.types[1])
        return dh, dskip, dweight, dbias, None


def matrix(kernel: Tensor, precision: torch.dtype) -> Tensor:
    """A kernel (O, C, 3, 3) as (9 O, C): the rows of one tap after those of another."""
    out, channels = kernel.shape[:2]
    rows = torch.empty(3, 3, out, channels, dtype=precision, device=kernel.device)
    rows.copy_(rearrange(kernel, "o c kh kw -> kh kw o c"))
    return rearrange(rows, "kh kw o c -> (kh kw o) c")


def spread(taps: Tensor) -> Tensor:
    """Sums of the taps' products (B, H, W, 3, 3, O): the result, (B, O, 2 H, 2 W) in channels-last."""
    batch, height, width, _, _, channels = taps.shape
    rows = taps.new_empty(batch, height, 2, width, 3, channels)
    even, odd = rows.unbind(2)  # (B, H, W, 3, O)
    above, middle, below = taps.unbind(3)
    torch.add(middle, below, out=even)[:, 1:] += above[:, :-1]
    torch.add(above, middle, out=odd)[:, :-1] += below[:, 1:]
    out = taps.new_empty(batch, height, 2, width, 2, channels)
    even, odd = out.unbind(4)  # (B, H, 2, W, O)
    left, middle, right = rows.unbind(4)
    torch.add(middle, right, out=even)[:, :, :, 1:] += left[:, :, :, :-1]
    torch.add(left, middle, out=odd)[:, :, :, :-1] += right[:, :, :, 1:]
    return rearrange(out, "b h dy w dx o -> b o (h dy) (w dx)")


def gather(dout: Tensor) -> Tensor:
    """The gradient of `spread`: (B, O, 2 H, 2 W) -> (B, H, W, 3, 3, O)."""
    even, odd = rearrange(dout, "b o (h dy) (w dx) -> dx b h dy w o", dy=2, dx=2).unbind()  # (B, H, 2, W, O)
    batch, height, _, width, channels = even.shape
    rows = dout.new_empty(batch, height, 2, width, 3, channels)
    left, middle, right = rows.unbind(4)
    left.copy_(odd)[:, :, :, :-1] += even[:, :, :, 1:]
    torch.add(even, odd, out=middle)
    right.copy_(even)[:, :, :, 1:] += odd[:, :, :, :-1]
    taps = dout.new_empty(batch, height, width, 3, 3, channels)
    above, middle, below = taps.unbind(3)
    even, odd = rows.unbind(2)
    above.copy_(odd)[:, :-1] += even[:, 1:]
    torch.add(even, odd, out=middle)
    below.copy_(even)[:, 1:] += odd[:, :-1]
    return taps
