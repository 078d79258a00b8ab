"""Convolutions of a network that only predicts on a CPU: weights laid out once as oneDNN reads them, ReLU and the sum
with a shortcut or a skip in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from unetdiff.kernels.allocator import give_back_freed_memory
from unetdiff.kernels.conditions import is_as_written
from unetdiff.kernels.taps import few_enough, matrix, spread, tapped_conv
from unetdiff.kernels.upsample_conv import doubles, enough, grow_nearest, transposed
from unetdiff.models.blocks import DoubleConv, ResnetBlock
from unetdiff.models.products import ProductConv

Window = tuple[Any, Any, Any, int]
"""Padding, stride, dilation, groups."""
_OPERATORS = (
    "_convolution_pointwise",
    "_convolution_pointwise_",
    "_convolution_transpose_pointwise",
    "_reorder_convolution_weight",
    "_reorder_convolution_transpose_weight",
    "_linear_pointwise",
    "_reorder_linear_weight",
)
_DOUBLING: Any = [1, 1], [0, 0], [2, 2], [1, 1], 1  # padding, output padding, stride, dilation, groups


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN, the operators that its own compiler uses for it, and this CPU the precision."""
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS):
        return False
    lower = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype == torch.float32 or (dtype in lower and lower[dtype]())


@torch.no_grad()
def pack(network: nn.Module, group: Group | None = None) -> None:
    """Replace, in place, what is below `network` and can be packed: residual blocks, DoubleConvs, other convolutions.

    Blocks with a norm or a time embedding left keep their form, as do the residual family's. Weights are laid out when
    the network is given a size for the second time, all at once: in between the maps of its first answer, they would
    leave holes in the process' memory that nothing fits into.

    Args:
        network: what answers.
        group: those whose weights are laid out together; None: all below `network`.
    """
    group = [] if group is None else group
    for place, (name, child) in enumerate(network.named_children()):
        packed = _packed(child, group, isinstance(network, nn.Sequential) and place > 0)
        if packed is not None:
            setattr(network, name, packed)
        elif not isinstance(child, ResnetBlock):
            pack(child, group)


def _packed(module: nn.Module, group: Group, follows: bool) -> nn.Module | None:
    """follows: what comes in is another module's output, which nobody else reads."""
    if type(module) in (BasicBlock, Bottleneck) and _has_no_norms(module):
        return PackedResidual(module, group, follows)
    if type(module) is DoubleConv and module.time is None and _has_no_norms(module):
        return PackedDoubleConv(module, group)
    if not isinstance(module, nn.Conv2d) or type(module) not in (nn.Conv2d, ProductConv):
        return None
    packable = module.padding_mode == "zeros" and isinstance(module.padding, tuple)
    return PackedConv.of(module, group) if packable else None


def _has_no_norms(block: nn.Module) -> bool:
    kept = (nn.Conv2d, nn.Identity, nn.ReLU, nn.Sequential)
    return all(isinstance(part, kept) for part in block.modules() if part is not block)


def _left_alone(x: Tensor) -> bool:
    """Not for packed weights: what is counted, lies on another device, or asks for a gradient, which oneDNN has not."""
    return is_as_written() or not x.is_cpu or (x.requires_grad and torch.is_grad_enabled())


class PackedConv(nn.Module):
    """A convolution without gradients, and a ReLU after it where it is asked for.

    Args:
        kernel: (O, C / groups, height, width), on a CPU.
        bias: (O,), or None.
        window: padding (of zeros), stride, dilation, groups.
        group: those whose weights are laid out together with its own.
        relu: whether what it puts out is never negative.
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
        """In the place of a convolution with zero padding."""
        window = conv.padding, conv.stride, conv.dilation, conv.groups
        return cls(conv.weight.detach(), conv.bias, window, group, relu)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedConv:
        """Weights and bias go along to another precision."""
        self.size, self.weight = [], fn(self.plain())
        self.bias = None if self.bias is None else fn(self.bias)
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)  # inside of autocast too
        if _left_alone(x):
            out = self._plainly(x)
            return F.relu(out) if self.after == "relu" else out
        operator = torch.ops.mkldnn._convolution_pointwise
        return operator(x, self._for(x), self.bias, *self.window, self.after, [], "")  # type: ignore[no-any-return]

    def plus(self, x: Tensor, other: Tensor, in_place: bool = False) -> Tensor:
        """ReLU of the convolution of x and another map, which may be given up for it."""
        x, other = (h.to(self.weight.dtype, memory_format=torch.channels_last) for h in (x, other))
        if _left_alone(x) or _left_alone(other):
            return F.relu(self._plainly(x) + other)
        rest: Any = self._for(x), self.bias, *self.window, "add", 1.0, "relu", [], ""
        if in_place:
            return torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *rest)  # type: ignore[no-any-return]
        return torch.ops.mkldnn._convolution_pointwise.binary(x, other, *rest)  # type: ignore[no-any-return]

    def _for(self, x: Tensor) -> Tensor:
        """The weights, laid out for the size of x where the last input had it too.

        Laid out for another one, they could be read ten times as slowly.
        """
        size = list(x.shape)
        if size != self.size:
            self.size, self.weight = size, self.plain()
        elif not self.weight.is_mkldnn:
            lay_out(self.group)
        return self.weight

    def lay_out(self) -> None:
        """As the last input's size asks for."""
        if self.size and not self.weight.is_mkldnn:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.window, self.size)

    def plain(self) -> Tensor:
        """The weights, (O, C / groups, height, width)."""
        return self.weight.to_dense() if self.weight.is_mkldnn else self.weight

    def _plainly(self, x: Tensor) -> Tensor:
        padding, stride, dilation, groups = self.window
        return F.conv2d(x, self.plain(), self.bias, stride, padding, dilation, groups)


