"""Losses of the segmentation head: (logits (B, C, H, W), target (B, H, W)) -> scalar; void counts in none.

All of them compute in float32 (float64 logits stay float64) whatever autocast says, average over valid pixels
or present classes only, and give 0 with a zero gradient where everything is void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from unetdiff.errors import UserError, nearest
from unetdiff.segmentation.config import OHEMConfig
from unetdiff.segmentation.loss_inputs import VOID, ClassWeights, in_full, positive, prepare, weights_like
from unetdiff.segmentation.lovasz import lovasz
from unetdiff.segmentation.ohem import hard_pixels

__all__ = ["LOSSES", "OHEMConfig", "WeightedLoss", "combined", "cross_entropy", "dice", "focal", "lovasz"]

DICE_SMOOTH = 1e-5


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = 255,
    class_weights: ClassWeights = None,
    *,
    label_smoothing: float = 0.0,
    ohem: OHEMConfig | None = None,
) -> Tensor:
    """Mean of -log p_t over valid pixels; with class weights the mean is weighted (as in torch).

    label_smoothing: e of (1 - e) w_t (-log p_t) + e / C sum_c w_c (-log p_c), still divided by the sum of w_t: torch's
    definition (Szegedy et al. 2016, section 7, with weights). ohem: only the hard pixels are averaged
    (`unetdiff.segmentation.ohem`), chosen by -log p_t, without weights or smoothing.

    logits: (B, C, H, W), any float type. target: (B, H, W), any integer type, 0..C-1 or `ignore_index`.
    class_weights: (C,). Raises UserError where shapes, or (on a CPU) values of the target, cannot be.
    """
    logits, target, valid = prepare(logits, target, ignore_index)
    weight = weights_like(class_weights, logits)
    per_pixel = F.cross_entropy(  # (B, H, W), 0 under void
        logits, target, weight, ignore_index=VOID, reduction="none", label_smoothing=label_smoothing
    )
    counted = valid
    if ohem is not None:
        plain = per_pixel.detach()
        if weight is not None or label_smoothing:
            plain = F.cross_entropy(logits.detach(), target, ignore_index=VOID, reduction="none")
        counted = hard_pixels(plain, valid, ohem.threshold, ohem.min_share)
        per_pixel = per_pixel * counted
    counts = counted if weight is None else weight[target.clamp_min(0)] * counted
    total = counts.sum().to(logits.dtype)
    # the smoothed loss of a pixel that weighs nothing is not 0: where all are such, there is nothing to average
    return per_pixel.sum() * (total > 0) / positive(total)


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
    logits, target, valid = prepare(logits, target, ignore_index)
    weight = weights_like(class_weights, logits)
    log_loss = F.cross_entropy(logits, target, ignore_index=VOID, reduction="none")  # (B, H, W), 0 under void
    miss = -torch.expm1(-log_loss)  # 1 - p_t, exact near 0
    if gamma < 1:
        miss = miss.clamp_min(1e-12)  # the power's slope at 0 is infinite there
    per_pixel = alpha * miss**gamma * log_loss
    if weight is not None:
        per_pixel = per_pixel * weight[target.clamp_min(0)]
    return per_pixel.sum() / positive(valid.sum().to(logits.dtype))


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
    logits, target, valid = prepare(logits, target, ignore_index)
    weight = weights_like(class_weights, logits)
    overlap, mass, count = _SoftCounts.apply(logits, target, valid)  # (C,) each
    score = (2 * overlap + smooth) / (mass + count + smooth)  # TP + FP = mass, TP + FN = count
    share = (count > 0).to(score.dtype)
    if weight is not None:
        share = share * weight
    return ((1 - score) * share).sum() / positive(share.sum())


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
LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "focal": focal, "dice": dice, "lovasz": lovasz}
UNWEIGHTED = frozenset({"dice", "lovasz"})  # inside a sum, class weights are for the losses over pixels


@dataclass(frozen=True)
class WeightedLoss:
    """A weighted sum: `total, parts = loss(logits, target)`, parts by name, detached, unweighted."""

    losses: Mapping[str, float]
    ignore_index: int = 255
    class_weights: ClassWeights = None
    label_smoothing: float = 0.0
    ohem: OHEMConfig | None = None

    def eased(self, strength: float) -> WeightedLoss:
        """The same with class weights w as 1 + strength (w - 1): 1 leaves them, 0 lets every class weigh 1."""
        if self.class_weights is None:
            return self
        return replace(self, class_weights=1 + strength * (torch.as_tensor(self.class_weights) - 1))

    def __call__(self, logits: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = in_full(logits)  # once for all of them
        parts = {
            name: self._loss(name)(
                logits, target, self.ignore_index, None if name in UNWEIGHTED else self.class_weights
            )
            for name in self.losses
        }
        total = torch.stack([self.losses[name] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    def _loss(self, name: str) -> Loss:
        if name == "cross_entropy":
            return partial(cross_entropy, label_smoothing=self.label_smoothing, ohem=self.ohem)
        return LOSSES[name]


def combined(
    losses: Mapping[str, float],
    ignore_index: int = 255,
    class_weights: ClassWeights | str = None,
    *,
    label_smoothing: float = 0.0,
    ohem: OHEMConfig | None = None,
) -> WeightedLoss:
    """A weighted sum of losses by name: `combined({"cross_entropy": 1.0, "dice": 1.0})(logits, target)`.

    class_weights go to cross_entropy and focal, label_smoothing and ohem to cross_entropy. Raises UserError for an
    unknown name, no loss, a weight that is negative or not finite, or class weights still to be computed.
    """
    if not losses:
        raise UserError(f"segmentation.losses is empty; give at least one of {', '.join(LOSSES)}")
    for name, weight in losses.items():
        if name not in LOSSES:
            near = nearest(name, LOSSES)
            raise UserError(f"segmentation.losses: unknown loss '{name}'; did you mean '{near}'? ({', '.join(LOSSES)})")
        if not 0 <= weight < float("inf"):
            raise UserError(f"segmentation.losses.{name}: weight {weight} must be a finite number of at least 0")
    if isinstance(class_weights, str):
        raise UserError(
            f"segmentation.class_weights: '{class_weights}' is counted when a run starts, not here; "
            "give numbers, e.g. those of unetdiff.data.stats.class_weights"
        )
    if class_weights is not None:
        class_weights = torch.as_tensor(class_weights, dtype=torch.float32)
        if not bool((class_weights.isfinite() & (class_weights >= 0)).all()):
            raise UserError(f"segmentation.class_weights {class_weights.tolist()}: each must be finite and at least 0")
    return WeightedLoss(dict(losses), ignore_index, class_weights, label_smoothing, ohem)
