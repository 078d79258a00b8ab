"""Fractions of the training images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unetdiff.data.build import build_dataset
from unetdiff.data.caption_stats import read_captions
from unetdiff.data.check import check
from unetdiff.data.config import AugmentConfig, DataConfig, ScenesConfig
from unetdiff.data.sampling import SampleKey
from unetdiff.data.subset import Subset, subset_indices, subset_length
from unetdiff.reports.dataset_groups import open_dataset
from unetdiff.reports.runs import Run


def scenes(fraction: float, seed: int = 0, **more: object) -> DataConfig:
    return DataConfig(
        train_fraction=fraction, train_fraction_seed=seed, scenes=ScenesConfig(train_images=60, val_images=8), **more
    )


def test_a_larger_share_has_all_of_a_smaller_one() -> None:
    fractions = [1e-6, 0.01, 0.05, 0.2, 0.5, 1.0]
    parts = [set(subset_indices(701, fraction, seed=3)) for fraction in fractions]
    assert [len(part) for part in parts] == [1, 7, 35, 140, 350, 701]
    assert all(small < large for small, large in zip(parts, parts[1:], strict=False))
    assert subset_length(1, 0.01) == 1 and subset_length(10, 0.25) == 2


def test_another_seed_is_another_share_and_every_image_is_as_likely() -> None:
    assert subset_indices(100, 0.2, 0) == subset_indices(100, 0.2, 0) == sorted(subset_indices(100, 0.2, 0))
    assert subset_indices(100, 0.2, 0) != subset_indices(100, 0.2, 1)
    seen = torch.zeros(20)
    for seed in range(2000):
        seen[subset_indices(20, 0.25, seed)] += 1
    # binomial, n = 2000, p = 1/4: deviation 19.4
    assert (seen - 500).abs().max() < 5 * 19.4


def test_the_training_split_alone_is_cut_and_its_items_are_the_whole_sets() -> None:
    config = scenes(0.2, augment=AugmentConfig(flip=True))
    part, whole = build_dataset(config, "train", True), build_dataset(scenes(1.0), "train", True)
    assert isinstance(part, Subset) and len(part) == 12 and len(build_dataset(config, "val", True)) == 8
    assert (part.classes, part.labels) == (whole.classes, whole.labels)
    assert [part.sample_name(i) for i in range(12)] == [whole.sample_name(i) for i in subset_indices(60, 0.2, 0)]
    for place, index in enumerate(subset_indices(60, 0.2, 0)):
        assert torch.equal(part[place]["image"], whole[index]["image"])
        assert torch.equal(part.mask(place), whole.mask(index)) and part.caption(place) == whole.caption(index)
    with pytest.raises(IndexError):
        part[12]
    augmented = build_dataset(scenes(1.0, augment=AugmentConfig(flip=True)), "train", True)
    last = subset_indices(60, 0.2, 0)[-1]
    for seed in range(4):  # mirrored or not, as the whole set's image is with that key
        actual, expected = part[SampleKey(11, seed, True)], augmented[SampleKey(last, seed, True)]
        assert torch.equal(actual["image"], expected["image"]) and torch.equal(actual["mask"], expected["mask"])


def test_a_folder_in_vocs_layout(voc_set: Path) -> None:
    config = DataConfig(name="voc_folder", root=str(voc_set), size=[16, 16], train_fraction=0.5)
    part = build_dataset(config, "train", segmentation=True)
    assert len(part) == 2 and part[0]["mask"].shape == (30, 40)
    (voc_set / "SegmentationClass" / "a0.png").write_bytes(b"no image")
    (voc_set / "SegmentationClass" / "a1.png").write_bytes(b"no image")
    (voc_set / "SegmentationClass" / "a2.png").write_bytes(b"no image")
    assert len(check(config, progress=False)) == 3, "the whole set is checked"


def test_captions_are_counted_of_the_share_and_judges_see_the_whole() -> None:
    captions = read_captions(scenes(0.2), "train")
    whole = build_dataset(scenes(1.0), "train", segmentation=False)
    assert captions == [whole.caption(i) for i in subset_indices(60, 0.2, 0)]
    data = {"name": "scenes", "train_fraction": 0.2, "scenes": {"train_images": 60, "val_images": 8}}
    run = Run("run", Path("run"), "diffusion", {"task": "diffusion", "data": data})
    assert len(open_dataset(run, "train")) == 60
