"""Segmentation losses: (logits (B, C, H, W), target (B, H, W)) -> scalar. Ignored pixels count in none of them.

All are computed in float32 (float64 for float64 logits) whatever autocast says, average over valid pixels or over the
classes present, and are 0 with a zero gradient where every pixel is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from unetdiff.errors import UserError, nearest
from unetdiff.segmentation.config import OHEMConfig
from unetdiff.segmentation.loss_inputs import (
    ClassWeights,
    LossInputs,
    SoftmaxStatsFn,
    class_weight_tensor,
    divisor,
    prepare,
    softmax_stats,
)
from unetdiff.segmentation.lovasz import lovasz, lovasz_loss
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
    """Mean of -log p_t over valid pixels; with class weights, sum of w_t (-log p_t) / sum of w_t, as in torch.

    Args:
        logits: (B, C, H, W), any float dtype.
        target: (B, H, W), any integer dtype; 0..C-1, `ignore_index` or 255.
        ignore_index: ignored in addition to 255.
        class_weights: (C,).
        label_smoothing: e of (1 - e) w_t (-log p_t) + e / C sum_c w_c (-log p_c), divided by the sum of w_t (Szegedy et
            al. 2016, section 7; weighted as in torch).
        ohem: average over the hard pixels only (`unetdiff.segmentation.ohem`), selected by -log p_t without weights and
            smoothing.

    Raises:
        UserError: shapes do not match, or (on the CPU) the target has a value outside these.
    """
    return _cross_entropy(prepare(logits, target, ignore_index), class_weights, label_smoothing, ohem)


def _cross_entropy(
    inputs: LossInputs, class_weights: ClassWeights, label_smoothing: float = 0.0, ohem: OHEMConfig | None = None
) -> Tensor:
    if label_smoothing:
        inputs = inputs.in_full_precision()
    nll, mask = inputs.stats.nll, inputs.valid  # (B, H, W)
    weight = class_weight_tensor(class_weights, inputs.logits)  # (C,)
    if ohem is not None:
        mask = hard_pixels(nll, mask, ohem.threshold, ohem.min_fraction)
    pixel_weight = mask.to(nll.dtype) if weight is None else weight[inputs.target] * mask  # w_t, (B, H, W)
    total = (nll * pixel_weight).sum()
    if label_smoothing:
        smooth = _nll_of_all_classes(inputs, weight).masked_fill(~mask, 0).sum() / inputs.logits.shape[1]
        total = (1 - label_smoothing) * total + label_smoothing * smooth
    weight_sum = pixel_weight.sum()
    # the smoothed loss is not 0 where all weights are: there is nothing to average
    return total * (weight_sum > 0) / divisor(weight_sum)


def _nll_of_all_classes(inputs: LossInputs, weight: Tensor | None) -> Tensor:
    """sum_c w_c (-log p_c), (B, H, W); -log p_c = -log p_t + z_t - z_c for logits z."""
    logits = inputs.logits
    w = logits.new_ones(logits.shape[1]) if weight is None else weight
    z_t = logits.gather(1, inputs.target[:, None])[:, 0]
    return (inputs.stats.nll + z_t) * w.sum() - (w[:, None, None] * logits).sum(dim=1)


def focal(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = 255,
    class_weights: ClassWeights = None,
    *,
    alpha: float = 0.5,
    gamma: float = 2.0,
) -> Tensor:
    """Mean of -alpha w_t (1 - p_t)^gamma log(p_t) over valid pixels (Lin et al. 2017, eq. 5, with softmax).

    Class weights scale the loss of a pixel and not the mean's divisor, the number of valid pixels: alpha = 1, gamma = 0
    without weights is `cross_entropy`. Shapes and errors as in `cross_entropy`.
    """
    return _focal(prepare(logits, target, ignore_index), class_weights, alpha, gamma)


def _focal(inputs: LossInputs, class_weights: ClassWeights, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    nll = inputs.stats.nll
    one_minus_p_t = -torch.expm1(-nll)  # (B, H, W), accurate near 0
    if gamma < 1:
        one_minus_p_t = one_minus_p_t.clamp_min(1e-12)  # the derivative of the power is infinite at 0
    loss = alpha * one_minus_p_t**gamma * nll
    weight = class_weight_tensor(class_weights, inputs.logits)
    if weight is not None:
        loss = loss * weight[inputs.target]
    return loss.sum() / divisor(inputs.valid.sum().to(loss.dtype))


def dice(
    logits: Tensor,
    target: Tensor,
    ignore_index: int = 255,
    class_weights: ClassWeights = None,
    *,
    smooth: float = DICE_SMOOTH,
) -> Tensor:
    """1 - mean over the classes present of (2 TP + smooth) / (2 TP + FP + FN + smooth) (Milletari et al. 2016).

    TP, FP and FN are sums of softmax probabilities over the valid pixels of the whole batch; classes that the batch
    does not contain are left out of the mean. class_weights (C,) weight the mean. Shapes and errors as in
    `cross_entropy`.
    """
    return _dice(prepare(logits, target, ignore_index), class_weights, smooth)


def _dice(inputs: LossInputs, class_weights: ClassWeights, smooth: float = DICE_SMOOTH) -> Tensor:
    _, true_positives, predicted, labeled = inputs.stats  # (C,): TP, TP + FP, TP + FN
    score = (2 * true_positives + smooth) / (predicted + labeled + smooth)
    weight = class_weight_tensor(class_weights, inputs.logits)
    present = (labeled > 0).to(score.dtype)
    weight = present if weight is None else present * weight
    return ((1 - score) * weight).sum() / divisor(weight.sum())


Loss = Callable[[Tensor, Tensor, int, ClassWeights], Tensor]
LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "focal": focal, "dice": dice, "lovasz": lovasz}
_LOSS_OF_INPUTS: dict[str, Callable[[LossInputs, ClassWeights], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "dice": _dice,
    "lovasz": lovasz_loss,
}
UNWEIGHTED = frozenset({"dice", "lovasz"})  # in a weighted sum, class weights apply to the pixel losses only


@dataclass(frozen=True)
class WeightedLoss:
    """A weighted sum: `total, losses = weighted_loss(logits, target)`; losses by name, detached and unweighted.

    Attributes:
        losses: weight of each loss, by name.
        ignore_index, class_weights, label_smoothing, ohem: see `cross_entropy`.
        stats_fn: computes the softmax statistics that the losses share.
    """

    losses: Mapping[str, float]
    ignore_index: int = 255
    class_weights: ClassWeights = None
    label_smoothing: float = 0.0
    ohem: OHEMConfig | None = None
    stats_fn: SoftmaxStatsFn = softmax_stats

    def anneal_class_weights(self, strength: float) -> WeightedLoss:
        """The same with class weights 1 + strength (w - 1): strength 1 keeps them, 0 makes them all 1."""
        if self.class_weights is None:
            return self
        return replace(self, class_weights=1 + strength * (torch.as_tensor(self.class_weights) - 1))

    def __call__(self, logits: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = prepare(logits, target, self.ignore_index, self.stats_fn)
        if self.label_smoothing or "lovasz" in self.losses:  # these read the logits too: add up gradients in float32
            inputs = inputs.in_full_precision()
        losses = {
            name: self._loss(name)(inputs, None if name in UNWEIGHTED else self.class_weights) for name in self.losses
        }
        total = torch.stack([self.losses[name] * loss for name, loss in losses.items()]).sum()
        return total, {name: loss.detach() for name, loss in losses.items()}

    def _loss(self, name: str) -> Callable[[LossInputs, ClassWeights], Tensor]:
        if name == "cross_entropy":
            return partial(_cross_entropy, label_smoothing=self.label_smoothing, ohem=self.ohem)
        return _LOSS_OF_INPUTS[name]


def combined(
    losses: Mapping[str, float],
    ignore_index: int = 255,
    class_weights: ClassWeights | str = None,
    *,
    label_smoothing: float = 0.0,
    ohem: OHEMConfig | None = None,
) -> WeightedLoss:
    """A weighted sum of losses by name: `combined({"cross_entropy": 1.0, "dice": 1.0})(logits, target)`.

    class_weights apply to cross_entropy and focal, label_smoothing and ohem to cross_entropy.

    Raises:
        UserError: no loss or an unknown one, a weight that is negative or not finite, or a method instead of class
            weights.
    """
    if not losses:
        raise UserError(f"segmentation.losses={{}}: must name at least one loss. Use some of {', '.join(LOSSES)}.")
    for name, weight in losses.items():
        if name not in LOSSES:
            raise UserError(
                f"segmentation.losses.{name}: must be one of {', '.join(LOSSES)}. "
                f"Did you mean '{nearest(name, LOSSES)}'?"
            )
        if not 0 <= weight < float("inf"):
            raise UserError(f"segmentation.losses.{name}={weight}: must be finite and at least 0.")
    if isinstance(class_weights, str):
        raise UserError(
            f"segmentation.class_weights={class_weights}: must be numbers here; a training run computes them from its "
            "dataset. Use unetdiff.data.stats.class_weights."
        )
    if class_weights is not None:
        class_weights = torch.as_tensor(class_weights, dtype=torch.float32)
        if not bool((class_weights.isfinite() & (class_weights >= 0)).all()):
            raise UserError(f"segmentation.class_weights={class_weights.tolist()}: must be finite and at least 0.")
    return WeightedLoss(dict(losses), ignore_index, class_weights, label_smoothing, ohem)
