"""Nearest-neighbor upsampling, a skip, and the 3x3 convolution that reads both, without the upsampled map."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.kernels.conditions import compute_dtype, is_eager_cpu, is_unhooked
from unetdiff.kernels.taps import tapped_conv, taps_pay
from unetdiff.models.blocks import upsample_nearest

MIN_PIXELS = 2048
"""Pixels of a batch's small maps from which summing the weights pays."""
_TAPS = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
"""(4, 3): the weights of a 3-tap kernel that sum to each tap of the transposed kernel."""
_TAPS_2D = torch.kron(_TAPS, _TAPS)
"""(16, 9): the same in two dimensions."""


def upsample_conv(
    conv: nn.Conv2d, h: Tensor, size: tuple[int, int] | None = None, skip: Tensor | None = None
) -> Tensor:
    """conv(cat[skip, upsample_nearest(h, size)]).

    Upsampling by 2 repeats each pixel four times, so a 3x3 window reads four values, not nine: a transposed 4x4
    convolution of stride 2 with sums of the same weights computes the same with 4/9 of the multiply-adds, and neither
    the upsampled nor the concatenated map is made. One dimension of a kernel (w0, w1, w2) becomes
    (w2, w1 + w2, w0 + w1, w0). Small maps with many channels take 1/4 of the multiply-adds by `tapped_conv`.

    Args:
        conv: 3x3.
        h: (B, C, H, W).
        size: (height, width) to upsample to; None: double.
        skip: (B, C_skip, height, width), or None.
    """
    replaceable = is_eager_cpu(h) and doubles(h, size) and is_unhooked(conv, nn.Conv2d) and _is_3x3(conv)
    if replaceable and taps_pay(h, conv.out_channels):
        return tapped_conv(h, skip, conv.weight, conv.bias, compute_dtype(conv.weight))
    if not (replaceable and transposed_pays(h)):
        h = upsample_nearest(h, size)
        return conv(h if skip is None else torch.cat([skip, h], dim=1))
    dtype = compute_dtype(conv.weight)
    offset = None if conv.bias is None else conv.bias.to(dtype)
    kernel = conv.weight.to(dtype)
    channels = kernel.shape[1] - h.shape[1]  # of the skip
    out = F.conv_transpose2d(h.to(dtype), transposed_kernel(kernel[:, channels:]), offset, stride=2, padding=1)
    return out if skip is None else out.add_(F.conv2d(skip.to(dtype), kernel[:, :channels], padding=1))


def transposed_kernel(kernel: Tensor) -> Tensor:
    """The kernel (C, O, 4, 4) of the transposed convolution, from (O, C, 3, 3)."""
    sums = _TAPS_2D.to(kernel) @ rearrange(kernel, "o c h w -> o (h w) c")
    return rearrange(sums, "o (h w) c -> c o h w", h=4)


def doubles(h: Tensor, size: tuple[int, int] | None) -> bool:
    """Whether a map (B, C, H, W) is upsampled to exactly double its size."""
    return size is None or size == (2 * h.shape[-2], 2 * h.shape[-1])


def transposed_pays(h: Tensor) -> bool:
    """Whether a map (B, C, H, W) has enough pixels for the transposed form."""
    batch, _, height, width = h.shape
    return batch * height * width >= MIN_PIXELS


def _is_3x3(conv: nn.Conv2d) -> bool:
    geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    return geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
