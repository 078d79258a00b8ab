"""Initialize a network from the weights of another: the same backbone under other heads."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unetdiff.errors import UserError, as_yaml, config_error
from unetdiff.models import loading
from unetdiff.models.add_head import zero_time_projections_
from unetdiff.models.attention_plan import AttentionPlan
from unetdiff.models.config import CLASSIC, RESIDUAL
from unetdiff.models.fold_timestep import fold_timestep
from unetdiff.models.param_counts import TIME_PARAMS
from unetdiff.models.resolve import parse
from unetdiff.models.unet import UNet

HEADS_AND_TRAINING = {
    "encoder.weights",
    "encoder.dropout",
    "residual.dropout",
    "imported.num_class_embeds",
    "imported.class_embed_type",
    "imported.segmentation_kernel_size",
}
"""Keys that do not change the backbone's maps of an image."""
ATTENTION = {"conditioning.attention_levels", "conditioning.cross_attention_dim", "conditioning.attention_head_dim"}
NORMS = {"encoder.norm", "decoder.norm"}
SAME_TENSORS = {"batch", "frozen"}
"""Norms that differ only in the source of their statistics."""


@dataclass(frozen=True)
class Transfer:
    """The names of the tensors that `transfer` copied, and of the others."""

    copied: list[str]
    """In both networks."""
    initialized: list[str]
    """Only in the target, or in a head of another size: they keep their random initialization."""
    unused: list[str]
    """Of the source: not in the target, or in a head of another size."""
    folded: bool
    """The target has no time embedding: the source's was folded at timestep 0 (`fold_timestep`)."""


def transfer(source: UNet, target: UNet, path: str, option: str = "training.init_from") -> Transfer:
    """Copy the backbone of one network, and every head that both have in the same size, into another.

    The target's backbone then computes the source's maps of a clean image: bit for bit, or up to rounding if the target
    has no time embedding. A time embedding or attention that the source lacks starts as the identity.

    Args:
        source: stays as it is.
        target: a network of the same backbone; changed in place.
        path: of the source, for messages.
        option: the config's key with that path, for messages.

    Returns:
        The names of the tensors that were copied, that keep their initialization, and that the target lacks.

    Raises:
        UserError: another backbone; names the first key that differs, and leaves `target` unchanged.
    """
    source_config, target_config = (dict(_backbone(network)) for network in (source, target))
    ignored, new_parts = _allowed_differences(source_config, target_config)
    heads = _attention_heads(target)
    if heads is not None and heads == _attention_heads(source):  # as numbers in one config, as a size in the other
        ignored |= {"imported.attention_heads", "conditioning.attention_head_dim"}
    for key, value in target_config.items():
        expected = source_config[key]
        if key not in ignored and not _is_compatible(key, expected, value):
            if key in NORMS and expected == "batch" and "diffusion" in target.heads:  # a diffusion head refuses batch
                expected = "frozen"
            raise _differs(key, value, expected, f"{option}={path}")
    folded = source_config["conditioning.timestep"] and not target_config["conditioning.timestep"]
    if folded and target_config["encoder.name"] not in (CLASSIC, RESIDUAL):
        constraint = f"true: the pretrained encoder of {option}={path} depends on its time embedding"
        raise config_error("model.conditioning.timestep", False, constraint)
    source_state, target_state = source.state_dict(), target.state_dict()
    dropped = ("class_embedding.", *TIME_PARAMS) if folded else ("class_embedding.",)
    loading.check(
        {name: tensor for name, tensor in source_state.items() if not _head(name) and not _has_any(name, dropped)},
        {
            name: tensor
            for name, tensor in target_state.items()
            if not _head(name) and (name in source_state or not _has_any(name, new_parts))
        },
        f"{option}: '{path}' does not fit this network",
    )
    if folded:
        source = copy.deepcopy(source)
        fold_timestep(source)
        source_state = source.state_dict()
    fitting = {h for h in target.heads if _same_shapes(_head_tensors(source_state, h), _head_tensors(target_state, h))}
    copied = [name for name in target_state if name in source_state and (not _head(name) or _head(name) in fitting)]
    target.load_state_dict({name: source_state[name] for name in copied}, strict=False)
    initialized = [name for name in target_state if name not in set(copied)]
    zero_time_projections_(target, initialized)
    unused = [name for name in source_state if name not in set(copied)]
    return Transfer(copied, initialized, unused, bool(folded))


def _backbone(network: UNet) -> Iterator[tuple[str, Any]]:
    """The config keys that determine the backbone, dotted, in the order of the file."""
    for name, value in loading.plain(network.config).items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items() if name != "heads")
        elif name != "sample_size":
            yield name, value


def _allowed_differences(source: Mapping[str, Any], target: Mapping[str, Any]) -> tuple[set[str], tuple[str, ...]]:
    """Keys that may differ between two backbones, and parts of the names of tensors that may be new."""
    ignored, new_parts = set(HEADS_AND_TRAINING), tuple[str, ...]()
    if source["conditioning.timestep"] != target["conditioning.timestep"]:
        ignored |= {"conditioning.timestep", "conditioning.pooled_context"}
        new_parts += TIME_PARAMS
    if target["encoder.name"] != RESIDUAL and not source["conditioning.attention_levels"]:
        ignored |= ATTENTION
        new_parts += ("attention",)
    return ignored, new_parts


def _attention_heads(network: UNet) -> dict[int, int] | None:
    """Attention heads of a residual network by level; None for other networks."""
    config = parse(**loading.plain(network.config))
    if config.encoder.name != RESIDUAL:
        return None
    plan, channels = AttentionPlan.of(config), config.encoder.channels or []
    mid_block = {len(channels) - 1} if config.residual.mid_block == "attention" else set()
    return {level: plan.heads_at(level, channels[level]) for level in {*plan.levels, *mid_block}}


def _is_compatible(key: str, source: Any, target: Any) -> bool:
    return source == target or (key in NORMS and {source, target} == SAME_TENSORS)


def _differs(key: str, value: Any, expected: Any, source: str) -> UserError:
    constraint = f"{as_yaml(expected)}, as in the network of {source}"
    remedy = "Set it, or initialize from another network."
    if key == "in_channels":
        remedy = "Initialize from a network of pixels without additional channels."
    return config_error(f"model.{key}", value, constraint, remedy)


def _head(name: str) -> str:
    """The head of a tensor, or an empty string."""
    return name.split(".")[1] if name.startswith("heads.") else ""


def _head_tensors(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if _head(name) == head}


def _same_shapes(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return {name: t.shape for name, t in one.items()} == {name: t.shape for name, t in other.items()}


def _has_any(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)
