"""What every loss of the segmentation head does first: logits in full precision, targets checked, void set apart, and
one softmax for all that are asked of the same logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from unetdiff.data.transforms import is_void
from unetdiff.errors import UserError
from unetdiff.models.shortcuts import is_channels_last

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
        logits: (B, C, H, W), of any float type.
        target: (B, H, W), int64, with void at `VOID`.
        valid: (B, H, W), bool: not void.
    """

    logits: Tensor
    target: Tensor
    valid: Tensor

    def in_full(self) -> Labelled:
        """The same with logits in float32 or float64, whose gradients are added up before they are rounded."""
        full = _in_full(self.logits)
        return self if full is self.logits else replace(self, logits=full)

    @cached_property
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
    return Labelled(logits, target.masked_fill(~valid, VOID), valid)


def weights_like(class_weights: ClassWeights, logits: Tensor) -> Tensor | None:
    """class_weights as a tensor (C,) beside the logits, in full precision; UserError where their number is not C."""
    if class_weights is None:
        return None
    weight = torch.as_tensor(class_weights, dtype=_full(logits.dtype), device=logits.device)
    if weight.shape != (logits.shape[1],):
        raise UserError(f"class_weights has {weight.numel()} values for {logits.shape[1]} classes; give one for each")
    return weight


def positive(total: Tensor) -> Tensor:
    """A divisor: 1 where there is nothing to average."""
    return torch.where(total > 0, total, torch.ones_like(total))


class _Softmax(torch.autograd.Function):
    """Logits -> the four of `Soft`.

    Works by index: nothing of the size of the logits is made but the softmax and, in the backward pass, the gradient; a
    CPU takes one picture after another through all of it, while it is in its cache.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        void = ~valid
        kept: Any = {"dtype": _full(logits.dtype), "device": logits.device}
        probability = torch.empty(logits.shape, **kept)
        own, log_loss = torch.empty(index.shape, **kept), torch.empty(index.shape, **kept)  # p_t and -log p_t
        parts = []
        for z, p, t, unseen, p_t, loss in _parts(logits, probability, index, void, own, log_loss):
            z = _in_full(z)
            torch.softmax(z, dim=1, out=p)
            # log p_t = z_t - logsumexp, and the largest logit has the largest p: exact where p_t itself is too small
            torch.sub(z.amax(dim=1), _at(z, t), out=loss).sub_(p.amax(dim=1).log_()).masked_fill_(unseen, 0)
            p.masked_fill_(unseen[:, None], 0)  # void weighs nothing from here on, in the backward pass too
            p_t.copy_(_at(p, t))
            parts.append(p.sum(dim=(0, 2, 3)))
        overlap = _sum_by_class(own, index, logits.shape[1])
        count = _sum_by_class(valid.to(own.dtype), index, logits.shape[1])
        ctx.save_for_backward(probability, index, own, void)
        ctx.like = logits.dtype, torch.channels_last if is_channels_last(logits) else torch.contiguous_format
        ctx.mark_non_differentiable(count)
        ctx.set_materialize_grads(False)
        return log_loss, overlap, torch.stack(parts).sum(dim=0), count

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_log_loss: Tensor | None, of_overlap: Tensor | None, of_mass: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        # With g = dL/dp: dL/dlogit = p (g - <g, p>), g_c = of_mass_c + [c = t] of_overlap_c; of -log p_t: p - [c = t].
        # In all, dL/dlogit = p (of_mass + each) + [c = t] at_target.
        probability, index, own, void = ctx.saved_tensors
        each, at_target = torch.zeros_like(own), torch.zeros_like(own)  # (B, H, W)
        if of_overlap is not None:
            at_target += of_overlap[index] * own
            each -= at_target
        if of_log_loss is not None:
            of_log_loss = of_log_loss.masked_fill(void, 0)
            at_target -= of_log_loss
            each += of_log_loss
        dtype, layout = ctx.like
        grad = torch.empty(probability.shape, dtype=dtype, device=own.device, memory_format=layout)
        with torch.autocast(own.device.type, enabled=False):
            for out, p, t, e, a in _parts(grad, probability, index, each, at_target):
                if of_mass is None:
                    g = p * e[:, None]
                else:
                    e -= torch.matmul(of_mass, rearrange(p, "b c h w -> b c (h w)")).view_as(e)
                    g = (of_mass[:, None, None] + e[:, None]).mul_(p)  # (B, C, H, W)
                _lay(g.scatter_add_(1, t[:, None], a[:, None]).to(dtype), out)
        return grad, None, None


def _full(dtype: torch.dtype) -> torch.dtype:
    """The precision of a loss of logits in this one."""
    return torch.promote_types(dtype, torch.float32)


def _in_full(logits: Tensor) -> Tensor:
    """(B, C, H, W) in full precision, one class after another, as a softmax over the classes reads them."""
    return logits.to(_full(logits.dtype), memory_format=torch.contiguous_format)


def _lay(values: Tensor, out: Tensor) -> None:
    """Copy (B, C, H, W); from classes to pixels as a matrix, for which torch has a way of its own."""
    if len(values) == 1 and is_channels_last(out):
        rows = out.permute(0, 2, 3, 1).view(-1, out.shape[1])  # (H W, C)
        rows.copy_(values.view(out.shape[1], -1).t())
    else:
        out.copy_(values)


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of tensors with the same pictures: one after another on a CPU, all at once elsewhere."""
    return zip(*[tensor.split(1 if tensor.is_cpu else len(tensor)) for tensor in tensors], strict=True)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Of values (B, C, H, W), each pixel's at its class: (B, H, W)."""
    return values.gather(1, index[:, None])[:, 0]


def _sum_by_class(values: Tensor, index: Tensor, num_classes: int) -> Tensor:
    """Sum of values (B, H, W) by class index (B, H, W) -> (C,); a bin per column keeps float32 sums short."""
    bins = values.new_zeros(num_classes, values.shape[-1])
    bins.scatter_add_(0, rearrange(index, "b h w -> (b h) w"), rearrange(values, "b h w -> (b h) w"))
    return bins.sum(dim=1)
