"""Change 2 of 3: attention, over the map itself and over the tokens of a condition (encoder_hidden_states).

Attention is written out, so that it has derivatives of every order. `unetdiff.kernels` exchanges it for torch's
`scaled_dot_product_attention`, which does not keep the (N, M) scores.

Tensor names are diffusers' (to_q, to_k, to_v, to_out.0, ...), so that Stable Diffusion's weights fit as they are.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class CrossAttentionCache:
    """encoder_hidden_states (B, M, D) for many forward passes, as in sampling: keys and values are computed once.

    For a network whose weights do not change meanwhile, without gradients, and tokens of the network's dtype.
    """

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self._computed: dict[Attention, tuple[Tensor, Tensor]] = {}

    def keys_and_values(self, attention: Attention) -> tuple[Tensor, Tensor]:
        """(B, heads, M, d) each, of this attention layer."""
        if attention not in self._computed:
            self._computed[attention] = attention.keys_and_values(self.tokens)
        return self._computed[attention]


class AttentionRecorder(CrossAttentionCache):
    """encoder_hidden_states (B, M, D) of one forward pass, and the cross-attention over them, for gradients too.

    `maps` gives what VPD (Zhao et al. 2023, section 3.3) reads: softmax(q kᵀ / √d), averaged over the heads and over
    all layers at one resolution. Attention is plain where it is recorded.
    """

    def __init__(self, tokens: Tensor) -> None:
        super().__init__(tokens)
        self._recorded: list[Tensor] = []  # (B, N, M) of each layer

    def keys_and_values(self, attention: Attention) -> tuple[Tensor, Tensor]:
        return attention.keys_and_values(self.tokens)

    def record(self, probabilities: Tensor) -> None:
        """Record the probabilities (B, heads, N, M) of a layer."""
        self._recorded.append(probabilities.mean(dim=1))

    def maps(self, size: tuple[int, int]) -> Tensor:
        """(B, M, h, w): the average over the layers whose queries are a map of this height and width."""
        layers = [one for one in self._recorded if one.shape[1] == size[0] * size[1]]
        return rearrange(torch.stack(layers).mean(dim=0), "b (h w) m -> b m h w", h=size[0])


class Attention(nn.Module):
    """Multi-head attention of tokens (B, N, C) over context (B, M, D), or over themselves (Vaswani et al. 2017).

    to_q, to_k and to_v have no bias except in `AttentionBlock`: zero tokens have zero values and add nothing.

    Args:
        channels: C, of queries and output.
        context_dim: D; None: self-attention.
        heads: number of heads.
        bias: biases of to_q, to_k and to_v.
        upcast: attention in float32.
    """

    def __init__(
        self, channels: int, context_dim: int | None, heads: int, bias: bool = False, upcast: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.upcast = heads, upcast
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_dim or channels, channels, bias=bias)
        self.to_v = nn.Linear(context_dim or channels, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(
        self, tokens: Tensor, context: Tensor | CrossAttentionCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """`mask`: (B, 1, 1, M), added to the scores."""
        q = self._by_head(self.to_q(tokens))  # (B, heads, N, d)
        if isinstance(context, CrossAttentionCache):
            k, v = context.keys_and_values(self)
        else:
            k, v = self.keys_and_values(tokens if context is None else context)  # (B, heads, M, d)
        recorder = context if isinstance(context, AttentionRecorder) else None
        if self.upcast:
            with torch.autocast(q.device.type, enabled=False):
                out = self._attend(q.float(), k.float(), v.float(), mask, recorder).to(q.dtype)
        else:
            out = self._attend(q, k, v, mask, recorder)
        return self.to_out[0](rearrange(out, "b heads n d -> b n (heads d)"))  # (B, N, C)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """softmax(q kᵀ / √d + mask) v (Vaswani et al. 2017, equation 1); (B, heads, N, d)."""
        return self.probabilities(q, k, mask) @ v

    def probabilities(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """softmax(q kᵀ / √d + mask), (B, heads, N, M)."""
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return (scores if mask is None else scores + mask.to(scores.dtype)).softmax(dim=-1)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, recorder: AttentionRecorder | None
    ) -> Tensor:
        if recorder is None:
            return self.attend(q, k, v, mask)
        probabilities = self.probabilities(q, k, mask)
        recorder.record(probabilities)
        return probabilities @ v

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """(B, heads, M, d) each, of tokens (B, M, D)."""
        return self._by_head(self.to_k(source)), self._by_head(self.to_v(source))

    def _by_head(self, projected: Tensor) -> Tensor:
        return rearrange(projected, "b n (heads d) -> b heads n d", heads=self.heads)


class AttentionBlock(Attention):
    """Self-attention over a map's pixels with GroupNorm (0 groups: none) and a residual path (DDPM, UNet2DModel)."""

    def __init__(self, channels: int, heads: int, groups: int, eps: float) -> None:
        super().__init__(channels, None, heads, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps) if groups else nn.Identity()
        for parameter in self.to_out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, h: Tensor, context: Tensor | CrossAttentionCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        # `context` and `mask` are unused: AttentionBlock and TransformerBlock have the same signature
        height = h.shape[-2]
        tokens = rearrange(self.group_norm(h), "b c h w -> b (h w) c")
        return h + rearrange(super().forward(tokens), "b (h w) c -> b c h w", h=height)


