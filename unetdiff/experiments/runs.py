"""Training runs of an experiment: their configs, training them once, and reading their metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from unetdiff.config.reading import override, parse
from unetdiff.config.schema import RunConfig, Task
from unetdiff.config.training import LoRAConfig
from unetdiff.config.validation.checks import require_at_least
from unetdiff.config.validation.files import check_files
from unetdiff.config.validation.run import validate
from unetdiff.config.validation.training import validate_length
from unetdiff.data.build import build_dataset
from unetdiff.errors import UserError
from unetdiff.models.config import DiffusionHeadConfig, HeadsConfig, SegmentationHeadConfig
from unetdiff.models.resolve import resolve
from unetdiff.reports.record import Line, Value
from unetdiff.reports.runs import Run, read_run
from unetdiff.training.run_cache import train_once

ALL_TRAINED: dict[str, Any] = {
    "training.frozen_levels": 0,
    "training.freeze_encoder": 0.0,
    "training.freeze_backbone": False,
    "training.lora": LoRAConfig(),
}
"""Config keys for a network of random weights, of which none stays as it is."""
MACHINE_KEYS = ("device", "processes", "threads", "precision", "versions")
"""Entries of summary.json that describe the machine."""


# ---------------------------------------------------------------------------------------------- configs


def base_config(path: Path | None, overrides: Sequence[str], default: RunConfig) -> RunConfig:
    """The config that all runs of an experiment share; `variant` sets the task.

    Args:
        path: a YAML file of any task; None: `default`.
        overrides: `--key value` words of the command line, applied to either.
        default: the config without a file.

    Raises:
        UserError: an invalid file, key or value.
    """
    return override(default, overrides) if path is None else parse(path, overrides)


def variant(base: RunConfig, task: Task, folder: Path, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """A validated copy of `base` with another task, output folder and some keys, e.g. {"training.seed": 1}.

    A segmenter alone has one decoder and no task embedding, whatever the joint run has.

    Raises:
        UserError: contradicting keys.
        KeyError: an unknown key in `changes`.
    """
    config = deepcopy(base)
    config.task, head = task, config.model.heads.segmentation
    if task == "segmentation" and head is not None:
        config.model.heads.segmentation = replace(head, own_decoder_levels=0, task_embedding=False)
    for key, value in {"training.output_dir": str(folder), **(changes or {})}.items():
        section: Any = config
        *path, leaf = key.split(".")
        for part in path:
            section = getattr(section, part)
        if not hasattr(section, leaf):
            raise KeyError(key)
        setattr(section, leaf, value)
    validate(config)
    return config


def with_shared_backbone(base: RunConfig) -> RunConfig:
    """`base` with a backbone that is identical under either head.

    Defaults that follow from a diffusion head (time embedding, batch-independent normalization) are made explicit, so
    that a run with the segmentation head alone has them as well.

    Raises:
        UserError: the network does not support a diffusion head.
    """
    heads = HeadsConfig(SegmentationHeadConfig(), DiffusionHeadConfig())
    try:
        model = resolve(replace(base.model, heads=heads))
    except UserError as error:
        raise UserError(f"model.{error}") from None
    return replace(base, model=replace(model, heads=base.model.heads))


def num_train_steps(config: RunConfig) -> int:
    """Optimizer steps of a run, converted from epochs if necessary.

    Raises:
        UserError: neither or both of steps and epochs are set.
    """
    training = config.training
    validate_length(config)
    if training.steps is not None:
        return training.steps
    num_images = len(build_dataset(config.data, "train", segmentation=config.task != "diffusion"))
    return max(1, round((training.epochs or 1) * num_images / training.batch_size))


def seed_list(num_seeds: int, first: int = 0) -> list[int]:
    """Consecutive seeds.

    Raises:
        UserError: less than one.
    """
    require_at_least("--num_seeds", num_seeds, 1)
    return list(range(first, first + num_seeds))


# ----------------------------------------------------------------------------------------------- training


def train_all(configs: Mapping[str, RunConfig], command: str) -> dict[str, Run]:
    """Train several runs one after the other, skipping finished ones; every run by its name.

    Raises:
        UserError: a missing file, or a folder that holds a run of another config.
        TrainingStopped: see `unetdiff.training.trainer.train`.
    """
    runs = {}
    for number, (name, config) in enumerate(configs.items(), start=1):
        tqdm.write(f"{name} ({number} of {len(configs)})")
        runs[name] = train_run(name, config, command)
    return runs


def train_run(name: str, config: RunConfig, command: str) -> Run:
    """Train or resume one run, or read it if it has finished; errors as of `train_all`."""
    check_files(config)
    return read_run(train_once(config, command), name)


# ------------------------------------------------------------------------------------------------ reading


def with_last_weights(run: Run) -> Run:
    """A finished run whose `model` is the last checkpoint, the one that its last validation measured."""
    return replace(run, model=run.path / "latest")


def last_metric(run: Run, key: str) -> float:
    """A metric of a run's last validation, e.g. "segmentation/mean_iou"; NaN where it is missing.

    The last instead of the best: taking the maximum over validations favors runs with a higher variance.
    """
    value = run.validation[-1].get(key) if run.validation else None
    return math.nan if value is None else float(value)


def best_metric(run: Run, key: str) -> float:
    """The highest value of a metric over a run's validations; NaN where it is missing.

    For runs that are longer than they need: with few labels, a segmenter's validation rises and falls again.
    """
    values = [float(line[key]) for line in run.validation if line.get(key) is not None]
    return max(values, default=math.nan)


def aggregate(runs: Sequence[Run], metric: Callable[[Run], float]) -> Value:
    """Mean and standard deviation of a metric over runs that differ in their seed."""
    return Value.of([metric(run) for run in runs])


def metric_curve(runs: Sequence[Run], name: str, key: str, x_key: str) -> Line:
    """A validation metric against "images" or "train_minutes", over runs that differ in their seed.

    Validations are matched by index and x is averaged over the runs. Validations without the metric are skipped.
    """
    xs, ys = [], []
    for entries in zip(*(run.validation for run in runs), strict=False):
        measured = [entry for entry in entries if entry.get(key) is not None]
        if measured:
            xs.append(sum(float(entry[x_key]) for entry in measured) / len(measured))
            ys.append(Value.of([float(entry[key]) for entry in measured]))
    return Line(name, xs, ys)


def machine_info(runs: Sequence[Run]) -> dict[str, Any]:
    """Device, threads, precision and versions of the first finished run."""
    return next(
        ({key: run.summary[key] for key in MACHINE_KEYS if key in run.summary} for run in runs if run.finished), {}
    )


def yaml_configs(runs: Mapping[str, Run]) -> dict[str, str]:
    """Each run's resolved config as YAML."""
    return {name: yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) for name, run in runs.items()}


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Value:
    """Mean and standard deviation of the seed-by-seed differences `values` - `reference`."""
    return Value.of([a - b for a, b in zip(values, reference, strict=True)])


def exceeds_std(difference: Value) -> bool:
    """Whether a difference is larger than its standard deviation over seeds, or is that of a single seed."""
    if not difference.mean:
        return False
    return difference.spread is None or abs(difference.mean) > difference.spread


def format_difference(difference: Value, digits: int = 3) -> str:
    """ "-0.041 ± 0.012, 3 paired seeds"."""
    if difference.mean is None:
        return "not comparable"
    mean = f"{difference.mean:+.{digits}f}"
    if difference.spread is None:
        return f"{mean}, 1 seed"
    return f"{mean} ± {difference.spread:.{digits}f}, {difference.n} paired seeds"
