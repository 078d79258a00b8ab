"""Layout and class consistency of samples, measured by a segmenter trained on real images.

Report it with the same metrics on real images, which are its upper bound.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetdiff.errors import UserError
from unetdiff.segmentation.inference import resize_logits
from unetdiff.segmentation.metrics import ConfusionMatrix
from unetdiff.segmentation.pipeline import BACKGROUND, SegmentationPipeline

BATCH = 16  # images


@dataclass(frozen=True)
class ClassConsistency:
    """Dominant foreground class of images, as a segmenter predicts it, against the classes they are conditioned on."""

    predictions: list[int | None]
    """The foreground class with the most pixels of each image; None: background only."""
    num_correct: int
    """Images where it is one of the conditioning classes."""
    foreground_fraction: float
    """Mean fraction of foreground pixels."""

    @property
    def accuracy(self) -> float:
        """Fraction of correct images."""
        return self.num_correct / len(self.predictions)


def class_consistency(
    masks: Iterable[np.ndarray], labels: Iterable[Collection[int]], background: int | None
) -> ClassConsistency:
    """Compare the foreground class with the most pixels of each image with its labels; ties go to the lower index.

    Args:
        masks: predicted class indices, (H, W) each.
        labels: the classes each image is conditioned on; any of them is correct.
        background: index of the background class; None: all classes are foreground.

    Raises:
        UserError: no images.
    """
    predictions: list[int | None] = []
    num_correct, foreground = 0, 0.0
    for mask, classes in zip(masks, labels, strict=True):
        counts = np.bincount(mask.ravel(), minlength=256)
        if background is not None:
            counts[background] = 0
        largest = int(counts.argmax()) if counts.any() else None
        predictions.append(largest)
        num_correct += largest in classes
        foreground += counts.sum() / mask.size
    if not predictions:
        raise UserError("class consistency: requires at least one image.")
    return ClassConsistency(predictions, num_correct, float(foreground / len(predictions)))


def background_of(classes: Collection[str]) -> int | None:
    """Index of the class named "background"; None without one."""
    return list(classes).index(BACKGROUND) if BACKGROUND in classes else None


def require_classes(segmenter: SegmentationPipeline, num_classes: int) -> None:
    """Raise UserError unless the segmenter has as many classes as the layouts."""
    if len(segmenter.classes) != num_classes:
        raise UserError(
            f"must have {num_classes} classes, as the layouts do (got {len(segmenter.classes)}). "
            "Use a segmenter trained on the same dataset."
        )


def layout_consistency(
    segmenter: SegmentationPipeline, images: Iterable[Tensor], masks: Iterable[Tensor], num_classes: int
) -> dict[str, Any]:
    """Metrics of `ConfusionMatrix` of a segmenter's predictions on images, against the masks they are conditioned on.

    Args:
        segmenter: trained on real images of the same classes; its `ignore_index` applies.
        images: uint8 (3, H, W) each.
        masks: class indices, (h, w) each, of any size, which the logits are resized to.
        num_classes: classes of the masks.

    Raises:
        UserError: a segmenter with another number of classes.
    """
    require_classes(segmenter, num_classes)
    matrix = ConfusionMatrix(num_classes, segmenter.ignore_index)
    outputs = segmenter.stream(images, return_logits=True, batch_size=BATCH)
    for output, mask in zip(outputs, masks, strict=True):
        assert output.logits is not None
        logits = resize_logits(output.logits.float()[None], (mask.shape[-2], mask.shape[-1]))  # (1, C, h, w)
        matrix.update(logits.argmax(dim=1), torch.as_tensor(mask)[None])
    return matrix.compute()
