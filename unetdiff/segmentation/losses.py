"""Losses of the segmentation head: (logits (B, C, H, W), target (B, H, W)) -> scalar; void counts in none.

All of them compute in float32 (float64 logits stay float64) whatever autocast says, average over valid pixels
or present classes only, and give 0 with a zero gradient where everything is void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from unetdiff.errors import UserError, nearest
from unetdiff.segmentation.config import OHEMConfig
from unetdiff.segmentation.loss_inputs import ClassWeights, Labelled, positive, prepare, weights_like
from unetdiff.segmentation.lovasz import lovasz, lovasz_of
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
    return _cross_entropy(prepare(logits, target, ignore_index), class_weights, label_smoothing, ohem)


def _cross_entropy(
    labelled: Labelled, class_weights: ClassWeights, label_smoothing: float = 0.0, ohem: OHEMConfig | None = None
) -> Tensor:
    if label_smoothing:
        labelled = labelled.in_full()
    index, weight = labelled.index, weights_like(class_weights, labelled.logits)
    log_loss, counted = labelled.soft.log_loss, labelled.valid  # (B, H, W)
    if ohem is not None:
        counted = hard_pixels(log_loss, labelled.valid, ohem.threshold, ohem.min_fraction)
    counts = counted.to(log_loss.dtype) if weight is None else weight[index] * counted
    total = counts.sum()
    summed = (log_loss * counts).sum()
    if label_smoothing:
        logits = labelled.logits
        each = logits.new_ones(logits.shape[1]) if weight is None else weight
        # the sum of w_c (-log p_c), where -log p_c = -log p_t + z_t - z_c
        own = log_loss + logits.gather(1, index[:, None])[:, 0]
        every = own * each.sum() - (each[:, None, None] * logits).sum(dim=1)
        smooth = every.masked_fill(~counted, 0).sum() / logits.shape[1]
        summed = (1 - label_smoothing) * summed + label_smoothing * smooth
    # the smoothed loss of a pixel that weighs nothing is not 0: where all are such, there is nothing to average
    return summed * (total > 0) / positive(total)


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
    return _focal(prepare(logits, target, ignore_index), class_weights, alpha, gamma)


def _focal(labelled: Labelled, class_weights: ClassWeights, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    weight = weights_like(class_weights, labelled.logits)
    log_loss = labelled.soft.log_loss
    miss = -torch.expm1(-log_loss)  # (B, H, W), 1 - p_t, exact near 0
    if gamma < 1:
        miss = miss.clamp_min(1e-12)  # the power's slope at 0 is infinite there
    per_pixel = alpha * miss**gamma * log_loss
    if weight is not None:
        per_pixel = per_pixel * weight[labelled.index]
    return per_pixel.sum() / positive(labelled.valid.sum().to(log_loss.dtype))


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
    return _dice(prepare(logits, target, ignore_index), class_weights, smooth)


def _dice(labelled: Labelled, class_weights: ClassWeights, smooth: float = DICE_SMOOTH) -> Tensor:
    weight = weights_like(class_weights, labelled.logits)
    _, overlap, mass, count = labelled.soft  # (C,) each: TP + FP = mass, TP + FN = count
    score = (2 * overlap + smooth) / (mass + count + smooth)
    share = (count > 0).to(score.dtype)
    if weight is not None:
        share = share * weight
    return ((1 - score) * share).sum() / positive(share.sum())


Loss = Callable[[Tensor, Tensor, int, ClassWeights], Tensor]
LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "focal": focal, "dice": dice, "lovasz": lovasz}
_OF_LABELLED: dict[str, Callable[[Labelled, ClassWeights], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "dice": _dice,
    "lovasz": lovasz_of,
}
UNWEIGHTED = frozenset({"dice", "lovasz"})  # inside a sum, class weights are for the losses over pixels


@dataclass(frozen=True)
class WeightedLoss:
    """A weighted sum: `total, parts = loss(logits, target)`, parts by name, detached, unweighted."""

    losses: Mapping[str, float]
    ignore_index: int = 255
    class_weights: ClassWeights = None
    label_smoothing: float = 0.0
    ohem: OHEMConfig | None = None

    def anneal_class_weights(self, strength: float) -> WeightedLoss:
        """The same with class weights w as 1 + strength (w - 1): 1 leaves them, 0 lets every class weigh 1."""
        if self.class_weights is None:
            return self
        return replace(self, class_weights=1 + strength * (torch.as_tensor(self.class_weights) - 1))

    def __call__(self, logits: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        labelled = prepare(logits, target, self.ignore_index)
        if self.label_smoothing or "lovasz" in self.losses:  # more than one gradient
            labelled = labelled.in_full()
        parts = {
            name: self._loss(name)(labelled, None if name in UNWEIGHTED else self.class_weights) for name in self.losses
        }
        total = torch.stack([self.losses[name] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    def _loss(self, name: str) -> Callable[[Labelled, ClassWeights], Tensor]:
        if name == "cross_entropy":
            return partial(_cross_entropy, label_smoothing=self.label_smoothing, ohem=self.ohem)
        return _OF_LABELLED[name]


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
