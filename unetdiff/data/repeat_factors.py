"""Images of rare classes more often: repeat factors, and an epoch that holds them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Shares = NDArray[np.float64]


def repeat_factors(presence: NDArray[np.bool_], threshold: float) -> Shares:
    """How often each image comes where one without rare classes comes once, (images,).

    A class that the share f of the images holds has the factor max(1, sqrt(threshold / f)); an image has the largest
    factor of its classes (Gupta et al. 2019, "LVIS", section 4.1 of the appendix).

    Args:
        presence: (images, classes).
        threshold: the share below which a class is rare, 0 to 1.
    """
    share = presence.mean(axis=0)  # (C,)
    factor = np.sqrt(np.maximum(1.0, threshold / np.maximum(share, 1e-12)))
    return np.where(presence, factor, 1.0).max(axis=1)


def balanced_epoch(factors: Shares, offset: float) -> NDArray[np.int64]:
    """As many indices as there are images, each about in proportion to its factor, ascending.

    Systematic sampling (Madow 1949): an image that should come x times comes floor(x) or ceil(x) times.

    Args:
        factors: (images,), positive.
        offset: 0 to 1, the one random number.
    """
    count = len(factors)
    ends = np.cumsum(factors) * count / factors.sum()
    ends[-1] = count  # rounding must not lose the last one
    return np.searchsorted(ends, np.arange(count) + offset, side="right").astype(np.int64)
