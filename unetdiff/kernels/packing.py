"""Convolutions for CPU inference: weights packed once in oneDNN's layout; ReLU and the sum with a shortcut or a skip
in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from unetdiff.kernels.allocator import return_freed_memory
from unetdiff.kernels.conditions import is_eager_cpu
from unetdiff.kernels.taps import scatter_taps, tap_matrix, tapped_conv, taps_pay
from unetdiff.kernels.upsample_conv import doubles, transposed_kernel, transposed_pays
from unetdiff.models.blocks import DoubleConv, ResnetBlock, upsample_nearest
from unetdiff.models.decoders import PyramidUpBlock

Window = tuple[Any, Any, Any, int]
"""Padding, stride, dilation, groups."""
OPERATORS = (
    "_convolution_pointwise",
    "_convolution_pointwise_",
    "_convolution_transpose_pointwise",
    "_reorder_convolution_weight",
    "_reorder_convolution_transpose_weight",
    "_linear_pointwise",
    "_reorder_linear_weight",
    "_is_mkldnn_bf16_supported",
    "_is_mkldnn_fp16_supported",
)
"""Private names of `torch.ops.mkldnn`; in a torch that lacks one, nothing is packed."""
_DOUBLING: Any = [1, 1], [0, 0], [2, 2], [1, 1], 1  # padding, output padding, stride, dilation, groups


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN and the operators its own compiler uses for it, and this CPU supports the dtype."""
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS):
        return False
    return supports(dtype)


@cache
def supports(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes in this dtype on this CPU; its operators raise an error where it does not (bfloat16
    without AVX-512)."""
    lower = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype == torch.float32 or (dtype in lower and bool(lower[dtype]()))


@torch.no_grad()
def pack(network: nn.Module, group: Group | None = None) -> None:
    """Replace the packable modules below `network` in place: torchvision's residual blocks, decoder levels, DoubleConvs
    and single convolutions.

    Blocks with a norm or a time embedding keep their form (their convolutions are packed), and `ResnetBlock`s are left
    out. Weights are packed at the second input of one size, all at once: between the maps of the first pass they would
    leave holes in the process's memory that no later tensor fits.

    Args:
        network: the network.
        group: the modules whose weights are packed together; None: all below `network`.
    """
    group = [] if group is None else group
    for index, (name, child) in enumerate(network.named_children()):
        packed = _packed(child, group, follows=isinstance(network, nn.Sequential) and index > 0)
        if packed is not None:
            setattr(network, name, packed)
        elif not isinstance(child, ResnetBlock):
            pack(child, group)


def _packed(module: nn.Module, group: Group, follows: bool) -> nn.Module | None:
    """The packed form of a module, or None.

    Args:
        module: the module.
        group: the modules whose weights are packed together.
        follows: its input is owned by this block (the output of the module before it, read by no other module): the
            sum may overwrite it.
    """
    if type(module) in (BasicBlock, Bottleneck) and _has_no_norms(module):
        return PackedResidual(module, group, follows)
    if isinstance(module, PyramidUpBlock) and module.upsample.kind == "nearest" and _is_packable(module.block, (1, 1)):
        return PackedUpBlock(module, group)
    if isinstance(module, DoubleConv) and _is_packable(module):
        return PackedDoubleConv(module, group)
    if type(module) is not nn.Conv2d:
        return None
    packable = module.padding_mode == "zeros" and isinstance(module.padding, tuple)
    return PackedConv.of(module, group) if packable else None


def _is_packable(block: DoubleConv, padding: tuple[int, int] | None = None) -> bool:
    return block.time is None and _has_no_norms(block) and padding in (None, block.conv1.padding)


def _has_no_norms(block: nn.Module) -> bool:
    kept = (nn.Conv2d, nn.Identity, nn.ReLU, nn.Sequential)
    return all(isinstance(part, kept) for part in block.modules() if part is not block)


def _needs_plain_weights(x: Tensor) -> bool:
    """Whether to compute with plain weights: on another device, under FlopCounterMode, in a dtype that oneDNN does not
    support here, or for a gradient with respect to x, which its fused operators do not have."""
    return not is_eager_cpu(x) or not supports(x.dtype) or (x.requires_grad and torch.is_grad_enabled())


class PackedConv(nn.Module):
    """A convolution without weight gradients, optionally followed by ReLU.

    Args:
        kernel: (O, C / groups, height, width), on a CPU.
        bias: (O,), or None.
        window: zero padding, stride, dilation, groups.
        group: the modules whose weights are packed together; it joins them.
        relu: apply ReLU.
    """

    def __init__(self, kernel: Tensor, bias: Tensor | None, window: Window, group: Group, relu: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = kernel, None if bias is None else bias.detach()
        self.window, self.after = window, "relu" if relu else "none"
        self.size: list[int] = []  # of the last input
        self.group = group
        group.append(self)

    @classmethod
    def of(cls, conv: nn.Conv2d, group: Group, relu: bool = False) -> PackedConv:
        """The packed form of a convolution with zero padding."""
        window = conv.padding, conv.stride, conv.dilation, conv.groups
        return cls(conv.weight.detach(), conv.bias, window, group, relu)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedConv:
        """Convert weights and bias with the module."""
        self.size, self.weight = [], fn(self.dense())
        self.bias = None if self.bias is None else fn(self.bias)
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)  # inside of autocast too
        if _needs_plain_weights(x):
            out = self._dense_conv(x)
            return F.relu(out) if self.after == "relu" else out
        operator = torch.ops.mkldnn._convolution_pointwise
        return operator(x, self._for(x), self.bias, *self.window, self.after, [], "")  # type: ignore[no-any-return]

    def plus(self, x: Tensor, other: Tensor, in_place: bool = False) -> Tensor:
        """ReLU of the convolution of x plus another map; `in_place` overwrites that map."""
        x, other = (h.to(self.weight.dtype, memory_format=torch.channels_last) for h in (x, other))
        if _needs_plain_weights(x) or _needs_plain_weights(other):
            return F.relu(self._dense_conv(x) + other)
        rest: Any = self._for(x), self.bias, *self.window, "add", 1.0, "relu", [], ""
        if in_place:
            return torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *rest)  # type: ignore[no-any-return]
        return torch.ops.mkldnn._convolution_pointwise.binary(x, other, *rest)  # type: ignore[no-any-return]

    def _for(self, x: Tensor) -> Tensor:
        """The weights, packed for the size of x if it is that of the last input.

        Packed for another size, they can be 10x slower.
        """
        size = list(x.shape)
        if size != self.size:
            self.size, self.weight = size, self.dense()
        elif not self.weight.is_mkldnn:
            pack_weights(self.group)
        return self.weight

    def pack_weights(self) -> None:
        """Pack for the last input's size."""
        if self.size and not self.weight.is_mkldnn:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.window, self.size)

    def dense(self) -> Tensor:
        """The weights, (O, C / groups, height, width)."""
        return self.weight.to_dense() if self.weight.is_mkldnn else self.weight

    def _dense_conv(self, x: Tensor) -> Tensor:
        padding, stride, dilation, groups = self.window
        return F.conv2d(x, self.dense(), self.bias, stride, padding, dilation, groups)


