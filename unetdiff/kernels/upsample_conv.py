"""Nearest-neighbour upsampling, a skip, and the 3x3 convolution that reads both: on a CPU, without the large map."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.kernels.conditions import by_hand, computed_in, is_as_written, is_plain
from unetdiff.kernels.taps import few_enough, tapped_conv

ENOUGH = 2048
"""Pixels of the small maps from which it pays to make other weights of the convolution's first."""
_TAPS = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
"""Which of a 3-tap kernel's weights add up in each tap of the transposed one, (4, 3)."""
_SHARES = torch.kron(_TAPS, _TAPS)
"""The same of both dimensions, (16, 9)."""


def grow_nearest(h: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Nearest-neighbour upsampling to `size`, or to double the size."""
    if size is None:
        return F.interpolate(h, scale_factor=2.0, mode="nearest")
    return F.interpolate(h, size=size, mode="nearest")


def join(h: Tensor, skip: Tensor) -> Tensor:
    """Concatenate a map with its skip along the channels."""
    return torch.cat([h, skip], dim=1)  # (B, C + C_skip, H, W)


def grown_conv(conv: nn.Conv2d, h: Tensor, size: tuple[int, int] | None = None, skip: Tensor | None = None) -> Tensor:
    """conv(join(skip, grow_nearest(h, size))).

    A pixel of the grown map is one of four that are the same, so a 3x3 window of it holds four numbers, not nine: where
    it grows to double the size, a transposed 4x4 convolution of stride 2 with sums of the same weights gives the same
    with 4/9 of the multiply-adds, and neither the grown map nor the joined one is made. With w of three taps, one
    dimension of the kernel is (w2, w1 + w2, w0 + w1, w0). Of few pixels with many channels, products with each tap and
    their sums give it with 1/4 (`tapped_conv`).

    Args:
        conv: of 3x3.
        h: (B, C, H, W).
        size: (height, width) to grow to; None: double.
        skip: (B, C_skip, height, width), or None.
    """
    doubled = by_hand(h) and doubles(h, size) and not is_as_written() and is_plain(conv, nn.Conv2d) and _is_usual(conv)
    if doubled and few_enough(h, conv.out_channels):
        return tapped_conv(h, skip, conv.weight, conv.bias, computed_in(conv.weight))
    if not (doubled and enough(h)):
        h = grow_nearest(h, size)
        return conv(h if skip is None else join(skip, h))
    precision = computed_in(conv.weight)
    offset = None if conv.bias is None else conv.bias.to(precision)
    kernel = conv.weight.to(precision)
    channels = kernel.shape[1] - h.shape[1]  # of the skip, which comes first
    out = F.conv_transpose2d(h.to(precision), transposed(kernel[:, channels:]), offset, stride=2, padding=1)
    return out if skip is None else out.add_(F.conv2d(skip.to(precision), kernel[:, :channels], padding=1))


def transposed(kernel: Tensor) -> Tensor:
    """The 4x4 kernel (C, O, 4, 4) of the transposed convolution, from (O, C, 3, 3)."""
    sums = _SHARES.to(kernel) @ rearrange(kernel, "o c h w -> o (h w) c")
    return rearrange(sums, "o (h w) c -> c o h w", h=4)


def doubles(h: Tensor, size: tuple[int, int] | None) -> bool:
    """A map (B, C, H, W) grows to double its size."""
    return size is None or size == (2 * h.shape[-2], 2 * h.shape[-1])


def enough(h: Tensor) -> bool:
    """A map (B, C, H, W) has the pixels for which other weights are worth making."""
    batch, _, height, width = h.shape
    return batch * height * width >= ENOUGH


def _is_usual(conv: nn.Conv2d) -> bool:
    geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    return geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
