"""How the timestep and the condition reach the blocks: what every family is given, and attention by level."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unetdiff.models.attention import AttentionBlock, TransformerBlock
from unetdiff.models.blocks import norm_groups


@dataclass(frozen=True)
class AttentionPlan:
    """Which levels attend, and to what. `levels` counts from 0, the full-resolution map."""

    levels: frozenset[int]
    context_dim: int | None
    head_dim: int
    groups: int = 32
    eps: float = 1e-5
    depth: int = 1
    linear_projection: bool = False

    def block(self, level: int, channels: int) -> nn.Module | None:
        """The attention of a level: transformer (with a condition), self-attention (without), or none."""
        if level not in self.levels:
            return None
        heads = max(1, channels // self.head_dim)
        while channels % heads:
            heads -= 1
        groups = norm_groups(channels, self.groups)
        if self.context_dim is None:
            return AttentionBlock(channels, heads, groups, self.eps)
        return TransformerBlock(channels, self.context_dim, heads, groups, self.depth, self.linear_projection)


class LevelAttention(nn.ModuleDict):
    """At most one attention a level, named by the level's number; levels that the plan leaves out pass unchanged."""

    def add(self, plan: AttentionPlan, level: int, channels: int) -> None:
        """Make the attention of a level, where the plan has one."""
        block = plan.block(level, channels)
        if block is not None:
            self[str(level)] = block

    def forward(self, level: int, h: Tensor, condition: Condition) -> Tensor:
        """The level's map (B, C, h, w) after its attention."""
        key = str(level)
        return condition.run(self[key], h, condition.context) if key in self else h


@dataclass
class Condition:
    """What one forward pass tells every block.

    Attributes:
        temb: (B, time_dim) time embedding, or None in a model without one.
        context: (B, tokens, dim) encoder_hidden_states, or None in a model without cross-attention.
        recompute: gradient checkpointing: activations are recomputed in the backward pass.
        maps: where the maps of `UNet.features` are collected, or None.
    """

    temb: Tensor | None
    context: Tensor | None
    recompute: bool = False
    maps: dict[str, Tensor] | None = None

    def keep(self, name: str, h: Tensor) -> Tensor:
        """Note a map under its name, when somebody asked for the maps."""
        if self.maps is not None:
            self.maps[name] = h
        return h

    def run(self, block: Callable[..., Tensor], *inputs: Any, within: nn.Module | None = None) -> Tensor:
        """Call a block, recomputing it in the backward pass when asked to; `within` holds the modules of a function."""
        if not (self.recompute and torch.is_grad_enabled()):
            return block(*inputs)
        owner = block if isinstance(block, nn.Module) else within

        def contexts() -> tuple[nullcontext[None], AbstractContextManager[None]]:
            return nullcontext(), _statistics_off(owner)

        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_off(owner: nn.Module | None) -> Iterator[None]:
    """While recomputing, BatchNorm must not count the same batch twice."""
    modules = () if owner is None else owner.modules()
    norms = [m for m in modules if isinstance(m, nn.BatchNorm2d) and m.training]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]  # type: ignore[union-attr]
    for norm in norms:
        norm.momentum = 0.0  # new statistics = 1 * old + 0 * batch
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