class PackedUpsampleConv(nn.Module):
    """ReLU of `upsample_conv`: neither the upsampled nor the concatenated map is made.

    Where the map doubles, the weights of the shorter form are packed: those of each tap, or their sums.

    Args:
        conv: reads the skip's channels, then the map's; replaced by this module in its group.
        channels: of the map.
    """

    def __init__(self, conv: PackedConv, channels: int) -> None:
        super().__init__()
        kernel = conv.dense()
        skip_channels = kernel.shape[1] - channels
        alone: Group = []  # these weights stay dense: others are derived from them
        self.upsampled = PackedConv(kernel[:, skip_channels:], conv.bias, conv.window, alone, relu=not skip_channels)
        self.skip = PackedConv(kernel[:, :skip_channels], None, conv.window, conv.group) if skip_channels else None
        self.packed: Tensor | None = None
        self.size: list[int] = []  # of the last map that doubled
        self.tapped = False  # whether products with each tap pay at that size
        self.group = conv.group
        conv.group[conv.group.index(conv)] = self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedUpsampleConv:
        self.packed, self.size = None, []
        super()._apply(fn)
        return self

    def forward(self, h: Tensor, size: tuple[int, int], skip: Tensor | None) -> Tensor:
        """h (B, C, H, W) is upsampled to `size`, that of the skip (B, C_skip, height, width)."""
        out = self._upsample(h.to(self.upsampled.weight.dtype), size)
        return out if self.skip is None or skip is None else self.skip.plus(skip, out, in_place=True)

    def _upsample(self, h: Tensor, size: tuple[int, int]) -> Tensor:
        if _needs_plain_weights(h) or not doubles(h, size):
            return self.upsampled(upsample_nearest(h, size))  # type: ignore[no-any-return]
        shape = list(h.shape)
        if shape != self.size:
            self.packed, self.size, self.tapped = None, shape, taps_pay(h, self.upsampled.weight.shape[0])
        elif self.packed is None:
            pack_weights(self.group)
        if self.tapped:
            return self._by_taps(h)
        if self.packed is None and not transposed_pays(h):
            return self.upsampled(upsample_nearest(h, size))  # type: ignore[no-any-return]
        sums = transposed_kernel(self.upsampled.dense()) if self.packed is None else self.packed
        operator = torch.ops.mkldnn._convolution_transpose_pointwise
        return operator(h, sums, self.upsampled.bias, *_DOUBLING, self.upsampled.after, [], "")  # type: ignore[no-any-return]

    def _by_taps(self, h: Tensor) -> Tensor:
        bias = self.upsampled.bias
        if self.packed is None:
            out = tapped_conv(h, None, self.upsampled.dense(), bias, h.dtype)
        else:
            pixels = rearrange(h, "b c h w -> (b h w) c")
            products = torch.ops.mkldnn._linear_pointwise(pixels, self.packed, None, "none", [], "")
            out = scatter_taps(products.view(len(h), *h.shape[-2:], 3, 3, -1))
            if bias is not None:
                out.add_(bias[:, None, None])
        return out.relu_() if self.upsampled.after == "relu" else out

    def pack_weights(self) -> None:
        """Pack for the last map's size."""
        if self.size and self.packed is None:
            self.upsampled.weight = kernel = (
                self.upsampled.dense().clone()
            )  # no longer a view of the whole kernel, which is freed
            if self.tapped:
                pixels = self.size[0] * self.size[2] * self.size[3]
                self.packed = torch.ops.mkldnn._reorder_linear_weight(tap_matrix(kernel, kernel.dtype), pixels)
            else:
                reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
                self.packed = reorder(transposed_kernel(kernel), *_DOUBLING, self.size)