class GEGLU(nn.Module):
    """value * GELU(gate) of one linear projection (Shazeer 2020, equation 5)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gate(self.proj(tokens))

    @staticmethod
    def gate(projected: Tensor) -> Tensor:
        """(B, N, 2 D), value and gate, to (B, N, D)."""
        value, gate = projected.chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU and back; the indices of `net` are diffusers' (0, 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.net:
            tokens = layer(tokens)
        return tokens


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention to the condition, feed-forward; each with LayerNorm and a residual path.

    diffusers' `BasicTransformerBlock`.
    """

    def __init__(self, dim: int, context_dim: int, heads: int, upcast: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, None, heads, upcast=upcast)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, context_dim, heads, upcast=upcast)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, tokens: Tensor, context: Tensor | CrossAttentionCache, mask: Tensor | None = None) -> Tensor:
        tokens = tokens + self.attn1(self.norm1(tokens))
        tokens = tokens + self.attn2(self.norm2(tokens), context, mask)
        return tokens + self.ff(self.norm3(tokens))


class TransformerBlock(nn.Module):
    """Stable Diffusion's transformer on a map: norm, project in, layers, project out, residual.

    diffusers' `Transformer2DModel`. `proj_out` is zero-initialized: a new block is the identity.
    """

    def __init__(
        self,
        channels: int,
        context_dim: int,
        heads: int,
        groups: int,
        depth: int = 1,
        linear_projection: bool = False,
        upcast: bool = False,
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)  # 1e-6 always, whatever the model's norm_eps
        self.proj_in: nn.Module = (
            nn.Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)
        )
        self.transformer_blocks = nn.ModuleList(
            [TransformerLayer(channels, context_dim, heads, upcast) for _ in range(depth)]
        )
        self.proj_out = nn.Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)
        for parameter in self.proj_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor, context: Tensor | CrossAttentionCache, mask: Tensor | None = None) -> Tensor:
        """`mask`: (B, 1, 1, tokens), added to the scores of cross-attention."""
        height = h.shape[-2]
        x = self.norm(h)
        if self.linear_projection:
            tokens = self.proj_in(rearrange(x, "b c h w -> b (h w) c"))
        else:
            tokens = rearrange(self.proj_in(x), "b c h w -> b (h w) c")
        for layer in self.transformer_blocks:
            tokens = layer(tokens, context, mask)
        if self.linear_projection:
            return h + rearrange(self.proj_out(tokens), "b (h w) c -> b c h w", h=height)
        return h + self.proj_out(rearrange(tokens, "b (h w) c -> b c h w", h=height))


def null_context(batch: int, dim: int, like: Tensor) -> Tensor:
    """One zero token (B, 1, dim): the context of a model with cross-attention when no condition is passed."""
    return torch.zeros(batch, 1, dim, device=like.device, dtype=like.dtype)
