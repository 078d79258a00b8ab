"""The inputs of diffusers' `UNet2DConditionModel.forward` that its pipelines pass and `UNet` takes only by keyword.

What is not supported must be None; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from unetdiff.errors import UserError, nearest
from unetdiff.models.attention import CrossAttentionCache

MASKED = -10_000.0
"""Added to the scores of masked tokens, as diffusers does; finite, so that a mask without tokens has no NaN."""


class StockInputs(TypedDict, total=False):
    """Keyword inputs by diffusers' names."""

    encoder_attention_mask: Tensor | None
    """(B, tokens), True or 1 for the tokens of encoder_hidden_states that are attended to."""
    down_block_additional_residuals: Sequence[Tensor] | None
    """A ControlNet's addition to every skip, finest first; with `mid_block_additional_residual`."""
    mid_block_additional_residual: Tensor | None
    """A ControlNet's addition to the mid block's map."""
    cross_attention_kwargs: Mapping[str, Any] | None
    """`scale`: the factor of LoRA layers."""
    timestep_cond: None
    """Must be None."""
    added_cond_kwargs: Mapping[str, Tensor] | None
    """Must be None or empty."""
    attention_mask: None
    """Must be None."""
    down_intrablock_additional_residuals: None
    """Must be None."""


UNSUPPORTED = {
    "timestep_cond": "this network has no time_cond_proj_dim",
    "added_cond_kwargs": "this network has no addition_embed_type, and image prompts (IP-Adapter) are not supported",
    "attention_mask": "self-attention takes no mask; encoder_attention_mask masks the condition's tokens",
    "down_intrablock_additional_residuals": "T2I-Adapters are not supported",
    "cross_attention_kwargs": "of attention processors, only scale is supported",
}


def require_supported(inputs: StockInputs) -> None:
    """Refuse what this network cannot take.

    Raises:
        UserError: naming an input that is unknown, unsupported, or lacks its counterpart.
    """
    known = StockInputs.__annotations__
    for name, value in inputs.items():
        if name not in known:
            raise UserError(f"{name}: must be an input of UNet. Did you mean {nearest(name, known)}?")
        empty = value is None or (isinstance(value, Mapping) and not value)
        if name in UNSUPPORTED and not empty:
            content = f" (got {', '.join(map(str, value))})" if isinstance(value, Mapping) else ""
            raise UserError(f"{name}: must be None{content}: {UNSUPPORTED[name]}.")
    names = ("down_block_additional_residuals", "mid_block_additional_residual")
    given = [name for name in names if inputs.get(name) is not None]
    if len(given) == 1:
        missing = names[1 - names.index(given[0])]
        raise UserError(f"{given[0]}: must come with {missing}, as of a ControlNet (T2I-Adapters are not supported).")


def attention_bias(inputs: StockInputs, context: Tensor | CrossAttentionCache | None, like: Tensor) -> Tensor | None:
    """encoder_attention_mask as what is added to the scores: (B, 1, 1, tokens) of the dtype of `like`, or None.

    Raises:
        UserError: a mask of another shape than the tokens', or in a model without cross-attention.
    """
    mask = inputs.get("encoder_attention_mask")
    if mask is None:
        return None
    if context is None:
        raise UserError("encoder_attention_mask: must be None without conditioning.cross_attention_dim.")
    tokens = context.tokens if isinstance(context, CrossAttentionCache) else context
    if mask.shape != tokens.shape[:2]:
        shape, expected = tuple(mask.shape), tuple(tokens.shape[:2])
        raise UserError(f"encoder_attention_mask: must have encoder_hidden_states' shape {expected} (got {shape}).")
    return ((1 - mask.to(like.dtype)) * MASKED)[:, None, None]


def add_residuals(inputs: StockInputs, skips: list[Tensor], h: Tensor) -> tuple[list[Tensor], Tensor]:
    """A ControlNet's residuals added to the skips and to the mid block's map (Zhang et al. 2023, section 3.2).

    Raises:
        UserError: residuals that do not have the shapes of the skips and of the map.
    """
    down, mid_block = inputs.get("down_block_additional_residuals"), inputs.get("mid_block_additional_residual")
    if down is None or mid_block is None:
        return skips, h
    for name, got, expected in (
        ("down_block_additional_residuals", list(down), skips),
        ("mid_block_additional_residual", [mid_block], [h]),
    ):
        shapes, wanted = ([tuple(one.shape) for one in maps] for maps in (got, expected))
        if shapes != wanted:
            raise UserError(f"{name}: must have the shapes {wanted} (got {shapes}).")
    return [torch.add(*pair) for pair in zip(skips, down, strict=True)], h + mid_block
