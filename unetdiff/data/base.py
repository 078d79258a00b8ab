"""What every set of images gives: the item, the names, the batch."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from unetdiff.data.sampling import SampleKey

NO_LABEL = -1
"""What fills a row of a batch's "labels" beyond the classes of its image."""


class ImageDataset(Dataset[dict[str, Any]], ABC):
    """A set of images.

    An item is a dict: always "image", uint8 (3, H, W), and "name"; and where the set has them
    - "mask", uint8 (H, W) with void 255, whose values are indices in `classes`;
    - "label", the one class of an image, and "labels", the classes in it (a tuple, ascending, each once, maybe
      none): indices in `labels`. A set that gives "label" gives "labels" too, a set with masks gives "labels";
    - "caption" (str).
    Asked for with an int it is never augmented (and the mask keeps its own size, unless it is a layout; see
    `build_dataset`); with a `SampleKey` its augmentation is a pure function of the key's seed.
    """

    classes: list[str]
    """Names of the mask's values 0..C-1; [] without masks."""
    palette: NDArray[np.uint8]
    """Colours of the classes, (C, 3)."""
    labels: list[str]
    """Names that "label" and "labels" are indices of; [] without. Of a VOC-style set with masks they are `classes`,
    background included, which is in no image's "labels"."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]: ...

    @abstractmethod
    def sample_name(self, index: int) -> str:
        """Name of a sample, without reading it."""

    def mask(self, index: int) -> Tensor:
        """The mask of a sample at its own size, never augmented, uint8 (H, W)."""
        return self[index]["mask"]

    def caption(self, index: int) -> str:
        """The caption of a sample; without reading its image where the set can do that."""
        return self[index]["caption"]

    def sample_index(self, key: int | SampleKey) -> int:
        """The index that `key` asks for; IndexError beyond the set (that ends a plain `for` over it)."""
        index = key.index if isinstance(key, SampleKey) else operator.index(key)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a set of {len(self)}")
        return index


def empty_palette() -> NDArray[np.uint8]:
    """The palette of a set without masks, (0, 3)."""
    return np.zeros((0, 3), np.uint8)


def classes_present(mask: Tensor) -> tuple[int, ...]:
    """The values that a mask, uint8 (H, W), has at least one pixel of, ascending; without background 0 and void 255."""
    there = torch.bincount(mask.flatten(), minlength=256)
    return tuple(there[1:255].nonzero().flatten().add(1).tolist())


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of items.

    Tensors of one shape are stacked, of several shapes a list; ints become (B,) int64; tuples of ints ("labels")
    (B, K) int64, K the longest one's length and at least 1, the shorter ones padded with `NO_LABEL`, -1; all else
    (names, captions) is a list.
    """
    batch: dict[str, Any] = {}
    for key in items[0]:
        values = [item[key] for item in items]
        if isinstance(values[0], Tensor):
            same = all(value.shape == values[0].shape for value in values)
            batch[key] = torch.stack(values) if same else values
        elif isinstance(values[0], int):
            batch[key] = torch.tensor(values, dtype=torch.int64)
        elif isinstance(values[0], tuple):
            longest = max(1, *(len(value) for value in values))
            padded = [[*value, *[NO_LABEL] * (longest - len(value))] for value in values]
            batch[key] = torch.tensor(padded, dtype=torch.int64)
        else:
            batch[key] = values
    return batch
