"""Boundary IoU against hand-computed squares and a restatement with scipy's binary erosion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, gaussian_filter

from unetdiff.errors import UserError
from unetdiff.segmentation.boundary import BoundaryIoU, boundary_mask, boundary_width


def squares(shift: int, height: int = 30, width: int = 40):
    truth = torch.zeros(height, width, dtype=torch.uint8)
    truth[10:20, 5:15] = 1
    return truth.roll(shift, dims=1).long(), truth


def test_a_shifted_square_by_hand():
    # 30 x 40: the diagonal is 50, d = 1. Each square of 10 has a ring of 36 pixels; shifted by one column the rings
    # share 9 pixels of their upper and 9 of their lower side: 18 / (36 + 36 - 18).
    score = BoundaryIoU(2)
    score.update(*squares(1))
    metrics = score.compute()
    assert metrics["boundary_iou_per_class"][1] == pytest.approx(18 / 54)
    assert score.intersection.dtype == score.union.dtype == torch.int64
    # Background: its band is the image's border, 136 pixels in both, and the frame of 44 around each square. The
    # frames are 12 x 12 rings, of which 2 x 11 pixels fall on each other; the squares leave the border alone.
    assert metrics["boundary_iou_per_class"][0] == pytest.approx((136 + 22) / (136 + 88 - 22))
    assert metrics["mean_boundary_iou"] == pytest.approx((18 / 54 + 158 / 202) / 2)
    assert metrics["boundary_width"] == "2 % of the diagonal, 1 pixel" and metrics["boundary_pixels"] == [1, 1]


def test_the_width_is_that_of_the_paper():
    assert boundary_width(375, 500) == 12  # 2 % of 625
    assert boundary_width(1024, 2048) == 46
    assert boundary_width(8, 8) == 1
    assert boundary_width(30, 40, ratio=0.1) == 5
    score = BoundaryIoU(2)
    for size in ((300, 400), (375, 500), (60, 80)):
        score.update(torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.uint8))
    assert score.compute()["boundary_pixels"] == [2, 12]
    assert score.compute()["boundary_width"] == "2 % of the diagonal, 2 to 12 pixels"


def blobs(classes: list[int], height: int, width: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(len(classes), height, width))
    return np.array(classes)[np.argmax([gaussian_filter(n, 4) for n in noise], axis=0)]


def restated(pairs, classes: int, ratio: float) -> np.ndarray:
    """Each class's mask less its erosion, as in the paper's own code, ignored pixels cut out of both masks."""
    both, either = np.zeros(classes), np.zeros(classes)
    for pred, truth in pairs:
        ignored = truth == 255
        distance = max(1, int(round(ratio * np.hypot(*truth.shape))))
        for label in range(classes):
            bands = []
            for mask in ((truth == label) & ~ignored, (pred == label) & ~ignored):
                bands.append(mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0))
            both[label] += (bands[0] & bands[1]).sum()
            either[label] += (bands[0] | bands[1]).sum()
    with np.errstate(invalid="ignore"):
        return both / either


@pytest.mark.parametrize("ratio", [0.02, 0.06])
def test_agrees_with_erosion_on_blobs_with_void_and_absent_classes(ratio):
    pairs = []
    for seed, (height, width) in enumerate([(60, 90), (75, 50), (64, 64)]):
        truth = blobs([0, 1, 2, 3], height, width, seed)
        pred = np.where(blobs([0, 1], height, width, 50 + seed) == 0, truth, blobs([0, 1, 5], height, width, seed + 9))
        truth[blobs(list(range(7)), height, width, 90 + seed) == 0] = 255
        pairs.append((pred, truth))
    score = BoundaryIoU(7, ratio=ratio)
    for pred, truth in pairs:
        score.update(pred, truth)
    expected = restated(pairs, 7, ratio)
    metrics = score.compute()
    np.testing.assert_allclose(metrics["boundary_iou_per_class"], expected, rtol=1e-12)
    assert 0 < expected[0] < 1 and expected[5] == 0 and math.isnan(expected[6])  # predicted only; in neither
    assert metrics["mean_boundary_iou"] == pytest.approx(np.nanmean(expected))


def test_void_counts_nowhere():
    pred, truth = squares(3)
    truth[8:22, 13:20] = 255
    first, second, perfect = BoundaryIoU(2), BoundaryIoU(2), BoundaryIoU(2)
    first.update(pred, truth)
    second.update(torch.where(truth == 255, 77, pred), truth)  # no class at all, at ignored pixels
    assert torch.equal(first.intersection, second.intersection) and torch.equal(first.union, second.union)
    perfect.update(torch.where(truth == 255, 1, truth), truth)
    assert perfect.compute()["boundary_iou_per_class"] == [1.0, 1.0]
    nothing = BoundaryIoU(2)
    nothing.update(pred, torch.full_like(truth, 255))
    assert math.isnan(nothing.compute()["mean_boundary_iou"])


def test_the_band_reaches_as_far_as_it_says():
    labels = torch.zeros(1, 40, dtype=torch.int16).expand(40, 40)
    for distance in (1, 2, 5, 12, 19):
        inside = ~boundary_mask(labels, distance)
        assert inside.sum() == (40 - 2 * distance) ** 2
        assert inside[distance:-distance, distance:-distance].all()


def test_refusals():
    with pytest.raises(UserError, match="must be in .0, 1."):
        BoundaryIoU(2, ratio=2)
    with pytest.raises(UserError, match="of one image"):
        BoundaryIoU(2).update(torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(UserError, match="prediction: classes must be in .*got 2"):
        BoundaryIoU(2).update(torch.full((4, 4), 2), torch.zeros(4, 4, dtype=torch.long))
    assert math.isnan(BoundaryIoU(2).compute()["mean_boundary_iou"])
    assert BoundaryIoU(2).compute()["boundary_pixels"] is None
