"""Several operations as one step of the graph, which keeps their input alone: GroupNorm, SiLU and a convolution; GELU
and its factor."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from unetdiff.kernels.conditions import HELD, by_hand, computed_in, is_plain

SMALL = 1024
"""Pixels from which torch's GroupNorm on a CPU reads a channels-last map in its own order."""


def group_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(x) of a map (B, C, H, W); of a GroupNorm on a CPU as `norm_silu` computes it."""
    if not _is_ours(norm, x):
        return norm(x)  # type: ignore[no-any-return]
    if torch.is_grad_enabled():
        return Norm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)  # type: ignore[no-any-return]
    return _normalised(x, norm.weight, norm.bias, norm.num_groups, norm.eps)[0]


def norm_silu(norm: nn.Module, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """SiLU(norm(x) · (1 + scale) + shift) of a map (B, C, H, W) (Dhariwal & Nichol 2021, section 3, with a scale).

    Where a CPU trains and `norm` is a GroupNorm, its gradient is computed by sums over each channel instead of torch's
    kernels, and of the map nothing is kept but itself; the gradient has no gradient there.

    Args:
        norm: the normalisation.
        x: the map.
        scale, shift: (B, C, 1, 1), both or none.
    """
    if _is_ours(norm, x):
        weight, bias = _told(norm, scale, shift)
        if not torch.is_grad_enabled():
            return _activated(x, weight, bias, norm.num_groups, norm.eps)[0]
        return NormSiLU.apply(x, weight, bias, norm.num_groups, norm.eps)  # type: ignore[no-any-return]
    h = norm(x)
    if scale is not None and shift is not None:
        h = h * (1 + scale) + shift
    return F.silu(h)


def norm_silu_conv(
    norm: nn.Module, conv: nn.Module, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """conv(norm_silu(norm, x, scale, shift)): what a residual block does twice.

    Where a CPU trains, nothing is kept of all of it but x: the convolution's input is made again for its gradient.
    Where it predicts, it takes a few images at a time.
    """
    plain = is_plain(conv, nn.Conv2d) and conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
    if not (plain and _is_ours(norm, x)):
        return conv(norm_silu(norm, x, scale, shift))  # type: ignore[no-any-return]
    if not torch.is_grad_enabled():
        images = _at_a_time(x)
        xs = x.split(images)
        told = [[part] * len(xs) if part is None or len(part) == 1 else part.split(images) for part in (scale, shift)]
        made = [conv(norm_silu(norm, *part)) for part in zip(xs, *told, strict=True)]
        return torch.cat(made) if len(made) > 1 else made[0]
    weight, bias = _told(norm, scale, shift)
    # cast here, where gradients are recorded: autocast would remember what it casts inside of the step, without them
    precision = computed_in(conv.weight)  # type: ignore[arg-type]
    kernel = conv.weight.to(precision)
    offset = None if conv.bias is None else conv.bias.to(precision)
    geometry = conv.stride, conv.padding, conv.dilation, conv.groups
    return NormSiLUConv.apply(x, weight, bias, norm.num_groups, norm.eps, kernel, offset, geometry)  # type: ignore[no-any-return]


def _is_ours(norm: nn.Module, x: Tensor) -> TypeGuard[nn.GroupNorm]:
    """The norm of this map is computed here and not by the module."""
    return is_plain(norm, nn.GroupNorm) and norm.affine and by_hand(x)


def _told(norm: nn.GroupNorm, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """The norm's weight and bias, (C,), or with a scale and shift of each sample in them, (B, C)."""
    weight, bias = norm.weight, norm.bias
    if scale is None or shift is None:
        return weight, bias
    gain = 1 + scale[:, :, 0, 0]  # (B, C)
    return weight * gain, torch.addcmul(shift[:, :, 0, 0].to(bias.dtype), gain.to(bias.dtype), bias)


def gated(both: Tensor) -> Tensor:
    """value · GELU(gate) of tokens (B, N, 2 D) whose halves are value and gate (Shazeer 2020, equation 5): (B, N, D).

    Where a CPU trains, nothing is kept but `both`, and the gradient has no gradient.
    """
    if by_hand(both) and torch.is_grad_enabled():
        return Gated.apply(both)  # type: ignore[no-any-return]
    value, gate = both.chunk(2, dim=-1)
    return F.gelu(gate) * value if torch.is_grad_enabled() else F.gelu(gate).mul_(value)


