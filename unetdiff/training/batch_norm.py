"""BatchNorm over the images of a whole optimizer step, or over groups of them, in any number of processes.

Ioffe & Szegedy 2015; over several processes the statistics are those of all of them, forward and backward
("synchronized" BatchNorm, on a CPU too); over groups of images, "ghost" BatchNorm (Hoffer, Hubara & Soudry 2017,
algorithm 1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn

from unetdiff.errors import UserError, config_error


class Statistics:
    """Whose statistics a `SharedBatchNorm2d` uses, and the sums over the groups of a step.

    Args:
        processes: the number of training processes.
        images: consecutive images of a micro-batch that share statistics; None: all images of all processes.
    """

    def __init__(self, processes: int, images: int | None) -> None:
        self.processes, self.images = processes, images
        self.sums: Tensor | None = None  # (2, C): means and unbiased variances of the groups
        self.groups = 0


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the same tensors; in training mode its statistics are shared as `statistics` says.

    Over all processes, every forward pass updates the running statistics, as `nn.BatchNorm2d` does. Over groups of
    images, `update_running_statistics` does so once per step, by the mean over all groups of the step.
    """

    statistics: Statistics

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        statistics = self.statistics
        groups = 1 if statistics.images is None else len(input) // statistics.images
        processes = statistics.processes if statistics.images is None else 1
        x = rearrange(input, "(g n) c h w -> g n c h w", g=groups)
        out, mean, var, count = _Normalize.apply(x, self.weight, self.bias, self.eps, processes)  # type: ignore[no-untyped-call]
        if count < 2:
            raise single_value(statistics.images)
        unbiased = var * (count / (count - 1))
        self._record(mean, unbiased)
        return rearrange(out, "g n c h w -> (g n) c h w")

    @torch.no_grad()
    def _record(self, mean: Tensor, var: Tensor) -> None:
        """Take in the mean and unbiased variance (G, C) of a pass, unless momentum is 0 (recomputed activations)."""
        if self.momentum == 0:
            return
        if self.statistics.images is None:
            self._update(mean[0], var[0])
            return
        sums = torch.stack([mean.sum(0), var.sum(0)])  # (2, C)
        self.statistics.sums = sums if self.statistics.sums is None else self.statistics.sums + sums
        self.statistics.groups += len(mean)

    def _update(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), momentum)

    @torch.no_grad()
    def update_running_statistics(self) -> None:
        """Update the running statistics by the mean over the groups of the step, if there are any. Collective."""
        statistics = self.statistics
        if statistics.sums is None:
            return
        sums, groups = statistics.sums, statistics.groups
        statistics.sums, statistics.groups = None, 0
        if statistics.processes > 1:
            dist.all_reduce(sums)
            groups *= statistics.processes
        self._update(*(sums / groups))


def single_value(images: int | None) -> UserError:
    """The error of a BatchNorm whose statistics would be those of one value."""
    key = "training.batch_size" if images is None else "training.batch_norm_images"
    constraint = "greater than 1 where BatchNorm normalizes maps of one pixel: the variance of one value is 0"
    remedy = "Use more images, larger ones, or model.encoder.norm and model.decoder.norm group or frozen."
    return config_error(key, 1, constraint, remedy)


class _Normalize(torch.autograd.Function):
    """(x - mean) / std * weight + bias over the images and pixels of each group, and of all processes.

    Input (G, n, C, H, W); also returns mean and biased variance (G, C), and the number of values of each.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, processes: int
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        values = x.to(_statistics_dtype(x))
        var, mean = torch.var_mean(values, dim=(1, 3, 4), correction=0)  # (G, C)
        count = values.shape[1] * values.shape[3] * values.shape[4]
        if processes > 1:
            mean, var, count = _combine(mean, var, count, processes)
        inverse_std = torch.rsqrt(var + eps)
        scale = inverse_std * weight
        out = torch.addcmul(_per_channel(bias - mean * scale), values, _per_channel(scale))
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.processes, ctx.count = processes, count
        ctx.mark_non_differentiable(mean, var)
        return out.to(x.dtype), mean, var, count

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        gradient, values = gradient.to(mean.dtype), x.to(mean.dtype)
        normalized = (values - _per_channel(mean)) * _per_channel(inverse_std)
        sums = torch.stack([gradient.sum((1, 3, 4)), (gradient * normalized).sum((1, 3, 4))])  # (2, G, C)
        d_bias, d_weight = sums.sum(1)  # of this process: the gradients of parameters are summed elsewhere
        if ctx.processes > 1:
            dist.all_reduce(sums)
        d_mean, d_std = sums / ctx.count
        d_x = gradient - _per_channel(d_mean) - normalized * _per_channel(d_std)
        d_x = d_x * _per_channel(inverse_std * weight)
        return d_x.to(x.dtype), d_weight.to(weight.dtype), d_bias.to(weight.dtype), None, None


@torch.compiler.disable
def _combine(mean: Tensor, var: Tensor, count: int, processes: int) -> tuple[Tensor, Tensor, int]:
    """Mean and variance over all processes of those of each (Chan, Golub & LeVeque 1979), without cancellation."""
    local = torch.stack([mean, var, torch.full_like(mean, count)])  # (3, G, C)
    gathered = [torch.empty_like(local) for _ in range(processes)]
    dist.all_gather(gathered, local)
    means, variances, counts = torch.stack(gathered, dim=1)  # (P, G, C) each
    weights = counts / counts.sum(0)
    mean = (weights * means).sum(0)
    var = (weights * (variances + (means - mean) ** 2)).sum(0)
    return mean, var, int(counts[:, 0, 0].sum())


def _per_channel(values: Tensor) -> Tensor:
    return rearrange(values, "g c -> g 1 c 1 1")


def _statistics_dtype(x: Tensor) -> torch.dtype:
    """Statistics of half precision are computed in float32."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
