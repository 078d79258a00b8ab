"""Training splits of which only some images have masks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdiff.cli.data_stats import count_both, table
from unetdiff.config.schema import RunConfig
from unetdiff.data.build import build_dataset
from unetdiff.data.check import check
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.data.image_format import resolve_image_format
from unetdiff.data.labelled import LabelledSampler, is_segmented, labelled_part, segmented_count
from unetdiff.data.sampling import SampleKey, StepSampler
from unetdiff.errors import UserError

COUNT, BATCH = 2, 8


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    """Three images without masks, one in a subfolder."""
    folder = tmp_path / "extra"
    (folder / "more").mkdir(parents=True)
    for name in ("x.png", "y.jpg", "more/z.png"):
        Image.fromarray(np.full((25, 35, 3), 90, np.uint8)).save(folder / name)
    return folder


def stream(start: int = 0, rank: int = 0, world: int = 1, accumulation: int = 1) -> list[list[SampleKey]]:
    steps = StepSampler(20, BATCH, 3, start=start, stop=9, rank=rank, world_size=world, accumulation_steps=accumulation)
    return list(LabelledSampler(steps, [4, 7, 11], COUNT))


@pytest.mark.parametrize(
    ("fraction", "batch", "count"), [(0.25, 16, 4), (0.33, 12, 4), (0.334, 6, 2), (0.05, 4, 1), (1.0, 7, 7)]
)
def test_a_fraction_is_the_nearest_number_of_images_and_at_least_one(fraction: float, batch: int, count: int) -> None:
    assert segmented_count(fraction, batch) == count


def test_every_segmented_place_has_a_mask_and_all_of_them_come_equally_often() -> None:
    places = [place for place in range(BATCH) if is_segmented(place, COUNT, BATCH)]
    assert places == [3, 7]
    segmented = [keys[place].index for keys in stream() for place in places]
    assert sorted(segmented) == sorted([4, 7, 11] * 6)  # 18 places, three images
    plain = list(StepSampler(20, BATCH, 3, stop=9))
    others = [place for place in range(BATCH) if place not in places]
    assert all([a[p] for p in others] == [b[p] for p in others] for a, b in zip(stream(), plain, strict=True))
    seeds = [key.seed for keys in stream() for key in keys]
    assert len(set(seeds)) == len(seeds), "every view of an image is augmented differently"


def test_the_stream_does_not_depend_on_resuming_or_on_how_a_batch_is_cut() -> None:
    whole = stream()
    assert stream(start=4) == whole[4:]
    parts = [stream(rank=rank, world=2, accumulation=2) for rank in (0, 1)]
    joined = [
        [key for rank in (0, 1) for part in parts[rank][2 * step : 2 * step + 2] for key in part] for step in range(9)
    ]
    assert joined == whole


def test_a_fraction_of_the_labels_is_the_subset_that_train_fraction_would_draw() -> None:
    scenes = DataConfig(scenes=ScenesConfig(train_images=20, val_images=5), label_fraction=0.25, train_fraction_seed=3)
    train = build_dataset(scenes, "train", segmentation=True)
    assert len(train) == 20 and train.labelled is not None and len(train.labelled) == 5
    fewer = build_dataset(
        DataConfig(scenes=scenes.scenes, train_fraction=0.25, train_fraction_seed=3), "train", segmentation=True
    )
    part = labelled_part(train)
    assert [part.sample_name(i) for i in range(5)] == [fewer.sample_name(i) for i in range(5)]
    assert build_dataset(scenes, "val", segmentation=True).labelled is None


def test_images_without_masks_follow_the_split(voc_set: Path, extra: Path) -> None:
    config = DataConfig(name="voc_folder", root=str(voc_set), size=[16, 16], unlabelled_root=str(extra))
    train = build_dataset(config, "train", segmentation=True)
    assert len(train) == 7 and train.labelled == [0, 1, 2, 3]
    item = train[SampleKey(5, 0, True)]
    assert item["image"].shape == (3, 16, 16) and (item["mask"] == 255).all() and item["labels"] == ()
    assert [train.sample_name(i) for i in range(4)] == ["a0", "a1", "a2", "a3"]
    assert sorted(Path(train.sample_name(i)).name for i in range(4, 7)) == ["x.png", "y.jpg", "z.png"]
    assert len(build_dataset(config, "val", segmentation=True)) == 2


def test_the_range_of_deep_images_is_found_next_to_images_without_masks(voc_set: Path, tmp_path: Path) -> None:
    """A joint run on 12-bit images with `data.unlabelled_root` reads both parts with one range."""
    deep = tmp_path / "deep"
    deep.mkdir()
    for i, place in enumerate([*sorted((voc_set / "JPEGImages").iterdir()), deep / "x.png"]):
        side = Image.open(place).size if place.exists() else (9, 9)
        place.unlink(missing_ok=True)
        Image.fromarray(np.full(side[::-1], 4000 * (i % 2), np.uint16)).save(place.with_suffix(".png"))
    config = DataConfig(name="voc_folder", root=str(voc_set), size=[16, 16], unlabelled_root=str(deep))
    resolved = resolve_image_format(config, masks=True, only_rgb=True)
    assert (resolved.channels, resolved.image_range) == (3, [0.0, 4000.0])
    train = build_dataset(resolved, "train", segmentation=True)
    assert {int(train[i]["image"].max()) for i in range(len(train))} == {0, 255}


def test_check_and_stats_know_them(voc_set: Path, extra: Path) -> None:
    config = DataConfig(name="voc_folder", root=str(voc_set), unlabelled_root=str(extra))
    assert check(config, progress=False) == []
    (extra / "broken.png").write_bytes(b"no image")
    shutil.copy(voc_set / "JPEGImages" / "b0.jpg", extra / "copy.jpg")
    found = {Path(issue.file).name: issue.message for issue in check(config, progress=False)}
    assert set(found) == {"broken.png", "copy.jpg"} and "validation split" in found["copy.jpg"]
    config.unlabelled_root = str(extra / "more")
    stats = count_both(RunConfig(data=config))
    assert stats["train"]["images"] == 4 and stats["train"]["without_masks"] == 1
    assert "images without masks" in table(stats)
    config.unlabelled_root = str(voc_set / "ImageSets")
    with pytest.raises(UserError, match="no images found"):
        build_dataset(config, "train", segmentation=True)
