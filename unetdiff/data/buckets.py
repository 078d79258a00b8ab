"""Resolution buckets: images keep about their aspect ratio, and a step's batch has one size.

After NovelAI's aspect ratio bucketing (Anlatan 2022): sizes of about the same area, each image resized and cropped to
the one of the nearest aspect ratio.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetdiff.data.bucket_sizes import Size, bucket_sizes
from unetdiff.data.hashing import generator_of


def nearest_buckets(images: Sequence[Size], sizes: Sequence[Size]) -> NDArray[np.int64]:
    """The index of the bucket whose aspect ratio is nearest to that of each image (height, width), (N,)."""
    ratios = np.log([height / width for height, width in sizes])
    own = np.log([height / width for height, width in images])
    return np.abs(own[:, None] - ratios).argmin(axis=1)


@dataclass(frozen=True)
class Buckets:
    """The resolution buckets of a dataset's images."""

    sizes: list[Size]
    """(height, width) of each bucket."""
    of_image: NDArray[np.int64]
    """The bucket of each image, (N,)."""

    @classmethod
    def of(cls, images: Sequence[Size], size: Sequence[int], step: int) -> Buckets:
        """Of images of these (height, width); `size`, `step` and errors as of `bucket_sizes`."""
        sizes = bucket_sizes(size, step)
        return cls(sizes, nearest_buckets(images, sizes))

    def size_of(self, index: int) -> Size:
        """(height, width) of an image in training."""
        return self.sizes[self.of_image[index]]

    def part(self, indices: Sequence[int]) -> Buckets:
        """Those of some of the images."""
        return Buckets(self.sizes, self.of_image[list(indices)])


class BucketOrder:
    """Which bucket each optimizer step is of, and which images of it: a function of the seed and the step.

    Each bucket has its own stream of permutations of its images and is due in proportion to their number, so that every
    image is used as often as any other, up to a step.

    Args:
        buckets: of the images.
        seed: of the permutations, and of the phases of the buckets.
    """

    def __init__(self, buckets: Buckets, seed: int) -> None:
        used = np.unique(buckets.of_image)
        self.members = [np.flatnonzero(buckets.of_image == bucket) for bucket in used]
        self.fractions = np.array([len(images) / len(buckets.of_image) for images in self.members])
        self.phases = torch.rand(len(used), generator=generator_of(seed, len(used)), dtype=torch.float64).numpy()
        self.seed = seed
        self._last: dict[int, tuple[int, Tensor]] = {}  # bucket -> epoch, its permutation

    def steps(self, start: int) -> Iterator[tuple[int, int]]:
        """(bucket, number of its steps before) of every step from `start` on."""
        counts, step = np.zeros(len(self.members), np.int64), 0
        while True:
            bucket = int(np.argmax((step + 1) * self.fractions + self.phases - counts))
            if step >= start:
                yield bucket, int(counts[bucket])
            counts[bucket] += 1
            step += 1

    def image(self, bucket: int, position: int) -> tuple[int, int]:
        """The image at a position of a bucket's stream, and the number of the permutation that it is from."""
        members = self.members[bucket]
        epoch, place = divmod(position, len(members))
        if self._last.get(bucket, (-1,))[0] != epoch:
            generator = generator_of(self.seed, bucket, epoch)
            self._last[bucket] = epoch, torch.randperm(len(members), generator=generator)
        return int(members[int(self._last[bucket][1][place])]), epoch
