"""Modules of a U-Net with faster forward passes: the same children, parameters and numbers (to rounding).

Each is a subclass of the module it replaces and adds no state, so `accelerate_training_` exchanges the class of a
module in place. Each computes its parent's forward pass where a faster form does not apply: on a GPU, under a compiler,
an export or a transform of torch.func, and where a child that it bypasses has a hook.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unetdiff.kernels.conditions import images_at_a_time, is_eager_cpu, is_unhooked
from unetdiff.kernels.norm_silu_conv import FastGroupNorm, norm_silu, norm_silu_conv
from unetdiff.kernels.upsample_conv import doubles, upsample_conv
from unetdiff.models.attention import (
    GEGLU,
    Attention,
    AttentionBlock,
    AttentionRecorder,
    CrossAttentionCache,
    FeedForward,
)
from unetdiff.models.blocks import DoubleConv, ResnetBlock, Upsample, Upsample2d, resample
from unetdiff.models.decoders import PyramidUpBlock
from unetdiff.models.heads import DiffusionHead, SegmentationHead

__all__ = [
    "FastAttention",
    "FastAttentionBlock",
    "FastDiffusionHead",
    "FastFeedForward",
    "FastGroupNorm",
    "FastPyramidUpBlock",
    "FastResnetBlock",
    "FastSegmentationHead",
    "FastUpsample",
    "FastUpsample2d",
]

MAX_PRODUCT_PAIRS = 256 * 256
"""Pairs of query and key up to which a CPU attends by matrix products: torch's fused kernel is slower there, most of
all its backward pass."""
FEED_FORWARD_WIDTH = 8
"""Channels of a `FeedForward`'s widest map, GEGLU's projection, per channel of its input."""


class FastResnetBlock(ResnetBlock):
    """GroupNorm, SiLU and convolution as one step (`norm_silu_conv`), twice."""

    def forward(self, x: Tensor, temb: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        if not is_eager_cpu(x):
            return super().forward(x, temb, size)
        if self.resample is None:
            h = norm_silu_conv(self.norm1, self.conv1, x)
        else:
            h = norm_silu(self.norm1, x)
            x, h = resample(x, self.resample, size), resample(h, self.resample, size)
            h = self.conv1(h)
        scale_and_shift: tuple[Tensor, ...] = ()
        if self.time_emb_proj is not None and temb is not None:
            time = self.time_emb_proj(F.silu(temb))[:, :, None, None]  # (B, C or 2C, 1, 1)
            if self.scale_shift:
                scale_and_shift = time.chunk(2, dim=1)
            else:
                h = h + time
        dropout = self.dropout
        is_identity = isinstance(dropout, nn.Dropout) and is_unhooked(dropout, type(dropout))  # a subclass too
        if (self.training and dropout.p) or not is_identity:
            h = self.conv2(dropout(norm_silu(self.norm2, h, *scale_and_shift)))
        else:
            h = norm_silu_conv(self.norm2, self.conv2, h, *scale_and_shift)
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class FastUpsample(Upsample):
    """Upsampling and convolution without the upsampled map (`upsample_conv`)."""

    def forward(self, h: Tensor, temb: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        return upsample_conv(self.conv, h, size)


class FastUpsample2d(Upsample2d):
    """No copy of a transposed convolution's output that has the skip's size already."""

    def forward(self, h: Tensor, size: tuple[int, int] | None) -> Tensor:
        if self.conv is not None and is_eager_cpu(h) and doubles(h, size):
            return self.conv(h)
        return super().forward(h, size)


class FastPyramidUpBlock(PyramidUpBlock):
    """Nearest-neighbor upsampling, skip and first convolution without the upsampled map (`upsample_conv`)."""

    def forward(self, h: Tensor, skip: Tensor | None, size: tuple[int, int] | None, temb: Tensor | None) -> Tensor:
        upsample, block = self.upsample, self.block
        nearest = upsample.kind == "nearest" and size is not None and is_eager_cpu(h)
        if not (nearest and is_unhooked(upsample, FastUpsample2d) and is_unhooked(block, DoubleConv)):
            return super().forward(h, skip, size, temb)
        h = block.norm1(upsample_conv(block.conv1, h, size, skip))
        if block.time is not None and temb is not None:
            h = block.time(h, temb)
        return block.act(block.norm2(block.conv2(block.act(h))))  # type: ignore[no-any-return]


class FastAttention(Attention):
    """Attention of few tokens on a CPU by matrix products, else torch's fused kernel.

    One context token: the softmax of one score is 1, masked or not, so the output is the token's value, (B, 1, C),
    broadcast over the queries.
    """

    def forward(
        self, tokens: Tensor, context: Tensor | CrossAttentionCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        source = context.tokens if isinstance(context, CrossAttentionCache) else context
        if source is None or source.shape[1] != 1 or not is_eager_cpu(tokens) or not is_unhooked(self.to_q, nn.Linear):
            return super().forward(tokens, context, mask)
        if isinstance(context, AttentionRecorder):
            return super().forward(tokens, context, mask)
        if isinstance(context, CrossAttentionCache):
            _, v = context.keys_and_values(self)
        else:
            _, v = self.keys_and_values(source)
        out = self.to_out[0](rearrange(v, "b heads 1 d -> b 1 (heads d)"))  # (B, 1, C)
        if not torch.is_grad_enabled():
            return out  # type: ignore[no-any-return]
        # queries and keys have a gradient of 0, not None: DDP expects a gradient of every parameter
        unused = [tokens[:1, :1], *self.to_q.parameters(), *self.to_k.parameters()]
        return out + 0 * sum(part.sum() for part in unused)  # type: ignore[no-any-return]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if not is_eager_cpu(q) or q.shape[2] * k.shape[2] > MAX_PRODUCT_PAIRS:
            return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.to(q.dtype))
        images = images_at_a_time(q.shape[1] * q.shape[2] * k.shape[2])
        if torch.is_grad_enabled() or images >= len(q):
            return super().attend(q, k, v, mask)
        out = torch.empty_like(q)
        for start in range(0, len(q), images):
            part = slice(start, start + images)
            out[part] = super().attend(q[part], k[part], v[part], None if mask is None else mask[part])
        return out


class FastAttentionBlock(AttentionBlock, FastAttention):
    """`AttentionBlock` whose `super().forward` is that of `FastAttention`."""


class FastFeedForward(FeedForward):
    """On a CPU: in training, GELU(gate) is computed again for the gradient; in inference, a few images at a time."""

    def forward(self, tokens: Tensor) -> Tensor:
        geglu, identity, linear = self.net
        if not (is_eager_cpu(tokens) and is_unhooked(geglu, GEGLU) and is_unhooked(identity, nn.Identity)):
            return super().forward(tokens)
        if torch.is_grad_enabled():
            gated: Tensor = checkpoint(geglu.gate, geglu.proj(tokens), use_reentrant=False)
            return linear(gated)  # type: ignore[no-any-return]
        images = images_at_a_time(FEED_FORWARD_WIDTH * tokens.shape[1:].numel())
        return torch.cat([super(FastFeedForward, self).forward(part) for part in tokens.split(images)])


class FastSegmentationHead(SegmentationHead):
    """GroupNorm and SiLU as one step (`norm_silu`)."""

    def forward(
        self, h: Tensor, maps: Mapping[str, Tensor] | None = None, attention: AttentionRecorder | None = None
    ) -> Tensor:
        return self.conv(h if self.norm is None else norm_silu(self.norm, h))


class FastDiffusionHead(DiffusionHead):
    """GroupNorm and SiLU as one step (`norm_silu`)."""

    def forward(self, h: Tensor, sample: Tensor, temb: Tensor | None) -> Tensor:
        if self.skip is not None and self.fuse is not None:
            h = self.fuse(torch.cat([h, self.skip(sample)], dim=1), temb)
        return self.conv(norm_silu(self.norm, h))
