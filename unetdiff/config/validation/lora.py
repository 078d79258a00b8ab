"""Constraints on `training.lora`."""

from __future__ import annotations

from unetdiff.config.schema import RunConfig
from unetdiff.config.training import LoRAConfig
from unetdiff.errors import config_error


def validate_lora(config: RunConfig) -> None:
    """Check that low-rank adaptation has weights to adapt, and that nothing else decides which weights are trained."""
    training, lora = config.training, config.training.lora
    rank, default = lora.rank, LoRAConfig()
    if rank is None:
        for name in ("alpha", "targets", "dropout"):
            value, unset = getattr(lora, name), getattr(default, name)
            if value != unset:
                raise config_error(
                    f"training.lora.{name}", value, "left out without training.lora.rank", "Set the rank."
                )
        return
    if training.init_from is None and config.model.pretrained is None:
        constraint = (
            "null without model.pretrained or training.init_from, as a low-rank update of random weights learns little"
        )
        raise config_error("training.lora.rank", rank, constraint, "Give the network to adapt.")
    for key, value in (("freeze_encoder", training.freeze_encoder), ("frozen_levels", training.frozen_levels)):
        if value:
            constraint = f"0 with training.lora.rank={rank}, which freezes all weights but the adapter's"
            raise config_error(f"training.{key}", value, constraint)
