"""What every loss of the segmentation head does first: logits in full precision, targets checked, void set apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unetdiff.data.transforms import is_void
from unetdiff.errors import UserError

ClassWeights = Tensor | Sequence[float] | None
VOID = -1  # inside the losses; outside, ignore_index may be any integer, a class included


def prepare(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> logits in float32 or float64, target (B, H, W) as int64 with void at -1, valid (B, H, W) as bool.

    Raises UserError where shapes, or (on a CPU) values of the target, cannot be.
    """
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise UserError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not match: "
            "give logits (B, C, H, W) and a target (B, H, W) of the same size"
        )
    if target.is_floating_point():
        raise UserError(f"target has type {target.dtype}; give class indices (uint8 or int64)")
    num_classes = logits.shape[1]
    valid = ~is_void(target, ignore_index)
    target = target.long()
    if target.device.type == "cpu":  # elsewhere the check would wait for the device
        wrong = valid & ((target < 0) | (target >= num_classes))
        if bool(wrong.any()):
            raise UserError(
                f"target holds the value {int(target[wrong][0])}, neither a class (0..{num_classes - 1}) "
                f"nor void ({ignore_index}); run `unetdiff data check`"
            )
    target = target.masked_fill(~valid, VOID)
    return in_full(logits), target, valid


def in_full(logits: Tensor) -> Tensor:
    """Logits (B, C, H, W) in float32 or float64, one class after another, as a softmax over the classes reads them."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(wide, memory_format=torch.contiguous_format)


def weights_like(class_weights: ClassWeights, logits: Tensor) -> Tensor | None:
    """class_weights as a tensor (C,) beside the logits; UserError where their number is not C."""
    if class_weights is None:
        return None
    weight = torch.as_tensor(class_weights, dtype=logits.dtype, device=logits.device)
    if weight.shape != (logits.shape[1],):
        raise UserError(f"class_weights has {weight.numel()} values for {logits.shape[1]} classes; give one for each")
    return weight


def positive(total: Tensor) -> Tensor:
    """A divisor: 1 where there is nothing to average."""
    return torch.where(total > 0, total, torch.ones_like(total))
