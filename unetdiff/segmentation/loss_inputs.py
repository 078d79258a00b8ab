"""What every loss of the segmentation head does first: logits in full precision, targets checked, void set apart, and
one softmax for all that are asked of the same logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from unetdiff.data.transforms import is_void
from unetdiff.errors import UserError

ClassWeights = Tensor | Sequence[float] | None
VOID = -1  # inside the losses; outside, ignore_index may be any integer, a class included


class Soft(NamedTuple):
    """What a softmax says of the pixels that are not void."""

    log_loss: Tensor
    """-log p of a pixel's own class, (B, H, W); 0 under void."""
    overlap: Tensor
    """Probability of each class at its own pixels, (C,)."""
    mass: Tensor
    """Probability of each class anywhere, (C,)."""
    pixels: Tensor
    """How many there are of each class, (C,)."""


@dataclass(frozen=True)
class Labelled:
    """Logits and what they should say.

    Attributes:
        logits: (B, C, H, W), in float32 or float64, one class after another.
        target: (B, H, W), int64, with void at `VOID`.
        valid: (B, H, W), bool: not void.
    """

    logits: Tensor
    target: Tensor
    valid: Tensor

    @property
    def index(self) -> Tensor:
        """The target, (B, H, W), with void at some class."""
        return self.target.clamp_min(0)

    @cached_property
    def soft(self) -> Soft:
        """Of one softmax, whatever reads it."""
        return Soft(*_Softmax.apply(self.logits, self.index, self.valid))


def prepare(logits: Tensor, target: Tensor, ignore_index: int) -> Labelled:
    """Logits (B, C, H, W) of any float type and a target (B, H, W) of any integer type, as the losses read them.

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
    wide = torch.promote_types(logits.dtype, torch.float32)
    full = logits.to(wide, memory_format=torch.contiguous_format)
    return Labelled(full, target.masked_fill(~valid, VOID), valid)


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


class _Softmax(torch.autograd.Function):
    """Logits -> the four of `Soft`.

    Works by index: nothing of the size of the logits is made but the softmax and, in the backward pass, the gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        void = ~valid
        probability = logits.softmax(dim=1)  # (B, C, H, W)
        # log p_t = z_t - logsumexp, and the largest logit has the largest p: exact where p_t itself is too small
        likeliest = probability.amax(dim=1).log_()  # (B, H, W)
        log_loss = logits.amax(dim=1).sub_(_at(logits, index)).sub_(likeliest).masked_fill_(void, 0)
        probability.masked_fill_(void[:, None], 0)  # void weighs nothing from here on, in the backward pass too
        own = _at(probability, index)
        overlap = _sum_by_class(own, index, logits.shape[1])
        mass = probability.sum(dim=(0, 2, 3))
        count = _sum_by_class(valid.to(own.dtype), index, logits.shape[1])
        ctx.save_for_backward(probability, index, own, void)
        ctx.mark_non_differentiable(count)
        ctx.set_materialize_grads(False)
        return log_loss, overlap, mass, count

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_log_loss: Tensor | None, of_overlap: Tensor | None, of_mass: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        # With g = dL/dp: dL/dlogit = p (g - <g, p>), g_c = of_mass_c + [c = t] of_overlap_c; of -log p_t: p - [c = t].
        probability, index, own, void = ctx.saved_tensors
        each, at_target = torch.zeros_like(own), torch.zeros_like(own)  # (B, H, W): dL/dlogit = p each + [c = t] ...
        if of_overlap is not None:
            at_target += of_overlap[index] * own
            each -= at_target
        if of_log_loss is not None:
            of_log_loss = of_log_loss.masked_fill(void, 0)
            at_target -= of_log_loss
            each += of_log_loss
        if of_mass is None:
            grad = probability * each[:, None]
        else:
            with torch.autocast(own.device.type, enabled=False):
                each -= torch.matmul(of_mass, rearrange(probability, "b c h w -> b c (h w)")).view_as(own)
            grad = (of_mass[:, None, None] + each[:, None]).mul_(probability)  # (B, C, H, W)
        grad.scatter_add_(1, index[:, None], at_target[:, None])
        return grad, None, None


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Of values (B, C, H, W), each pixel's at its class: (B, H, W)."""
    return values.gather(1, index[:, None])[:, 0]


def _sum_by_class(values: Tensor, index: Tensor, num_classes: int) -> Tensor:
    """Sum of values (B, H, W) by class index (B, H, W) -> (C,); a bin per column keeps float32 sums short."""
    bins = values.new_zeros(num_classes, values.shape[-1])
    bins.scatter_add_(0, rearrange(index, "b h w -> (b h) w"), rearrange(values, "b h w -> (b h) w"))
    return bins.sum(dim=1)
