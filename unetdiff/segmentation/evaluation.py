"""Evaluation of a segmentation model on a dataset, at the masks' own size, in one pass with constant memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import EvalSampler
from unetdiff.errors import UserError
from unetdiff.files.tables import write_table
from unetdiff.models.unet import UNet
from unetdiff.segmentation.boundary import BoundaryIoU
from unetdiff.segmentation.calibration import Calibration
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.inference import InputSize, logits_by_size, resize_logits
from unetdiff.segmentation.instances import InstanceScores
from unetdiff.segmentation.metrics import ConfusionMatrix
from unetdiff.segmentation.segmenter import Segmenter

__all__ = ["SegmentationEvaluation", "WorstImage", "evaluate_segmenter", "network_logits"]

PER_CLASS = ("iou", "boundary_iou", "dice", "precision", "recall", "accuracy", "pixel_fraction", "images")
Logits = Callable[[Sequence[Tensor]], Iterable[Tensor]]


@dataclass
class WorstImage:
    """One of the images with the lowest mean IoU."""

    index: int
    """Its index in the dataset."""
    name: str
    score: float
    """Mean IoU of the classes in its target."""
    pixel_accuracy: float
    """Fraction of its valid pixels that are correct."""
    iou: dict[int, float]
    """IoU of each class in its target or prediction; 0 for a class that is only predicted."""
    prediction: np.ndarray
    """uint8 (H, W)."""


@dataclass
class SegmentationEvaluation:
    """Counts over a dataset, and the worst images; `metrics` computes the metrics."""

    classes: list[str]
    matrix: ConfusionMatrix
    boundary: BoundaryIoU
    calibration: Calibration
    images_per_class: Tensor
    """Images whose target contains the class, int64 (C,)."""
    images: int = 0
    instances: InstanceScores | None = None
    """Scores of separate objects, if they are measured."""
    worst: list[WorstImage] = field(default_factory=list)
    """Ascending by score; images without a valid pixel have no score and are not included."""

    def metrics(self) -> dict[str, Any]:
        """All metrics by name; per-class metrics as {class: value} under `..._per_class`."""
        metrics = self.matrix.compute() | self.boundary.compute() | self.calibration.compute()
        if self.instances is not None:
            metrics |= {"pixel_error": 1 - metrics["pixel_accuracy"], **self.instances.compute()}
        pixels = self.matrix.matrix.cpu().sum(dim=1).double()  # (C,)
        metrics["pixel_fraction_per_class"] = (pixels / pixels.sum()).tolist()
        metrics["images_per_class"] = self.images_per_class.tolist()
        by_class = {f"{kind}_per_class": metrics.pop(f"{kind}_per_class") for kind in PER_CLASS}
        named = {kind: dict(zip(self.classes, values, strict=True)) for kind, values in by_class.items()}
        return {"images": self.images, **metrics, **named}

    def write_table(self, path: Path) -> None:
        """Write one CSV row per class: index, name and metrics, empty if nan."""
        columns = [self.metrics()[f"{kind}_per_class"].values() for kind in PER_CLASS]
        rows = enumerate(zip(self.classes, *columns, strict=True))
        write_table(path, [["index", "class", *PER_CLASS], *([index, *row] for index, row in rows)])


def network_logits(
    network: UNet | Segmenter,
    size: InputSize = None,
    inference: InferenceConfig | None = None,
    autocast: torch.dtype | None = None,
) -> Logits:
    """The `logits_of` of `evaluate_segmenter` for a network: images uint8 (3, H, W) -> logits (C, H, W) at their sizes.

    Arguments as in `unetdiff.segmentation.inference.predictions`.
    """
    return lambda images: (
        logits for _, logits in logits_by_size(network, images, size, autocast=autocast, options=inference)
    )


def evaluate_segmenter(
    logits_of: Logits,
    images: ImageDataset,
    ignore_index: int = 255,
    worst: int = 20,
    batch_size: int = 8,
    progress: Callable[[Iterable[list[int]]], Iterable[list[int]]] = iter,
    instances: InstanceScores | None = None,
) -> SegmentationEvaluation:
    """Evaluate a function from images to logits, each image at the size of its mask.

    The argmax is taken after resizing the logits to that size. Only counts are kept, and the predictions of the `worst`
    images by the mean IoU of the classes in their target (classes that are only predicted do not lower this score).

    Args:
        logits_of: see `network_logits`.
        images: a dataset with masks; images at their own size or at the network's.
        ignore_index: ignored in addition to 255.
        worst: number of images kept.
        batch_size: images passed to `logits_of` at once.
        progress: wraps the batches of indices, e.g. `tqdm`.
        instances: also measure how well separate objects are kept apart.

    Raises:
        UserError: the dataset has no masks, or two classes of one name.
    """
    classes = list(images.classes)
    if not classes:
        raise UserError("Evaluating a segmentation head needs a dataset with masks. Use e.g. data.name=voc_folder.")
    if len(set(classes)) < len(classes):
        twice = next(name for index, name in enumerate(classes) if name in classes[:index])
        raise UserError(f"classes: must have distinct names (got {twice!r} twice). Rename one of them.")
    total = SegmentationEvaluation(
        classes,
        ConfusionMatrix(len(classes), ignore_index),
        BoundaryIoU(len(classes), ignore_index),
        Calibration(ignore_index=ignore_index),
        torch.zeros(len(classes), dtype=torch.int64),
        instances=instances,
    )
    heap: list[tuple[float, int, WorstImage]] = []  # (-score, -index, image): the best of the worst on top
    for indices in progress(EvalSampler(len(images), batch_size)):
        items = [images[index] for index in indices]
        for index, name, logits, target in _predicted(logits_of, indices, items):
            prediction = logits.argmax(dim=0)  # (H, W)
            one = ConfusionMatrix(len(classes), ignore_index)
            one.update(prediction, target)
            total.matrix.merge(one)
            total.boundary.update(prediction, target)
            total.calibration.update(logits, target)
            if instances is not None:
                instances.update(logits, target)
            total.images_per_class += (one.matrix.sum(dim=1) > 0).cpu()
            total.images += 1
            scored = _score(one, index, name)
            if scored is not None and (len(heap) < worst or (heap and (-scored.score, -index) > heap[0][:2])):
                kept = replace(scored, prediction=prediction.to(torch.uint8).cpu().numpy())
                heapq.heappush(heap, (-scored.score, -index, kept))
                if len(heap) > worst:
                    heapq.heappop(heap)
    total.worst = [entry[2] for entry in sorted(heap, key=lambda entry: entry[:2], reverse=True)]
    return total


def _predicted(
    logits_of: Logits, indices: Sequence[int], items: Sequence[dict[str, Any]]
) -> Iterator[tuple[int, str, Tensor, Tensor]]:
    """(index, name, logits (C, H, W), target (H, W)) of each image of a batch, logits at the target's size."""
    for index, item, logits in zip(indices, items, logits_of([item["image"] for item in items]), strict=True):
        target = item["mask"].to(logits.device)
        yield index, item["name"], resize_logits(logits[None], (target.shape[-2], target.shape[-1]))[0], target


def _score(one: ConfusionMatrix, index: int, name: str) -> WorstImage | None:
    """An image's metrics from its own matrix; None without a valid pixel."""
    metrics = one.compute()
    present = (one.matrix.sum(dim=1) > 0).cpu()
    if not present.any():
        return None
    iou = torch.tensor(metrics["iou_per_class"], dtype=torch.float64)
    occurring = {int(label): float(iou[label]) for label in (~iou.isnan()).nonzero()[:, 0]}
    empty = np.zeros((0, 0), np.uint8)
    return WorstImage(index, name, float(iou[present].mean()), metrics["pixel_accuracy"], occurring, empty)
