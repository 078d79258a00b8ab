"""Finished runs as inputs of an experiment: several of one dataset, or a denoiser and its segmenter."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unetdiff.config.model_directory import model_directory
from unetdiff.data.base import ImageDataset
from unetdiff.data.build import build_dataset
from unetdiff.data.config import DataConfig
from unetdiff.errors import UserError, config_error
from unetdiff.evaluation.class_names import require_same_classes
from unetdiff.evaluation.load_run import LoadedRun
from unetdiff.models.resolve import section
from unetdiff.reports.dataset_groups import group_by_dataset
from unetdiff.reports.runs import Run, read_runs
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training.tasks.diffusion import DiffusionTask

MAX_COUNT = 10_000_000
"""Largest number of images, steps, seeds ... of an option."""
MAX_SEED = (1 << 63) - 1


def finished_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in `paths`.

    Raises:
        UserError: a missing or unfinished run, or runs with different validation images.
    """
    runs = read_runs(paths)
    for run in runs:
        if not run.finished or run.model is None:
            raise UserError(f"{run.path}: the run is not finished. Continue it with --resume or leave it out.")
    groups = group_by_dataset(runs)
    if len(groups) > 1:
        first, other = groups[0][0], groups[1][0]
        raise UserError(
            f"{first.path} and {other.path} have different validation images ({first.data_name}, {other.data_name}). "
            "Give runs of one dataset."
        )
    return runs


def data_config(run: Run) -> DataConfig:
    """The `data` section of a run."""
    return section(DataConfig, run.config.get("data") or {}, "data")


def labeled_images(run: Run, first: Run, split: str) -> ImageDataset:
    """Images and masks of the first run's split at the input size of `run`, so that all runs see the same images.

    With an int as index, images are not augmented and masks keep their own size.

    Raises:
        UserError: a dataset that is missing or has no masks.
    """
    own = data_config(run)
    data = replace(data_config(first), size=own.size, longest_side=own.longest_side)
    return build_dataset(data, "train" if split == "train" else "val", segmentation=True)


def diffusion_task(loaded: LoadedRun, path: Path) -> DiffusionTask:
    """The diffusion head of a run; UserError if it has none."""
    if loaded.diffusion is None:
        raise UserError(f"RUN={path}: must have a diffusion head. Give a diffusion or joint run.")
    return loaded.diffusion


def open_segmenter(
    path: Path, classes: Sequence[str], loaded: LoadedRun, option: str = "--segmenter"
) -> SegmentationPipeline:
    """The segmenter of a run, on the denoiser's device.

    Raises:
        UserError: no segmentation head, or one of other classes.
    """
    try:
        segmenter = SegmentationPipeline.from_pretrained(model_directory(path))
    except UserError as error:
        raise UserError(f"{option}: {error}") from None
    rule = "the segmenter must have the classes of the denoiser's dataset"
    require_same_classes(classes, segmenter.classes, f"{option}={path}", "Give a run of that dataset.", rule)
    return segmenter.to(loaded.accelerator.device)


def validate_options(args: argparse.Namespace) -> None:
    """Refuse options of an experiment that no experiment can use; each checks its own lower bounds.

    Raises:
        UserError: a number that is NaN, infinite, negative where it counts something, or beyond `MAX_COUNT`.
    """
    for name, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise config_error(f"--{name}", number, "a finite number")
            maximum = MAX_SEED if name == "seed" else MAX_COUNT
            if isinstance(number, int) and not isinstance(number, bool) and not 0 <= number <= maximum:
                raise config_error(f"--{name}", number, f"from 0 to {maximum}")


def refuse_overrides(overrides: Sequence[str]) -> None:
    """Refuse config overrides (UserError) in experiments on finished runs."""
    if overrides:
        raise UserError(
            f"{overrides[0]}: config keys do not apply to this experiment, which reads finished runs. Remove it."
        )
