"""GroupNorm, SiLU and a convolution as one node of the graph, which saves their input only."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from unetdiff.kernels.conditions import compute_dtype, images_at_a_time, is_eager_cpu, is_unhooked

MIN_NATIVE_PIXELS = 1024
"""Pixels per map from which torch's GroupNorm on a CPU reads channels-last maps in memory order."""


class FastGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` of maps (B, C, H, W); on a CPU as `norm_silu` computes it."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.affine and is_eager_cpu(x)):
            return super().forward(x)
        return _group_norm(self, x)


def _group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return GroupNormFunction.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)  # type: ignore[no-any-return]
    return _normalize(x, norm.weight, norm.bias, norm.num_groups, norm.eps)[0]


def norm_silu(norm: nn.Module, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """SiLU(norm(x) · (1 + scale) + shift) of a map (B, C, H, W) (Dhariwal & Nichol 2021, section 3, with a scale).

    In CPU training of a GroupNorm, the gradient is computed by sums per channel instead of torch's kernels, and only x
    is saved; there is no double backward.

    Args:
        norm: the normalization layer.
        x: (B, C, H, W).
        scale: (B, C, 1, 1), or None, as shift.
        shift: (B, C, 1, 1), or None, as scale.
    """
    if _is_replaceable(norm, x):
        weight, bias = _affine(norm, scale, shift)
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
    """conv(norm_silu(norm, x, scale, shift)), twice in a residual block.

    In CPU training only x is saved: the convolution's input is recomputed in the backward pass. In CPU inference a few
    images are processed at a time.
    """
    replaceable = is_unhooked(conv, nn.Conv2d) and conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
    if not (replaceable and _is_replaceable(norm, x)):
        return conv(norm_silu(norm, x, scale, shift))  # type: ignore[no-any-return]
    if not torch.is_grad_enabled():
        images = images_at_a_time(x[:1].numel())
        xs = x.split(images)
        affine = [[part] * len(xs) if part is None or len(part) == 1 else part.split(images) for part in (scale, shift)]
        outputs = [conv(norm_silu(norm, *part)) for part in zip(xs, *affine, strict=True)]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    weight, bias = _affine(norm, scale, shift)
    # cast here, where gradients are recorded: autocast would cache a cast made inside the node, without gradients
    dtype = compute_dtype(conv.weight)  # type: ignore[arg-type]
    conv_weight = conv.weight.to(dtype)
    conv_bias = None if conv.bias is None else conv.bias.to(dtype)
    geometry = conv.stride, conv.padding, conv.dilation, conv.groups
    return NormSiLUConv.apply(x, weight, bias, norm.num_groups, norm.eps, conv_weight, conv_bias, geometry)  # type: ignore[no-any-return]


def _is_replaceable(norm: nn.Module, x: Tensor) -> TypeGuard[nn.GroupNorm]:
    """The norm may be computed here instead of by the module."""
    return is_unhooked(norm, nn.GroupNorm) and norm.affine and is_eager_cpu(x)


def _affine(norm: nn.GroupNorm, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """The norm's weight and bias, (C,), or combined with each sample's scale and shift, (B, C)."""
    weight, bias = norm.weight, norm.bias
    if scale is None or shift is None:
        return weight, bias
    gain = 1 + scale[:, :, 0, 0]  # (B, C)
    return weight * gain, torch.addcmul(shift[:, :, 0, 0].to(bias.dtype), gain.to(bias.dtype), bias)


class GroupNormFunction(torch.autograd.Function):
    """x̂ · weight + bias, with x̂ = x (B, C, H, W) normalized over groups of channels (Wu & He 2018, equation 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        z, mean, rstd = _normalize(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        return *_Recomputed(*ctx.saved_tensors).gradients(dz), None, None


class NormSiLU(torch.autograd.Function):
    """SiLU of `GroupNormFunction`; weight and bias are (C,), or (B, C) for one per sample."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        return F.silu(GroupNormFunction.forward(ctx, x, weight, bias, groups, eps), inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        forward = _Recomputed(*ctx.saved_tensors)
        return *forward.gradients(torch.ops.aten.silu_backward(dy, forward.z)), None, None


class NormSiLUConv(torch.autograd.Function):
    """A convolution of `NormSiLU`; `geometry`: its stride, padding, dilation and groups.

    The convolution's weight (O, C / groups, kh, kw) and bias (O,) have the compute dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        geometry: tuple[Any, ...],
    ) -> Tensor:
        y, mean, rstd = _activated(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd, conv_weight)
        ctx.bias_shape = None if conv_bias is None else list(conv_bias.shape)
        stride, padding, dilation, conv_groups = geometry
        ctx.geometry = stride, padding, dilation, False, [0, 0], conv_groups  # not transposed, no output padding
        return F.conv2d(y.to(conv_weight.dtype), conv_weight, conv_bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        *saved, conv_weight = ctx.saved_tensors
        forward = _Recomputed(*saved)
        y = F.silu(forward.z).to(conv_weight.dtype)
        mask = [True, ctx.needs_input_grad[5], ctx.bias_shape is not None and ctx.needs_input_grad[6]]
        dy, d_conv_weight, d_conv_bias = torch.ops.aten.convolution_backward(
            dout, y, conv_weight, ctx.bias_shape, *ctx.geometry, mask
        )
        del y
        dx, dweight, dbias = forward.gradients(torch.ops.aten.silu_backward(dy.to(forward.z.dtype), forward.z))
        return dx, dweight, dbias, None, None, d_conv_weight, d_conv_bias, None


def _activated(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """SiLU output (B, C, H, W), and mean and inverse standard deviation of each group, (B, groups)."""
    z, mean, rstd = _normalize(x, weight, bias, groups, eps)
    return F.silu(z, inplace=True), mean, rstd


def _normalize(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x̂ · weight + bias (B, C, H, W), and mean and inverse standard deviation of each group, (B, groups).

    torch's kernel reads small channels-last maps group by group, a few channels of every pixel. Here the moments are
    sums over whole pixels (of squares, which overflow in float16).
    """
    batch, channels, height, width = x.shape
    small = height * width < MIN_NATIVE_PIXELS and x.is_contiguous(memory_format=torch.channels_last)
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


class _Recomputed:
    """The SiLU's input z, recomputed, and the gradients from its gradient dz.

    With S1 and S2 the sums of dz and of dz · x over a channel's pixels, μ and r the mean and inverse standard deviation
    of its group of N values, and [·] the sum over the group:

        dbias = S1,  dweight = r (S2 - μ S1),
        dx = r weight dz + c2 x + c3,  c2 = -r³/N [weight (S2 - μ S1)],  c3 = -μ c2 - r/N [weight S1]
    """

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> None:
        self.x, self.weight, self.bias = x, weight, bias
        self.within = x.shape[1] // mean.shape[1]  # channels per group
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
    """Sums over the pixels of each channel, (B, C), in float32 at least, converted a few images at a time."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.dtype == wide:
        return x.sum((2, 3))
    images = images_at_a_time(x[:1].numel())
    return torch.cat([part.sum((2, 3), dtype=wide) for part in x.split(images)])


def _over(values: Tensor, x: Tensor) -> Tensor:
    """(C,) or (B, C) -> (1 or B, C, 1, 1) in the dtype of x."""
    return values.reshape(-1, x.shape[1], 1, 1).to(x.dtype)
