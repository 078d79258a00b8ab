"""Whether samples show the layout that they were asked for: a segmenter of real pictures looks at them.

Ours, never "FID": what it says means as much as its figures on real pictures, which are told beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from unetdiff.errors import UserError
from unetdiff.segmentation.inference import resize_logits
from unetdiff.segmentation.metrics import ConfusionMatrix
from unetdiff.segmentation.pipeline import SegmentationPipeline

BATCH = 16  # pictures segmented at once


def layout_agreement(
    segmenter: SegmentationPipeline, pictures: Iterable[Tensor], masks: Iterable[Tensor], num_classes: int
) -> dict[str, Any]:
    """The figures of `ConfusionMatrix` of what a segmenter finds in pictures, against masks.

    Args:
        segmenter: trained on real pictures of the same classes.
        pictures: uint8 (3, H, W) each.
        masks: class indices and 255 of the same pictures, (h, w) each, of any size; the logits are resized to it.
        num_classes: classes of the masks.

    Raises:
        UserError: a segmenter of another number of classes.
    """
    if len(segmenter.classes) != num_classes:
        raise UserError(
            f"the segmenter has {len(segmenter.classes)} classes, the layouts {num_classes}; "
            "give one that was trained on the same set"
        )
    matrix = ConfusionMatrix(num_classes)
    outputs = segmenter.stream(pictures, return_logits=True, batch_size=BATCH)
    for output, mask in zip(outputs, masks, strict=True):
        assert output.logits is not None
        logits = resize_logits(output.logits.float()[None], (mask.shape[-2], mask.shape[-1]))  # (1, C, h, w)
        matrix.update(logits.argmax(dim=1), torch.as_tensor(mask)[None])
    return matrix.compute()
