"""Statistics of the captions of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unetdiff.data.build import build_dataset
from unetdiff.data.captions import read_split
from unetdiff.data.config import DataConfig
from unetdiff.data.parquet import read_table
from unetdiff.data.subset import subset_indices


@dataclass(frozen=True)
class CaptionCounts:
    """Counts of a split."""

    captions: int
    """Images with a caption."""
    empty: int
    """Images without a caption."""
    distinct: int
    """Distinct captions."""
    median_words: int
    """Median number of words of a caption."""
    longest: str
    """The caption with the most characters; "" if there is none."""

    @property
    def duplicates(self) -> int:
        """Captions that repeat the caption of an earlier image."""
        return self.captions - self.distinct

    @property
    def longest_words(self) -> int:
        """Number of words of the longest caption."""
        return len(self.longest.split())


def read_captions(config: DataConfig, role: Literal["train", "val"]) -> list[str]:
    """The captions of a split, "" for images without one; no image is read.

    Raises:
        UserError: the dataset or its columns are missing.
    """
    if config.name == "captioned_folder":
        return _train_subset([row.caption for row in read_split(config, role).rows], config, role)
    if config.name == "parquet":
        return _train_subset(read_table(config, role).captions or [], config, role)
    images = build_dataset(config, role, segmentation=False)
    return [images.caption(index) for index in range(len(images))]


def _train_subset(captions: list[str], config: DataConfig, role: str) -> list[str]:
    """The captions of the images in `data.train_fraction`."""
    if role == "val" or config.train_fraction == 1 or not captions:
        return captions
    indices = subset_indices(len(captions), config.train_fraction, config.train_fraction_seed)
    return [captions[index] for index in indices]


def count_captions(captions: Sequence[str]) -> CaptionCounts:
    """Count captions; "" is a missing one."""
    present = [caption for caption in captions if caption]
    words = sorted(len(caption.split()) for caption in present)
    return CaptionCounts(
        captions=len(present),
        empty=len(captions) - len(present),
        distinct=len(set(present)),
        median_words=words[len(words) // 2] if words else 0,
        longest=max(present, key=len, default=""),
    )
