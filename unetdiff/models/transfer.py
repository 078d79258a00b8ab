"""Initialize a network from the weights of another: the same backbone under other heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unetdiff.errors import UserError
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
"""Norms that differ in where their statistics come from, not in what they do with them."""


@dataclass(frozen=True)
class Transfer:
    """What one network took from another; names of tensors."""

    taken: list[str]
    """In both, and copied."""
    fresh: list[str]
    """In the new network alone, or in a head of another size: they keep their start."""
    left_out: list[str]
    """In the old network alone."""
    folded: bool
    """The new network has no time embedding: the old one's at timestep 0 went into convolutions and norms."""


def transfer(source: UNet, target: UNet, path: str) -> Transfer:
    """Copy the backbone of one network, and every head that both have in one size, into another.

    The new backbone then answers as the old one does to a clean image: bit for bit, or, where the new one has no time
    embedding, up to rounding. A time embedding or an attention that the old one lacks starts as the identity.

    Args:
        source: the old network; without a time embedding in the new one it is changed (`fold_timestep`).
        target: the new network, with its fresh start.
        path: what `training.init_from` says, for messages.

    Raises:
        UserError: another backbone, by the first key that differs; `target` is then unchanged.
    """
    before, now = (dict(_backbone(network)) for network in (source, target))
    passed_over, grown = _passed_over(before, now)
    heads = _attention_heads(target)
    if heads is not None and heads == _attention_heads(source):  # as numbers in one config, as a size in the other
        passed_over |= {"imported.attention_heads", "conditioning.attention_head_dim"}
    for key in now:
        if key not in passed_over and not _alike(key, before[key], now[key]):
            frozen = key in NORMS and before[key] == "batch" and "diffusion" in target.heads  # which refuses batch
            remedy = _remedy(key, "frozen" if frozen else before[key], path)
            raise UserError(f"model.{key}: {now[key]!r} here, but {before[key]!r} in {remedy}")
    folded = before["conditioning.timestep"] and not now["conditioning.timestep"]
    if folded and now["encoder.name"] not in (CLASSIC, RESIDUAL):
        raise UserError(
            f"model.conditioning.timestep: {now['conditioning.timestep']!r} here, but the trunk of training.init_from "
            f"'{path}' is told the timestep where nothing can take its place; set it to true"
        )
    old, new = source.state_dict(), target.state_dict()
    gone = ("class_embedding.", *TIME_PARAMS) if folded else ("class_embedding.",)
    loading.check(
        {name: tensor for name, tensor in old.items() if not _head(name) and not _marked(name, gone)},
        {name: tensor for name, tensor in new.items() if not _head(name) and (name in old or not _marked(name, grown))},
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
    """The keys of a resolved config that its backbone follows from, dotted, in the order of the file."""
    for name, value in loading.plain(network.config).items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items() if name != "heads")
        elif name != "sample_size":
            yield name, value


def _passed_over(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[set[str], tuple[str, ...]]:
    """Keys that may differ between two backbones, and marks in the names of tensors that may be new."""
    passed_over, grown = set(APART), tuple[str, ...]()
    if before["conditioning.timestep"] != now["conditioning.timestep"]:
        passed_over |= {"conditioning.timestep", "conditioning.pooled_context"}
        grown += TIME_PARAMS
    if now["encoder.name"] != RESIDUAL and not before["conditioning.attention_levels"]:
        passed_over |= ATTENTION
        grown += ("attention",)
    return passed_over, grown


def _attention_heads(network: UNet) -> dict[int, int] | None:
    """The number of heads of each level of a residual network that attends, by level."""
    config = parse(**loading.plain(network.config))
    if config.encoder.name != RESIDUAL:
        return None
    plan, channels = AttentionPlan.of(config), config.encoder.channels or []
    mid_block = {len(channels) - 1} if config.residual.mid_block == "attention" else set()
    return {level: plan.heads_at(level, channels[level]) for level in {*plan.levels, *mid_block}}


def _alike(key: str, before: Any, now: Any) -> bool:
    return before == now or (key in NORMS and {before, now} == SAME_TENSORS)


def _remedy(key: str, right: Any, path: str) -> str:
    network = f"the network of training.init_from '{path}'"
    if key == "in_channels":
        return f"{network}, which sees latents or channels beside the image; start from one that sees what this does"
    return f"{network}; set it to {right!r}, or start from another network"


def _head(name: str) -> str:
    """The head that a tensor belongs to, or nothing."""
    return name.split(".")[1] if name.startswith("heads.") else ""


def _of_head(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if _head(name) == head}


def _same_shapes(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return {name: t.shape for name, t in one.items()} == {name: t.shape for name, t in other.items()}


def _marked(name: str, marks: tuple[str, ...]) -> bool:
    return any(mark in name for mark in marks)
