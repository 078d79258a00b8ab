"""How much there is to compute: parameters, multiply-adds, and the share of the machine's ceiling that they reach."""

from __future__ import annotations

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unetdiff.benchmark.timing import Round
from unetdiff.kernels.conditions import reference_kernels


def parameters(network: nn.Module) -> int:
    """Number of parameters, trained or not."""
    return sum(parameter.numel() for parameter in network.parameters())


def macs(work: Round) -> float:
    """Multiply-adds of one round as the network is written, by torch's count, backward too.

    Those of convolutions, matrix products and attention.
    """
    with reference_kernels(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2
