"""Training splits of which only some images have masks: the segmentation head learns from those, the diffusion head
from all (`data.label_fraction`, `data.unlabelled_root`)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from unetdiff.data.base import ImageDataset
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import RGB, decode
from unetdiff.data.hashing import generator_of, hash_words
from unetdiff.data.sampling import SampleKey, StepSampler
from unetdiff.data.subset import Subset, subset_indices
from unetdiff.data.transforms import IGNORE_INDEX, Transform
from unetdiff.errors import FileError, config_error
from unetdiff.files.folders import files_in
from unetdiff.files.images import SUFFIXES
from unetdiff.files.writing import sha256_of

STREAM = 0x1ABE1
"""Word of the seed of the labeled images' order."""


def is_segmented(place: int, count: int, batch_size: int) -> bool:
    """Whether an image at this place of a step's batch is among the `count` that are segmented, evenly spaced in it."""
    return (place + 1) * count // batch_size > place * count // batch_size


def segmented_count(fraction: float, batch_size: int) -> int:
    """How many of a step's images are segmented: this fraction, rounded to a whole number, at least one."""
    return max(1, math.floor(fraction * batch_size + 0.5))


def segmented_places(fraction: float, batch_size: int) -> set[int]:
    """The places of a step's batch that are segmented, evenly spaced in it."""
    count = segmented_count(fraction, batch_size)
    return {place for place in range(batch_size) if is_segmented(place, count, batch_size)}


def unlabelled_files(config: DataConfig) -> list[Path]:
    """The images of `data.unlabelled_root`, with subfolders; [] without one.

    Raises:
        UserError: not a folder, or one without images.
    """
    if config.unlabelled_root is None:
        return []
    root = Path(config.unlabelled_root).expanduser()
    if not os.path.isdir(root):
        raise config_error("data.unlabelled_root", config.unlabelled_root, "an existing folder of images, or null")
    files = files_in(root, SUFFIXES, recursive=True)
    if not files:
        raise FileError.of(root, "no images found", "Give a folder of images, or leave data.unlabelled_root out.")
    return files


def with_unlabelled(dataset: ImageDataset, config: DataConfig, transform: Transform) -> ImageDataset:
    """A training split with masks and its images without, as configured; the split itself where all have masks.

    Raises:
        UserError: as of `unlabelled_files`.
    """
    count, files = len(dataset), unlabelled_files(config)
    if config.label_fraction == 1 and not files:
        return dataset
    labelled = subset_indices(count, config.label_fraction, config.train_fraction_seed)
    if files:
        dataset = WithUnlabelled(dataset, files, transform, config.channels or RGB)
    dataset.labelled = labelled
    return dataset


def labelled_part(dataset: ImageDataset) -> ImageDataset:
    """The images of a split whose masks may be used."""
    return dataset if dataset.labelled is None else Subset(dataset, dataset.labelled)


class WithUnlabelled(ImageDataset):
    """A split with masks at 0 to N - 1, and images without after it, whose masks are 255 = ignore."""

    def __init__(self, dataset: ImageDataset, files: Sequence[Path], transform: Transform, channels: int = RGB) -> None:
        self.dataset, self.files, self.channels = dataset, list(files), channels
        self.transform: Transform = transform
        self.classes, self.palette, self.labels = dataset.classes, dataset.palette, dataset.labels
        self.image_range = dataset.image_range

    def __len__(self) -> int:
        return len(self.dataset) + len(self.files)

    def _file(self, index: int) -> Path | None:
        """The file of an image without mask; None for one of the split."""
        return None if index < len(self.dataset) else self.files[index - len(self.dataset)]

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        file = self._file(self.sample_index(key))
        if file is None:
            return self.dataset[key]
        image = decode(file, image_range=self.image_range, channels=self.channels)
        image, mask = self.transform(image, torch.full(image.shape[1:], IGNORE_INDEX, dtype=torch.uint8), key)
        return {"image": image, "name": str(file), "mask": mask, "labels": ()}

    def without_image(self, key: int | SampleKey) -> dict[str, Any]:
        if self._file(self.sample_index(key)) is None:
            return self.dataset.without_image(key)
        return super().without_image(key)

    def release(self) -> None:
        self.dataset.release()

    def image_source(self, index: int) -> Path | bytes | None:
        file = self._file(self.sample_index(index))
        return self.dataset.image_source(index) if file is None else file

    def image_hash(self, index: int) -> str:
        file = self._file(self.sample_index(index))
        return self.dataset.image_hash(index) if file is None else sha256_of(file)

    def sample_name(self, index: int) -> str:
        file = self._file(index)
        return self.dataset.sample_name(index) if file is None else str(file)

    def mask(self, index: int) -> Tensor:
        return self.dataset.mask(index) if self._file(self.sample_index(index)) is None else super().mask(index)


class LabelledSampler(Sampler[list[SampleKey]]):
    """The batches of `images`, with an image that has a mask at every place that is segmented (`is_segmented`).

    Those follow an order of their own: position j of the concatenated permutations of `labelled`, where a step takes
    `count` of them. There is no state, as in `StepSampler`.

    Args:
        images: the batches of all images.
        labelled: indices of those with a mask.
        count: places of a step's batch that are segmented, over all ranks and micro-batches.
    """

    def __init__(self, images: StepSampler, labelled: Sequence[int], count: int) -> None:
        self.images, self.labelled, self.count = images, torch.tensor(labelled), count
        self.seed = hash_words(images.seed, STREAM) >> 1

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        images = self.images
        per_rank = images.batch_size // images.world_size
        epoch, order, part = -1, self.labelled, 0
        for keys in images:
            step = images.start + part // images.accumulation_steps
            first = images.rank * per_rank + part % images.accumulation_steps * len(keys)
            for row, key in enumerate(keys):
                if not is_segmented(first + row, self.count, images.batch_size):
                    continue
                position = step * self.count + (first + row) * self.count // images.batch_size
                if position // len(self.labelled) != epoch:
                    epoch = position // len(self.labelled)
                    order = self.labelled[torch.randperm(len(self.labelled), generator=generator_of(self.seed, epoch))]
                index = int(order[position % len(self.labelled)])
                keys[row] = SampleKey(index, hash_words(self.seed, epoch, index) >> 1, key.strong)
            part += 1
            yield keys
