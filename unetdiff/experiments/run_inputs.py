"""Finished runs, as an experiment is given them: several of one set of images, or a denoiser and its segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unetdiff.data.base import ImageDataset
from unetdiff.data.build import build_dataset
from unetdiff.data.config import DataConfig
from unetdiff.errors import UserError
from unetdiff.evaluation.load_run import LoadedRun
from unetdiff.models.resolve import section
from unetdiff.reports.dataset_groups import group_by_dataset
from unetdiff.reports.runs import Run, read_runs
from unetdiff.segmentation.pipeline import SegmentationPipeline
from unetdiff.training.checkpoints import model_directory
from unetdiff.training.tasks import DiffusionTask


def given_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in `paths`, each ended and all of one set.

    Raises:
        UserError: no run there, one that has not ended, or runs that are judged on different images.
    """
    runs = read_runs(paths)
    for run in runs:
        if not run.finished or run.model is None:
            raise UserError(f"{run.path} holds a run that has not ended; go on with it by --resume, or leave it out")
    groups = group_by_dataset(runs)
    if len(groups) > 1:
        one, other = groups[0][0], groups[1][0]
        raise UserError(
            f"{one.path} and {other.path} are not judged on the same images ({one.data_name}, {other.data_name}); "
            "give runs of one set"
        )
    return runs


def data_of(run: Run) -> DataConfig:
    """The `data:` section of a run."""
    return section(DataConfig, run.config.get("data") or {}, "data")


def labelled(run: Run, first: Run, split: str) -> ImageDataset:
    """The same images and masks for every run: those of the first one's split, at the size that `run` sees them at.

    Asked for with an int, they are not augmented, and a mask keeps its own size.

    Raises:
        UserError: a set that is not there or has no masks.
    """
    own = data_of(run)
    data = replace(data_of(first), size=own.size, longest_side=own.longest_side)
    return build_dataset(data, "train" if split == "train" else "val", segmentation=True)


def denoiser_of(loaded: LoadedRun, path: Path) -> DiffusionTask:
    """The diffusion head of a run; UserError where there is none."""
    if loaded.diffusion is None:
        raise UserError(f"RUN: {path} has no diffusion head; give a diffusion or joint run")
    return loaded.diffusion


def open_segmenter(
    path: Path, classes: Sequence[str], loaded: LoadedRun, option: str = "--segmenter"
) -> SegmentationPipeline:
    """A run's segmenter, on the denoiser's device.

    Raises:
        UserError: no segmentation head, or one of other classes.
    """
    try:
        segmenter = SegmentationPipeline.from_pretrained(model_directory(path))
    except UserError as error:
        raise UserError(f"{option}: {error}") from None
    if segmenter.classes != list(classes):
        raise UserError(f"{option}: {path} has other classes than the denoiser's set; give a run of the same set")
    return segmenter.to(loaded.accelerator.device)


def no_overrides(overrides: Sequence[str]) -> None:
    """Refuse (UserError) config overrides where runs are given as they are."""
    if overrides:
        raise UserError(
            f"{overrides[0]}: this experiment trains nothing from a config, it takes runs as they were trained; leave "
            "it out"
        )
