"""The dataset of images with masks that a reader lists."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from unetdiff.data.base import ImageDataset, classes_present, empty_palette
from unetdiff.data.decoding import RGB, decode
from unetdiff.data.issues import BadFile
from unetdiff.data.masks.reader import Indices, MaskReader
from unetdiff.data.sampling import SampleKey
from unetdiff.data.transforms import Transform
from unetdiff.files.writing import sha256_of

MAX_KEPT_BYTES = 1 << 28
"""Decoded masks that a dataset keeps, compressed, divided among the loader's workers."""


class MaskedImages(ImageDataset):
    """Images with masks, or without them; files are read on access.

    Masks that take long to decode (polygons, colors) are decoded once and kept in memory, compressed.

    Args:
        reader: lists and reads them.
        segmentation: return masks, and the classes in them as "labels"; else images only.
        transform: resizing and augmentation.
        image_range: see `unetdiff.data.decoding.to_uint8`.
        channels: of the images, see `unetdiff.data.decoding.with_channels`.

    Raises:
        UserError: on access to a sample: a missing or truncated file, a mask of another size than its image, or with a
            value that is not a class.
    """

    def __init__(
        self,
        reader: MaskReader,
        segmentation: bool = True,
        transform: Transform | None = None,
        image_range: list[float] | None = None,
        channels: int = RGB,
    ) -> None:
        self.reader = reader
        self.segmentation = segmentation
        self.transform: Transform = transform or Transform(None)
        self.image_range, self.channels = image_range, channels
        self.classes = list(reader.classes) if segmentation else []
        self.palette = reader.palette if segmentation else empty_palette()
        self.labels = list(self.classes)
        self._kept: dict[int, tuple[bytes, tuple[int, ...]]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.reader.names)

    def sample_name(self, index: int) -> str:
        return self.reader.names[index]

    def mask(self, index: int) -> Tensor:
        return torch.from_numpy(self._indices(self.sample_index(index)))  # without reading the image

    def without_image(self, key: int | SampleKey) -> dict[str, Any]:
        item: dict[str, Any] = {"name": self.sample_name(self.sample_index(key))}
        if self.segmentation:
            mask = self.mask(self.sample_index(key))
            _, resized = self.transform(mask[None], mask, key)  # an image of the mask's size
            item |= _targets(resized)
        return item

    def image_source(self, index: int) -> Path | bytes:
        return self.reader.image(self.sample_index(index))[0]

    def image_hash(self, index: int) -> str:
        source, _ = self.reader.image(self.sample_index(index))
        return sha256_of(source) if isinstance(source, Path) else hashlib.sha256(source).hexdigest()

    def release(self) -> None:
        self._kept.clear()
        self._bytes = 0

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        index = self.sample_index(key)
        image = decode(*self.reader.image(index), image_range=self.image_range, channels=self.channels)
        mask = None
        if self.segmentation:
            mask = self.mask(index)
            for issue in self.reader.size_issues(index, image.shape[1:], mask.shape):
                raise BadFile.from_issue(issue)
        image, mask = self.transform(image, mask, key)
        return {"image": image, "name": self.sample_name(index), **_targets(mask)}

    def _indices(self, index: int) -> Indices:
        if index in self._kept:
            data, shape = self._kept[index]
            return np.frombuffer(bytearray(zlib.decompress(data)), np.uint8).reshape(shape)
        values = self.reader.mask(index)
        if self.reader.keeps:
            data, worker = zlib.compress(values.tobytes(), 1), get_worker_info()
            if self._bytes + len(data) <= MAX_KEPT_BYTES // (worker.num_workers if worker else 1):
                self._kept[index] = data, values.shape
                self._bytes += len(data)
        return values


def _targets(mask: Tensor | None) -> dict[str, Any]:
    """The mask of an item and the classes in it (in its crop)."""
    return {} if mask is None else {"mask": mask, "labels": classes_present(mask)}
