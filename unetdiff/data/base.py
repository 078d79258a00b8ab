"""What every set of pictures gives: the item, the names, the batch."""

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


class PictureDataset(Dataset[dict[str, Any]], ABC):
    """A set of pictures.

    An item is a dict: always "image", uint8 (3, H, W), and "name"; "mask", uint8 (H, W) with void 255, where
    the set has masks; "label" (int) and "caption" (str) where it has them. Asked for with an int it is never
    augmented (and the mask keeps its own size); with a `SampleKey` its augmentation is a pure function of the
    key's seed.
    """

    classes: list[str]
    """Names of the mask's values 0..C-1; [] without masks."""
    palette: NDArray[np.uint8]
    """Colours of the classes, (C, 3)."""
    labels: list[str]
    """Names of the pictures' classes; [] without."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]: ...

    @abstractmethod
    def names(self, index: int) -> str:
        """Name of a sample, without reading it."""

    def mask(self, index: int) -> Tensor:
        """The mask of a sample at its own size, never augmented, uint8 (H, W)."""
        return self[index]["mask"]

    def captions(self) -> list[str]:
        """The caption of every sample, never augmented.

        Raises:
            KeyError: a set without captions.
        """
        return [self[i]["caption"] for i in range(len(self))]

    def position(self, key: int | SampleKey) -> int:
        """The index that `key` asks for; IndexError beyond the set (that ends a plain `for` over it)."""
        index = key.index if isinstance(key, SampleKey) else operator.index(key)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a set of {len(self)}")
        return index


def no_palette() -> NDArray[np.uint8]:
    """The palette of a set without masks, (0, 3)."""
    return np.zeros((0, 3), np.uint8)


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of items: tensors of one shape stacked, of several shapes as a list; ints as (B,) int64; else
    lists.
    """
    batch: dict[str, Any] = {}
    for key in items[0]:
        values = [item[key] for item in items]
        if isinstance(values[0], Tensor):
            same = all(value.shape == values[0].shape for value in values)
            batch[key] = torch.stack(values) if same else values
        elif isinstance(values[0], int):
            batch[key] = torch.tensor(values, dtype=torch.int64)
        else:
            batch[key] = values
    return batch