class PackedGrowth(nn.Module):
    """ReLU of the 3x3 convolution of a skip and a map that grows to its size (`grown_conv`); neither is joined.

    Where the map doubles, the weights of the shorter way are laid out too: those of each tap, or their sums.

    Args:
        conv: reads the skip's channels, then the map's; takes its place in its group.
        channels: of the map.
    """

    def __init__(self, conv: PackedConv, channels: int) -> None:
        super().__init__()
        kernel = conv.plain()
        own = kernel.shape[1] - channels
        apart: Group = []  # its weights stay as they are where others are made of them
        self.above = PackedConv(kernel[:, own:], conv.bias, conv.window, apart, relu=not own)
        self.beside = PackedConv(kernel[:, :own], None, conv.window, conv.group) if own else None
        self.made: Tensor | None = None
        self.size: list[int] = []  # of the last map that doubled
        self.tapped = False  # whether that one has few enough pixels for products with each tap
        self.group = conv.group
        conv.group[conv.group.index(conv)] = self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedGrowth:
        self.made, self.size = None, []
        super()._apply(fn)
        return self

    def forward(self, h: Tensor, size: tuple[int, int], skip: Tensor | None) -> Tensor:
        """h (B, C, H, W) grows to `size`, which is the skip's (B, C_skip, height, width)."""
        grown = self._grown(h.to(self.above.weight.dtype), size)
        return grown if self.beside is None or skip is None else self.beside.plus(skip, grown, in_place=True)

    def _grown(self, h: Tensor, size: tuple[int, int]) -> Tensor:
        if _left_alone(h) or not doubles(h, size):
            return self.above(grow_nearest(h, size))  # type: ignore[no-any-return]
        shape = list(h.shape)
        if shape != self.size:
            self.made, self.size, self.tapped = None, shape, few_enough(h, self.above.weight.shape[0])
        elif self.made is None:
            lay_out(self.group)
        if self.tapped:
            return self._by_taps(h)
        if self.made is None and not enough(h):
            return self.above(grow_nearest(h, size))  # type: ignore[no-any-return]
        sums = transposed(self.above.plain()) if self.made is None else self.made
        operator = torch.ops.mkldnn._convolution_transpose_pointwise
        return operator(h, sums, self.above.bias, *_DOUBLING, self.above.after, [], "")  # type: ignore[no-any-return]

    def _by_taps(self, h: Tensor) -> Tensor:
        bias = self.above.bias
        if self.made is None:
            out = tapped_conv(h, None, self.above.plain(), bias, h.dtype)
        else:
            pixels = rearrange(h, "b c h w -> (b h w) c")
            products = torch.ops.mkldnn._linear_pointwise(pixels, self.made, None, "none", [], "")
            out = spread(products.view(len(h), *h.shape[-2:], 3, 3, -1))
            if bias is not None:
                out.add_(bias[:, None, None])
        return out.relu_() if self.above.after == "relu" else out

    def lay_out(self) -> None:
        """As the last map's size asks for."""
        if self.size and self.made is None:
            self.above.weight = kernel = self.above.plain().clone()  # no longer a part of the whole, which goes
            if self.tapped:
                pixels = self.size[0] * self.size[2] * self.size[3]
                self.made = torch.ops.mkldnn._reorder_linear_weight(matrix(kernel, kernel.dtype), pixels)
            else:
                reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
                self.made = reorder(transposed(kernel), *_DOUBLING, self.size)


class PackedResidual(nn.Module):
    """torchvision's residual block, its norms folded.

    Args:
        block: what it stands for.
        group: those whose weights are laid out together with its own.
        in_place: whether the sum may be written over the input.
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
    """(3x3 convolution, ReLU) twice."""

    def __init__(self, block: DoubleConv, group: Group) -> None:
        super().__init__()
        self.conv1: PackedConv | PackedGrowth = PackedConv.of(block.conv1, group, relu=True)
        self.conv2 = PackedConv.of(block.conv2, group, relu=True)

    def forward(self, h: Tensor, temb: Tensor | None = None) -> Tensor:
        return self.conv2(self.conv1(h))  # type: ignore[no-any-return]

    def grown(self, h: Tensor, size: tuple[int, int], skip: Tensor | None, temb: Tensor | None) -> Tensor:
        """As of `DoubleConv`, whose `forward` is not called from then on."""
        if isinstance(self.conv1, PackedConv):
            self.conv1 = PackedGrowth(self.conv1, h.shape[1])
        return self.conv2(self.conv1(h, size, skip))  # type: ignore[no-any-return]


Group = list[PackedConv | PackedGrowth]
"""Modules whose weights are laid out together."""


def lay_out(group: Group) -> None:
    """The weights of each, by the size that it read last."""
    for member in group:
        member.lay_out()
        give_back_freed_memory()  # or holes of the size of its weights as they were would stay