class PackedResidual(nn.Module):
    """torchvision's residual block with folded norms.

    Args:
        block: the block.
        group: the modules whose weights are packed together.
        in_place: whether the sum may overwrite the input.
    """

    def __init__(self, block: BasicBlock | Bottleneck, group: Group, in_place: bool) -> None:
        super().__init__()
        convs = [block.conv1, block.conv2, *([block.conv3] if isinstance(block, Bottleneck) else [])]
        self.first = nn.Sequential(*[PackedConv.of(conv, group, relu=True) for conv in convs[:-1]])
        self.last = PackedConv.of(convs[-1], group)
        self.downsample = block.downsample
        self.in_place = in_place or self.downsample is not None
        if self.downsample is not None:
            pack(self.downsample, group)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last.plus(h, x if self.downsample is None else self.downsample(x), self.in_place)


class PackedDoubleConv(nn.Module):
    """`DoubleConv` without norms."""

    def __init__(self, block: DoubleConv, group: Group) -> None:
        super().__init__()
        self.conv1 = PackedConv.of(block.conv1, group, relu=True)
        self.conv2 = PackedConv.of(block.conv2, group, relu=True)

    def forward(self, h: Tensor, temb: Tensor | None = None) -> Tensor:
        return self.conv2(self.conv1(h))  # type: ignore[no-any-return]


class PackedUpBlock(nn.Module):
    """`PyramidUpBlock` with nearest-neighbor upsampling, without norms."""

    def __init__(self, up_block: PyramidUpBlock, group: Group) -> None:
        super().__init__()
        conv1 = PackedConv.of(up_block.block.conv1, group, relu=True)
        self.conv1 = PackedUpsampleConv(conv1, up_block.upsample.out_channels)
        self.conv2 = PackedConv.of(up_block.block.conv2, group, relu=True)

    def forward(self, h: Tensor, skip: Tensor | None, size: tuple[int, int], temb: Tensor | None = None) -> Tensor:
        return self.conv2(self.conv1(h, size, skip))  # type: ignore[no-any-return]


Group = list[PackedConv | PackedUpsampleConv]
"""Modules whose weights are packed together."""


def pack_weights(group: Group) -> None:
    """Pack the weights of each for the size it read last."""
    for member in group:
        member.pack_weights()
        return_freed_memory()  # of the dense weights, whose holes no later tensor fits
