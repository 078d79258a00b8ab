"""Prior preservation (Ruiz et al. 2023, DreamBooth): images of the class that a fine-tuned denoiser must not forget.

Each training image is followed by a regularization image in the batch, so that every part of a step's batch has as many
of both, however it is cut.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from unetdiff.data.base import ImageDataset
from unetdiff.data.buckets import Buckets
from unetdiff.data.captions import CAPTION_COLUMN, METADATA, read_metadata
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import RGB, decode
from unetdiff.data.hashing import hash_words
from unetdiff.data.images import ImageSource
from unetdiff.data.issues import Issue, raise_first_issue
from unetdiff.data.sampling import SampleKey, StepSampler
from unetdiff.data.transforms import Transform
from unetdiff.errors import FileError, config_error
from unetdiff.files.folders import files_in
from unetdiff.files.images import SUFFIXES

REGULARIZATION = "regularization"
"""Key of a batch: 1 for regularization images, 0 for training images, (B,)."""
STREAM = 0x5EED
"""Word of the seed of the regularization images' order."""


def read_regularization(config: DataConfig) -> tuple[list[Path], list[str], list[Issue]]:
    """The images of `data.regularization_root`, their captions, and the issues of its metadata file.

    Captions are those of the metadata file, or one prompt for all. Without `data.regularization_root` there are none.

    Raises:
        UserError: no images, or neither or both sources of captions.
    """
    if config.regularization_root is None:
        return [], [], []
    root, prompt = Path(config.regularization_root).expanduser(), config.regularization_prompt
    if not os.path.isdir(root):
        raise config_error("data.regularization_root", config.regularization_root, "an existing folder, or null")
    metadata = [root / name for name in METADATA if os.path.exists(root / name)]
    key = "data.regularization_prompt"
    if metadata and prompt is not None:
        raise config_error(key, prompt, f"null with {metadata[0]}, which has the captions", "Remove one of the two.")
    if metadata:
        rows, issues = read_metadata(metadata[0], config.caption_column or CAPTION_COLUMN)
        whole = [(row.file, row.caption) for row in rows if row.file is not None]
        return [file for file, _ in whole], [caption for _, caption in whole], issues
    if prompt is None:
        constraint = f"set with data.regularization_root={root}, which has no {METADATA[0]} with captions"
        raise config_error(key, None, constraint, 'Give the prompt of the class, e.g. "a photo of a dog".')
    files = files_in(root, SUFFIXES, recursive=True)
    if not files:
        raise FileError.of(root, "no images found", "Give a folder of images of the class.")
    return files, [prompt] * len(files), []


def regularization_images(config: DataConfig, transform: Transform, buckets: Buckets | None = None) -> ImageSource:
    """The images of `read_regularization` as a dataset, with the resolution buckets of the training images: all of them
    at the size of the first bucket that has training images, then all of them at that of the second, and so on.

    Raises:
        UserError: as of `read_regularization`, and the first issue of the metadata file.
    """
    files, captions, issues = read_regularization(config)
    raise_first_issue(issues)
    count = len(files)
    if buckets is not None:
        used = np.unique(buckets.of_image)
        captions, buckets = captions * len(used), Buckets(buckets.sizes, used.repeat(count))

    def open_image(i: int) -> Any:
        return decode(files[i % count], image_range=config.image_range, channels=config.channels or RGB)

    return ImageSource(
        open_image,
        None,
        [],
        lambda i: str(files[i % count]),
        transform,
        config.size,
        captions,
        buckets,
        source=lambda i: files[i % count],
    )


class PairedDataset(ImageDataset):
    """Training images at 0 to N - 1 and regularization images after them, each with `REGULARIZATION`."""

    def __init__(self, images: ImageDataset, regularization: ImageDataset) -> None:
        self.images, self.others = images, regularization
        self.classes, self.palette, self.labels = images.classes, images.palette, images.labels

    def __len__(self) -> int:
        return len(self.images) + len(self.others)

    def _part(self, index: int) -> tuple[ImageDataset, int]:
        length = len(self.images)
        return (self.images, index) if index < length else (self.others, index - length)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        dataset, index = self._part(self.sample_index(key))
        item = dataset[key._replace(index=index) if isinstance(key, SampleKey) else index]
        return item | {REGULARIZATION: int(dataset is self.others)}

    def sample_name(self, index: int) -> str:
        dataset, index = self._part(index)
        return dataset.sample_name(index)


class PairedSampler(Sampler[list[SampleKey]]):
    """The batches of `images`, each sample followed by a regularization image (a `PairedDataset`'s) of its size.

    Their order is that of a `StepSampler` with a seed of its own.

    Args:
        images: the training images.
        others: the regularization images.
    """

    def __init__(self, images: StepSampler, others: ImageDataset) -> None:
        self.images, self.first, count = images, {}, len(others)
        if others.buckets is not None:  # where the images of each size begin
            used, first = np.unique(others.buckets.of_image, return_index=True)
            self.first, count = dict(zip(used.tolist(), first.tolist(), strict=True)), len(others) // len(used)
        self.others = StepSampler(
            count,
            images.batch_size,
            hash_words(images.seed, STREAM) >> 1,
            start=images.start,
            stop=images.stop,
            rank=images.rank,
            world_size=images.world_size,
            accumulation_steps=images.accumulation_steps,
            strong_until=images.strong_until,
        )

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for keys, others in zip(self.images, self.others, strict=True):
            start = self.images.length
            if self.images.buckets is not None:
                start += self.first[int(self.images.buckets.of_image[keys[0].index])]
            shifted = [key._replace(index=key.index + start) for key in others]
            yield list(chain.from_iterable(zip(keys, shifted, strict=True)))
