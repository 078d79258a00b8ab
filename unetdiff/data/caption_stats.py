"""What the captions of a split are like, counted."""

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
    """The counts of a split."""

    captions: int
    """Images with a caption."""
    empty: int
    """Images without."""
    distinct: int
    """Captions that differ."""
    median_words: int
    """Words of the caption in the middle."""
    longest: str
    """The caption with the most letters; "" where there is none."""

    @property
    def duplicates(self) -> int:
        """Captions that an earlier image has too."""
        return self.captions - self.distinct

    @property
    def longest_words(self) -> int:
        """Words of the longest caption."""
        return len(self.longest.split())


def read_captions(config: DataConfig, role: Literal["train", "val"]) -> list[str]:
    """The captions of a split, "" where an image has none; no image is read.

    Raises:
        UserError: the set is not there, or has not the columns.
    """
    if config.name == "captioned_folder":
        return _used([row.caption for row in read_split(config, role).rows], config, role)
    if config.name == "parquet":
        return _used(read_table(config, role).captions or [], config, role)
    images = build_dataset(config, role, segmentation=False)
    return [images.caption(index) for index in range(len(images))]


def _used(captions: list[str], config: DataConfig, role: str) -> list[str]:
    """Those of the images that `data.train_fraction` leaves."""
    if role == "val" or config.train_fraction == 1 or not captions:
        return captions
    return [
        captions[index] for index in subset_indices(len(captions), config.train_fraction, config.train_fraction_seed)
    ]


def count_captions(captions: Sequence[str]) -> CaptionCounts:
    """Count captions; "" is none."""
    there = [caption for caption in captions if caption]
    words = sorted(len(caption.split()) for caption in there)
    return CaptionCounts(
        captions=len(there),
        empty=len(captions) - len(there),
        distinct=len(set(there)),
        median_words=words[len(words) // 2] if words else 0,
        longest=max(there, key=len, default=""),
    )
