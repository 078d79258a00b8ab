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
    """Attention by level; levels count from 0, the full-resolution map."""

    levels: frozenset[int]
    """Levels with attention."""
    context_dim: int | None
    """Width of encoder_hidden_states' tokens; None: self-attention only (`AttentionBlock`)."""
    head_dim: int
    """Channels per head."""
    groups: int
    """Groups of the GroupNorm."""
    eps: float
    """Its epsilon in `AttentionBlock`."""
    depth: int | list[int]
    """Layers of a `TransformerBlock`, or one number per level."""
    linear_projection: bool
    """A `TransformerBlock` projects with a linear layer."""
    upcast: bool
    """Attention of a `TransformerBlock` in float32."""
    heads: list[int] | None
    """Heads per level; None: channels / head_dim."""
    mid_block_groups: int | None
    """Groups of the norm before the mid block's self-attention; None: `groups`, 0: no norm."""

    @classmethod
    def of(cls, config: ModelConfig) -> AttentionPlan:
        """The plan of a resolved config."""
        conditioning, imported = config.conditioning, config.imported
        return cls(
            levels=frozenset(conditioning.attention_levels or []),
            context_dim=conditioning.cross_attention_dim,
            head_dim=conditioning.attention_head_dim,
            groups=config.residual.norm_num_groups,
            eps=imported.norm_eps,
            depth=imported.transformer_depth,
            linear_projection=imported.linear_projection,
            upcast=imported.upcast_attention,
            heads=imported.attention_heads,
            mid_block_groups=imported.mid_block_attention_groups,
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
        return state.attend(self[key], h) if key in self else h
