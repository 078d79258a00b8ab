"""A head more on a trained model: the larger model with every old tensor in it, and what is new as the identity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from unetdiff.errors import UserError
from unetdiff.models import loading

Model = TypeVar("Model", bound=ModelMixin)


def with_head(cls: type[Model], model: Model, name: str, options: dict[str, Any]) -> Model:
    """A new model of the class with `model`'s weights and one head more; see `UNet.add_head`."""
    config = loading.plain(model.config)
    if name == "diffusion":
        conditioning: dict[str, Any] = {
            k: options.pop(k) for k in ("cross_attention_dim", "num_class_embeds") if k in options
        }
        told: dict[str, Any] = {"timestep": True, **conditioning}
        config["conditioning"] |= told
        if "cross_attention_dim" in conditioning:
            config["conditioning"]["attention_levels"] = None
        for part in ("encoder", "decoder"):
            if config[part]["norm"] == "batch":
                config[part]["norm"] = "frozen"
    config["heads"][name] = options
    grown = loading.build(cls, config)
    old, new = model.state_dict(), grown.state_dict()
    drop = {k for k in old if k.endswith("num_batches_tracked") and k not in new}
    changed = [k for k in old if k not in drop and (k not in new or new[k].shape != old[k].shape)]
    if changed:
        raise UserError(
            f"add_head: a {name} head with these options would change {len(changed)} tensors: {changed[:3]}"
        )
    grown.load_state_dict({k: v for k, v in old.items() if k not in drop}, strict=False)
    start_silent(grown, set(new) - set(old))
    return grown


def start_silent(model: nn.Module, names: Iterable[str]) -> None:
    """Start the time projections among these tensors at zero: they join trained blocks, which go on as they were.

    Those of the heads keep their start; every other new part of a backbone is the identity by itself.
    """
    for name in names:
        if "time_emb_proj" in name and not name.startswith("heads."):
            nn.init.zeros_(model.get_parameter(name))
