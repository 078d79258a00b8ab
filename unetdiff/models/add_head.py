"""Add a head to a trained model: every existing tensor is kept, new ones start as the identity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from unetdiff.errors import UserError
from unetdiff.models import loading

Model = TypeVar("Model", bound=ModelMixin)


def with_head(cls: type[Model], model: Model, name: str, options: dict[str, Any]) -> Model:
    """A new model with `model`'s weights and an additional head; see `UNet.add_head`.

    Args:
        cls: the model's class.
        model: keeps its config and weights.
        name: "segmentation" or "diffusion".
        options: the head's options; those of the config's other sections are removed from the dict.

    Raises:
        UserError: the options would change existing weights.
    """
    config = loading.plain(model.config)
    if name == "diffusion":
        config["conditioning"]["timestep"] = True
        if "cross_attention_dim" in options:
            dim = options.pop("cross_attention_dim")
            config["conditioning"] |= {"cross_attention_dim": dim, "attention_levels": None}
        if "num_class_embeds" in options:
            config["imported"]["num_class_embeds"] = options.pop("num_class_embeds")
        for part in ("encoder", "decoder"):
            if config[part]["norm"] == "batch":
                config[part]["norm"] = "frozen"
    config["heads"][name] = options
    extended = loading.build(cls, config)
    old, new = model.state_dict(), extended.state_dict()
    changed = [k for k in old if k not in new or new[k].shape != old[k].shape]
    if changed:
        raise UserError(
            f"add_head: a {name} head with these options would change {len(changed)} existing tensors: {changed[:3]}."
        )
    extended.load_state_dict(old, strict=False)
    zero_time_projections_(extended, set(new) - set(old))
    return extended


def zero_time_projections_(model: nn.Module, names: Iterable[str]) -> None:
    """Zero the time projections among these parameters: the trained blocks they are added to stay unchanged.

    Those of the heads keep their initialization; every other new part of a backbone starts as the identity by itself.
    """
    for name in names:
        if "time_emb_proj" in name and not name.startswith("heads."):
            nn.init.zeros_(model.get_parameter(name))
