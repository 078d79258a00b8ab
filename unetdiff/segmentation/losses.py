"""Losses of the segmentation head: (logits (B, C, H, W), target (B, H, W)) -> scalar; void counts in none.

All of them compute in float32 (float64 logits stay float64) whatever autocast says, average over valid pixels
or present classes only, and give 0 with a zero gradient where everything is void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from unetdiff.errors import UserError, nearest

__all__ = ["LOSSES", "WeightedLoss", "combined", "cross_entropy", "dice", "focal"]

ClassWeights = Tensor | Sequence[float] | None
DICE_SMOOTH = 1e-5


def cross_entropy(
    logits: Tensor, target: Tensor, ignore_index: int = 255, class_weights: ClassWeights = None
) -> Tensor:
    """Mean of -log p_t over valid pixels; with class weights the mean is weighted (as in torch).

    logits: (B, C, H, W), any float type. target: (B, H, W), any integer type, 0..C-1 or `ignore_index`.
    class_weights: (C,). Raises UserError where shapes, or (on a CPU) values of the target, cannot be.
    """
    logits, target, valid = _prepare(logits, target, ignore_index)
    weight = _weights(class_weights, logits)
    per_pixel = F.cross_entropy(logits, target, weight, ignore_index=_VOID, reduction="none")  # (B, H, W)
    counts = valid if weight is None else weight[target.clamp_min(0)] * valid
    return per_pixel.sum() / _positive(counts.sum().to(logits.dtype))


def focal(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = 255,
    class_weights: ClassWeights = None,
    *,
    alpha: float = 0.5,
    gamma: float = 2.0,
) -> Tensor:
    """Mean of alpha w_t (1 - p_t)^gamma (-log p_t) over valid pixels, p_t a softmax (Lin et al. 2017, eq. 5).

    A class weight w_t scales a pixel's loss and stays out of p_t; the mean divides by the number of valid
    pixels, so alpha = 1, gamma = 0 without weights is `cross_entropy`. Shapes and errors as in
    `cross_entropy`.
    """
    logits, target, valid = _prepare(logits, target, ignore_index)
    weight = _weights(class_weights, logits)
    log_loss = F.cross_entropy(logits, target, ignore_index=_VOID, reduction="none")  # (B, H, W), 0 under void
    miss = -torch.expm1(-log_loss)  # 1 - p_t, exact near 0
    if gamma < 1:
        miss = miss.clamp_min(1e-12)  # the power's slope at 0 is infinite there
    per_pixel = alpha * miss**gamma * log_loss
    if weight is not None:
        per_pixel = per_pixel * weight[target.clamp_min(0)]
    return per_pixel.sum() / _positive(valid.sum().to(logits.dtype))


def dice(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = 255,
    class_weights: ClassWeights = None,
    *,
    smooth: float = DICE_SMOOTH,
) -> Tensor:
    """1 - mean over the classes present of (2 TP + s) / (2 TP + FP + FN + s) (Milletari et al. 2016, eq. 1).

    TP, FP, FN are soft counts over the whole batch; void pixels are in none of them, false positives
    included. A class that the batch does not contain is not averaged (it would hold the loss at 1 - present /
    C). class_weights (C,) weigh the average. Shapes and errors as in `cross_entropy`.
    """
    logits, target, valid = _prepare(logits, target, ignore_index)
    weight = _weights(class_weights, logits)
    overlap, mass, count = _SoftCounts.apply(logits, target, valid)  # (C,) each
    score = (2 * overlap + smooth) / (mass + count + smooth)  # TP + FP = mass, TP + FN = count
    share = (count > 0).to(score.dtype)
    if weight is not None:
        share = share * weight
    return ((1 - score) * share).sum() / _positive(share.sum())


class _SoftCounts(torch.autograd.Function):
    """Softmax -> for each class: probability at its own pixels, probability anywhere, number of its pixels.

    Works by index: nothing of the size of the logits is made but the softmax and, in the backward pass, the
    gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # (B, C, H, W); void weighs nothing from here on, in the backward pass too
        probability = logits.softmax(dim=1).masked_fill_(~valid[:, None], 0)
        index = target.clamp_min(0)
        own = probability.gather(1, index[:, None])[:, 0]  # (B, H, W): p_t
        overlap = _sum_by_class(own, index, logits.shape[1])
        mass = probability.sum(dim=(0, 2, 3))
        count = _sum_by_class(valid.to(own.dtype), index, logits.shape[1])
        ctx.save_for_backward(probability, index, own)
        ctx.mark_non_differentiable(count)
        return overlap, mass, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_overlap: Tensor, grad_mass: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        # With g = dL/dp: dL/dlogit = p (g - <g, p>), and g_c = grad_mass_c + [c = t] grad_overlap_c.
        probability, index, own = ctx.saved_tensors
        at_target = grad_overlap[index] * own  # (B, H, W)
        mean = torch.matmul(grad_mass, rearrange(probability, "b c h w -> b c (h w)")).view_as(own) + at_target
        grad = (grad_mass[:, None, None] - mean[:, None]).mul_(probability)  # (B, C, H, W)
        grad.scatter_add_(1, index[:, None], at_target[:, None])
        return grad, None, None


