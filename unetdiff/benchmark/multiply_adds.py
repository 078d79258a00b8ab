"""How much there is to compute: parameters, multiply-adds, and the share of the machine's ceiling that they reach."""

from __future__ import annotations

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unetdiff.benchmark.timing import Round


def parameters(network: nn.Module) -> int:
    """Number of parameters, trained or not."""
    return sum(parameter.numel() for parameter in network.parameters())


def macs(work: Round) -> float:
    """Multiply-adds of convolutions, matrix products and attention in one round, with its backward pass, by torch's
    count. Accelerated networks compute their plain forward pass while torch counts (`kernels.conditions`).
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2
