"""The cost of a network: parameters and multiply-adds."""

from __future__ import annotations

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unetdiff.benchmark.timing import Workload


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(work: Workload) -> float:
    """Multiply-adds of convolutions, matrix products and attention in one round, including the backward pass.

    Half of the FLOPs that torch counts; meanwhile accelerated networks compute their plain forward pass.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2
