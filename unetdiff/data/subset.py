"""A share of a set's images: random, and nested, so that 1 % of the labels lies inside 5 % of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.data.hashing import generator_of
from unetdiff.data.sampling import SampleKey


def subset_length(length: int, share: float) -> int:
    """How many images a share of `length` is: rounded, one at least."""
    return min(length, max(1, round(share * length)))


def subset_indices(length: int, share: float, seed: int) -> list[int]:
    """The indices of a share, ascending: the first so many of the seed's permutation of 0..length-1.

    A larger share of the same seed has all of a smaller one's.

    Args:
        length: images of the whole set.
        share: above 0, at most 1.
        seed: which images.
    """
    order = torch.randperm(length, generator=generator_of(seed, length))
    return sorted(order[: subset_length(length, share)].tolist())


class Subset(ImageDataset):
    """Some images of a set, in the order given; its classes, palette and labels are the whole set's.

    Args:
        whole: the set.
        indices: of its images.
    """

    def __init__(self, whole: ImageDataset, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, list(indices)
        self.classes, self.palette, self.labels = whole.classes, whole.palette, whole.labels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        index = self.indices[self.sample_index(key)]
        return self.whole[key._replace(index=index) if isinstance(key, SampleKey) else index]

    def sample_name(self, index: int) -> str:
        return self.whole.sample_name(self.indices[index])

    def mask(self, index: int) -> Tensor:
        return self.whole.mask(self.indices[self.sample_index(index)])

    def caption(self, index: int) -> str:
        return self.whole.caption(self.indices[self.sample_index(index)])
