"""Finished runs of one set of pictures, as an experiment is given them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unetdiff.compare.runs import Run, read_runs
from unetdiff.compare.sets import by_set
from unetdiff.data import DataConfig, PictureDataset, build_dataset
from unetdiff.errors import UserError
from unetdiff.models.resolve import section


def given_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in `paths`, each ended and all of one set.

    Raises:
        UserError: no run there, one that has not ended, or runs that are judged on different pictures.
    """
    runs = read_runs(paths)
    for run in runs:
        if not run.finished or run.model is None:
            raise UserError(f"{run.path} holds a run that has not ended; go on with it by --resume, or leave it out")
    groups = by_set(runs)
    if len(groups) > 1:
        one, other = groups[0][0], groups[1][0]
        raise UserError(
            f"{one.path} and {other.path} are not judged on the same pictures ({one.data_name}, {other.data_name}); "
            "give runs of one set"
        )
    return runs


def data_of(run: Run) -> DataConfig:
    """The `data:` section of a run."""
    return section(DataConfig, run.config.get("data") or {}, "data")


def labelled(run: Run, first: Run, split: str) -> PictureDataset:
    """The same pictures and masks for every run: those of the first one's split, at the size that `run` sees them at.

    Asked for with an int, they are not augmented, and a mask keeps its own size.

    Raises:
        UserError: a set that is not there or has no masks.
    """
    own = data_of(run)
    data = replace(data_of(first), size=own.size, longest_side=own.longest_side)
    return build_dataset(data, "train" if split == "train" else "val", segmentation=True)


def no_overrides(overrides: Sequence[str], name: str) -> None:
    """Refuse (UserError) config overrides where runs are given as they are."""
    if overrides:
        raise UserError(f"unetdiff experiment {name}: {overrides[0]} would change a config, but runs are taken as they "
                        "were trained; leave it out")  # fmt: skip
