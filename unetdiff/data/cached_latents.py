"""A dataset whose images were encoded once: items with latents in the place of images, which are not decoded."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import SampleKey


class CachedLatents(ImageDataset):
    """The items of a dataset without "image", and with "latents": what its autoencoder makes of the image.

    Masks, labels and captions are those of the dataset, flipped with the image. See `LatentCodec.sample` for the use of
    "latents", (K, h, w): all of one batch are stacked.

    Args:
        dataset: its augmentation flips images, or does nothing (`num_views`).
        moments: (index, view) -> the latents of an image (view 0) or of its mirror image (view 1), (K, h, w).
    """

    def __init__(self, dataset: ImageDataset, moments: Callable[[int, int], Tensor]) -> None:
        self.dataset, self.moments = dataset, moments
        self.classes, self.palette, self.labels = dataset.classes, dataset.palette, dataset.labels
        self.image_range, self.transform, self.buckets = dataset.image_range, dataset.transform, dataset.buckets

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        index = self.sample_index(key)
        is_mirrored = (
            isinstance(key, SampleKey) and self.transform is not None and self.transform.train.is_flipped(key.seed)
        )
        return {**self.dataset.without_image(key), "latents": self.moments(index, int(is_mirrored))}

    def sample_name(self, index: int) -> str:
        return self.dataset.sample_name(index)

    def mask(self, index: int) -> Tensor:
        return self.dataset.mask(index)

    def caption(self, index: int) -> str:
        return self.dataset.caption(index)


def num_views(dataset: ImageDataset) -> int | None:
    """Number of different images that a dataset's augmentation makes of one; None: unbounded."""
    return 1 if dataset.transform is None else dataset.transform.train.num_views


def unflipped_key(dataset: ImageDataset, index: int) -> SampleKey:
    """A key with which an image is resized as in training, and not flipped."""
    train = None if dataset.transform is None else dataset.transform.train
    return SampleKey(index, next(seed for seed in count() if train is None or not train.is_flipped(seed)), False)
