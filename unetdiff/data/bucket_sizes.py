"""The sizes of resolution buckets; free of torch, as config validation reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unetdiff.errors import config_error

Size = tuple[int, int]
MAX_ASPECT_RATIO = 2.0
"""Of the longer side to the shorter one of a bucket; more extreme images are cropped to it."""


def bucket_sizes(size: Sequence[int], step: int) -> list[Size]:
    """(height, width) of every bucket, from wide to tall: multiples of `step`, of at most the area of `size`.

    Of each height the widest, up to an aspect ratio of 2.

    Raises:
        UserError: `size` is not among them, as its sides are no multiples of `step`.
    """
    height, width = size
    if height % step or width % step:
        near = [max(step, round(side / step) * step) for side in size]
        constraint = f"multiples of data.bucket_step={step}"
        raise config_error("data.size", list(size), constraint, f"Use e.g. {near}.")
    area, sizes = height * width, {(height, width)}
    for one in range(step, math.isqrt(int(area * MAX_ASPECT_RATIO)) + 1, step):
        other = area // one // step * step
        if other and max(one, other) <= MAX_ASPECT_RATIO * min(one, other):
            sizes.add((one, other))
    return sorted(sizes)
