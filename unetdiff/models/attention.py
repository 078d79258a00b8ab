"""Change 2 of 3: attention, over the map itself and over the tokens of a condition (encoder_hidden_states).

Tensor names are diffusers' (to_q, to_k, to_v, to_out.0, ...), so that Stable Diffusion's weights fit as they are.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.compiler import is_exporting
from torch.nn import functional as F

from unetdiff.kernels.conditions import HELD, by_hand
from unetdiff.kernels.norm_silu_conv import gated, group_norm

FEW = 256 * 256
"""On a CPU, so many pairs of tokens attend by plain products: the kernel takes longer, most of all for the gradient."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries (B, heads, N, d) over keys and values (B, heads, M, d) (Vaswani et al. 2017, equation 1)."""
    if torch.is_grad_enabled():
        return _attend(q, k, v)
    images = max(1, HELD // (q.shape[1] * q.shape[2] * k.shape[2]))
    if images >= len(q):
        return _attend(q, k, v)
    out = torch.empty_like(q)
    for start in range(0, len(q), images):
        some = slice(start, start + images)
        out[some] = _attend(q[some], k[some], v[some])
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, heads, N, M)
    return scores.softmax(-1) @ v


class CrossAttentionCache:
    """encoder_hidden_states that many passes read, as the steps of sampling do: keys and values are computed once.

    For a network whose weights do not change meanwhile, without gradients, and for tokens (B, M, D) of its own
    precision.
    """

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self._computed: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keys_and_values(self, attention: Attention) -> tuple[Tensor, Tensor]:
        """(B, heads, M, d) each, as this attention makes them."""
        if attention not in self._computed:
            self._computed[attention] = attention.keys_and_values(self.tokens)
        return self._computed[attention]


class Attention(nn.Module):
    """Multi-head attention of tokens (B, N, C) over context (B, M, D), or over themselves (Vaswani et al. 2017).

    Gives (B, N, C), or (B, 1, C) over a context of one token, where it is the same for all.
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

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens (B, M, D): (B, heads, M, d) each."""
        return self._by_head(self.to_k(source)), self._by_head(self.to_v(source))

    def _by_head(self, projected: Tensor) -> Tensor:
        return rearrange(projected, "b n (heads d) -> b heads n d", heads=self.heads)

    def forward(self, tokens: Tensor, context: Tensor | CrossAttentionCache | None = None) -> Tensor:
        if isinstance(context, CrossAttentionCache):
            k, v = context.keys_and_values(self)
        else:
            k, v = self.keys_and_values(tokens if context is None else context)
        if not is_exporting() and k.shape[2] == 1:  # all attention is on the one token, whatever the query
            out = self.to_out[0](rearrange(v, "b heads 1 d -> b 1 (heads d)"))  # (B, 1, C), the same for every query
            if not torch.is_grad_enabled():
                return out
            # queries and keys have a gradient of 0; it is there, so that several processes find every weight in use
            idle = [tokens[:1, :1], *self.to_q.parameters(), *self.to_k.parameters()]
            return out + 0 * sum(part.sum() for part in idle)
        q = self._by_head(self.to_q(tokens))
        precision = q.dtype
        few = by_hand(q) and q.shape[2] * k.shape[2] <= FEW
        if self.upcast:
            q, k, v = q.float(), k.float(), v.float()
        lowered = self.upcast and torch.is_autocast_enabled(q.device.type)
        with torch.autocast(q.device.type, enabled=False) if lowered else nullcontext():
            out = attend(q, k, v) if few else F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, d)
        return self.to_out[0](rearrange(out, "b heads n d -> b n (heads d)").to(precision))


class AttentionBlock(Attention):
    """Self-attention over a map's pixels with GroupNorm (0 groups: none) and a residual path (DDPM, UNet2DModel)."""

    def __init__(self, channels: int, heads: int, groups: int, eps: float) -> None:
        super().__init__(channels, None, heads, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps) if groups else nn.Identity()
        for parameter in self.to_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor, context: Tensor | CrossAttentionCache | None = None) -> Tensor:
        # context: unused, one signature for both kinds of block
        height = h.shape[-2]
        tokens = rearrange(group_norm(self.group_norm, h), "b c h w -> b (h w) c")
        return h + rearrange(super().forward(tokens), "b (h w) c -> b c h w", h=height)


class GEGLU(nn.Module):
    """Linear to twice the width; one half gates the other (Shazeer 2020, equation 5)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, tokens: Tensor) -> Tensor:
        return gated(self.proj(tokens))


class FeedForward(nn.Module):
    """GEGLU and back; the indices of `net` are diffusers' (0, 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, tokens: Tensor) -> Tensor:
        """Of tokens (B, N, D); where no gradient needs what is between, a few images at a time on a CPU."""
        if torch.is_grad_enabled() or not by_hand(tokens):
            return self._through(tokens)
        images = max(1, HELD // (8 * tokens.shape[1:].numel()))
        return torch.cat([self._through(part) for part in tokens.split(images)])

    def _through(self, tokens: Tensor) -> Tensor:
        for layer in self.net:
            tokens = layer(tokens)
        return tokens


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention to the condition, feed-forward; each normalised and residual."""

    def __init__(self, dim: int, context_dim: int, heads: int, upcast: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, None, heads, upcast=upcast)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, context_dim, heads, upcast=upcast)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, tokens: Tensor, context: Tensor | CrossAttentionCache) -> Tensor:
        tokens = tokens + self.attn1(self.norm1(tokens))
        tokens = tokens + self.attn2(self.norm2(tokens), context)
        return tokens + self.ff(self.norm3(tokens))


class TransformerBlock(nn.Module):
    """Stable Diffusion's transformer on a map: norm, project in, layers, project out, residual.

    `proj_out` starts at zero: a new block is the identity, whatever it joins.
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

    def forward(self, h: Tensor, context: Tensor | CrossAttentionCache | None = None) -> Tensor:
        if context is None:
            raise ValueError("a transformer block needs encoder_hidden_states (B, tokens, dim)")
        height = h.shape[-2]
        x = group_norm(self.norm, h)
        if self.linear_projection:
            tokens = self.proj_in(rearrange(x, "b c h w -> b (h w) c"))
        else:
            tokens = rearrange(self.proj_in(x), "b c h w -> b (h w) c")
        for layer in self.transformer_blocks:
            tokens = layer(tokens, context)
        if self.linear_projection:
            return h + rearrange(self.proj_out(tokens), "b (h w) c -> b c h w", h=height)
        return h + self.proj_out(rearrange(tokens, "b (h w) c -> b c h w", h=height))


def null_context(batch: int, dim: int, like: Tensor) -> Tensor:
    """One zero token (B, 1, dim): what a model with cross-attention reads when no condition is given."""
    return torch.zeros(batch, 1, dim, device=like.device, dtype=like.dtype)
