"""Nearest-neighbor upsampling by 2 and a 3x3 convolution, as one matrix product of the small map.

Each of the kernel's nine taps reads the same small map, so all nine products are computed at its resolution, with a
quarter of the multiply-adds of the upsampled map. A pixel of the result is the sum of nine products. In one dimension,
with t0, t1, t2 the three taps' products of the small map's pixels i:

    out[2i] = t0[i - 1] + t1[i] + t2[i],    out[2i + 1] = t0[i] + t1[i] + t2[i + 1]
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MIN_CHANNELS = 128
"""Channels of the small map from which the saved multiply-adds outweigh the additional sums."""
MAX_OUTPUTS_PER_CHANNEL = 4096
"""Pixels of the small map times output channels, per input channel, up to which they do."""


def taps_pay(h: Tensor, out_channels: int) -> bool:
    """Whether this form is faster for a map (B, C, H, W): many channels, and sums that stay in a CPU's cache."""
    batch, channels, height, width = h.shape
    return channels >= MIN_CHANNELS and 0 < batch * height * width * out_channels <= MAX_OUTPUTS_PER_CHANNEL * channels


def tapped_conv(h: Tensor, skip: Tensor | None, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """conv(concat(skip, upsample(h))) with padding 1; no double backward.

    Args:
        h: (B, C, H, W).
        skip: (B, C_skip, 2 H, 2 W), or None.
        weight: (O, C_skip + C, 3, 3).
        bias: (O,), or None.
        dtype: of the computation.

    Returns:
        (B, O, 2 H, 2 W), channels-last.
    """
    if torch.is_grad_enabled():
        return TappedConv.apply(h, skip, weight, bias, dtype)  # type: ignore[no-any-return]
    return TappedConv.forward(None, h, skip, weight, bias, dtype)


class TappedConv(torch.autograd.Function):
    """`tapped_conv`; saves its inputs in the compute dtype."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, skip: Tensor | None, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        skip_channels = weight.shape[1] - h.shape[1]
        pixels = rearrange(h.to(dtype), "b c h w -> (b h w) c")
        taps = tap_matrix(weight[:, skip_channels:], dtype)
        offset = None if bias is None else bias.to(dtype)
        out = scatter_taps((pixels @ taps.t()).view(len(h), *h.shape[-2:], 3, 3, -1))
        kernel = None
        if skip is not None:
            skip, kernel = skip.to(dtype), weight[:, :skip_channels].to(dtype, memory_format=torch.channels_last)
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
        skip_channels = weight.shape[1] - pixels.shape[1]
        dtaps = rearrange(gather_taps(dout), "b h w kh kw o -> (b h w) (kh kw o)")
        dh = dskip = dweight = dbias = None
        if of_h:
            dh = rearrange(dtaps @ taps, "(b h w) c -> b c h w", h=height, w=width).to(ctx.types[0])
        if of_weight:
            dweight = torch.empty_like(weight)
            dweight[:, skip_channels:] = rearrange(dtaps.t() @ pixels, "(kh kw o) c -> o c kh kw", kh=3, kw=3)
        if skip is not None:
            window = [1, 1], [1, 1], [1, 1], False, [0, 0], 1
            mask = [of_skip, of_weight, False]
            dskip, dkernel, _ = torch.ops.aten.convolution_backward(dout, skip, kernel, None, *window, mask)
            if dweight is not None:
                dweight[:, :skip_channels] = dkernel
        if of_bias:
            dbias = dout.sum((0, 2, 3), dtype=ctx.types[1])
        return dh, dskip, dweight, dbias, None


def tap_matrix(kernel: Tensor, dtype: torch.dtype) -> Tensor:
    """A kernel (O, C, 3, 3) as (9 O, C), tap by tap."""
    out, channels = kernel.shape[:2]
    rows = torch.empty(3, 3, out, channels, dtype=dtype, device=kernel.device)
    rows.copy_(rearrange(kernel, "o c kh kw -> kh kw o c"))
    return rearrange(rows, "kh kw o c -> (kh kw o) c")


def scatter_taps(taps: Tensor) -> Tensor:
    """Sum the taps' products (B, H, W, 3, 3, O) to the output (B, O, 2 H, 2 W), channels-last."""
    batch, height, width, _, _, channels = taps.shape
    rows = taps.new_empty(batch, height, 2, width, 3, channels)
    even, odd = rows.unbind(2)  # (B, H, W, 3, O)
    above, center, below = taps.unbind(3)
    torch.add(center, below, out=even)[:, 1:] += above[:, :-1]
    torch.add(above, center, out=odd)[:, :-1] += below[:, 1:]
    out = taps.new_empty(batch, height, 2, width, 2, channels)
    even, odd = out.unbind(4)  # (B, H, 2, W, O)
    left, center, right = rows.unbind(4)
    torch.add(center, right, out=even)[:, :, :, 1:] += left[:, :, :, :-1]
    torch.add(left, center, out=odd)[:, :, :, :-1] += right[:, :, :, 1:]
    return rearrange(out, "b h dy w dx o -> b o (h dy) (w dx)")


def gather_taps(dout: Tensor) -> Tensor:
    """The gradient of `scatter_taps`: (B, O, 2 H, 2 W) -> (B, H, W, 3, 3, O)."""
    even, odd = rearrange(dout, "b o (h dy) (w dx) -> dx b h dy w o", dy=2, dx=2).unbind()  # (B, H, 2, W, O)
    batch, height, _, width, channels = even.shape
    rows = dout.new_empty(batch, height, 2, width, 3, channels)
    left, center, right = rows.unbind(4)
    left.copy_(odd)[:, :, :, :-1] += even[:, :, :, 1:]
    torch.add(even, odd, out=center)
    right.copy_(even)[:, :, :, 1:] += odd[:, :, :, :-1]
    taps = dout.new_empty(batch, height, width, 3, 3, channels)
    above, center, below = taps.unbind(3)
    even, odd = rows.unbind(2)
    above.copy_(odd)[:, :-1] += even[:, 1:]
    torch.add(even, odd, out=center)
    below.copy_(even)[:, 1:] += odd[:, :-1]
    return taps
