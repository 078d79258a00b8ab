"""The interface of a dataset: items, names and batches."""

from __future__ import annotations

import hashlib
import operator
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from unetdiff.data.buckets import Buckets
from unetdiff.data.sampling import SampleKey
from unetdiff.data.transforms import Transform

NO_LABEL = -1
"""Padding of the rows of a batch's "labels"."""


class ImageDataset(Dataset[dict[str, Any]], ABC):
    """A dataset of images with any of masks, labels and captions.

    An item is a dict with "image", uint8 (`data.channels`, H, W), and "name", and where the dataset has them
    - "mask", uint8 (H, W): indices into `classes`, 255 = ignore;
    - "label", the class of the image, and "labels", the classes it contains (an ascending tuple without repetitions,
      possibly empty): indices into `labels`. Datasets with "label" or "mask" have "labels" too;
    - "caption" (str).

    Indexed with an int, an item is never augmented (and its mask keeps its own size, unless it is a layout; see
    `build_dataset`); with a `SampleKey`, the augmentation is a pure function of the key's seed.
    """

    classes: list[str]
    """Names of the mask values 0..C-1; [] without masks."""
    palette: NDArray[np.uint8]
    """Colors of the classes, (C, 3)."""
    labels: list[str]
    """Names of the indices in "label" and "labels"; [] without. For VOC-style datasets with masks these are `classes`;
    background is in no image's "labels"."""
    image_range: list[float] | None = None
    """`data.image_range`, with which the images were read."""
    transform: Transform | None = None
    """Resizing and augmentation; None: neither."""
    buckets: Buckets | None = None
    """Resolution buckets of a training split: the size of an image indexed with a `SampleKey`."""
    regularization: ImageDataset | None = None
    """Images of the class, for prior preservation (`unetdiff.data.regularization`); of a training split."""
    labelled: list[int] | None = None
    """Ascending indices of the images whose masks may be used (`unetdiff.data.labelled`); None: all."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]: ...

    def without_image(self, key: int | SampleKey) -> dict[str, Any]:
        """The item without "image", which is not decoded where the dataset supports it."""
        item = self[key]
        del item["image"]
        return item

    def release(self) -> None:  # noqa: B027
        """Free decoded images that the dataset keeps in memory; they are decoded again on access."""

    def image_source(self, index: int) -> Path | bytes | None:
        """The file of a sample's image, or its bytes; None for images that are not decoded from files."""
        return None

    def image_hash(self, index: int) -> str:
        """A hash of a sample's image: of its file, which is not decoded, or of its pixels where there is none."""
        image = self[self.sample_index(index)]["image"]
        return hashlib.sha256(f"{tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes()).hexdigest()

    @abstractmethod
    def sample_name(self, index: int) -> str:
        """Name of a sample, without reading it."""

    def mask(self, index: int) -> Tensor:
        """The mask of a sample at its own size, not augmented, uint8 (H, W)."""
        return self[index]["mask"]

    def caption(self, index: int) -> str:
        """The caption of a sample, without reading its image where the dataset supports it."""
        return self[index]["caption"]

    def sample_index(self, key: int | SampleKey) -> int:
        """The index of `key`; IndexError if out of range (which ends a plain `for` loop over the dataset)."""
        index = key.index if isinstance(key, SampleKey) else operator.index(key)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a dataset of {len(self)}")
        return index


def empty_palette() -> NDArray[np.uint8]:
    """The palette of a dataset without masks, (0, 3)."""
    return np.zeros((0, 3), np.uint8)


def classes_present(mask: Tensor) -> tuple[int, ...]:
    """The values of at least one pixel of a mask, uint8 (H, W), ascending; without background 0 and ignore 255."""
    counts = torch.bincount(mask.flatten(), minlength=256)
    return tuple(counts[1:255].nonzero().flatten().add(1).tolist())


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of items.

    Tensors of one shape are stacked, of several shapes listed; ints become (B,) int64; tuples of ints ("labels")
    become (B, K) int64, K the length of the longest (at least 1), padded with `NO_LABEL`, -1; everything else (names,
    captions) is listed.
    """
    batch: dict[str, Any] = {}
    for key in items[0]:
        values = [item[key] for item in items]
        if isinstance(values[0], Tensor):
            same_shape = all(value.shape == values[0].shape for value in values)
            batch[key] = torch.stack(values) if same_shape else values
        elif isinstance(values[0], int):
            batch[key] = torch.tensor(values, dtype=torch.int64)
        elif isinstance(values[0], tuple):
            longest = max(1, *(len(value) for value in values))
            padded = [[*value, *[NO_LABEL] * (longest - len(value))] for value in values]
            batch[key] = torch.tensor(padded, dtype=torch.int64)
        else:
            batch[key] = values
    return batch
