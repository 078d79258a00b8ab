"""The validation images that runs are shown on: which runs share a set, and which images are taken from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from unetdiff.data.base import ImageDataset
from unetdiff.data.build import build_dataset
from unetdiff.data.capabilities import NATIVE_SIZE
from unetdiff.data.config import DataConfig
from unetdiff.models.resolve import section
from unetdiff.reports.runs import Run

# What tells two sets apart; how large the images are shown to the network and how they are augmented does not.
_IDENTITY = ("name", "root", "val_split", "num_classes", "scenes")


def set_key(run: Run) -> str:
    """Equal for two runs that are judged on the same validation images."""
    data = run.config.get("data") or {}
    identity: dict[str, Any] = {key: data.get(key) for key in _IDENTITY}
    if data.get("name", "scenes") == "scenes":
        # whatever describes the scenes, but for those that there are to learn from
        only_train = ("train_images", "held_out_pairs")
        identity["scenes"] = {k: v for k, v in (data.get("scenes") or {}).items() if k not in only_train}
    else:
        identity["scenes"] = None
    return json.dumps(identity, sort_keys=True, default=str)


def size_of(run: Run) -> tuple[int, int] | None:
    """Height and width that a run has every image in; None where they differ."""
    data = run.config.get("data") or {}
    if data.get("size"):
        return data["size"][0], data["size"][1]
    own = NATIVE_SIZE.get(data.get("name", "scenes"))
    return None if own is None else (own, own)


def size_text(run: Run) -> str:
    """That size in words, e.g. "64×64"."""
    size = size_of(run)
    return "sizes of their own" if size is None else f"{size[0]}×{size[1]}"


def sized_key(run: Run) -> str:
    """Equal for two runs of one set that have its images in one size."""
    return f"{set_key(run)} {size_of(run)}"


def by_set(runs: Sequence[Run], key: Callable[[Run], str] = set_key) -> list[list[Run]]:
    """The runs in groups that share a set (or another `key`), in the order given."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def open_set(
    run: Run,
    split: str = "val",
    segmentation: bool | None = None,
    layout: bool = False,
    own_size: bool = False,
) -> ImageDataset:
    """The images of a run's split, all of them whatever `data.train_fraction`.

    Raises UserError where the set is not there (any more).

    segmentation: with masks; None: where the run has a segmentation head.
    layout: with masks of the images' size, as a denoiser sees them (`build_dataset`).
    own_size: every image as large as it is, for runs of several `data.size`.
    """
    config = section(DataConfig, run.config.get("data") or {}, "data")
    config.train_fraction = 1.0  # what a run was not given, its judge may still learn from
    if own_size:
        config.size = config.longest_side = None
    masks = "segmentation" in run.heads if segmentation is None else segmentation
    return build_dataset(config, "train" if split == "train" else "val", masks, layout)


def choose(dataset: ImageDataset, count: int, seed: int) -> list[int]:
    """`count` indices (or all there are), random by the seed; of different labels as long as there are any."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(dataset), generator=generator).tolist()
    if not dataset.labels or "label" not in dataset[order[0]]:  # a set with masks may give "labels" alone
        return order[:count]
    seen: set[int] = set()
    first: list[int] = []
    rest: list[int] = []
    for index in order[: 20 * count]:  # reading a label may mean reading the image
        label = int(dataset[index]["label"])
        (rest if label in seen else first).append(index)
        seen.add(label)
        if len(first) == count:
            break
    return (first + rest)[:count]
