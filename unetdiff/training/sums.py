"""Sums over the images of a step, added up over micro-batches and processes: a loss is a function of the total."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unetdiff.config.schema import RunConfig
from unetdiff.errors import config_error

Sums = dict[str, Tensor]
"""Tensors by name that add up over the images of a batch, e.g. a sum of losses and their number."""


def require_sums(config: RunConfig, processes: int) -> None:
    """Check that the loss has sums that add up over this number of processes.

    Raises:
        UserError: Lovász-softmax in several processes.
    """
    losses = config.segmentation.losses
    if processes > 1 and config.task != "diffusion" and "lovasz" in losses:
        constraint = f"without lovasz in {processes} processes, as it sorts the pixels of the whole batch"
        raise config_error("segmentation.losses", losses, constraint, "Use one process, or dice instead of lovasz.")


def add(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Sums:
    """The sums of two parts of a batch."""
    return {name: first[name] + second[name] for name in first}


def sum_over_processes(sums: Mapping[str, Tensor], processes: int) -> Sums:
    """The sums of all processes, by one exchange. Collective.

    Its gradient is for DDP, which averages the gradients of the processes: where each of them computes the same loss
    from these sums, the average is the gradient of that loss.
    """
    if processes == 1:
        return dict(sums)
    flat = torch.cat([value.flatten() for value in sums.values()])
    parts = _AllReduce.apply(flat, processes).split([value.numel() for value in sums.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(sums.items(), parts, strict=True)}


def sum_tensor(value: Tensor) -> Tensor:
    """A tensor without gradient, summed over the processes. Collective."""
    value = value.clone()
    torch.distributed.all_reduce(value)
    return value


class _AllReduce(torch.autograd.Function):
    """(N,) summed over the processes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, processes: int) -> Tensor:
        ctx.processes = processes
        return sum_tensor(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.processes, None
