"""From our config of a U-Net to that of diffusers; what diffusers cannot say is refused by name."""

from __future__ import annotations

import math
from typing import Any

from unetdiff.errors import UserError
from unetdiff.export.convert.from_diffusers import CONDITION, PLAIN, alike
from unetdiff.models.conditioning import AttentionPlan
from unetdiff.models.config import RESIDUAL, ModelConfig, ResidualConfig


def to_theirs(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """The diffusers class and its config for a U-Net of ours, resolved.

    Raises:
        UserError: naming the key, its value and what to do, where diffusers has no word for it.
    """
    _refuse_inexpressible(config)
    told, residual, channels = config.conditioning, config.residual, config.encoder.channels or []
    condition, resnet = told.cross_attention_dim is not None, residual.resample == "resnet"
    levels = set(told.attention_levels or [])

    def block(way: str, level: int) -> str:
        if level in levels:
            return f"{'CrossAttn' if condition else 'Attn'}{way}Block2D"
        return f"Resnet{way}sampleBlock2D" if resnet else f"{way}Block2D"

    diffusion, shift = config.heads.diffusion, residual.freq_shift
    assert diffusion is not None  # else refused above
    theirs: dict[str, Any] = {
        "sample_size": config.sample_size,
        "in_channels": config.in_channels,
        "out_channels": diffusion.out_channels,
        "block_out_channels": channels,
        "down_block_types": [block("Down", level) for level in range(len(channels))],
        "up_block_types": [block("Up", level) for level in reversed(range(len(channels)))],
        "layers_per_block": residual.layers_per_block,
        "norm_num_groups": residual.norm_num_groups,
        "norm_eps": residual.norm_eps,
        "dropout": residual.dropout,
        "flip_sin_to_cos": residual.flip_sin_to_cos,
        "freq_shift": int(shift) if shift == int(shift) else shift,
        "downsample_padding": residual.downsample_padding,
        "resnet_time_scale_shift": residual.time_scale_shift,
        "num_class_embeds": told.num_class_embeds,
        "class_embed_type": told.class_embed_type,
    }
    if condition:
        plan = AttentionPlan.of(config)
        middles = {"attention": "UNetMidBlock2DCrossAttn", "resnet": "UNetMidBlock2D", "none": None}
        return CONDITION, theirs | {
            "mid_block_type": middles[residual.middle or "attention"],
            "cross_attention_dim": told.cross_attention_dim,
            "attention_head_dim": alike([plan.heads_at(level, width) for level, width in enumerate(channels)]),
            "transformer_layers_per_block": residual.transformer_depth,
            "use_linear_projection": residual.linear_projection,
            "upcast_attention": residual.upcast_attention,
        }
    return PLAIN, theirs | {
        "mid_block_type": None if residual.middle == "none" else "UNetMidBlock2D",
        "add_attention": residual.middle == "attention",
        "attn_norm_num_groups": _their_middle_groups(residual),
        "attention_head_dim": _their_head_size(config),
        "downsample_type": residual.resample,
        "upsample_type": residual.resample,
    }


def _refuse_inexpressible(config: ModelConfig) -> None:
    told, residual, channels = config.conditioning, config.residual, config.encoder.channels or []
    if config.encoder.name != RESIDUAL:
        raise _inexpressible("encoder.name", config.encoder.name, "its networks are our family 'residual'; train that")
    if config.heads.diffusion is None:
        raise _inexpressible("heads.diffusion", None, 'its networks are denoisers; see add_head("diffusion")')
    if config.patch_size != 1:
        raise _inexpressible("patch_size", config.patch_size, "train with model.patch_size 1")
    if told.pooled_context:
        raise _inexpressible("conditioning.pooled_context", True, "train with model.conditioning.pooled_context false")
    if any(width % residual.norm_num_groups for width in channels):
        raise _inexpressible(
            "residual.norm_num_groups",
            residual.norm_num_groups,
            f"it must divide every one of encoder.channels {channels}; "
            f"train with {math.gcd(residual.norm_num_groups, *channels)}",
        )
    if told.cross_attention_dim is not None:
        if residual.resample == "resnet" and told.attention_levels:
            raise _inexpressible(
                "residual.resample", "resnet", "with cross-attention train with model.residual.resample conv"
            )
        if residual.middle == "resnets":
            raise _inexpressible(
                "residual.middle",
                "resnets",
                "with cross-attention train with model.residual.middle attention or resnet",
            )
    elif residual.middle == "resnet":
        raise _inexpressible(
            "residual.middle", "resnet", "without cross-attention train with model.residual.middle attention or resnets"
        )


def _inexpressible(key: str, value: Any, remedy: str) -> UserError:
    return UserError(f"to_diffusers: {key} {value!r} is not in diffusers' networks; {remedy}")


def _their_middle_groups(residual: ResidualConfig) -> int | None:
    scale_shift, groups = residual.time_scale_shift == "scale_shift", residual.middle_attention_groups
    if groups is None:
        return residual.norm_num_groups if scale_shift else None
    if groups == 0 and not scale_shift:
        raise _inexpressible(
            "residual.middle_attention_groups",
            0,
            "without time_scale_shift scale_shift there is always a norm; use null",
        )
    return groups or None


def _their_head_size(config: ModelConfig) -> int | None:
    """The one size of a head that `UNet2DModel` has, or None for a single head, whatever its size."""
    channels, plan = config.encoder.channels or [], AttentionPlan.of(config)
    size = config.conditioning.attention_head_dim
    looking = plan.levels | ({len(channels) - 1} if config.residual.middle == "attention" else set())
    sizes = {channels[level] // plan.heads_at(level, channels[level]) for level in looking}
    if plan.heads is None and sizes <= {size}:
        return size
    if all(plan.heads_at(level, channels[level]) == 1 for level in looking):
        return None
    if len(sizes) > 1:
        key = "conditioning.attention_head_dim" if plan.heads is None else "residual.attention_heads"
        raise _inexpressible(
            key,
            size if plan.heads is None else plan.heads,
            f"the heads have {sorted(sizes)} channels, and without cross-attention all have as many; train with a "
            "conditioning.attention_head_dim that divides the channels of every level that attends",
        )
    return sizes.pop()
