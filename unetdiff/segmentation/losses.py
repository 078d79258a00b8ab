"""Segmentation losses: (logits (B, C, H, W), target (B, H, W)) -> scalar. Ignored pixels count in none of them.

All are computed in float32 (float64 for float64 logits) whatever autocast says, average over valid pixels or over the
classes present, and are 0 with a zero gradient where every pixel is ignored.

Each but Lovász is a function of sums over the pixels. The sums of the parts of a batch add up, so the loss of a batch
does not depend on how it is cut into micro-batches and processes: `WeightedLoss.sums` and `WeightedLoss.total`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unetdiff.errors import UserError, did_you_mean
from unetdiff.segmentation.config import OHEMConfig
from unetdiff.segmentation.loss_inputs import (
    ClassWeights,
    LossInputs,
    SoftmaxStatsFn,
    class_weight_tensor,
    divisor,
    pixel_weights,
    prepare,
    softmax_stats,
)
from unetdiff.segmentation.lovasz import lovasz, lovasz_loss
from unetdiff.segmentation.ohem import SumOver, hard_bound, select_hard

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
    inputs = prepare(logits, target, ignore_index)
    return _mean(_cross_entropy_sums(inputs, class_weights, label_smoothing, ohem))


def _cross_entropy_sums(
    inputs: LossInputs,
    class_weights: ClassWeights,
    label_smoothing: float = 0.0,
    ohem: OHEMConfig | None = None,
    bound: Tensor | None = None,
) -> Tensor:
    """Weighted sum of the pixels' losses and sum of their weights, (2,). `bound`: `hard_bound` of the whole batch."""
    if label_smoothing:
        inputs = inputs.in_full_precision()
    nll, mask = inputs.stats.nll, inputs.valid  # (B, H, W)
    weight = pixel_weights(inputs, class_weights)  # (B, H, W)
    if ohem is not None:
        bound = hard_bound(nll.detach()[mask], ohem.min_fraction) if bound is None else bound
        mask = select_hard(nll, mask, ohem.threshold, bound)
    pixel_weight = mask.to(nll.dtype) if weight is None else weight * mask  # w_t, (B, H, W)
    total = (nll * pixel_weight).sum()
    if label_smoothing:
        by_class = class_weight_tensor(class_weights, inputs.logits)  # (C,)
        smooth = _nll_of_all_classes(inputs, by_class).masked_fill(~mask, 0).sum() / inputs.logits.shape[1]
        total = (1 - label_smoothing) * total + label_smoothing * smooth
    return torch.stack([total, pixel_weight.sum()])


def _mean(sums: Tensor) -> Tensor:
    """(sum of the losses, sum of their weights) -> mean. It is 0 without weights, where a smoothed loss is not."""
    total, weight = sums
    return total * (weight > 0) / divisor(weight)


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
    return _mean(_focal_sums(prepare(logits, target, ignore_index), class_weights, alpha, gamma))


