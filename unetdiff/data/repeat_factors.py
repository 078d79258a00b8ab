"""Repeat-factor sampling: images of rare classes more often (Gupta et al. 2019, "LVIS")."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def repeat_factors(presence: NDArray[np.bool_], threshold: float) -> Floats:
    """Repeat factor of each image, (images,); 1 without rare classes.

    A class in a fraction f of the images has the factor max(1, sqrt(threshold / f)); an image has the largest factor of
    its classes (Gupta et al. 2019, "LVIS", section 4.1 of the appendix).

    Args:
        presence: bool (images, classes), whether an image contains a class.
        threshold: fraction of the images below which a class is rare, in [0, 1].
    """
    frequency = presence.mean(axis=0)  # (C,)
    factor = np.sqrt(np.maximum(1.0, threshold / np.maximum(frequency, 1e-12)))
    return np.where(presence, factor, 1.0).max(axis=1)


def balanced_epoch(factors: Floats, offset: float) -> NDArray[np.int64]:
    """An epoch of as many indices as images, each in proportion to its factor, ascending, (images,).

    Systematic sampling (Madow 1949): an image with expected count x is drawn floor(x) or ceil(x) times.

    Args:
        factors: (images,), positive.
        offset: random, uniform in [0, 1).
    """
    count = len(factors)
    ends = np.cumsum(factors) * count / factors.sum()
    ends[-1] = count  # not below, by rounding
    return np.searchsorted(ends, np.arange(count) + offset, side="right").astype(np.int64)
