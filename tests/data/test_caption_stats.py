from __future__ import annotations

from unetdiff.data.caption_stats import count_captions, read_captions
from unetdiff.data.config import DataConfig, ScenesConfig


def test_counts_by_hand() -> None:
    counts = count_captions(["a cat", "a dog that sleeps", "", "a cat", "a cat", "bird"])
    assert (counts.captions, counts.empty, counts.distinct, counts.duplicates) == (5, 1, 3, 2)
    assert counts.longest == "a dog that sleeps" and counts.longest_words == 4 and counts.median_words == 2


def test_a_split_without_captions() -> None:
    counts = count_captions(["", ""])
    assert (counts.captions, counts.empty, counts.duplicates, counts.longest, counts.longest_words) == (0, 2, 0, "", 0)


def test_the_scenes_have_a_caption_each() -> None:
    captions = read_captions(DataConfig(scenes=ScenesConfig(val_images=30, colors=1)), "val")
    assert len(captions) == 30 and all(caption.startswith("a red ") for caption in captions)
