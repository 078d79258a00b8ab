"""Which runs share a dataset, and which of its images the page shows."""

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

# The keys that identify a dataset; the network's image size and the augmentation do not.
_IDENTITY = ("name", "root", "val_split", "num_classes", "scenes")


def dataset_key(run: Run) -> str:
    """Equal for two runs that are evaluated on the same validation images."""
    data = run.config.get("data") or {}
    identity: dict[str, Any] = {key: data.get(key) for key in _IDENTITY}
    if data.get("name", "scenes") == "scenes":
        # everything that describes the scenes except the training images
        only_train = ("train_images", "held_out_pairs")
        identity["scenes"] = {k: v for k, v in (data.get("scenes") or {}).items() if k not in only_train}
    else:
        identity["scenes"] = None
    return json.dumps(identity, sort_keys=True, default=str)


def size_of(run: Run) -> tuple[int, int] | None:
    """Height and width of a run's images; None where they vary."""
    data = run.config.get("data") or {}
    if data.get("size"):
        return data["size"][0], data["size"][1]
    own = NATIVE_SIZE.get(data.get("name", "scenes"))
    return None if own is None else (own, own)


def size_text(run: Run) -> str:
    """The image size as text, e.g. "64×64"."""
    size = size_of(run)
    return "varying sizes" if size is None else f"{size[0]}×{size[1]}"


def size_key(run: Run) -> str:
    """Equal for two runs of one dataset at one image size."""
    return f"{dataset_key(run)} {size_of(run)}"


def group_by_dataset(runs: Sequence[Run], key: Callable[[Run], str] = dataset_key) -> list[list[Run]]:
    """The runs grouped by dataset (or another `key`), in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def open_dataset(
    run: Run,
    split: str = "val",
    segmentation: bool | None = None,
    layout: bool = False,
    own_size: bool = False,
) -> ImageDataset:
    """The images of a run's split, all of them whatever `data.train_fraction`.

    Raises UserError if the dataset does not exist (any more).

    segmentation: with masks; None: if the run has a segmentation head.
    layout: with masks at the size of the images, as a layout-conditional denoiser needs them (`build_dataset`).
    own_size: images at their original size, for runs with different `data.size`.
    """
    config = section(DataConfig, run.config.get("data") or {}, "data")
    config.train_fraction = 1.0  # the classifier is trained on all images, whatever the run used
    if own_size:
        config.size = config.longest_side = None
    masks = "segmentation" in run.heads if segmentation is None else segmentation
    return build_dataset(config, "train" if split == "train" else "val", masks, layout)


def choose(dataset: ImageDataset, count: int, seed: int) -> list[int]:
    """At most `count` random indices, of distinct labels as far as possible."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(dataset), generator=generator).tolist()
    if not dataset.labels or "label" not in dataset[order[0]]:  # a dataset with masks may have no "label" in its items
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
