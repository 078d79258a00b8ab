"""Layout and class consistency with a segmenter that thresholds the brightness."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unetdiff import UNet
from unetdiff.errors import UserError
from unetdiff.evaluation.layout_consistency import background_of, class_consistency, layout_consistency
from unetdiff.segmentation.pipeline import SegmentationPipeline


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> SegmentationPipeline:
    """Bright pixels are class 1."""
    unet = UNet(
        encoder={"channels": [8, 8]}, residual={"norm_num_groups": 4}, heads={"segmentation": {"num_classes": 2}}
    )

    def forward(sample, *_, **__):
        bright = sample.mean(dim=1, keepdim=True)
        return (torch.cat([-bright, bright], dim=1),)

    monkeypatch.setattr(unet, "forward", forward)
    return SegmentationPipeline(unet, ["dark", "bright"])


def test_layout_consistency(segmenter: SegmentationPipeline) -> None:
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[:, 4:] = 1
    right = (mask * 255).expand(3, 8, 8)
    assert layout_consistency(segmenter, [right], [mask], 2)["mean_iou"] == 1
    half = right.clone()
    half[:, 4:] = 0  # of the bright half the upper part only
    metrics = layout_consistency(segmenter, [half, right], [mask, mask], 2)
    # bright: 48 of 64 correct, no false positives; dark: 64 correct, 16 false positives
    assert metrics["iou_per_class"] == pytest.approx([64 / 80, 48 / 64])
    assert metrics["pixel_accuracy"] == pytest.approx(112 / 128)


def test_ignore_index_is_the_segmenters(segmenter: SegmentationPipeline) -> None:
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[:, 4:] = 1
    half = (mask * 255).repeat(3, 1, 1)
    half[:, 4:] = 0
    segmenter.ignore_index = 0
    assert layout_consistency(segmenter, [half], [mask], 2)["pixel_accuracy"] == 1 / 2  # of the bright half only


def test_masks_of_another_size_with_ignored_pixels(segmenter: SegmentationPipeline) -> None:
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    mask[:, 8:] = 1
    image = (mask[::2, ::2] * 255).expand(3, 8, 8)
    mask[:, 6:10] = 255  # the seam that enlarging blurs
    assert layout_consistency(segmenter, [image], [mask], 2)["mean_iou"] == 1


def test_different_number_of_classes(segmenter: SegmentationPipeline) -> None:
    with pytest.raises(UserError, match="must have 3 classes, as the layouts do .got 2."):
        layout_consistency(segmenter, [], [], 3)


def test_class_consistency() -> None:
    masks = [
        np.array(rows, np.uint8) for rows in ([[0, 0], [0, 2]], [[1, 1], [1, 2]], [[0, 0], [0, 0]], [[2, 2], [1, 1]])
    ]
    labels = [{2}, {2}, {1}, {1, 2}]
    result = class_consistency(masks, labels, background=0)
    assert result.predictions == [2, 1, None, 1]  # a tie goes to the lower class
    assert result.num_correct == 2 and result.accuracy == 0.5
    assert result.foreground_fraction == pytest.approx((1 / 4 + 1 + 0 + 1) / 4)
    without = class_consistency(masks, labels, background=None)
    assert without.predictions == [0, 1, 0, 1] and without.foreground_fraction == 1
    with pytest.raises(UserError, match="at least one image"):
        class_consistency([], [], None)


def test_background_by_name() -> None:
    assert background_of(["sky", "background"]) == 1 and background_of(["sky", "road"]) is None
