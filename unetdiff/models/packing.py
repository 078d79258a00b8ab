"""Convolutions of a network that only predicts on a CPU: weights laid out once as oneDNN reads them, ReLU and the sum
with a shortcut in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from unetdiff.models.blocks import DoubleConv, ResnetBlock
from unetdiff.models.shortcuts import is_as_written
from unetdiff.models.upsampling import grow_nearest, join, pays, transposed_conv


def can_pack() -> bool:
    """Whether this torch has oneDNN and the operators that its own compiler uses for it."""
    operators = hasattr(torch.ops.mkldnn, "_convolution_pointwise") and hasattr(
        torch._C._nn, "mkldnn_reorder_conv2d_weight"
    )
    return torch.backends.mkldnn.is_available() and operators


@torch.no_grad()
def pack(network: nn.Module) -> None:
    """Replace, in place, what is below `network` and can be packed: residual blocks, DoubleConvs, other convolutions.

    Blocks with a norm or a time embedding left keep their form, as do the residual family's.
    """
    for name, child in network.named_children():
        packed = _packed(child)
        if packed is not None:
            setattr(network, name, packed)
        elif not isinstance(child, ResnetBlock):
            pack(child)


def _packed(module: nn.Module) -> nn.Module | None:
    if type(module) in (BasicBlock, Bottleneck) and _has_no_norms(module):
        return PackedResidual(module)
    if type(module) is DoubleConv and module.time is None and _has_no_norms(module):
        return PackedDoubleConv(module)
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and isinstance(module.padding, tuple):
        return PackedConv(module)
    return None


def _has_no_norms(block: nn.Module) -> bool:
    kept = (nn.Conv2d, nn.Identity, nn.ReLU, nn.Sequential)
    return all(isinstance(part, kept) for part in block.modules() if part is not block)


class PackedConv(nn.Module):
    """A convolution without gradients, and a ReLU after it where it is asked for.

    Args:
        conv: of a CPU, with zero padding; its weights may be given up.
        relu: whether what it puts out is never negative.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool = False) -> None:
        super().__init__()
        self.window: Any = conv.padding, conv.stride, conv.dilation, conv.groups
        self.after = "relu" if relu else "none"
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.weight = conv.weight.detach()
        self.size: list[int] = []  # of the last input

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedConv:
        """Weights and bias go along to another precision."""
        self.size, self.weight = [], fn(self.plain())
        self.bias = None if self.bias is None else fn(self.bias)
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)  # inside of autocast too
        if is_as_written():
            out = self._plainly(x)
            return F.relu(out) if self.after == "relu" else out
        operator = torch.ops.mkldnn._convolution_pointwise
        return operator(x, self._for(x), self.bias, *self.window, self.after, [], "")  # type: ignore[no-any-return]

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """ReLU of the convolution of x and another map."""
        x, other = x.to(self.weight.dtype), other.to(self.weight.dtype)
        if is_as_written():
            return F.relu(self._plainly(x) + other)
        operator = torch.ops.mkldnn._convolution_pointwise.binary
        return operator(x, other, self._for(x), self.bias, *self.window, "add", 1.0, "relu", [], "")  # type: ignore[no-any-return]

    def _for(self, x: Tensor) -> Tensor:
        """The weights, laid out for the first input's size, and for another size that comes twice.

        Laid out for another one, they could be read ten times as slowly.
        """
        size = list(x.shape)
        if self.size and size != self.size:
            self.size, self.weight = size, self.plain()
        elif not self.weight.is_mkldnn:
            self.size = size
            self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(self.weight.to_mkldnn(), *self.window, size)  # type: ignore[call-arg]
        return self.weight

    def plain(self) -> Tensor:
        """The weights, (O, C / groups, height, width)."""
        return self.weight.to_dense() if self.weight.is_mkldnn else self.weight

    def _plainly(self, x: Tensor) -> Tensor:
        padding, stride, dilation, groups = self.window
        return F.conv2d(x, self.plain(), self.bias, stride, padding, dilation, groups)


class PackedResidual(nn.Module):
    """torchvision's residual block, its norms folded."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        convs = [block.conv1, block.conv2, *([block.conv3] if isinstance(block, Bottleneck) else [])]
        self.first = nn.Sequential(*[PackedConv(conv, relu=True) for conv in convs[:-1]])
        self.last = PackedConv(convs[-1])
        self.downsample = block.downsample
        if self.downsample is not None:
            pack(self.downsample)

    def forward(self, x: Tensor) -> Tensor:
        return self.last.plus(self.first(x), x if self.downsample is None else self.downsample(x))


class PackedDoubleConv(nn.Module):
    """(3x3 convolution, ReLU) twice."""

    def __init__(self, block: DoubleConv) -> None:
        super().__init__()
        self.conv1, self.conv2 = PackedConv(block.conv1, relu=True), PackedConv(block.conv2, relu=True)

    def forward(self, h: Tensor, temb: Tensor | None = None) -> Tensor:
        return self.conv2(self.conv1(h))  # type: ignore[no-any-return]

    def grown(self, h: Tensor, size: tuple[int, int], skip: Tensor | None, temb: Tensor | None) -> Tensor:
        """As of `DoubleConv`."""
        if pays(h, size):
            h = F.relu_(transposed_conv(self.conv1.plain(), self.conv1.bias, h, skip))
            return self.conv2(h)  # type: ignore[no-any-return]
        h = grow_nearest(h, size)
        return self(h if skip is None else join(skip, h))