def _focal_sums(inputs: LossInputs, class_weights: ClassWeights, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    """Sum of the pixels' losses and number of valid pixels, (2,)."""
    nll = inputs.stats.nll
    one_minus_p_t = -torch.expm1(-nll)  # (B, H, W), accurate near 0
    if gamma < 1:
        one_minus_p_t = one_minus_p_t.clamp_min(1e-12)  # the derivative of the power is infinite at 0
    loss = alpha * one_minus_p_t**gamma * nll
    weight = class_weight_tensor(class_weights, inputs.logits)
    if weight is not None:
        loss = loss * weight[inputs.target]
    return torch.stack([loss.sum(), inputs.valid.sum().to(loss.dtype)])


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
    inputs = prepare(logits, target, ignore_index)
    return _dice(_dice_sums(inputs), class_weight_tensor(class_weights, inputs.logits), smooth)


def _dice_sums(inputs: LossInputs) -> Tensor:
    """TP, TP + FP and TP + FN of each class, (3, C)."""
    _, true_positives, predicted, labeled = inputs.stats
    return torch.stack([true_positives, predicted, labeled])


def _dice(sums: Tensor, weight: Tensor | None = None, smooth: float = DICE_SMOOTH) -> Tensor:
    true_positives, predicted, labeled = sums
    score = (2 * true_positives + smooth) / (predicted + labeled + smooth)
    present = (labeled > 0).to(score.dtype)
    weight = present if weight is None else present * weight
    return ((1 - score) * weight).sum() / divisor(weight.sum())


Loss = Callable[[Tensor, Tensor, int, ClassWeights], Tensor]
LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "focal": focal, "dice": dice, "lovasz": lovasz}
Sums = dict[str, Tensor]
"""The sums of each loss by its name."""


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
        return self.total(self.sums(self.prepare(logits, target)))

    @property
    def is_linear(self) -> bool:
        """Whether the loss of a batch is linear in what a network predicts for its pixels' losses."""
        return set(self.losses) <= {"cross_entropy", "focal"} and self.ohem is None

    def prepare(self, logits: Tensor, target: Tensor, border: Tensor | None = None) -> LossInputs:
        """The checked inputs of `sums`; errors as in `cross_entropy`. border: see `LossInputs`."""
        inputs = replace(prepare(logits, target, self.ignore_index, self.stats_fn), border=border)
        if self.label_smoothing or "lovasz" in self.losses:  # these read the logits too: add up gradients in float32
            return inputs.in_full_precision()
        return inputs

    def sums(self, inputs: LossInputs, bound: Tensor | None = None) -> Sums:
        """The sums of a batch or of a part of one. Those of the parts add up; that of Lovász is of a whole batch.

        bound: `hard_bound` of the whole batch, with `ohem`; None: this is the whole batch.
        """
        weights, sums = self.class_weights, {}
        for name in self.losses:
            if name == "cross_entropy":
                sums[name] = _cross_entropy_sums(inputs, weights, self.label_smoothing, self.ohem, bound)  # (2,)
            elif name == "focal":
                sums[name] = _focal_sums(inputs, weights)  # (2,)
            elif name == "dice":
                sums[name] = _dice_sums(inputs)  # (3, C)
            else:
                sums[name] = lovasz_loss(inputs, None)  # ()
        return sums

    def target_sums(self, target: Tensor, num_classes: int, border: Tensor | None = None) -> Sums:
        """`sums` of a linear loss with 0 for all that a network predicts: the divisors of its means."""
        batch, height, width = target.shape
        logits = torch.zeros((), device=target.device).expand(batch, num_classes, height, width)
        inputs = replace(prepare(logits, target, self.ignore_index), border=border)
        weight = pixel_weights(inputs, self.class_weights)
        pixels = inputs.valid.sum().to(logits.dtype)
        total = pixels if weight is None else (weight * inputs.valid).sum()
        divisors = {"cross_entropy": total, "focal": pixels}
        return {name: torch.stack([torch.zeros_like(pixels), divisors[name]]) for name in self.losses}

    def pixels(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """The valid pixels' -log p_t and class weights, (P,) and (P,), without gradient."""
        nll = inputs.stats.nll.detach()[inputs.valid]
        weight = pixel_weights(inputs, self.class_weights)
        return nll, torch.ones_like(nll) if weight is None else weight[inputs.valid]

    def hard_bound(self, nll: Tensor, sum_over: SumOver | None = None) -> Tensor | None:
        """Of the valid pixels' nll (P,) of a whole batch, for `sums`; None without `ohem`. Collective by `sum_over`."""
        return None if self.ohem is None else hard_bound(nll, self.ohem.min_fraction, sum_over)

    def hard_sums(self, nll: Tensor, weight: Tensor, bound: Tensor | None) -> Tensor:
        """Those of `pixels` that are hard as the sums of cross-entropy: 0 and the sum of their weights, (2,)."""
        hard = torch.ones_like(nll, dtype=torch.bool)
        if self.ohem is not None and bound is not None:
            hard = select_hard(nll, hard, self.ohem.threshold, bound)
        return torch.stack([nll.new_zeros(()), (weight * hard).sum()])

    def total(self, sums: Sums) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a whole batch, and its parts."""
        means = {"cross_entropy": _mean, "focal": _mean, "dice": _dice, "lovasz": lambda loss: loss}
        losses = {name: means[name](sums[name]) for name in self.losses}
        total = torch.stack([self.losses[name] * loss for name, loss in losses.items()]).sum()
        return total, {name: loss.detach() for name, loss in losses.items()}


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
                f"segmentation.losses.{name}: must be one of {', '.join(LOSSES)}. {did_you_mean(name, LOSSES)}".strip()
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
