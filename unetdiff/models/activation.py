"""GroupNorm, a scale and shift, and SiLU as one step of the graph: what precedes a block's convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling
from torch.nn import functional as F


def norm_silu(norm: nn.Module, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """SiLU(norm(x) · (1 + scale) + shift) of a map (B, C, H, W) (Dhariwal & Nichol 2021, section 3, with a scale).

    Where a CPU trains and `norm` is a GroupNorm, its gradient is computed by sums over each channel instead of torch's
    kernels, and of the map nothing is kept but itself; the gradient has no gradient there.

    Args:
        norm: the normalisation.
        x: the map.
        scale, shift: (B, C, 1, 1), both or none.
    """
    if isinstance(norm, nn.GroupNorm) and norm.affine and x.device.type == "cpu" and _trains(norm):
        weight: Tensor = norm.weight  # (C,)
        bias: Tensor = norm.bias
        if scale is not None and shift is not None:
            gain = 1 + scale[:, :, 0, 0]  # (B, C)
            weight, bias = weight * gain, torch.addcmul(shift[:, :, 0, 0].to(bias.dtype), gain.to(bias.dtype), bias)
        return NormSiLU.apply(x, weight, bias, norm.num_groups, norm.eps)  # type: ignore[no-any-return]
    h = norm(x)
    if scale is not None and shift is not None:
        h = h * (1 + scale) + shift
    return F.silu(h)


def _trains(norm: nn.Module) -> bool:
    """Gradients are recorded, by torch itself, and nobody listens to the module."""
    return torch.is_grad_enabled() and not is_compiling() and not (norm._forward_hooks or norm._forward_pre_hooks)


class NormSiLU(torch.autograd.Function):
    """SiLU(x̂ · weight + bias), x̂ being x (B, C, H, W) normalised over groups of channels (Wu & He 2018, equation 1).

    weight and bias are (C,), or (B, C) where each sample has its own. The gradient: with dz that of the SiLU's input,
    S1 and S2 the sums of dz and of dz · x over a channel's pixels, μ and r the mean and inverse deviation of its group
    of N values, and sums over the group written as [·]:

        dbias = S1,  dweight = r (S2 - μ S1),
        dx = r weight dz + c2 x + c3,  c2 = -r³/N [weight (S2 - μ S1)],  c3 = -μ c2 - r/N [weight S1]
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        size = (x.shape[0], x.shape[1], x.shape[2] * x.shape[3], groups, eps)
        if weight.dim() == 1:
            z, mean, rstd = torch.native_group_norm(x, weight, bias, *size)  # (B, C, H, W), (B, groups) twice
        else:
            normal, mean, rstd = torch.native_group_norm(x, None, None, *size)
            z = torch.addcmul(_over(bias, x), normal, _over(weight, x))
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return F.silu(z, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        batch, channels, height, width = x.shape
        groups = mean.shape[1]
        within = channels // groups
        wide = torch.promote_types(x.dtype, torch.float32)  # sums over many pixels
        mean, rstd = mean.to(wide), rstd.to(wide)
        mu, r = mean.repeat_interleave(within, 1), rstd.repeat_interleave(within, 1)  # (B, C)
        w, b = weight.to(wide), bias.to(wide)  # (C,) or (B, C)
        slope = _over(r * w, x)
        z = torch.addcmul(_over(b - mu * r * w, x), x, slope)
        dz = torch.ops.aten.silu_backward(dy, z)
        s1 = dz.sum((2, 3), dtype=wide)
        centred = torch.mul(dz, x).sum((2, 3), dtype=wide) - mu * s1  # S2 - μ S1, (B, C)
        count = within * height * width
        c2 = -(rstd**3) / count * (w * centred).unflatten(1, (groups, within)).sum(2)  # (B, groups)
        c3 = -mean * c2 - rstd / count * (w * s1).unflatten(1, (groups, within)).sum(2)
        dx = torch.addcmul(_over(c3.repeat_interleave(within, 1), x), x, _over(c2.repeat_interleave(within, 1), x))
        dx = dx.addcmul_(dz, slope)
        dweight, dbias = r * centred, s1
        if weight.dim() == 1:
            dweight, dbias = dweight.sum(0), dbias.sum(0)
        return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), None, None


def _over(values: Tensor, x: Tensor) -> Tensor:
    """(C,) or (B, C) -> (1 or B, C, 1, 1) of x's precision."""
    return values.reshape(-1, x.shape[1], 1, 1).to(x.dtype)
