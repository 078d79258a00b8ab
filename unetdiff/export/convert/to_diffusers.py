"""The config of a UNet as that of diffusers; what diffusers cannot express is refused by key."""

from __future__ import annotations

import math
from typing import Any, Literal

from unetdiff.errors import UserError, config_error
from unetdiff.export.convert.from_diffusers import CONDITION, PLAIN, collapse
from unetdiff.models.attention_plan import AttentionPlan
from unetdiff.models.config import RESIDUAL, ModelConfig

Way = Literal["down", "up"]
WAYS: tuple[Way, Way] = ("down", "up")


def config_to_diffusers(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """The diffusers class and its config for a resolved config of a UNet.

    Raises:
        UserError: naming the key, its value and what to do, if diffusers has no equivalent.
    """
    _refuse_inexpressible(config)
    conditioning, residual, imported = config.conditioning, config.residual, config.imported
    channels = config.encoder.channels or []
    condition = conditioning.cross_attention_dim is not None
    levels = set(conditioning.attention_levels or [])

    def block(way: Way, level: int) -> str:
        name = way.capitalize()
        if level in levels:
            return f"{'CrossAttn' if condition else 'Attn'}{name}Block2D"
        return f"Resnet{name}sampleBlock2D" if imported.resamples_by_resnet(way, level) else f"{name}Block2D"

    diffusion, shift = config.heads.diffusion, imported.freq_shift
    assert diffusion is not None  # else refused above
    target: dict[str, Any] = {
        "sample_size": config.sample_size,
        "in_channels": config.in_channels,
        "out_channels": diffusion.out_channels,
        "block_out_channels": channels,
        "down_block_types": [block("down", level) for level in range(len(channels))],
        "up_block_types": [block("up", level) for level in reversed(range(len(channels)))],
        "layers_per_block": residual.layers_per_block,
        "norm_num_groups": residual.norm_num_groups,
        "norm_eps": imported.norm_eps,
        "dropout": residual.dropout,
        "flip_sin_to_cos": imported.flip_sin_to_cos,
        "freq_shift": int(shift) if shift == int(shift) else shift,
        "downsample_padding": imported.downsample_padding,
        "resnet_time_scale_shift": residual.time_scale_shift,
        "num_class_embeds": imported.num_class_embeds,
        "class_embed_type": imported.class_embed_type,
    }
    if condition:
        plan = AttentionPlan.of(config)
        mid_blocks = {"attention": "UNetMidBlock2DCrossAttn", "resnet": "UNetMidBlock2D", "none": None}
        return CONDITION, target | {
            "mid_block_type": mid_blocks[residual.mid_block or "attention"],
            "cross_attention_dim": conditioning.cross_attention_dim,
            "attention_head_dim": collapse([plan.heads_at(level, width) for level, width in enumerate(channels)]),
            "transformer_layers_per_block": imported.transformer_depth,
            "use_linear_projection": imported.linear_projection,
            "upcast_attention": imported.upcast_attention,
            "time_cond_proj_dim": imported.time_cond_proj_dim,
            "addition_embed_type": imported.addition_embed_type,
            "addition_time_embed_dim": imported.addition_time_embed_dim,
            "projection_class_embeddings_input_dim": imported.projection_class_embeddings_input_dim,
        }
    return PLAIN, target | {
        "mid_block_type": None if residual.mid_block == "none" else "UNetMidBlock2D",
        "add_attention": residual.mid_block == "attention",
        "attn_norm_num_groups": _mid_block_groups(config),
        "attention_head_dim": _head_size(config),
        "downsample_type": _attending_resample(config, "down"),
        "upsample_type": _attending_resample(config, "up"),
    }


def _refuse_inexpressible(config: ModelConfig) -> None:
    conditioning, residual, imported = config.conditioning, config.residual, config.imported
    channels = config.encoder.channels or []
    if config.encoder.name != RESIDUAL:
        raise _inexpressible("encoder.name", config.encoder.name, "residual")
    if config.heads.diffusion is None:
        raise _inexpressible("heads.diffusion", None, "a head", 'See add_head("diffusion").')
    if config.patch_size != 1:
        raise _inexpressible("patch_size", config.patch_size, "1")
    if conditioning.pooled_context:
        raise _inexpressible("conditioning.pooled_context", True, "false")
    groups = residual.norm_num_groups
    if any(width % groups for width in channels):
        constraint = f"a divisor of every one of encoder.channels, e.g. {math.gcd(groups, *channels)}"
        raise _inexpressible("residual.norm_num_groups", groups, constraint)
    if conditioning.cross_attention_dim is not None:
        for way in WAYS:
            if _resnet_steps(config, way) & set(conditioning.attention_levels or []):
                levels = getattr(imported, f"resnet_{way}sample_levels")
                if levels is None:
                    raise _inexpressible("imported.resample", "resnet", "conv with cross-attention")
                constraint = "without the levels that attend, with cross-attention"
                raise _inexpressible(f"imported.resnet_{way}sample_levels", levels, constraint)
        if residual.mid_block == "resnets":
            raise _inexpressible("residual.mid_block", "resnets", "attention or resnet with cross-attention")
        return
    for key in ("time_cond_proj_dim", "addition_embed_type"):
        if getattr(imported, key) is not None:
            raise _inexpressible(f"imported.{key}", getattr(imported, key), "null without cross-attention")
    if residual.mid_block == "resnet":
        raise _inexpressible("residual.mid_block", "resnet", "attention or resnets without cross-attention")


def _resnet_steps(config: ModelConfig, way: Way) -> set[int]:
    """Levels with a downsampler or an upsampler inside a residual block."""
    count = len(config.encoder.channels or [])
    steps = range(count - 1) if way == "down" else range(1, count)
    return {level for level in steps if config.imported.resamples_by_resnet(way, level)}


def _attending_resample(config: ModelConfig, way: Way) -> str:
    """`downsample_type` or `upsample_type` of a `UNet2DModel`, which its attending levels share."""
    count, imported = len(config.encoder.channels or []), config.imported
    last = count - 1 if way == "down" else 0  # has none
    attending = set(config.conditioning.attention_levels or []) - {last}
    resnet = attending & _resnet_steps(config, way)
    if resnet and resnet != attending:
        key = f"imported.resnet_{way}sample_levels"
        constraint = f"all or none of the attending levels {sorted(attending)}"
        raise _inexpressible(key, getattr(imported, key.partition(".")[2]), constraint)
    if not attending:
        return imported.resample
    return "resnet" if resnet else "conv"


def _inexpressible(key: str, value: Any, constraint: str, remedy: str = "") -> UserError:
    error = config_error(f"model.{key}", value, f"{constraint} in diffusers", remedy or "Train with that value.")
    return UserError(f"to_diffusers: {error}")


def _mid_block_groups(config: ModelConfig) -> int | None:
    scale_shift = config.residual.time_scale_shift == "scale_shift"
    groups = config.imported.mid_block_attention_groups
    if groups is None:
        return config.residual.norm_num_groups if scale_shift else None
    if groups == 0 and not scale_shift:
        constraint = "null or positive with residual.time_scale_shift=default"
        raise _inexpressible("imported.mid_block_attention_groups", 0, constraint)
    return groups or None


def _head_size(config: ModelConfig) -> int | None:
    """The one head size of a `UNet2DModel`, or None for a single head of any size."""
    channels, plan = config.encoder.channels or [], AttentionPlan.of(config)
    size = config.conditioning.attention_head_dim
    attending = plan.levels | ({len(channels) - 1} if config.residual.mid_block == "attention" else set())
    sizes = {channels[level] // plan.heads_at(level, channels[level]) for level in attending}
    if plan.heads is None and sizes <= {size}:
        return size
    if all(plan.heads_at(level, channels[level]) == 1 for level in attending):
        return None
    if len(sizes) > 1:
        key = "conditioning.attention_head_dim" if plan.heads is None else "imported.attention_heads"
        constraint = f"one head size at every level without cross-attention (got {sorted(sizes)})"
        remedy = "Train with a conditioning.attention_head_dim that divides the channels of every attending level."
        raise _inexpressible(key, size if plan.heads is None else plan.heads, constraint, remedy)
    return sizes.pop()
