"""What experiments share: the configs of their runs, training them once, and reading what they left."""

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

MACHINE = ("device", "processes", "threads", "precision", "versions")
"""What summary.json says of the machine."""


# ---------------------------------------------------------------------------------------------- configs


def base_config(path: Path | None, overrides: Sequence[str], default: RunConfig) -> RunConfig:
    """The config whose sections all runs of an experiment share; what it trains is up to `variant`.

    Args:
        path: a YAML file of any task; None: `default`.
        overrides: words of the command line, `--key value`, over either.
        default: what is trained without a file.

    Raises:
        UserError: a file, key or value that is not right.
    """
    return override(default, overrides) if path is None else parse(path, overrides)


def variant(base: RunConfig, task: Task, folder: Path, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """A run of its own: `base` with another task, folder and some keys, as in {"training.seed": 1}; refused where it
    cannot be trained.

    Raises:
        UserError: an impossible combination.
    """
    config = deepcopy(base)
    config.task = task
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


def one_backbone(base: RunConfig) -> RunConfig:
    """`base` with a backbone that is the same under either head: what follows from a diffusion head (a time embedding,
    norms that do not mix a batch) is said outright, so that a segmenter alone has it too.

    Raises:
        UserError: a network that cannot have a diffusion head.
    """
    heads = HeadsConfig(SegmentationHeadConfig(), DiffusionHeadConfig())
    try:
        model = resolve(replace(base.model, heads=heads))
    except UserError as error:
        raise UserError(f"model.{error}") from None
    return replace(base, model=replace(model, heads=base.model.heads))


def steps_of(config: RunConfig) -> int:
    """Optimizer steps of a run, from epochs where it says those.

    Raises:
        UserError: it says neither, or both.
    """
    settings = config.training
    validate_length(config)
    if settings.steps is not None:
        return settings.steps
    images = len(build_dataset(config.data, "train", segmentation=config.task != "diffusion"))
    return max(1, round((settings.epochs or 1) * images / settings.batch_size))


# ----------------------------------------------------------------------------------------------- training


def train_all(configs: Mapping[str, RunConfig], command: str) -> dict[str, Run]:
    """Train what is missing of several runs, one after the other; every run by its name.

    Raises:
        UserError: a file that a run needs is not there, or a folder holds a run of another config.
        TrainingStopped: see `train`.
    """
    runs = {}
    for number, (name, config) in enumerate(configs.items(), start=1):
        tqdm.write(f"{name} ({number} of {len(configs)})")
        runs[name] = train(name, config, command)
    return runs


def train(name: str, config: RunConfig, command: str) -> Run:
    """One run, trained as far as it was not; errors as of `train_all`."""
    check_files(config)
    return read_run(train_once(config, command), name)


# ------------------------------------------------------------------------------------------------ reading


def last_weights(run: Run) -> Run:
    """A finished run, to be judged by the weights that its last validation is of."""
    return replace(run, model=run.path / "latest")


def last(run: Run, figure: str) -> float:
    """A figure of a run's last validation ("segmentation/mean_iou"); NaN where there is none.

    The last, not the best: choosing among validations would flatter runs that vary more.
    """
    value = run.validation[-1].get(figure) if run.validation else None
    return math.nan if value is None else float(value)


def over_runs(runs: Sequence[Run], read: Callable[[Run], float]) -> Value:
    """A figure's mean and spread over runs that differ in their seed."""
    return Value.of([read(run) for run in runs])


def curve(runs: Sequence[Run], name: str, figure: str, across: str) -> Line:
    """A validation figure against another ("images", "train_minutes"), over runs that differ in their seed.

    Validations are matched by their number; x is their mean. Those without the figure are left out.
    """
    xs, ys = [], []
    for entries in zip(*(run.validation for run in runs), strict=False):
        there = [entry for entry in entries if entry.get(figure) is not None]
        if there:
            xs.append(sum(float(entry[across]) for entry in there) / len(there))
            ys.append(Value.of([float(entry[figure]) for entry in there]))
    return Line(name, xs, ys)


def machine_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Device, threads, precision and versions of the first run that tells them."""
    return next(({key: run.summary[key] for key in MACHINE if key in run.summary} for run in runs if run.finished), {})


def configs_of(runs: Mapping[str, Run]) -> dict[str, str]:
    """Each run's resolved config as YAML."""
    return {name: yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) for name, run in runs.items()}


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Value:
    """By how much runs differ from others of the same seeds: mean and spread of the differences, seed by seed."""
    return Value.of([a - b for a, b in zip(ours, theirs, strict=True)])


def difference_words(found: Value, digits: int = 3) -> str:
    """ "0.041 lower, more than its spread over 3 seeds (0.012)"."""
    if found.mean is None:
        return "not to be compared"
    size = f"{abs(found.mean):.{digits}f}"
    way = "higher" if found.mean > 0 else "lower"
    what = f"{size} {way}" if float(size) else "the same"
    if found.spread is None:
        return f"{what}; with one seed, chance is not ruled out"
    more = "more than" if abs(found.mean) > found.spread else "within"
    return f"{what}, {more} the spread of that difference over {found.n} seeds ({found.spread:.{digits}f})"


def seeds_of(count: int, first: int = 0) -> list[int]:
    """So many seeds.

    Raises:
        UserError: less than one.
    """
    if count < 1:
        raise UserError(f"--seeds: {count} is too small; use 1 or more")
    return list(range(first, first + count))
