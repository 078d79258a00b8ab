"""A flag wins over the file: keys of a config file that contradict the command line are left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import asdict, is_dataclass
from functools import reduce
from typing import Any

from unetdiff.config.command_line import assign
from unetdiff.config.schema import RunConfig
from unetdiff.errors import UserError, as_yaml

ALTERNATIVES = (
    ("training.steps", "training.epochs"),
    ("training.resume", "training.overwrite"),
    ("training.init_from", "model.pretrained"),
    ("training.init_from", "model.encoder.weights"),
    ("model.pretrained", "model.encoder.weights"),
    ("training.freeze_backbone", "training.freeze_encoder"),
    ("training.freeze_backbone", "training.frozen_levels"),
    ("training.freeze_backbone", "training.lora.rank"),
    ("training.lora.rank", "training.freeze_encoder"),
    ("training.lora.rank", "training.frozen_levels"),
    ("data.size", "data.longest_side"),
    ("segmentation.noise", "segmentation.timestep"),
)
"""Pairs of keys of which one is set: each replaces the other."""
OPTIONS = (
    *("model.encoder.channels", "model.encoder.weights", "model.encoder.norm", "model.encoder.padding"),
    *("model.decoder", "model.residual", "model.patch_size", "model.sample_size", "model.heads", "model.imported"),
    *("model.conditioning.attention_levels", "model.conditioning.attention_head_dim"),
    *("model.conditioning.pooled_context", "latent.cache", "latent.cache_dir"),
    *("data.num_classes", "data.caption_column", "data.download", "data.longest_side", "data.bucket_step"),
    *("data.repeat_factor_threshold", "data.augment"),
    *("segmentation.class_weights", "segmentation.class_weights_anneal_until", "segmentation.label_smoothing"),
    *("segmentation.ohem", "segmentation.timestep", "segmentation.noised", "segmentation.noise"),
    "segmentation.pseudo_labels",
    *("diffusion.noise", "diffusion.prediction_type", "diffusion.weighting", "diffusion.prior_weight"),
    *("diffusion.preview_steps", "diffusion.text.max_tokens"),
    *("joint.weighting", "joint.log_gradients"),
    *("training.optimizer.betas", "training.optimizer.weight_decay", "training.optimizer.args"),
    *("training.freeze_encoder", "training.frozen_levels", "training.lora", "training.best_metric"),
)
"""Keys, and sections, that a run can do without: how it trains, not what and on which data."""
FOLLOWERS = {
    "model.encoder.weights": ("training.optimizer.encoder_lr", "it is that of pretrained weights"),
}
"""A key that a flag turns off -> a key that belongs to it, and why; a config may have it all the same."""
MAX_LEFT_OUT = 50


def replace_alternatives(config: RunConfig, flags: Collection[str]) -> list[str]:
    """Turn off, in place, the alternative of each key that a flag turns on; returns the keys that were turned off."""
    replaced = []
    for pair in ALTERNATIVES:
        for flag, other in (pair, pair[::-1]):
            if flag in flags and other not in flags and value_of(config, flag) and value_of(config, other):
                assign(config, other, value_of(RunConfig(), other))
                replaced.append(other)
    return replaced


def leave_out_followers(config: RunConfig, keys: Collection[str], flags: Collection[str], notes: list[str]) -> None:
    """Leave out, in place, keys of the file that belong to what a flag turns off (`FOLLOWERS`).

    Args:
        config: file and command line.
        keys: that the file sets and the command line does not.
        flags: that the command line sets.
        notes: gets a line for each key that is left out.
    """
    for flag, (key, reason) in FOLLOWERS.items():
        if flag in flags and key in keys and value_of(config, flag) is None and value_of(config, key) is not None:
            notes.append(f"{key}={_shown(value_of(config, key))} of the config is left out: {reason}")
            assign(config, key, value_of(RunConfig(), key))


def leave_out_contradictions(
    config: RunConfig,
    keys: Collection[str],
    check: Callable[[RunConfig], None],
    file: Callable[[], RunConfig],
    notes: list[str],
) -> RunConfig:
    """A config without those options of its file that contradict the command line.

    Args:
        config: file and command line.
        keys: that the file sets and the command line does not.
        check: raises UserError for what cannot be trained.
        file: the config of the file alone, whose own contradictions are not resolved.
        notes: gets a line for each option that is left out.

    Raises:
        UserError: a contradiction that leaving out options of the file does not resolve.
    """
    first: UserError | None = None
    left_out: list[str] = []
    for _ in range(MAX_LEFT_OUT):
        try:
            check(config)
            return config
        except UserError as error:
            first, key = first or error, key_of(error)
            own = [name for name in keys if name == key or name.startswith(f"{key}.")]
            if not own or not is_option(key) or key == _key_of_error(check, file):
                raise (first if key in left_out else error) from None
            left_out.append(key)
            notes.append(f"{key}={_shown(value_of(config, key))} of the config is left out: {_reason(error)}")
            config, keys = deepcopy(config), [name for name in keys if name not in own]
            assign(config, key, value_of(RunConfig(), key))
    assert first is not None
    raise first


def is_option(key: str) -> bool:
    """Whether a run can do without a key."""
    return any(key == option or key.startswith(f"{option}.") for option in OPTIONS)


def key_of(error: UserError) -> str:
    """The key that a message is about, "" for others."""
    found = re.match(r"([a-z_.]+)=", str(error))
    return found[1] if found else ""


def value_of(config: Any, key: str) -> Any:
    """The value of a dotted key; None below a section that is null."""
    return reduce(lambda section, name: getattr(section, name, None), key.split("."), config)


def _key_of_error(check: Callable[[RunConfig], None], file: Callable[[], RunConfig]) -> str:
    try:
        check(file())
    except UserError as error:
        return key_of(error)
    return ""


def _reason(error: UserError) -> str:
    return f"must {str(error).partition(': must ')[2].partition('. ')[0].rstrip('.')}"


def _shown(value: Any) -> str:
    return as_yaml(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value)
