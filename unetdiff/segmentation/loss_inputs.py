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

from unetdiff.data.transforms import ignore_mask
from unetdiff.errors import UserError
from unetdiff.kernels.conditions import is_channels_last

ClassWeights = Tensor | Sequence[float] | None
IGNORED = -1  # inside the losses; outside, ignore_index may be any integer, a class included


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
        target: (B, H, W), int64, with void at `IGNORED`.
        valid: (B, H, W), bool: not void.
    """

    logits: Tensor
    target: Tensor
    valid: Tensor

    def in_full(self) -> Labelled:
        """The same with logits in float32 or float64, whose gradients are added up before they are rounded."""
        full = self.logits.to(_full(self.logits.dtype))
        return self if full is self.logits else replace(self, logits=full)

    @cached_property
    def index(self) -> Tensor:
        """The target, (B, H, W), with void at some class."""
        return self.target.clamp_min(0)

    @cached_property
    def soft(self) -> Soft:
        """Of one softmax, whatever reads it."""
        with torch.autocast(self.logits.device.type, enabled=False):
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
    valid = ~ignore_mask(target, ignore_index)
    target = target.long()
    if target.device.type == "cpu":  # elsewhere the check would wait for the device
        wrong = valid & ((target < 0) | (target >= num_classes))
        if bool(wrong.any()):
            raise UserError(
                f"target holds the value {int(target[wrong][0])}, neither a class (0..{num_classes - 1}) "
                f"nor void ({ignore_index}); run `unetdiff data check`"
            )
    return Labelled(logits, target.masked_fill(~valid, IGNORED), valid)


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

    Works by index: nothing of the size of the logits is made but the softmax and, in the backward pass, the gradient,
    both laid out as the logits are; a CPU takes one image after another through all of it, while it is in its cache.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits, axis = _rows(logits)
        full = _full(logits.dtype)
        seen = valid.to(full)  # void weighs nothing, in the backward pass too
        probability = torch.empty(logits.shape, dtype=full, device=logits.device)
        own, log_loss = torch.empty_like(seen), torch.empty_like(seen)  # p_t and -log p_t, (B, H, W)
        parts = []
        for z, p, t, v, p_t, loss in _parts(logits, probability, index, seen, own, log_loss):
            z = z.to(full)
            torch.softmax(z, dim=axis, out=p)
            p_t.copy_(_at(p, t, axis))
            torch.log(p_t, out=loss).neg_()
            small = p_t < torch.finfo(full).tiny  # too small for the logarithm, not for the difference of logits
            if not p.is_cpu or bool(small.any()):  # elsewhere a look would wait for the device
                # log p_t = z_t - logsumexp, and the largest logit has the largest p
                exact = z.amax(dim=axis).sub_(_at(z, t, axis)).sub_(p.amax(dim=axis).log_())
                torch.where(small, exact, loss, out=loss)
            loss.masked_fill_(v == 0, 0)
            p_t.mul_(v)
            parts.append(_sum_over_pixels(p, v, axis))
        num_classes = logits.shape[axis]
        overlap, count = _sum_by_class(own, index, num_classes), _sum_by_class(seen, index, num_classes)
        ctx.save_for_backward(probability, index, own, seen)
        ctx.dtype, ctx.axis = logits.dtype, axis
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
        probability, index, own, seen = ctx.saved_tensors
        axis = ctx.axis
        each, at_target = torch.zeros_like(own), torch.zeros_like(own)  # (B, H, W)
        if of_overlap is not None:
            at_target += of_overlap[index] * own
            each -= at_target
        if of_log_loss is not None:
            of_log_loss = of_log_loss.masked_fill(seen == 0, 0)
            at_target -= of_log_loss
            each += of_log_loss
        grad = torch.empty(probability.shape, dtype=ctx.dtype, device=own.device)
        with torch.autocast(own.device.type, enabled=False):
            for out, p, t, v, e, a in _parts(grad, probability, index, seen, each, at_target):
                if of_mass is None:
                    g = p * e.unsqueeze(axis)
                else:
                    e -= _sum_over_classes(p, of_mass, axis) * v
                    by_class = of_mass if axis == 3 else of_mass[:, None, None]
                    g = torch.addcmul(e.unsqueeze(axis), by_class, v.unsqueeze(axis)).mul_(p)
                out.copy_(g.scatter_add_(axis, t.unsqueeze(axis), a.unsqueeze(axis)))
        return (grad if axis == 1 else rearrange(grad, "b h w c -> b c h w")), None, None


def _full(dtype: torch.dtype) -> torch.dtype:
    """The precision of a loss of logits in this one."""
    return torch.promote_types(dtype, torch.float32)


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of tensors with the same images: one after another on a CPU, all at once elsewhere."""
    return zip(*[tensor.split(1 if tensor.is_cpu else len(tensor)) for tensor in tensors], strict=True)


def _rows(logits: Tensor) -> tuple[Tensor, int]:
    """Logits (B, C, H, W) as they lie in memory, and where their classes are: last, (B, H, W, C), or at 1."""
    if is_channels_last(logits):
        return rearrange(logits, "b c h w -> b h w c"), 3
    return logits.contiguous(), 1


def _at(values: Tensor, index: Tensor, axis: int) -> Tensor:
    """Of values with classes at `axis`, each pixel's at its class: (B, H, W)."""
    return values.gather(axis, index.unsqueeze(axis)).squeeze(axis)


def _sum_over_pixels(values: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Sum over pixels of values (classes at `axis`) by weights (B, H, W) -> (C,)."""
    if axis == 1:
        return torch.matmul(values.flatten(2), weights.flatten(1).unsqueeze(2)).sum(dim=(0, 2))
    return torch.matmul(weights.unsqueeze(2), values).sum(dim=(0, 1, 2))  # of each row of an image, which is short


def _sum_over_classes(values: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Sum over classes of values (classes at `axis`) by weights (C,) -> (B, H, W)."""
    if axis == 1:
        return torch.matmul(weights, values.flatten(2)).view(len(values), *values.shape[2:])
    return torch.matmul(values, weights)


def _sum_by_class(values: Tensor, index: Tensor, num_classes: int) -> Tensor:
    """Sum of values (B, H, W) by class index (B, H, W) -> (C,); a bin per column keeps float32 sums short."""
    bins = values.new_zeros(num_classes, values.shape[-1])
    bins.scatter_add_(0, rearrange(index, "b h w -> (b h) w"), rearrange(values, "b h w -> (b h) w"))
    return bins.sum(dim=1)