def _sum_by_class(values: Tensor, index: Tensor, num_classes: int) -> Tensor:
    """Sum of values (B, H, W) by class index (B, H, W) -> (C,); a bin per column keeps float32 sums short."""
    bins = values.new_zeros(num_classes, values.shape[-1])
    bins.scatter_add_(0, rearrange(index, "b h w -> (b h) w"), rearrange(values, "b h w -> (b h) w"))
    return bins.sum(dim=1)


Loss = Callable[[Tensor, Tensor, int, ClassWeights], Tensor]
LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "focal": focal, "dice": dice}
UNWEIGHTED = frozenset({"dice"})  # inside a sum, class weights are for the losses over pixels


@dataclass(frozen=True)
class WeightedLoss:
    """A weighted sum: `total, parts = loss(logits, target)`, parts by name, detached, unweighted."""

    losses: Mapping[str, float]
    ignore_index: int = 255
    class_weights: ClassWeights = None

    def __call__(self, logits: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        parts = {
            name: LOSSES[name](logits, target, self.ignore_index, None if name in UNWEIGHTED else self.class_weights)
            for name in self.losses
        }
        total = torch.stack([self.losses[name] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}


def combined(losses: Mapping[str, float], ignore_index: int = 255, class_weights: ClassWeights = None) -> WeightedLoss:
    """A weighted sum of losses by name: `combined({"cross_entropy": 1.0, "dice": 1.0})(logits, target)`.

    class_weights go to cross_entropy and focal. Raises UserError for an unknown name, no loss, or a weight
    that is negative or not finite.
    """
    if not losses:
        raise UserError(f"segmentation.losses is empty; give at least one of {', '.join(LOSSES)}")
    for name, weight in losses.items():
        if name not in LOSSES:
            near = nearest(name, LOSSES)
            raise UserError(f"segmentation.losses: unknown loss '{name}'; did you mean '{near}'? ({', '.join(LOSSES)})")
        if not 0 <= weight < float("inf"):
            raise UserError(f"segmentation.losses.{name}: weight {weight} must be a finite number of at least 0")
    if class_weights is not None:
        class_weights = torch.as_tensor(class_weights, dtype=torch.float32)
        if not bool((class_weights.isfinite() & (class_weights >= 0)).all()):
            raise UserError(f"segmentation.class_weights {class_weights.tolist()}: each must be finite and at least 0")
    return WeightedLoss(dict(losses), ignore_index, class_weights)


_VOID = -1  # inside this file; outside, ignore_index may be any integer, a class included


def _prepare(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> logits in float32 or float64, target (B, H, W) as int64 with void at -1, valid (B, H, W) as bool."""
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise UserError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not match: "
            "give logits (B, C, H, W) and a target (B, H, W) of the same size"
        )
    if target.is_floating_point():
        raise UserError(f"target has type {target.dtype}; give class indices (uint8 or int64)")
    num_classes = logits.shape[1]
    valid = target != ignore_index
    target = target.long()
    if target.device.type == "cpu":  # elsewhere the check would wait for the device
        wrong = valid & ((target < 0) | (target >= num_classes))
        if bool(wrong.any()):
            raise UserError(
                f"target holds the value {int(target[wrong][0])}, neither a class (0..{num_classes - 1}) "
                f"nor void ({ignore_index}); run `unetdiff data check`"
            )
    target = target.masked_fill(~valid, _VOID)
    return logits if logits.dtype == torch.float64 else logits.float(), target, valid


def _weights(class_weights: ClassWeights, logits: Tensor) -> Tensor | None:
    if class_weights is None:
        return None
    weight = torch.as_tensor(class_weights, dtype=logits.dtype, device=logits.device)
    if weight.shape != (logits.shape[1],):
        raise UserError(f"class_weights has {weight.numel()} values for {logits.shape[1]} classes; give one for each")
    return weight


def _positive(total: Tensor) -> Tensor:
    """A divisor: 1 where there is nothing to average."""
    return torch.where(total > 0, total, torch.ones_like(total))
