"""Which levels of a U-Net attend, to what, and with how many heads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from unetdiff.models.attention import AttentionBlock, TransformerBlock
from unetdiff.models.blocks import norm_groups
from unetdiff.models.config import ModelConfig
from unetdiff.models.forward_state import ForwardState


@dataclass(frozen=True)
class AttentionPlan:
    """Attention by level; `levels` counts from 0, the full-resolution map."""

    levels: frozenset[int]
    context_dim: int | None
    head_dim: int
    groups: int = 32
    eps: float = 1e-5
    depth: int | list[int] = 1
    linear_projection: bool = False
    upcast: bool = False
    heads: list[int] | None = None
    mid_block_groups: int | None = None

    @classmethod
    def of(cls, config: ModelConfig) -> AttentionPlan:
        """The plan of a resolved config."""
        conditioning, imported = config.conditioning, config.imported
        return cls(
            frozenset(conditioning.attention_levels or []),
            conditioning.cross_attention_dim,
            conditioning.attention_head_dim,
            config.residual.norm_num_groups,
            imported.norm_eps,
            imported.transformer_depth,
            imported.linear_projection,
            imported.upcast_attention,
            imported.attention_heads,
            imported.mid_block_attention_groups,
        )

    def block(self, level: int, channels: int) -> nn.Module | None:
        """The attention of a level: a transformer block with cross-attention, else self-attention; None for no
        attention at this level."""
        return self._make(level, channels, None) if level in self.levels else None

    def mid_block(self, level: int, channels: int) -> nn.Module:
        """The attention of the residual mid block, whether or not the deepest level attends."""
        return self._make(level, channels, self.mid_block_groups)

    def _make(self, level: int, channels: int, self_attention_groups: int | None) -> nn.Module:
        heads = self.heads_at(level, channels)
        groups = norm_groups(channels, self.groups)
        if self.context_dim is None:
            if self_attention_groups is not None:
                groups = self_attention_groups
            return AttentionBlock(channels, heads, groups, self.eps)
        depth = self.depth if isinstance(self.depth, int) else self.depth[level]
        return TransformerBlock(channels, self.context_dim, heads, groups, depth, self.linear_projection, self.upcast)

    def heads_at(self, level: int, channels: int) -> int:
        """Number of attention heads at a level."""
        if self.heads is not None:
            return self.heads[level]
        heads = max(1, channels // self.head_dim)
        while channels % heads:
            heads -= 1
        return heads


class LevelAttention(nn.ModuleDict):
    """At most one attention block per level, under the level's number; the other levels pass through unchanged."""

    def add(self, plan: AttentionPlan, level: int, channels: int) -> None:
        """Add the attention of a level, if the plan has one."""
        block = plan.block(level, channels)
        if block is not None:
            self[str(level)] = block

    def forward(self, level: int, h: Tensor, state: ForwardState) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        key = str(level)
        return state.run(self[key], h, state.context) if key in self else h
