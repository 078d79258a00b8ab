"""What all segmentation losses start from: checked targets, the mask of valid pixels, and the statistics of one softmax
that cross-entropy, focal loss and Dice are functions of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from unetdiff.data.transforms import ignore_mask
from unetdiff.errors import UserError

ClassWeights = Tensor | Sequence[float] | None


class SoftmaxStats(NamedTuple):
    """Statistics of p = softmax(logits) over the valid pixels of a batch."""

    nll: Tensor
    """-log p_t, (B, H, W), t the pixel's target class; 0 at ignored pixels."""
    true_positives: Tensor
    """(C,): sum of p_c over the pixels of class c."""
    predicted: Tensor
    """(C,): sum of p_c over all valid pixels, true and false positives."""
    labeled: Tensor
    """(C,): number of pixels of class c, true positives and false negatives."""


def softmax_stats(logits: Tensor, target: Tensor, valid: Tensor) -> SoftmaxStats:
    """`SoftmaxStats` in float32 (float64 for float64 logits).

    Args:
        logits: (B, C, H, W), any float dtype.
        target: (B, H, W), int64, 0..C-1; any class at ignored pixels.
        valid: (B, H, W), bool; False at ignored pixels.
    """
    num_classes = logits.shape[1]
    log_p = full_precision(logits).log_softmax(dim=1)  # (B, C, H, W)
    nll = -log_p.gather(1, target[:, None])[:, 0].masked_fill(~valid, 0)  # (B, H, W)
    p_t = torch.exp(-nll) * valid
    return SoftmaxStats(
        nll=nll,
        true_positives=sum_by_class(p_t, target, num_classes),
        predicted=(log_p.exp() * valid[:, None]).sum(dim=(0, 2, 3)),
        labeled=sum_by_class(valid.to(log_p.dtype), target, num_classes),
    )


SoftmaxStatsFn = Callable[[Tensor, Tensor, Tensor], SoftmaxStats]


@dataclass(frozen=True)
class LossInputs:
    """Logits, targets and the mask of valid pixels.

    Attributes:
        logits: (B, C, H, W), any float dtype.
        target: (B, H, W), int64, 0..C-1; class 0 at ignored pixels.
        valid: (B, H, W), bool; False at ignored pixels.
        border: added to the class weights of the pixels in cross-entropy, (B, H, W), or None.
        stats_fn: computes `stats`; `unetdiff.kernels.losses` has a faster one for training.
    """

    logits: Tensor
    target: Tensor
    valid: Tensor
    stats_fn: SoftmaxStatsFn = field(default=softmax_stats, repr=False)
    border: Tensor | None = None

    def in_full_precision(self) -> LossInputs:
        """The same with logits of at least float32, in which gradients of several losses are added up."""
        logits = full_precision(self.logits)
        return self if logits is self.logits else replace(self, logits=logits)

    def images(self) -> list[LossInputs]:
        """One for each image."""
        border = [None] * len(self.logits) if self.border is None else self.border.split(1)
        parts = zip(self.logits.split(1), self.target.split(1), self.valid.split(1), border, strict=True)
        return [replace(self, logits=z, target=target, valid=valid, border=b) for z, target, valid, b in parts]

    @cached_property
    def stats(self) -> SoftmaxStats:
        """Computed once for all losses."""
        return self.stats_fn(self.logits, self.target, self.valid)


def prepare(logits: Tensor, target: Tensor, ignore_index: int, stats_fn: SoftmaxStatsFn = softmax_stats) -> LossInputs:
    """Check logits (B, C, H, W) of any float dtype and a target (B, H, W) of any integer dtype.

    Raises:
        UserError: the shapes do not match, the target is not of an integer dtype, or (on the CPU, where the check does
            not synchronize) it has a value that is neither a class, nor `ignore_index`, nor 255.
    """
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise UserError(
            f"target: shape must match the logits (got logits {tuple(logits.shape)}, target {tuple(target.shape)}). "
            "Pass logits (B, C, H, W) and target (B, H, W)."
        )
    if target.is_floating_point():
        raise UserError(f"target: dtype must be an integer (got {target.dtype}). Pass class indices as uint8 or int64.")
    num_classes = logits.shape[1]
    valid = ~ignore_mask(target, ignore_index)
    target = target.long()
    if target.device.type == "cpu":
        wrong = valid & ((target < 0) | (target >= num_classes))
        if bool(wrong.any()):
            raise UserError(
                f"target: values must be in 0..{num_classes - 1} or {ignore_index} (ignore) "
                f"(got {int(target[wrong][0])}). Run `unetdiff data check`."
            )
    return LossInputs(logits, target.masked_fill(~valid, 0), valid, stats_fn)


def pixel_weights(inputs: LossInputs, class_weights: ClassWeights) -> Tensor | None:
    """The weight of each pixel in cross-entropy, (B, H, W): that of its class, and of a border; None: all are 1."""
    weight = class_weight_tensor(class_weights, inputs.logits)
    weight = None if weight is None else weight[inputs.target]
    if inputs.border is None:
        return weight
    border = inputs.border.to(full_dtype(inputs.logits.dtype))
    return border + (1 if weight is None else weight)


def class_weight_tensor(class_weights: ClassWeights, logits: Tensor) -> Tensor | None:
    """class_weights as (C,) on the logits' device, at least float32; UserError where their number is not C."""
    if class_weights is None:
        return None
    weight = torch.as_tensor(class_weights, dtype=full_dtype(logits.dtype), device=logits.device)
    if weight.shape != (logits.shape[1],):
        raise UserError(f"class_weights: must have one value per class (got {weight.numel()} for {logits.shape[1]}).")
    return weight


def full_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays; anything else is computed in float32."""
    return torch.promote_types(dtype, torch.float32)


def full_precision(logits: Tensor) -> Tensor:
    """logits as `full_dtype`."""
    return logits.to(full_dtype(logits.dtype))


def divisor(total: Tensor) -> Tensor:
    """total, or 1 where it is 0: the mean of nothing is 0."""
    return torch.where(total > 0, total, torch.ones_like(total))


def sum_by_class(values: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Sum of values (B, H, W) over the pixels of each class in target (B, H, W) -> (C,).

    Accumulates per image column first, which keeps float32 sums over millions of pixels accurate.
    """
    columns = values.new_zeros(num_classes, values.shape[-1])  # (C, W)
    rows = rearrange(target, "b h w -> (b h) w")
    return columns.scatter_add(0, rows, rearrange(values, "b h w -> (b h) w")).sum(dim=1)
