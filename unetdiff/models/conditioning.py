"""How the timestep and the condition reach the blocks: what every family is given, and attention by level."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unetdiff.models.attention import AttentionBlock, CrossAttentionCache, TransformerBlock
from unetdiff.models.blocks import norm_groups
from unetdiff.models.config import ModelConfig


@dataclass(frozen=True)
class AttentionPlan:
    """Which levels attend, and to what. `levels` counts from 0, the full-resolution map."""

    levels: frozenset[int]
    context_dim: int | None
    head_dim: int
    groups: int = 32
    eps: float = 1e-5
    depth: int | list[int] = 1
    linear_projection: bool = False
    upcast: bool = False
    heads: list[int] | None = None
    middle_groups: int | None = None

    @classmethod
    def of(cls, config: ModelConfig) -> AttentionPlan:
        """The plan of a resolved config."""
        told, residual = config.conditioning, config.residual
        return cls(
            frozenset(told.attention_levels or []),
            told.cross_attention_dim,
            told.attention_head_dim,
            residual.norm_num_groups,
            residual.norm_eps,
            residual.transformer_depth,
            residual.linear_projection,
            residual.upcast_attention,
            residual.attention_heads,
            residual.middle_attention_groups,
        )

    def block(self, level: int, channels: int) -> nn.Module | None:
        """The attention of a level: transformer (with a condition), self-attention (without), or none."""
        return self._make(level, channels, None) if level in self.levels else None

    def middle(self, level: int, channels: int) -> nn.Module:
        """The attention between the residual family's two middle blocks, whether or not the deepest level attends."""
        return self._make(level, channels, self.middle_groups)

    def _make(self, level: int, channels: int, own_groups: int | None) -> nn.Module:
        heads = self.heads_at(level, channels)
        groups = norm_groups(channels, self.groups)
        if self.context_dim is None:
            return AttentionBlock(channels, heads, groups if own_groups is None else own_groups, self.eps)
        depth = self.depth if isinstance(self.depth, int) else self.depth[level]
        return TransformerBlock(channels, self.context_dim, heads, groups, depth, self.linear_projection, self.upcast)

    def heads_at(self, level: int, channels: int) -> int:
        """Number of attention heads for so many channels."""
        if self.heads is not None:
            return self.heads[level]
        heads = max(1, channels // self.head_dim)
        while channels % heads:
            heads -= 1
        return heads


class LevelAttention(nn.ModuleDict):
    """At most one attention a level, named by the level's number; levels that the plan leaves out pass unchanged."""

    def add(self, plan: AttentionPlan, level: int, channels: int) -> None:
        """Make the attention of a level, where the plan has one."""
        block = plan.block(level, channels)
        if block is not None:
            self[str(level)] = block

    def forward(self, level: int, h: Tensor, condition: ForwardState) -> Tensor:
        """The level's map (B, C, h, w) after its attention."""
        key = str(level)
        return condition.run(self[key], h, condition.context) if key in self else h


@dataclass
class ForwardState:
    """What one forward pass tells every block.

    Attributes:
        temb: (B, time_dim) time embedding, (1, time_dim) where it is the same for all, or None in a model without one.
        context: (B, tokens, dim) encoder_hidden_states, or None in a model without cross-attention.
        recompute: gradient checkpointing: activations are recomputed in the backward pass.
        maps: where the maps of `UNet.features` are collected, or None.
    """

    temb: Tensor | None
    context: Tensor | CrossAttentionCache | None
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
            return nullcontext(), _StatisticsOff(owner)

        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


class _StatisticsOff(AbstractContextManager[None]):
    """While recomputing, BatchNorm must not count the same batch twice. Entered once in each backward pass."""

    def __init__(self, owner: nn.Module | None) -> None:
        modules = () if owner is None else owner.modules()
        self.norms = [m for m in modules if isinstance(m, nn.BatchNorm2d) and m.training]

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in self.norms]  # type: ignore[union-attr]
        for norm in self.norms:
            norm.momentum = 0.0  # new statistics = 1 * old + 0 * batch

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
