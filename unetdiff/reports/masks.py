"""Rows of image, ground truth and the prediction of every run, on the same validation images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unetdiff.data.base import ImageDataset
from unetdiff.data.transforms import IGNORE_INDEX, ignore_mask
from unetdiff.errors import UserError
from unetdiff.evaluation.class_names import require_same_classes
from unetdiff.reports.dataset_groups import choose, group_by_dataset, open_dataset
from unetdiff.reports.embed import data_uri, is_small
from unetdiff.reports.runs import Run
from unetdiff.segmentation.palette import IGNORE_COLOR, as_mask, colorize
from unetdiff.segmentation.pipeline import SegmentationPipeline


@dataclass
class MaskRow:
    """One validation image: everything as data URIs."""

    name: str
    image: str
    truth: str
    predictions: list[str] = field(default_factory=list)
    """One for each run of the block."""
    pixel_accuracy: list[float] = field(default_factory=list)
    """Pixel accuracy of each run on this image."""


@dataclass
class MaskBlock:
    """The runs that share a dataset, on its images."""

    dataset_name: str
    runs: list[int]
    """Indices into the report's runs."""
    rows: list[MaskRow]
    legend: list[tuple[str, str]]
    """Names and CSS colors of the classes that occur."""
    pixelated: bool


def mask_blocks(runs: Sequence[Run], count: int = 6, seed: int = 0) -> tuple[list[MaskBlock], list[str]]:
    """A block for each dataset of the runs with a segmentation head, and messages about missing parts.

    A run whose weights cannot be read, or whose classes are not those of the dataset, is left out.
    """
    order = {id(run): index for index, run in enumerate(runs)}
    blocks, problems = [], []
    for group in group_by_dataset([run for run in runs if "segmentation" in run.heads and run.model is not None]):
        try:
            dataset = open_dataset(group[0], own_size=True)
            items = [dataset[index] for index in choose(dataset, count, seed)]
        except UserError as error:
            problems.append(f"{group[0].data_name}: {error}")
            continue
        predicted: dict[int, list[np.ndarray]] = {}
        for run in group:
            try:
                predicted[order[id(run)]] = predictions(run, items, dataset.classes)
            except UserError as error:
                problems.append(f"“{run.name}”: its masks are missing: {error}")
        if predicted:
            rows, legend, small = _rows({index: runs[index] for index in predicted}, predicted, dataset, items)
            blocks.append(MaskBlock(group[0].data_name, [*predicted], rows, legend, small))
    return blocks, problems


def _rows(
    runs: Mapping[int, Run],
    predicted: Mapping[int, Sequence[np.ndarray]],
    dataset: ImageDataset,
    items: Sequence[dict[str, Any]],
) -> tuple[list[MaskRow], list[tuple[str, str]], bool]:
    truths = [as_mask(item["mask"]) for item in items]
    rows = [
        MaskRow(item["name"], data_uri(item["image"]), data_uri(colorize(truth, dataset.palette), photo=False))
        for item, truth in zip(items, truths, strict=True)
    ]
    occurring = {int(value) for truth in truths for value in np.unique(truth)}
    for index, run in runs.items():
        for row, truth, guess in zip(rows, truths, predicted[index], strict=True):
            row.predictions.append(data_uri(colorize(guess, dataset.palette), photo=False))
            evaluated = ~ignore_mask(truth, (run.config.get("segmentation") or {}).get("ignore_index", IGNORE_INDEX))
            row.pixel_accuracy.append(float((guess == truth)[evaluated].mean()) if evaluated.any() else float("nan"))
            occurring |= {int(value) for value in np.unique(guess)}
    legend = [
        (name, "rgb({}, {}, {})".format(*dataset.palette[index]))
        for index, name in enumerate(dataset.classes)
        if index in occurring
    ]
    if 255 in occurring:
        legend.append(("ignored in evaluation", "rgb({}, {}, {})".format(*IGNORE_COLOR)))
    return rows, legend, is_small(items[0]["image"])


def predictions(run: Run, items: Iterable[dict], classes: Sequence[str]) -> list[np.ndarray]:
    """A run's predicted masks (H, W) of dataset items, at the images' own sizes.

    The pipeline resizes each image to the run's training resolution, so items should have their original size.

    Raises:
        UserError: unreadable weights, or other classes than `classes`, those of the dataset.
    """
    assert run.model is not None
    pipeline = SegmentationPipeline.from_pretrained(run.model)
    require_same_classes(pipeline.classes, classes, str(run.model))
    return [output.mask for output in pipeline.stream(item["image"] for item in items)]
