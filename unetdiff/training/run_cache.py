"""Runs as cached results: a missing run is trained, an interrupted one resumed, a finished one returned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

from unetdiff.config.reading import from_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.data.stats import CLASS_WEIGHT_METHODS
from unetdiff.errors import UserError
from unetdiff.files.records import read_object
from unetdiff.training.rundir import CONFIG, FROM_DATA, SUMMARY, directory_state

FLAGS = ("output_dir", "resume", "overwrite", "num_workers")
"""Keys of `training` that do not change the result of a run."""


def train_once(config: RunConfig, command: str | None = None) -> Path:
    """The run directory of a config, trained or resumed as needed; returns immediately for a finished run.

    Raises:
        UserError: training.output_dir contains a run of a different config, or one initialized from other weights.
        TrainingStopped: see `train`.
    """
    from unetdiff.training.trainer import train

    folder = Path(config.training.output_dir)
    state = run_state(folder, config)
    if state == "finished":
        return folder
    config.training.resume = state == "interrupted"
    return train(config, command=command)


def run_state(folder: Path, config: RunConfig) -> str:
    """ "new", "interrupted" or "finished".

    Raises:
        UserError: the folder contains a run of a different config, or one initialized from an older version of
            `training.init_from`.
    """
    if directory_state(folder) != "run":
        return "new"
    requested, stored = asdict(config), asdict(from_yaml(folder / CONFIG))  # a key newer than the file has its default
    method, weights = (tree["segmentation"]["class_weights"] for tree in (requested, stored))
    empty = [key for key in FROM_DATA if _value(requested, key) is None]
    for tree in (requested, stored):
        for key in empty:  # computed by the trainer, and compared when it resumes
            section, _, name = key.rpartition(".")
            del _value(tree, section)[name]
        if method in CLASS_WEIGHT_METHODS and isinstance(weights, list):
            del tree["segmentation"]["class_weights"]  # computed by the trainer, and compared when it resumes
        if config.task != "joint":
            del tree["joint"]  # unused
    difference = first_difference(requested, stored)
    if difference is not None:
        raise UserError(
            f"'{folder}' contains a run of a different config ({difference}). Delete it, or give another --output."
        )
    source = config.training.init_from
    if source is not None and _source_changed(folder, Path(source)):
        raise UserError(
            f"'{folder}' was initialized from an older version of '{source}'. Delete it and its descendants, or give "
            "another --output."
        )
    return "finished" if (folder / SUMMARY).is_file() else "interrupted"


def _value(tree: dict[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    return reduce(lambda section, name: section[name], key.split("."), tree)


def _source_changed(folder: Path, source: Path) -> bool:
    """Whether the weights in `source` differ from those the run was initialized from; False where either is unknown."""
    from unetdiff.models.weights_files import WEIGHTS, fingerprint
    from unetdiff.training import checkpoints
    from unetdiff.training.init_from import network_directory
    from unetdiff.training.progress import read_progress

    report: Mapping[str, Any] | None = None
    if (folder / SUMMARY).is_file():
        report = read_object(folder / SUMMARY, "Delete the run.").get("init_from")
    elif (checkpoint := checkpoints.newest(folder)) is not None:
        report = read_progress(checkpoint).init_from
    before = report.get("weights") if isinstance(report, Mapping) else None
    try:
        network = network_directory(source)
    except UserError:  # deleted, so not replaced
        return False
    return before is not None and (network / WEIGHTS).is_file() and fingerprint(network) != before


def first_difference(requested: Mapping[str, Any], stored: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first key on which two configs differ, and both values; None where they agree.

    A missing key counts as null; `FLAGS` are ignored.
    """
    for key in dict.fromkeys([*requested, *stored]):
        name, value, other = f"{prefix}{key}", requested.get(key), stored.get(key)
        if prefix == "training." and key in FLAGS:
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            difference = first_difference(value, other, f"{name}.")
            if difference is not None:
                return difference
        elif value != other:
            return f"{name} is {other}, not {value}"
    return None
