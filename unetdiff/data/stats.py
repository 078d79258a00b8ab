"""What a split holds, counted: pixels and images of each class, void, sizes; and class weights as functions of that.

The counts are of the masks as they lie on disk; scale jitter and crops change the shares a little.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unetdiff.data.base import ImageDataset
from unetdiff.data.threads import map_in_threads
from unetdiff.data.transforms import IGNORE_INDEX
from unetdiff.errors import UserError

Counts = NDArray[np.int64]

CLASS_WEIGHT_METHODS = ("median_frequency", "inverse_log")
"""The words of `segmentation.class_weights`: median frequency, inverse logarithm."""
MAX_WEIGHT = 10.0
"""Largest weight by median frequency: a pixel of a class that is seen a thousand times less often than the median class
would else outweigh a whole crop, and with it a slip of the annotator's pen."""


@dataclass
class SplitCounts:
    """The counts of a split, int64."""

    pixels: Counts
    """Pixels of each class, (C,)."""
    images: Counts
    """Images that hold the class, (C,)."""
    image_pixels: Counts
    """Valid pixels, of any class, of the images that hold the class, (C,)."""
    ignored: int = 0
    """Pixels that count nowhere."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How many images there are of each (height, width)."""

    @property
    def ignore_fraction(self) -> float:
        """Void among all pixels."""
        return self.ignored / max(1, self.ignored + int(self.pixels.sum()))


def count(
    data: ImageDataset, ignore_index: int = IGNORE_INDEX, progress: bool = True, what: str = "count"
) -> SplitCounts:
    """Count a set with masks; its images stay unread where the set can do that.

    Args:
        data: a set with masks.
        ignore_index: void beside 255; may be a class, which then counts as void.
        progress: show a bar, with `what` before it, in a terminal.

    Raises:
        UserError: a mask that cannot be read or has a value that is no class (the first one).
    """
    classes = len(data.classes)

    def examine(index: int) -> tuple[Counts, tuple[int, int]]:
        values = data.mask(index).numpy()  # (H, W)
        found = _pixels(values, classes)
        if ignore_index < classes:
            found[ignore_index] = 0
        return found, (values.shape[0], values.shape[1])

    pixels, images, image_pixels = np.zeros((3, classes), np.int64)
    total = SplitCounts(pixels, images, image_pixels)
    for found, (height, width) in map_in_threads(examine, range(len(data)), what, progress):
        there = found > 0
        total.pixels += found
        total.images += there
        total.image_pixels += there * found.sum()
        total.ignored += height * width - int(found.sum())
        total.sizes[height, width] += 1
    return total


def class_presence(data: ImageDataset, progress: bool = True) -> NDArray[np.bool_]:
    """Which classes each image of a set with masks holds, (images, classes); arguments and errors as of `count`."""
    classes = len(data.classes)

    def examine(index: int) -> NDArray[np.bool_]:
        return _pixels(data.mask(index).numpy(), classes) > 0

    return np.stack(list(map_in_threads(examine, range(len(data)), "classes of each image", progress)))


def _pixels(values: NDArray[np.uint8], classes: int) -> Counts:
    """Pixels of each class in a mask (H, W), (C,)."""
    return np.bincount(values.reshape(-1), minlength=256)[:classes].astype(np.int64)


def class_weights(method: str, counts: SplitCounts) -> list[float]:
    """A weight for each class by one of `CLASS_WEIGHT_METHODS`, four digits of it (C numbers).

    Raises:
        UserError: an unknown method, or a split without a pixel of any class.
    """
    if method not in CLASS_WEIGHT_METHODS:
        raise UserError(
            f"segmentation.class_weights: '{method}' is no method; use one of {', '.join(CLASS_WEIGHT_METHODS)}"
        )
    if not counts.pixels.any():
        raise UserError(
            f"segmentation.class_weights: '{method}', but the training split has no pixel of any class; "
            "use null, or correct the masks (see `unetdiff data check`)"
        )
    by_log = method == "inverse_log"
    weights = inverse_log(counts.pixels) if by_log else median_frequency(counts.pixels, counts.image_pixels)
    return [float(f"{weight:.4g}") for weight in weights]


def median_frequency(pixels: Counts, image_pixels: Counts, max_weight: float = MAX_WEIGHT) -> NDArray[np.float64]:
    """Weights median(f) / f_c, at most `most` (Eigen & Fergus 2015, "Predicting depth, ...", section 6.3.2).

    f_c is the share of class c among the valid pixels of those images that hold it; the median is over the
    classes present. An absent class weighs 0: no training pixel would feel a larger weight, while smoothed labels
    would spread it over pixels of other classes, and the validation loss would be ruled by a class never learnt.

    Args:
        pixels: int64 (C,), pixels of each class.
        context: int64 (C,), valid pixels of the images that hold the class.
    """
    there = pixels > 0
    frequency = pixels[there] / image_pixels[there]
    weights = np.zeros(len(pixels))
    weights[there] = np.minimum(np.median(frequency) / frequency, max_weight)
    return weights


def inverse_log(pixels: Counts, offset: float = 1.02) -> NDArray[np.float64]:
    """Weights 1 / ln(offset + f_c), f_c the share of class c among all valid pixels (ENet, Paszke 2016, section 5.2).

    With the paper's offset of 1.02 the weights lie between 1.42 and 50.5: the offset is their cap. An absent class
    weighs 0, as in `median_frequency`. pixels: int64 (C,), not all 0.
    """
    weights = 1 / np.log(offset + pixels / pixels.sum())
    return np.where(pixels > 0, weights, 0.0)
