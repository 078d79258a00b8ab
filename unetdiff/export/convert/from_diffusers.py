"""The config of a diffusers U-Net as that of a residual UNet; what it cannot express is refused by key.

`UNet2DModel` has self-attention and counts the size of a head; `UNet2DConditionModel` has transformer blocks and counts
heads, under the same key, attention_head_dim.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DConditionModel, UNet2DModel

from unetdiff.errors import UserError, as_yaml, config_error
from unetdiff.models.config import RESIDUAL

PLAIN, CONDITION = "UNet2DModel", "UNet2DConditionModel"
CLASSES: dict[str, Any] = {PLAIN: UNet2DModel, CONDITION: UNet2DConditionModel}
READ = {"sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups"}
READ |= {"norm_eps", "dropout", "act_fn", "flip_sin_to_cos", "freq_shift", "time_embedding_dim", "downsample_padding"}
READ |= {"resnet_time_scale_shift", "num_class_embeds", "class_embed_type", "attention_head_dim"}
READ |= {"down_block_types", "mid_block_type", "up_block_types"}
READ_BY_CLASS = {
    PLAIN: READ | {"downsample_type", "upsample_type", "add_attention", "attn_norm_num_groups"},
    CONDITION: READ
    | {"cross_attention_dim", "transformer_layers_per_block", "use_linear_projection", "upcast_attention"}
    | {"time_cond_proj_dim", "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"},
}
"""Supported keys; every other key must have its default."""
IDLE = {"num_train_timesteps", "mid_block_only_cross_attention", "addition_embed_type_num_heads"}
"""Keys without effect while another key has its default."""

Kind = tuple[bool, str]  # of a level: whether it attends, and its resampling ("conv", "resnet")


class _Source:
    """A diffusers config with its class's defaults; unsupported values are refused."""

    def __init__(self, name: str, config: Mapping[str, Any], source: str) -> None:
        self.name, self.source = name, source
        signature = inspect.signature(CLASSES[name].__init__).parameters.values()
        self.defaults = {p.name: p.default for p in signature if p.name != "self"}
        self.values = {k: collapse(config.get(k, default)) for k, default in self.defaults.items()}
        for key, default in self.defaults.items():
            if key not in READ_BY_CLASS[name] | IDLE and self.values[key] != default:
                raise self.refusal(key, as_yaml(default))

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def refusal(self, key: str, constraint: str) -> UserError:
        return UserError(f"{self.source}: {config_error(key, self.values[key], constraint)}")

    def one_of(self, key: str, *values: Any) -> Any:
        if self[key] not in values:
            raise self.refusal(key, " or ".join(as_yaml(value) for value in values))
        return self[key]

    def by_level(self, key: str, levels: int) -> list[Any]:
        value = self[key]
        if isinstance(value, list) and len(value) != levels:
            raise self.refusal(key, f"{levels} values, one for each of down_block_types")
        return value if isinstance(value, list) else [value] * levels

    def number(self, key: str, least: int = 1) -> int:
        value = self[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.refusal(key, f"one integer of at least {least} for all levels")
        return value


def collapse(value: Any) -> Any:
    """Tuples as lists, and a list of equal numbers as that number, as diffusers reads it; block names stay lists."""
    if not isinstance(value, list | tuple):
        return value
    values = [collapse(v) if isinstance(v, list | tuple) else v for v in value]
    numbers = values and not isinstance(values[0], str)
    return values[0] if numbers and all(v == values[0] for v in values) else values


def config_from_diffusers(name: str, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments of `UNet` for a diffusers U-Net.

    Args:
        name: the class, one of `CLASSES`.
        config: its config; missing keys have the class's defaults, unknown keys are ignored.
        where: the source, for messages.

    Raises:
        UserError: an unsupported value; names the key, its value and what is supported.
    """
    source = _Source(name, config, where)
    condition = name == CONDITION
    kinds, up_kinds = _level_kinds(source)
    levels = len(kinds)
    channels = source.by_level("block_out_channels", levels)
    groups = source.number("norm_num_groups")
    if any(width % groups for width in channels):
        raise source.refusal("norm_num_groups", f"a divisor of every one of block_out_channels {channels}")
    if source["time_embedding_dim"] not in (None, 4 * channels[0]):
        raise source.refusal("time_embedding_dim", f"{4 * channels[0]}, four times the first level's width")
    source.one_of("act_fn", "silu", "swish")
    attending = [level for level, (attends, _) in enumerate(kinds) if attends]
    mid_block = _mid_block(source)
    residual: dict[str, Any] = {
        "layers_per_block": source.number("layers_per_block"),
        "norm_num_groups": groups,
        "time_scale_shift": source.one_of("resnet_time_scale_shift", "default", "scale_shift"),
        "dropout": source["dropout"],
        "mid_block": mid_block,
    }
    kind = source.one_of("class_embed_type", None, "timestep", "identity")
    imported: dict[str, Any] = {
        "norm_eps": source["norm_eps"],
        "downsample_padding": source.number("downsample_padding", least=0),
        "flip_sin_to_cos": source["flip_sin_to_cos"],
        "freq_shift": source["freq_shift"],
        "class_embed_type": kind,
        "num_class_embeds": source["num_class_embeds"] if kind is None else None,
    }
    imported |= _resampling(kinds, up_kinds)
    conditioning: dict[str, Any] = {"timestep": True, "attention_levels": attending}
    attending_anywhere = {*attending, *([levels - 1] if mid_block == "attention" else [])}
    if condition:
        conditioning["cross_attention_dim"] = source.number("cross_attention_dim")
        imported |= {
            "attention_heads": _heads(source, channels, attending_anywhere),
            "transformer_depth": _depth(source, levels),
            "linear_projection": source["use_linear_projection"],
            "upcast_attention": bool(source["upcast_attention"]),  # null in Stable Diffusion XL
            "time_cond_proj_dim": source["time_cond_proj_dim"],
        }
        if source.one_of("addition_embed_type", None, "text_time") is not None:
            names = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
            imported |= {"addition_embed_type": "text_time", **{name: source.number(name) for name in names}}
    else:
        if source["attention_head_dim"] is None:
            imported["attention_heads"] = [1] * levels
        else:
            conditioning["attention_head_dim"] = _head_size(source, channels, attending_anywhere)
        if mid_block == "attention":
            imported["mid_block_attention_groups"] = _mid_block_groups(source, channels[-1])
    return {
        "in_channels": source.number("in_channels"),
        "sample_size": source["sample_size"],
        "encoder": {"name": RESIDUAL, "channels": channels},
        "residual": residual,
        "conditioning": conditioning,
        "heads": {"diffusion": {"out_channels": source.number("out_channels")}},
        "imported": imported,
    }


def _level_kinds(source: _Source) -> tuple[list[Kind], list[Kind]]:
    """Attention and resampling of each level of the encoder and of the decoder, which must attend alike."""
    down, up = _kinds(source, "down_block_types", "Down"), _kinds(source, "up_block_types", "Up")[::-1]
    if [attends for attends, _ in down] != [attends for attends, _ in up]:
        raise source.refusal(
            "up_block_types", f"attending at the levels of down_block_types {as_yaml(source['down_block_types'])}"
        )
    return down, up


def _kinds(source: _Source, key: str, way: str) -> list[Kind]:
    known: dict[str, Kind] = {f"{way}Block2D": (False, "conv"), f"Resnet{way}sampleBlock2D": (False, "resnet")}
    if source.name == CONDITION:
        known[f"CrossAttn{way}Block2D"] = (True, "conv")
    else:
        known[f"Attn{way}Block2D"] = (True, source.one_of(f"{way.lower()}sample_type", "conv", "resnet"))
    types = [name.removeprefix("UNetRes") for name in source[key]]  # the prefix is of the first releases
    if not set(types) <= set(known):
        raise source.refusal(key, f"among {', '.join(known)}")
    return [known[name] for name in types]


def _resampling(down: list[Kind], up: list[Kind]) -> dict[str, Any]:
    """Resampling by level; the deepest has no downsampling, the finest no upsampling."""
    used = {kind for _, kind in (*down[:-1], *up[1:])}
    if len(used) <= 1:
        return {"resample": used.pop() if used else "conv"}
    return {
        "resnet_downsample_levels": [level for level, (_, kind) in enumerate(down[:-1]) if kind == "resnet"],
        "resnet_upsample_levels": [level for level, (_, kind) in enumerate(up) if level and kind == "resnet"],
    }


def _mid_block(source: _Source) -> str:
    if source.name == CONDITION:  # UNetMidBlock2D has one residual block here, two in UNet2DModel
        names = {"UNetMidBlock2DCrossAttn": "attention", "UNetMidBlock2D": "resnet", None: "none"}
    else:
        names = {"UNetMidBlock2D": "attention" if source["add_attention"] else "resnets", None: "none"}
    return names[source.one_of("mid_block_type", *names)]


def _heads(source: _Source, channels: list[int], attending: set[int]) -> list[int]:
    heads = source.by_level("attention_head_dim", len(channels))
    if any(not isinstance(heads[i], int) or heads[i] < 1 or channels[i] % heads[i] for i in attending):
        raise source.refusal("attention_head_dim", f"divisors of block_out_channels {channels} (number of heads)")
    return heads


def _head_size(source: _Source, channels: list[int], attending: set[int]) -> int:
    size = source.number("attention_head_dim")
    if any(channels[level] % size for level in attending):
        raise source.refusal("attention_head_dim", f"a divisor of block_out_channels {channels} (size of a head)")
    return size


def _depth(source: _Source, levels: int) -> int | list[int]:
    depths = source.by_level("transformer_layers_per_block", levels)
    if any(not isinstance(depth, int) or depth < 1 for depth in depths):
        raise source.refusal("transformer_layers_per_block", "one positive integer, or one for each level")
    return source["transformer_layers_per_block"]


def _mid_block_groups(source: _Source, channels: int) -> int | None:
    """Groups of the norm before the mid block's attention; scale-shift models have none unless configured."""
    groups = source["attn_norm_num_groups"]
    if groups is None:
        return None if source["resnet_time_scale_shift"] == "default" else 0
    if channels % source.number("attn_norm_num_groups"):
        raise source.refusal("attn_norm_num_groups", f"a divisor of the deepest level's {channels} channels")
    return None if groups == source["norm_num_groups"] else groups
