"""The softmax statistics of the segmentation losses in one pass, with a gradient by index.

`unetdiff.segmentation.loss_inputs.softmax_stats` in plain torch keeps several tensors of the logits' size for its
backward pass. Here only the softmax is kept, the gradient is written once, in the logits' own dtype and memory format,
and a CPU handles one image after another so that it stays in cache. First derivatives only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from unetdiff.segmentation.loss_inputs import SoftmaxStats, full_dtype, sum_by_class
from unetdiff.segmentation.losses import WeightedLoss


def accelerate_loss(loss: WeightedLoss) -> WeightedLoss:
    """The same loss with `fused_softmax_stats`: same values to rounding, no double backward."""
    return replace(loss, stats_fn=fused_softmax_stats)


def fused_softmax_stats(logits: Tensor, target: Tensor, valid: Tensor) -> SoftmaxStats:
    """`unetdiff.segmentation.loss_inputs.softmax_stats` by `_SoftmaxStats`; arguments as there."""
    with torch.autocast(logits.device.type, enabled=False):
        return SoftmaxStats(*_SoftmaxStats.apply(logits, target, valid))


class _SoftmaxStats(torch.autograd.Function):
    """(logits (B, C, H, W), target (B, H, W), valid (B, H, W)) -> the fields of `SoftmaxStats`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits, class_dim = _memory_order(logits)
        dtype = full_dtype(logits.dtype)
        mask = valid.to(dtype)  # 0 at ignored pixels, in the backward pass too
        probability = torch.empty(logits.shape, dtype=dtype, device=logits.device)
        p_target, nll = torch.empty_like(mask), torch.empty_like(mask)  # (B, H, W)
        predicted = []
        for z, p, t, m, p_t, loss in _per_image(logits, probability, target, mask, p_target, nll):
            z = z.to(dtype)
            torch.softmax(z, dim=class_dim, out=p)
            p_t.copy_(_gather(p, t, class_dim))
            torch.log(p_t, out=loss).neg_()
            underflow = p_t < torch.finfo(dtype).tiny
            if not p.is_cpu or bool(underflow.any()):  # on other devices the check would synchronize
                # -log p_t = max_c z_c - z_t - log max_c p_c
                exact = z.amax(dim=class_dim).sub_(_gather(z, t, class_dim)).sub_(p.amax(dim=class_dim).log_())
                torch.where(underflow, exact, loss, out=loss)
            loss.masked_fill_(m == 0, 0)
            p_t.mul_(m)
            predicted.append(_sum_over_pixels(p, m, class_dim))
        num_classes = logits.shape[class_dim]
        true_positives, labeled = sum_by_class(p_target, target, num_classes), sum_by_class(mask, target, num_classes)
        ctx.save_for_backward(probability, target, p_target, mask)
        ctx.dtype, ctx.class_dim = logits.dtype, class_dim
        ctx.mark_non_differentiable(labeled)
        ctx.set_materialize_grads(False)
        return nll, true_positives, torch.stack(predicted).sum(dim=0), labeled

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_nll: Tensor | None, d_true_positives: Tensor | None, d_predicted: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        # For g = dL/dp: dL/dz_c = p_c (g_c - sum_k g_k p_k), with g_c = d_predicted_c + [c = t] d_true_positives_c; for
        # the nll: dL/dz_c = d_nll (p_c - [c = t]). Together: p_c (d_predicted_c + shared) + [c = t] at_target.
        probability, target, p_target, mask = ctx.saved_tensors
        class_dim = ctx.class_dim
        shared, at_target = torch.zeros_like(mask), torch.zeros_like(mask)  # (B, H, W)
        if d_true_positives is not None:
            at_target += d_true_positives[target] * p_target
            shared -= at_target
        if d_nll is not None:
            d_nll = d_nll.masked_fill(mask == 0, 0)
            at_target -= d_nll
            shared += d_nll
        grad = torch.empty(probability.shape, dtype=ctx.dtype, device=mask.device)
        with torch.autocast(mask.device.type, enabled=False):
            for out, p, t, m, s, a in _per_image(grad, probability, target, mask, shared, at_target):
                if d_predicted is None:
                    g = p * s.unsqueeze(class_dim)
                else:
                    s -= _sum_over_classes(p, d_predicted, class_dim) * m
                    by_class = d_predicted if class_dim == 3 else d_predicted[:, None, None]
                    g = torch.addcmul(s.unsqueeze(class_dim), by_class, m.unsqueeze(class_dim)).mul_(p)
                out.copy_(g.scatter_add_(class_dim, t.unsqueeze(class_dim), a.unsqueeze(class_dim)))
        return (grad if class_dim == 1 else rearrange(grad, "b h w c -> b c h w")), None, None


def _memory_order(logits: Tensor) -> tuple[Tensor, int]:
    """Logits (B, C, H, W) and class dimension 1, or as (B, H, W, C) and 3 where they are channels-last."""
    if not logits.is_contiguous() and logits.is_contiguous(memory_format=torch.channels_last):
        return rearrange(logits, "b c h w -> b h w c"), 3
    return logits.contiguous(), 1


def _per_image(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Batches of one image on the CPU, the whole batch elsewhere."""
    return zip(*[tensor.split(1 if tensor.is_cpu else len(tensor)) for tensor in tensors], strict=True)


def _gather(values: Tensor, target: Tensor, class_dim: int) -> Tensor:
    """values at each pixel's target class, (B, H, W)."""
    return values.gather(class_dim, target.unsqueeze(class_dim)).squeeze(class_dim)


def _sum_over_pixels(values: Tensor, weights: Tensor, class_dim: int) -> Tensor:
    """Sum over pixels of values weighted by weights (B, H, W) -> (C,)."""
    if class_dim == 1:
        return torch.matmul(values.flatten(2), weights.flatten(1).unsqueeze(2)).sum(dim=(0, 2))
    return torch.matmul(weights.unsqueeze(2), values).sum(dim=(0, 1, 2))  # by image row: accurate in float32


def _sum_over_classes(values: Tensor, weights: Tensor, class_dim: int) -> Tensor:
    """Sum over classes of values weighted by weights (C,) -> (B, H, W)."""
    if class_dim == 1:
        return torch.matmul(weights, values.flatten(2)).view(len(values), *values.shape[2:])
    return torch.matmul(values, weights)