class Norm(torch.autograd.Function):
    """x̂ · weight + bias, x̂ being x (B, C, H, W) normalised over groups of channels (Wu & He 2018, equation 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        z, mean, rstd = _normalised(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        return *_Again(*ctx.saved_tensors).gradients(dz), None, None


class NormSiLU(torch.autograd.Function):
    """SiLU of `Norm`; weight and bias are (C,), or (B, C) where each sample has its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        return F.silu(Norm.forward(ctx, x, weight, bias, groups, eps), inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        again = _Again(*ctx.saved_tensors)
        return *again.gradients(torch.ops.aten.silu_backward(dy, again.z)), None, None


class NormSiLUConv(torch.autograd.Function):
    """A convolution of `NormSiLU`. kernel (O, C, kh, kw) and offset (O,) have the precision that it is computed in."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        kernel: Tensor,
        offset: Tensor | None,
        geometry: tuple[Any, ...],
    ) -> Tensor:
        y, mean, rstd = _activated(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd, kernel)
        ctx.offset = None if offset is None else list(offset.shape)
        *window, parts = geometry
        ctx.geometry = *window, False, [0, 0], parts
        return F.conv2d(y.to(kernel.dtype), kernel, offset, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        *saved, kernel = ctx.saved_tensors
        again = _Again(*saved)
        y = F.silu(again.z).to(kernel.dtype)
        wanted = [True, ctx.needs_input_grad[5], ctx.offset is not None and ctx.needs_input_grad[6]]
        dy, dkernel, doffset = torch.ops.aten.convolution_backward(dout, y, kernel, ctx.offset, *ctx.geometry, wanted)
        del y
        dx, dweight, dbias = again.gradients(torch.ops.aten.silu_backward(dy.to(again.z.dtype), again.z))
        return dx, dweight, dbias, None, None, dkernel, doffset, None


class Gated(torch.autograd.Function):
    """value · GELU(gate)."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        value, gate = both.chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        value, gate = both.chunk(2, dim=-1)
        grad = torch.empty_like(both)
        dvalue, dgate = grad.chunk(2, dim=-1)
        torch.mul(F.gelu(gate), dout, out=dvalue)
        dgate.copy_(torch.ops.aten.gelu_backward(dout * value, gate))
        return grad


def _activated(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The SiLU's output (B, C, H, W), and each group's mean and inverse deviation, (B, groups)."""
    z, mean, rstd = _normalised(x, weight, bias, groups, eps)
    return F.silu(z, inplace=True), mean, rstd


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x̂ · weight + bias (B, C, H, W), and each group's mean and inverse deviation, (B, groups).

    Of small channels-last maps torch's kernel reads one group after another, a few numbers out of every pixel: there,
    the moments are of sums over whole pixels instead (of squares that float16 could not hold).
    """
    batch, channels, height, width = x.shape
    small = height * width < SMALL and x.is_contiguous(memory_format=torch.channels_last)
    if not small or x.dtype == torch.float16:
        size = (batch, channels, height * width, groups, eps)
        if weight.dim() == 1:
            return torch.native_group_norm(x, weight, bias, *size)
        normal, mean, rstd = torch.native_group_norm(x, None, None, *size)
        return torch.addcmul(_over(bias, x), normal, _over(weight, x)), mean, rstd
    within, count = channels // groups, channels // groups * height * width
    sums = torch.stack([_sums(x), _sums(torch.mul(x, x))])  # (2, B, C)
    mean, square = (sums.unflatten(2, (groups, within)).sum(3) / count).unbind()  # (B, groups)
    rstd = (square - mean * mean).clamp_min_(0).add_(eps).rsqrt_()
    slope = rstd.repeat_interleave(within, 1) * weight  # (B, C)
    offset = bias - mean.repeat_interleave(within, 1) * slope
    return torch.addcmul(_over(offset, x), x, _over(slope, x)), mean, rstd


class _Again:
    """The SiLU's input z, made again, and what its gradient dz gives.

    With S1 and S2 the sums of dz and of dz · x over a channel's pixels, μ and r the mean and inverse deviation of its
    group of N values, and sums over the group written as [·]:

        dbias = S1,  dweight = r (S2 - μ S1),
        dx = r weight dz + c2 x + c3,  c2 = -r³/N [weight (S2 - μ S1)],  c3 = -μ c2 - r/N [weight S1]
    """

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> None:
        self.x, self.weight, self.bias = x, weight, bias
        self.within = x.shape[1] // mean.shape[1]  # channels of a group
        wide = torch.promote_types(x.dtype, torch.float32)  # sums over many pixels
        self.mean, self.rstd = mean.to(wide), rstd.to(wide)  # (B, groups)
        self.mu, self.r = self._by_channel(self.mean), self._by_channel(self.rstd)
        self.w, b = weight.to(wide), bias.to(wide)  # (C,) or (B, C)
        self.slope = _over(self.r * self.w, x)
        self.offset = _over(b - self.mu * self.r * self.w, x)

    @cached_property
    def z(self) -> Tensor:
        return torch.addcmul(self.offset, self.x, self.slope)

    def _by_channel(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self.within, 1)  # (B, C)

    def _by_group(self, values: Tensor) -> Tensor:
        return values.unflatten(1, (-1, self.within)).sum(2)  # (B, groups)

    def gradients(self, dz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, weight and bias."""
        x = self.x
        s1 = _sums(dz)
        centred = _sums(torch.mul(dz, x)) - self.mu * s1  # S2 - μ S1, (B, C)
        count = self.within * x.shape[2] * x.shape[3]
        c2 = -(self.rstd**3) / count * self._by_group(self.w * centred)
        c3 = -self.mean * c2 - self.rstd / count * self._by_group(self.w * s1)
        dx = torch.addcmul(_over(self._by_channel(c3), x), x, _over(self._by_channel(c2), x)).addcmul_(dz, self.slope)
        dweight, dbias = self.r * centred, s1
        if self.weight.dim() == 1:
            dweight, dbias = dweight.sum(0), dbias.sum(0)
        return dx, dweight.to(self.weight.dtype), dbias.to(self.bias.dtype)


def _sums(x: Tensor) -> Tensor:
    """Over the pixels of each channel, (B, C), in float32 at least, which is made of few images at a time."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.dtype == wide:
        return x.sum((2, 3))
    images = _at_a_time(x)
    return torch.cat([part.sum((2, 3), dtype=wide) for part in x.split(images)])


def _at_a_time(x: Tensor) -> int:
    """How many images of x make up `HELD` numbers."""
    return max(1, HELD * len(x) // max(1, x.numel()))


def _over(values: Tensor, x: Tensor) -> Tensor:
    """(C,) or (B, C) -> (1 or B, C, 1, 1) of x's precision."""
    return values.reshape(-1, x.shape[1], 1, 1).to(x.dtype)
