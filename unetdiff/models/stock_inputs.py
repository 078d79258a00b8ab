"""The inputs of diffusers' `UNet2DConditionModel.forward` that its pipelines pass and `UNet` takes only by keyword.

What is not supported must be None; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from einops import rearrange
from torch import Tensor

from unetdiff.errors import UserError, as_yaml, did_you_mean
from unetdiff.models.attention import CrossAttentionCache
from unetdiff.models.embeddings import timestep_sinusoids

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
    timestep_cond: Tensor | None
    """(B, imported.time_cond_proj_dim): the guidance scale's embedding of Latent Consistency Models."""
    added_cond_kwargs: Mapping[str, Tensor] | None
    """Of imported.addition_embed_type=text_time (Stable Diffusion XL): `text_embeds`, the pooled text embedding (B, D),
    and `time_ids`, the original size, the crop's corner and the target size (B, 6); both are required."""
    attention_mask: None
    """Must be None."""
    down_intrablock_additional_residuals: None
    """Must be None."""


UNSUPPORTED = {
    "attention_mask": "self-attention takes no mask; encoder_attention_mask masks the condition's tokens",
    "down_intrablock_additional_residuals": "T2I-Adapters are not supported",
    "cross_attention_kwargs": "of attention processors, only scale is supported",
}


ADDED = ("text_embeds", "time_ids")
"""Keys of added_cond_kwargs."""


def require_supported(inputs: StockInputs, imported: Mapping[str, Any]) -> None:
    """Refuse what a network with this config section cannot take.

    Raises:
        UserError: naming an input that is unknown, unsupported, or lacks its counterpart.
    """
    known = StockInputs.__annotations__
    for name, value in inputs.items():
        if name not in known:
            raise UserError(f"{name}: must be an input of UNet. {did_you_mean(name, known)}".rstrip())
        empty = value is None or (isinstance(value, Mapping) and not value)
        if name in UNSUPPORTED and not empty:
            content = f" (got {', '.join(map(str, value))})" if isinstance(value, Mapping) else ""
            raise UserError(f"{name}: must be None{content}: {UNSUPPORTED[name]}.")
    if inputs.get("timestep_cond") is not None and imported["time_cond_proj_dim"] is None:
        raise UserError("timestep_cond: must be None without imported.time_cond_proj_dim.")
    added = inputs.get("added_cond_kwargs") or {}
    if sorted(added) != (sorted(ADDED) if imported["addition_embed_type"] else []):
        constraint = "text_embeds and time_ids" if imported["addition_embed_type"] else "None"
        remedy = "Image prompts (IP-Adapter) are not supported." if "image_embeds" in added else ""
        reason = f"as of imported.addition_embed_type={as_yaml(imported['addition_embed_type'])}"
        raise UserError(
            f"added_cond_kwargs: must be {constraint}, {reason} (got {as_yaml(list(added))}). {remedy}".strip()
        )
    names = ("down_block_additional_residuals", "mid_block_additional_residual")
    given = [name for name in names if inputs.get(name) is not None]
    if len(given) == 1:
        missing = names[1 - names.index(given[0])]
        raise UserError(f"{given[0]}: must come with {missing}, as of a ControlNet (T2I-Adapters are not supported).")


def text_and_sizes(inputs: StockInputs, imported: Mapping[str, Any]) -> Tensor:
    """Stable Diffusion XL's added condition (Podell et al. 2023, section 2.2): the pooled text embedding and the
    sinusoids of every size, (B, imported.projection_class_embeddings_input_dim).

    Raises:
        UserError: they have another number of features.
    """
    added = inputs["added_cond_kwargs"]
    assert added is not None  # else refused
    text, sizes = (added[name] for name in ADDED)
    dim, expected = imported["addition_time_embed_dim"], imported["projection_class_embeddings_input_dim"]
    if sizes.ndim != 2 or text.shape[1] + sizes.shape[1] * dim != expected:
        shapes = f"{tuple(text.shape)} and {tuple(sizes.shape)}"
        constraint = f"text_embeds (B, D) and time_ids (B, N) with D + {dim} N = {expected}"
        raise UserError(f"added_cond_kwargs: must have {constraint} (got {shapes}).")
    sinusoids = timestep_sinusoids(sizes.flatten(), dim, imported["flip_sin_to_cos"], imported["freq_shift"])
    return torch.cat([text, rearrange(sinusoids, "(b n) d -> b (n d)", b=len(sizes)).to(text.dtype)], dim=-1)


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
