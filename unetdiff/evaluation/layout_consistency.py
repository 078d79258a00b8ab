"""Whether samples show the class or the layout that they were asked for: a segmenter of real images looks at them.

Ours, never "FID": what it says means as much as its figures on real images, which are told beside it.
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

BATCH = 16  # images segmented at once


@dataclass(frozen=True)
class ClassAgreement:
    """What a segmenter finds in images, against the classes that they were asked for."""

    found: list[int | None]
    """The foreground class with the most pixels of each image; None: all is background."""
    right: int
    """Images in which that is a class asked for."""
    foreground: float
    """Mean share of the pixels that are no background."""

    @property
    def share(self) -> float:
        """Share of the images that are right."""
        return self.right / len(self.found)


def class_agreement(
    masks: Iterable[np.ndarray], asked: Iterable[Collection[int]], background: int | None
) -> ClassAgreement:
    """The foreground class with the most pixels of each image, against what was asked for; ties go to the lower.

    Args:
        masks: what a segmenter found, class indices (H, W) each.
        asked: the classes that each image was asked for: any of them is right.
        background: the class that is no foreground; None: all are.

    Raises:
        UserError: there are no images.
    """
    found: list[int | None] = []
    right, foreground = 0, 0.0
    for mask, wanted in zip(masks, asked, strict=True):
        counts = np.bincount(mask.ravel(), minlength=256)
        if background is not None:
            counts[background] = 0
        most = int(counts.argmax()) if counts.any() else None
        found.append(most)
        right += most in wanted
        foreground += counts.sum() / mask.size
    if not found:
        raise UserError("agreement: there are no images to look at; draw some (--n 1 or more)")
    return ClassAgreement(found, right, float(foreground / len(found)))


def background_of(classes: Collection[str]) -> int | None:
    """The class that is no foreground, by its name; None: there is none."""
    return list(classes).index(BACKGROUND) if BACKGROUND in classes else None


def require_classes(segmenter: SegmentationPipeline, num_classes: int) -> None:
    """Refuse (UserError) a segmenter of another number of classes than layouts have."""
    if len(segmenter.classes) != num_classes:
        raise UserError(
            f"the segmenter has {len(segmenter.classes)} classes, the layouts {num_classes}; "
            "give one that was trained on the same set"
        )


def layout_agreement(
    segmenter: SegmentationPipeline, images: Iterable[Tensor], masks: Iterable[Tensor], num_classes: int
) -> dict[str, Any]:
    """The figures of `ConfusionMatrix` of what a segmenter finds in images, against masks.

    Args:
        segmenter: trained on real images of the same classes; says what is void.
        images: uint8 (3, H, W) each.
        masks: class indices and void of the same images, (h, w) each, of any size; the logits are resized to it.
        num_classes: classes of the masks.

    Raises:
        UserError: a segmenter of another number of classes.
    """
    require_classes(segmenter, num_classes)
    matrix = ConfusionMatrix(num_classes, segmenter.ignore_index)
    outputs = segmenter.stream(images, return_logits=True, batch_size=BATCH)
    for output, mask in zip(outputs, masks, strict=True):
        assert output.logits is not None
        logits = resize_logits(output.logits.float()[None], (mask.shape[-2], mask.shape[-1]))  # (1, C, h, w)
        matrix.update(logits.argmax(dim=1), torch.as_tensor(mask)[None])
    return matrix.compute()
