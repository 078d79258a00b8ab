"""Random, nested subsets of a dataset: the 1 % subset is part of the 5 % subset of the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.data.hashing import generator_of
from unetdiff.data.sampling import SampleKey


def subset_length(length: int, fraction: float) -> int:
    """Number of images in a fraction of `length`: rounded, at least one."""
    return min(length, max(1, round(fraction * length)))


def subset_indices(length: int, fraction: float, seed: int) -> list[int]:
    """Ascending indices of a fraction of the dataset: a prefix of the seed's permutation, hence nested.

    Args:
        length: images in the dataset.
        fraction: in (0, 1].
        seed: of the permutation.
    """
    order = torch.randperm(length, generator=generator_of(seed, length))
    return sorted(order[: subset_length(length, fraction)].tolist())


class Subset(ImageDataset):
    """The images of a dataset at some indices, in their order; classes, palette and labels are the dataset's."""

    def __init__(self, dataset: ImageDataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, list(indices)
        self.classes, self.palette, self.labels = dataset.classes, dataset.palette, dataset.labels
        self.image_range, self.regularization = dataset.image_range, dataset.regularization
        self.transform = dataset.transform
        self.buckets = None if dataset.buckets is None else dataset.buckets.part(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        return self.dataset[self._key(key)]

    def without_image(self, key: int | SampleKey) -> dict[str, Any]:
        return self.dataset.without_image(self._key(key))

    def release(self) -> None:
        self.dataset.release()

    def image_source(self, index: int) -> Path | bytes | None:
        return self.dataset.image_source(self.indices[self.sample_index(index)])

    def image_hash(self, index: int) -> str:
        return self.dataset.image_hash(self.indices[self.sample_index(index)])

    def sample_name(self, index: int) -> str:
        return self.dataset.sample_name(self.indices[index])

    def mask(self, index: int) -> Tensor:
        return self.dataset.mask(self.indices[self.sample_index(index)])

    def caption(self, index: int) -> str:
        return self.dataset.caption(self.indices[self.sample_index(index)])

    def _key(self, key: int | SampleKey) -> int | SampleKey:
        """The key of the same sample in the dataset."""
        index = self.indices[self.sample_index(key)]
        return key._replace(index=index) if isinstance(key, SampleKey) else index
