"""Initialize a network from the weights of another: the same backbone under other heads."""

from __future__ import annotations

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

APART = {
    "encoder.weights",
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
    """What `transfer` did; names of tensors."""

    taken: list[str]
    """In both networks: copied."""
    fresh: list[str]
    """Only in the target, or in a head of another size: they keep their initialization."""
    left_out: list[str]
    """Only in the source."""
    folded: bool
    """The target has no time embedding: the source's was folded at timestep 0 (`fold_timestep`)."""


def transfer(source: UNet, target: UNet, path: str) -> Transfer:
    """Copy the backbone of one network, and every head that both have in the same size, into another.

    The target's backbone then computes the source's maps of a clean image: bit for bit, or up to rounding if the target
    has no time embedding. A time embedding or attention that the source lacks starts as the identity.

    Args:
        source: changed in place if the target has no time embedding (`fold_timestep`).
        target: an initialized network.
        path: the value of `training.init_from`, for messages.

    Raises:
        UserError: another backbone; names the first key that differs, and leaves `target` unchanged.
    """
    before, now = (dict(_backbone(network)) for network in (source, target))
    ignored, new_parts = _allowed_differences(before, now)
    heads = _attention_heads(target)
    if heads is not None and heads == _attention_heads(source):  # as numbers in one config, as a size in the other
        ignored |= {"imported.attention_heads", "conditioning.attention_head_dim"}
    for key in now:
        if key not in ignored and not _alike(key, before[key], now[key]):
            frozen = key in NORMS and before[key] == "batch" and "diffusion" in target.heads  # which refuses batch
            raise _differs(key, now[key], "frozen" if frozen else before[key], path)
    folded = before["conditioning.timestep"] and not now["conditioning.timestep"]
    if folded and now["encoder.name"] not in (CLASSIC, RESIDUAL):
        constraint = f"true: the pretrained encoder of training.init_from={path} depends on its time embedding"
        raise config_error("model.conditioning.timestep", False, constraint)
    old, new = source.state_dict(), target.state_dict()
    dropped = ("class_embedding.", *TIME_PARAMS) if folded else ("class_embedding.",)
    loading.check(
        {name: tensor for name, tensor in old.items() if not _head(name) and not _has_any(name, dropped)},
        {
            name: tensor
            for name, tensor in new.items()
            if not _head(name) and (name in old or not _has_any(name, new_parts))
        },
        f"training.init_from: '{path}' does not fit this network",
    )
    if folded:
        fold_timestep(source)
    fitting = {head for head in target.heads if _same_shapes(_of_head(old, head), _of_head(new, head))}
    taken = [name for name in new if name in old and (not _head(name) or _head(name) in fitting)]
    target.load_state_dict({name: old[name] for name in taken}, strict=False)
    fresh = [name for name in new if name not in set(taken)]
    zero_time_projections_(target, fresh)
    return Transfer(taken, fresh, [name for name in old if name not in set(taken)], bool(folded))


def _backbone(network: UNet) -> Iterator[tuple[str, Any]]:
    """The config keys that determine the backbone, dotted, in the order of the file."""
    for name, value in loading.plain(network.config).items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items() if name != "heads")
        elif name != "sample_size":
            yield name, value


def _allowed_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[set[str], tuple[str, ...]]:
    """Keys that may differ between two backbones, and parts of the names of tensors that may be new."""
    ignored, new_parts = set(APART), tuple[str, ...]()
    if before["conditioning.timestep"] != now["conditioning.timestep"]:
        ignored |= {"conditioning.timestep", "conditioning.pooled_context"}
        new_parts += TIME_PARAMS
    if now["encoder.name"] != RESIDUAL and not before["conditioning.attention_levels"]:
        ignored |= ATTENTION
        new_parts += ("attention",)
    return ignored, new_parts


def _attention_heads(network: UNet) -> dict[int, int] | None:
    """Attention heads of a residual network by level."""
    config = parse(**loading.plain(network.config))
    if config.encoder.name != RESIDUAL:
        return None
    plan, channels = AttentionPlan.of(config), config.encoder.channels or []
    mid_block = {len(channels) - 1} if config.residual.mid_block == "attention" else set()
    return {level: plan.heads_at(level, channels[level]) for level in {*plan.levels, *mid_block}}


def _alike(key: str, before: Any, now: Any) -> bool:
    return before == now or (key in NORMS and {before, now} == SAME_TENSORS)


def _differs(key: str, value: Any, expected: Any, path: str) -> UserError:
    constraint = f"{as_yaml(expected)}, as in the network of training.init_from={path}"
    remedy = "Set it, or initialize from another network."
    if key == "in_channels":
        remedy = "Initialize from a network of pixels without additional channels."
    return config_error(f"model.{key}", value, constraint, remedy)


def _head(name: str) -> str:
    """The head of a tensor, or an empty string."""
    return name.split(".")[1] if name.startswith("heads.") else ""


def _of_head(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if _head(name) == head}


def _same_shapes(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return {name: t.shape for name, t in one.items()} == {name: t.shape for name, t in other.items()}


def _has_any(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)
