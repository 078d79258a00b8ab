"""Statistics of a split (pixels and images per class, ignored pixels, sizes) and class weights computed from them.

Masks are counted as stored; scale jitter and crops change the fractions a little.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unetdiff.data.base import ImageDataset
from unetdiff.data.threads import map_in_threads
from unetdiff.data.transforms import IGNORE_INDEX
from unetdiff.errors import config_error

Counts = NDArray[np.int64]

CLASS_WEIGHT_METHODS = ("median_frequency", "inverse_log")
"""Methods of `segmentation.class_weights`."""
MAX_WEIGHT = 10.0
"""Largest weight by median frequency, so that single pixels of very rare classes (and errors of annotation) do not
outweigh a whole crop."""


@dataclass
class SplitCounts:
    """Counts of a split, int64."""

    pixels: Counts
    """Pixels of each class, (C,)."""
    images: Counts
    """Images that contain the class, (C,)."""
    image_pixels: Counts
    """Valid pixels, of any class, in the images that contain the class, (C,)."""
    ignored: int = 0
    """Ignored pixels."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Number of images of each (height, width)."""

    @property
    def ignore_fraction(self) -> float:
        """Fraction of ignored pixels."""
        return self.ignored / max(1, self.ignored + int(self.pixels.sum()))


def count(
    data: ImageDataset, ignore_index: int = IGNORE_INDEX, progress: bool = True, description: str = "count"
) -> SplitCounts:
    """Count the masks of a dataset, without reading its images where it supports that.

    Args:
        data: a dataset with masks.
        ignore_index: ignored in addition to 255; may be a class.
        progress: show a progress bar in a terminal.
        description: of the progress bar.

    Raises:
        UserError: a mask that cannot be read or has a value that is not a class (the first one).
    """
    classes = len(data.classes)

    def examine(index: int) -> tuple[Counts, tuple[int, int]]:
        values = data.mask(index).numpy()  # (H, W)
        counts = _pixels(values, classes)
        if ignore_index < classes:
            counts[ignore_index] = 0
        return counts, (values.shape[0], values.shape[1])

    pixels, images, image_pixels = np.zeros((3, classes), np.int64)
    total = SplitCounts(pixels, images, image_pixels)
    for counts, (height, width) in map_in_threads(examine, range(len(data)), description, progress):
        present = counts > 0
        total.pixels += counts
        total.images += present
        total.image_pixels += present * counts.sum()
        total.ignored += height * width - int(counts.sum())
        total.sizes[height, width] += 1
    return total


def class_presence(data: ImageDataset, progress: bool = True) -> NDArray[np.bool_]:
    """Which classes each image of a dataset with masks contains, bool (images, classes); errors as of `count`."""
    classes = len(data.classes)

    def examine(index: int) -> NDArray[np.bool_]:
        return _pixels(data.mask(index).numpy(), classes) > 0

    return np.stack(list(map_in_threads(examine, range(len(data)), "classes of each image", progress)))


def _pixels(values: NDArray[np.uint8], classes: int) -> Counts:
    """Pixels of each class in a mask (H, W), (C,)."""
    return np.bincount(values.reshape(-1), minlength=256)[:classes].astype(np.int64)


def class_weights(method: str, counts: SplitCounts) -> list[float]:
    """A weight for each class by one of `CLASS_WEIGHT_METHODS`, rounded to four digits (C numbers).

    Raises:
        UserError: an unknown method, or a split without a valid pixel.
    """
    if method not in CLASS_WEIGHT_METHODS:
        raise config_error("segmentation.class_weights", method, f"one of {', '.join(CLASS_WEIGHT_METHODS)}")
    if not counts.pixels.any():
        constraint = "null for a training split without valid pixels"
        raise config_error(
            "segmentation.class_weights", method, constraint, "Correct the masks (see `unetdiff data check`)."
        )
    inverse = method == "inverse_log"
    weights = inverse_log(counts.pixels) if inverse else median_frequency(counts.pixels, counts.image_pixels)
    return [float(f"{weight:.4g}") for weight in weights]


def median_frequency(pixels: Counts, image_pixels: Counts, max_weight: float = MAX_WEIGHT) -> NDArray[np.float64]:
    """Weights median(f) / f_c, at most `max_weight` (Eigen & Fergus 2015, "Predicting depth, ...", section 6.3.2).

    f_c is the fraction of class c among the valid pixels of the images that contain it; the median is over the classes
    present. Absent classes weigh 0: they have no training pixels, but would dominate smoothed labels and the validation
    loss.

    Args:
        pixels: int64 (C,), pixels of each class.
        image_pixels: int64 (C,), valid pixels of the images that contain the class.
        max_weight: upper bound of the weights.
    """
    present = pixels > 0
    frequency = pixels[present] / image_pixels[present]
    weights = np.zeros(len(pixels))
    weights[present] = np.minimum(np.median(frequency) / frequency, max_weight)
    return weights


def inverse_log(pixels: Counts, offset: float = 1.02) -> NDArray[np.float64]:
    """Weights 1 / ln(offset + f_c), f_c the fraction of class c of all valid pixels (ENet, Paszke 2016, section 5.2).

    With the paper's offset of 1.02 the weights are between 1.42 and 50.5. Absent classes weigh 0, as in
    `median_frequency`. pixels: int64 (C,), not all 0.
    """
    weights = 1 / np.log(offset + pixels / pixels.sum())
    return np.where(pixels > 0, weights, 0.0)
