"""From the config of a diffusers U-Net to ours; what the residual family cannot be is refused by name.

`UNet2DModel` has self-attention and counts the size of a head; `UNet2DConditionModel` has transformer blocks and counts
heads, under the same key, attention_head_dim.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DConditionModel, UNet2DModel

from unetdiff.errors import UserError
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
    | {"cross_attention_dim", "transformer_layers_per_block", "use_linear_projection", "upcast_attention"},
}
"""Keys that we have an answer to; any other must have the value that it has by default."""
IDLE = {"num_train_timesteps", "mid_block_only_cross_attention", "addition_embed_type_num_heads"}
"""Keys that only say more about what another key, left at its default, turns on."""

Kind = tuple[bool, str]  # of a level: does it attend, and how it changes the size ("conv", "resnet")


class _Theirs:
    """A diffusers config with its class's defaults in it; what is asked of it and not supported is refused."""

    def __init__(self, name: str, config: Mapping[str, Any], source: str) -> None:
        self.name, self.source = name, source
        signature = inspect.signature(CLASSES[name].__init__).parameters.values()
        self.defaults = {p.name: p.default for p in signature if p.name != "self"}
        self.values = {k: alike(config.get(k, default)) for k, default in self.defaults.items()}
        for key, default in self.defaults.items():
            if key not in READ_BY_CLASS[name] | IDLE and self.values[key] != default:
                raise self.refusal(key, f"only {default!r} is")

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def refusal(self, key: str, instead: str) -> UserError:
        return UserError(f"{self.source}: {key} {self.values[key]!r} is not supported; {instead}")

    def one_of(self, key: str, *values: Any) -> Any:
        if self[key] not in values:
            raise self.refusal(key, f"only {' or '.join(repr(value) for value in values)} is")
        return self[key]

    def by_level(self, key: str, levels: int) -> list[Any]:
        value = self[key]
        if isinstance(value, list) and len(value) != levels:
            raise self.refusal(key, f"give {levels} values, one for each of down_block_types")
        return value if isinstance(value, list) else [value] * levels

    def number(self, key: str, least: int = 1) -> int:
        value = self[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.refusal(key, f"only one integer of {least} or more for all levels is")
        return value


def alike(value: Any) -> Any:
    """Tuples as lists, and a list of equal numbers as that number, as diffusers reads it; names of blocks stay."""
    if not isinstance(value, list | tuple):
        return value
    values = [alike(v) if isinstance(v, list | tuple) else v for v in value]
    numbers = values and not isinstance(values[0], str)
    return values[0] if numbers and all(v == values[0] for v in values) else values


def from_theirs(name: str, config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The sections of our config, as `UNet` takes them, for a diffusers U-Net.

    Args:
        name: the class, one of `CLASSES`.
        config: its config; a missing key has the class's default, keys that the class does not know do nothing there
            and nothing here.
        source: where it comes from, for messages.

    Raises:
        UserError: naming the key, its value and what is supported.
    """
    theirs = _Theirs(name, config, source)
    condition = name == CONDITION
    kinds = _down_kinds(theirs)
    levels = len(kinds)
    channels = theirs.by_level("block_out_channels", levels)
    groups = theirs.number("norm_num_groups")
    if any(width % groups for width in channels):
        raise theirs.refusal("norm_num_groups", f"it must divide every one of block_out_channels {channels}")
    if theirs["time_embedding_dim"] not in (None, 4 * channels[0]):
        raise theirs.refusal("time_embedding_dim", f"only four times the first level's width is ({4 * channels[0]})")
    theirs.one_of("act_fn", "silu", "swish")
    attending = [level for level, (attends, _) in enumerate(kinds) if attends]
    middle = _middle(theirs)
    residual: dict[str, Any] = {
        "layers_per_block": theirs.number("layers_per_block"),
        "norm_num_groups": groups,
        "norm_eps": theirs["norm_eps"],
        "time_scale_shift": theirs.one_of("resnet_time_scale_shift", "default", "scale_shift"),
        "resample": _resample(theirs, kinds),
        "downsample_padding": theirs.number("downsample_padding", least=0),
        "flip_sin_to_cos": theirs["flip_sin_to_cos"],
        "freq_shift": theirs["freq_shift"],
        "dropout": theirs["dropout"],
        "middle": middle,
    }
    kind = theirs.one_of("class_embed_type", None, "timestep", "identity")
    told: dict[str, Any] = {
        "timestep": True,
        "attention_levels": attending,
        "class_embed_type": kind,
        "num_class_embeds": theirs["num_class_embeds"] if kind is None else None,
    }
    looking = {*attending, *([levels - 1] if middle == "attention" else [])}
    if condition:
        told["cross_attention_dim"] = theirs.number("cross_attention_dim")
        residual |= {
            "attention_heads": _heads(theirs, channels, looking),
            "transformer_depth": _depth(theirs, levels),
            "linear_projection": theirs["use_linear_projection"],
            "upcast_attention": theirs["upcast_attention"],
        }
    else:
        if theirs["attention_head_dim"] is None:
            residual["attention_heads"] = [1] * levels
        else:
            told["attention_head_dim"] = _head_size(theirs, channels, looking)
        if middle == "attention":
            residual["middle_attention_groups"] = _middle_groups(theirs, channels[-1])
    return {
        "in_channels": theirs.number("in_channels"),
        "sample_size": theirs["sample_size"],
        "encoder": {"name": RESIDUAL, "channels": channels},
        "residual": residual,
        "conditioning": told,
        "heads": {"diffusion": {"out_channels": theirs.number("out_channels")}},
    }


def _down_kinds(theirs: _Theirs) -> list[Kind]:
    """What each level does on the way down; the way up must mirror where it attends."""
    down, up = _kinds(theirs, "down_block_types", "Down"), _kinds(theirs, "up_block_types", "Up")
    if [attends for attends, _ in down] != [attends for attends, _ in reversed(up)]:
        raise theirs.refusal(
            "up_block_types", f"it must attend where down_block_types {theirs['down_block_types']} does"
        )
    return down


def _kinds(theirs: _Theirs, key: str, way: str) -> list[Kind]:
    known: dict[str, Kind] = {f"{way}Block2D": (False, "conv"), f"Resnet{way}sampleBlock2D": (False, "resnet")}
    if theirs.name == CONDITION:
        known[f"CrossAttn{way}Block2D"] = (True, "conv")
    else:
        known[f"Attn{way}Block2D"] = (True, theirs.one_of(f"{way.lower()}sample_type", "conv", "resnet"))
    types = [name.removeprefix("UNetRes") for name in theirs[key]]  # the prefix is of the first releases
    if not set(types) <= set(known):
        raise theirs.refusal(key, f"only {', '.join(known)} are")
    return [known[name] for name in types]


def _resample(theirs: _Theirs, down: list[Kind]) -> str:
    """How every level changes the size; the deepest has nothing to shrink, the finest nothing to enlarge."""
    used = {kind for _, kind in down[:-1]} | {kind for _, kind in _kinds(theirs, "up_block_types", "Up")[:-1]}
    if len(used) > 1:
        raise theirs.refusal(
            "down_block_types",
            "only one kind of resampling on every level, down and up, is: convolutions, or residual blocks "
            "(ResnetDownsampleBlock2D, ResnetUpsampleBlock2D, downsample_type and upsample_type 'resnet')",
        )
    return used.pop() if used else "conv"


def _middle(theirs: _Theirs) -> str:
    if theirs.name == CONDITION:  # the same block, which has one residual block here and two there
        names = {"UNetMidBlock2DCrossAttn": "attention", "UNetMidBlock2D": "resnet", None: "none"}
    else:
        names = {"UNetMidBlock2D": "attention" if theirs["add_attention"] else "resnets", None: "none"}
    return names[theirs.one_of("mid_block_type", *names)]


def _heads(theirs: _Theirs, channels: list[int], looking: set[int]) -> list[int]:
    heads = theirs.by_level("attention_head_dim", len(channels))
    if any(not isinstance(heads[i], int) or heads[i] < 1 or channels[i] % heads[i] for i in looking):
        raise theirs.refusal(
            "attention_head_dim", f"it is the number of heads and must divide block_out_channels {channels}"
        )
    return heads


def _head_size(theirs: _Theirs, channels: list[int], looking: set[int]) -> int:
    size = theirs.number("attention_head_dim")
    if any(channels[level] % size for level in looking):
        raise theirs.refusal(
            "attention_head_dim", f"it is the size of a head and must divide block_out_channels {channels}"
        )
    return size


def _depth(theirs: _Theirs, levels: int) -> int | list[int]:
    depths = theirs.by_level("transformer_layers_per_block", levels)
    if any(not isinstance(depth, int) or depth < 1 for depth in depths):
        raise theirs.refusal("transformer_layers_per_block", "only one integer, or one for each level, is")
    return theirs["transformer_layers_per_block"]


def _middle_groups(theirs: _Theirs, channels: int) -> int | None:
    """Groups of the norm before the middle's attention, which scale-shift models lack unless they name them."""
    groups = theirs["attn_norm_num_groups"]
    if groups is None:
        return None if theirs["resnet_time_scale_shift"] == "default" else 0
    if channels % theirs.number("attn_norm_num_groups"):
        raise theirs.refusal("attn_norm_num_groups", f"it must divide the deepest level's {channels} channels")
    return None if groups == theirs["norm_num_groups"] else groups
