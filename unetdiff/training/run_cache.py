"""A run that is one of several: trained where it is missing, gone on with where it was interrupted, else kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unetdiff.config.reading import from_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.data.stats import CLASS_WEIGHT_METHODS
from unetdiff.errors import UserError
from unetdiff.training.rundir import CONFIG, SUMMARY

FLAGS = ("output_dir", "resume", "overwrite", "num_workers")
"""Keys of `training` that say where and how a run is started, not what it is."""


def train_once(config: RunConfig, command: str | None = None) -> Path:
    """The run directory of a config, trained as far as it was not; returns at once where it was done before.

    Raises:
        UserError: training.output_dir holds a run of another config, or one that started from other weights.
        TrainingStopped: see `train`.
    """
    from unetdiff.training.trainer import train

    folder = Path(config.training.output_dir)
    state = state_of(folder, config)
    if state == "finished":
        return folder
    config.training.resume = state == "interrupted"
    return train(config, command)


def state_of(folder: Path, config: RunConfig) -> str:
    """ "new", "interrupted" or "finished": what is left to do for a part.

    Raises:
        UserError: the folder holds a run of another config, or one that started from other weights than its
            training.init_from now has.
    """
    file = folder / CONFIG
    if not file.is_file():
        return "new"
    wanted, found = asdict(config), asdict(from_yaml(file))  # a key that is newer has its default
    asked, used = (tree["segmentation"]["class_weights"] for tree in (wanted, found))
    for tree in (wanted, found):
        if asked in CLASS_WEIGHT_METHODS and isinstance(used, list):
            del tree["segmentation"]["class_weights"]  # the trainer filled in the numbers, and counts again on the way
        if config.task != "joint":
            del tree["joint"]  # of no account to one head
    difference = first_difference(wanted, found)
    if difference is not None:
        raise UserError(f"{folder} holds a run of another config ({difference}); remove it, or give another --output")
    start = config.training.init_from
    if start is not None and _started_from_others(folder, Path(start)):
        raise UserError(
            f"{folder} started from weights that {start} had before it was trained anew; remove it and whatever else "
            "started there, or give another --output"
        )
    return "finished" if (folder / SUMMARY).is_file() else "interrupted"


def _started_from_others(folder: Path, start: Path) -> bool:
    """Whether a run started from other weights than there are now; not where either is not known."""
    from unetdiff.models.loading import WEIGHTS, fingerprint
    from unetdiff.training import checkpoints
    from unetdiff.training.init_from import network_directory

    facts: Mapping[str, Any] | None = None
    if (folder / SUMMARY).is_file():
        facts = json.loads((folder / SUMMARY).read_text()).get("init_from")
    elif (whole := checkpoints.newest(folder)) is not None:
        facts = checkpoints.read_progress(whole).start
    before = (facts or {}).get("weights")
    try:
        network = network_directory(start)
    except UserError:  # it is gone, and so is not another one
        return False
    return before is not None and (network / WEIGHTS).is_file() and fingerprint(network) != before


def first_difference(wanted: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first key where what was found is not what was wanted; None where all is.

    A key that one of them lacks is null there; what only says where and how a run starts is passed over.
    """
    for key in dict.fromkeys([*wanted, *found]):
        name, value, other = f"{prefix}{key}", wanted.get(key), found.get(key)
        if prefix == "training." and key in FLAGS:
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            difference = first_difference(value, other, f"{name}.")
            if difference is not None:
                return difference
        elif value != other:
            return f"{name} is {other}, not {value}"
    return None
