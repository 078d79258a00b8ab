"""Counts against numpy on the whole set, weights against the papers' equations by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdiff.data.base import ImageDataset
from unetdiff.data.build import build_dataset
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.data.issues import BadFile
from unetdiff.data.scenes import Scenes
from unetdiff.data.stats import SplitCounts, class_weights, count, inverse_log, median_frequency
from unetdiff.errors import UserError

SaveMask = Callable[[Path, np.ndarray], None]


def train_split(root: Path) -> ImageDataset:
    return build_dataset(DataConfig(name="voc_folder", root=str(root)), "train", segmentation=True)


def write(root: Path, save: SaveMask, name: str, rows: dict[int, int], width: int = 40) -> None:
    """A mask of horizontal bands: {value: rows}."""
    values = np.repeat(np.array(list(rows)), list(rows.values()))
    save(root / "SegmentationClass" / f"{name}.png", np.tile(values[:, None], (1, width)))


@pytest.fixture
def bands(voc_set: Path, make_mask: SaveMask) -> Path:
    """Four masks of 40 x 30 (one 20 wide), class 3 nowhere."""
    write(voc_set, make_mask, "a0", {0: 20, 1: 5, 255: 5})
    write(voc_set, make_mask, "a1", {0: 30})
    write(voc_set, make_mask, "a2", {0: 10, 2: 20}, width=20)
    write(voc_set, make_mask, "a3", {255: 30})
    return voc_set


def test_counts_by_hand(bands: Path) -> None:
    counts = count(train_split(bands), progress=False)
    assert counts.pixels.tolist() == [800 + 1200 + 200, 200, 400, 0]
    assert counts.images.tolist() == [3, 1, 1, 0]
    assert counts.image_pixels.tolist() == [1000 + 1200 + 600, 1000, 600, 0]  # ignored pixels are in none
    assert counts.ignored == 200 + 1200
    assert counts.ignore_fraction == 1400 / 4200
    assert counts.sizes == {(30, 40): 3, (30, 20): 1}
    assert counts.pixels.dtype == counts.images.dtype == counts.image_pixels.dtype == np.int64


def test_an_ignored_class_is_void(bands: Path) -> None:
    counts = count(train_split(bands), ignore_index=0, progress=False)
    assert counts.pixels.tolist() == [0, 200, 400, 0]
    assert counts.images.tolist() == [0, 1, 1, 0]
    assert counts.image_pixels.tolist() == [0, 200, 400, 0]
    assert counts.ignored == 4200 - 600


def test_images_stay_unread_and_a_bad_mask_is_named(bands: Path, make_mask: SaveMask) -> None:
    (bands / "JPEGImages" / "a1.jpg").unlink()
    assert count(train_split(bands), progress=False).sizes.total() == 4
    write(bands, make_mask, "a2", {9: 30})
    with pytest.raises(BadFile, match=r"a2.png: .* \(9\)"):
        count(train_split(bands), progress=False)
    Image.new("RGB", (40, 30)).save(bands / "SegmentationClass" / "a2.png")
    with pytest.raises(BadFile, match="a2.png.*mode RGB"):
        count(train_split(bands), progress=False)


def test_any_set_with_masks_can_be_counted() -> None:
    scenes = Scenes("train", ScenesConfig(train_images=30))
    counts = count(scenes, progress=False)
    assert counts.pixels.tolist() == np.bincount(scenes.masks.flatten(), minlength=11).tolist()
    assert counts.sizes == {(32, 32): 30}
    assert counts.images[0] == 30 and counts.images[1:].sum() == 30


def test_median_frequency_by_hand(bands: Path) -> None:
    counts = count(train_split(bands), progress=False)
    # frequencies 2200/2800, 200/1000, 400/600; the median of the three that are there is 2/3
    expected = [(2 / 3) / (2200 / 2800), (2 / 3) / 0.2, 1.0, 0.0]
    assert median_frequency(counts.pixels, counts.image_pixels).tolist() == pytest.approx(expected)
    assert median_frequency(counts.pixels, counts.image_pixels, max_weight=2.0).tolist()[1] == 2.0
    assert class_weights("median_frequency", counts) == [0.8485, 3.333, 1.0, 0.0]


def test_a_rare_class_is_capped() -> None:
    pixels = np.array([10_000, 5_000, 1], np.int64)
    assert median_frequency(pixels, np.full(3, 15_001)).tolist() == [0.5, 1.0, 10.0]


def test_inverse_log_is_enets() -> None:
    pixels = np.array([600, 400, 0, 0], np.int64)
    expected = [1 / math.log(1.62), 1 / math.log(1.42), 0.0, 0.0]
    assert inverse_log(pixels).tolist() == pytest.approx(expected)
    assert inverse_log(np.array([10**12, 1])).max() == pytest.approx(50.498, abs=1e-3)  # the paper: within 1 and 50
    assert class_weights("inverse_log", SplitCounts(pixels, pixels, pixels)) == [2.073, 2.852, 0.0, 0.0]


@pytest.mark.parametrize("method", ["median_frequency", "inverse_log"])
def test_a_split_of_void_alone_has_no_weights(method: str) -> None:
    nothing = np.zeros(3, np.int64)
    with pytest.raises(
        UserError, match=f"class_weights={method}: must be null for a training split without valid pixels"
    ):
        class_weights(method, SplitCounts(nothing, nothing, nothing))


def test_unknown_method() -> None:
    with pytest.raises(UserError, match="class_weights=computd: must be one of median_frequency, inverse_log"):
        class_weights("computd", SplitCounts(*np.ones((3, 2), np.int64)))
