"""Types and ranges of the values of a model config, which may come from a file: checked before anything is built."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from unetdiff.errors import as_yaml, config_error

MAX_LEVELS = 16
MAX_BANDS = 64
MAX_CHANNELS = 1 << 16
MAX_LAYERS = 64
RANGES: dict[str, tuple[float, float]] = {
    "in_channels": (1, MAX_CHANNELS),
    "patch_size": (1, 64),
    "sample_size": (1, MAX_CHANNELS),
    "encoder.channels": (1, MAX_CHANNELS),
    "residual.layers_per_block": (1, MAX_LAYERS),
    "encoder.mean": (-1e6, 1e6),
    "encoder.std": (1e-6, 1e6),
    "encoder.dropout": (0, 1),
    "residual.norm_num_groups": (1, MAX_CHANNELS),
    "residual.dropout": (0, 1),
    "decoder.channels": (1, MAX_CHANNELS),
    "conditioning.cross_attention_dim": (1, MAX_CHANNELS),
    "conditioning.attention_head_dim": (1, MAX_CHANNELS),
    "heads.segmentation.num_classes": (1, 255),
    "heads.segmentation.pyramid": (1, MAX_CHANNELS),
    "heads.segmentation.own_decoder_levels": (0, MAX_LEVELS),
    "heads.diffusion.out_channels": (1, MAX_CHANNELS),
    "imported.norm_eps": (0, 1),
    "imported.downsample_padding": (0, 1),
    "imported.freq_shift": (0, 1),
    "imported.resnet_downsample_levels": (0, MAX_LEVELS),
    "imported.resnet_upsample_levels": (0, MAX_LEVELS),
    "imported.transformer_depth": (1, MAX_LAYERS),
    "imported.attention_heads": (1, MAX_CHANNELS),
    "imported.mid_block_attention_groups": (0, MAX_CHANNELS),
    "imported.num_class_embeds": (1, 1 << 31),
    "imported.time_cond_proj_dim": (1, MAX_CHANNELS),
    "imported.addition_time_embed_dim": (1, MAX_CHANNELS),
    "imported.projection_class_embeddings_input_dim": (1, MAX_CHANNELS),
    "imported.segmentation_kernel_size": (1, 63),
}
"""Smallest and largest value of each number, or of each in a list."""
WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
MAX_SHOWN = 80


def require_valid(config: Any, prefix: str = "") -> None:
    """Check the type and range of every value of a `ModelConfig`.

    Raises:
        UserError: naming the key, its value and what it must be.
    """
    hints = get_type_hints(type(config))
    for item in fields(config):
        key, value, hint = f"{prefix}{item.name}", getattr(config, item.name), hints[item.name]
        if not fits(value, hint):
            raise config_error(key, _shown(value), in_words(hint))
        if is_dataclass(value):
            require_valid(value, f"{key}.")
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        low, high = RANGES.get(key, (-math.inf, math.inf))
        if key in RANGES and not all(low <= number <= high for number in numbers):
            raise config_error(key, _shown(value), f"in [{low}, {high}]")
        most = MAX_BANDS if key in ("encoder.mean", "encoder.std") else MAX_LEVELS
        if isinstance(value, list) and len(value) > most:
            raise config_error(key, _shown(value), f"at most {most} values")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type: int, float, bool, str, None, literals, lists, dataclasses, and unions of them."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if origin is list:
        return isinstance(value, list) and all(fits(item, get_args(hint)[0]) for item in value)
    if hint in (int, float):
        kinds = int if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint)


def in_words(hint: Any) -> str:
    """A type as a constraint: "an integer or null", "one of same, valid"."""
    origin = get_origin(hint)
    if origin is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if origin in (Union, UnionType):
        return " or ".join(in_words(one) for one in get_args(hint))
    if origin is list:
        return f"a list of {in_words(get_args(hint)[0]).split(maxsplit=1)[1]}s"
    return WORDS.get(hint, "a section")


def _shown(value: Any) -> Any:
    text = as_yaml(value)
    return value if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
