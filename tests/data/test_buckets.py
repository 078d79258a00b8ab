"""Resolution buckets and crops of images without masks: sizes, batches of one size, order, resume, cuts of a step."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.config.reading import load
from unetdiff.config.validation.run import validate
from unetdiff.data.base import collate
from unetdiff.data.bucket_sizes import bucket_sizes
from unetdiff.data.buckets import BucketOrder, Buckets, nearest_buckets
from unetdiff.data.build import build_dataset
from unetdiff.data.config import AugmentConfig, DataConfig
from unetdiff.data.sampling import SampleKey, StepSampler
from unetdiff.data.transforms import Transform
from unetdiff.errors import UserError

SHAPES = [(40, 40)] * 4 + [(40, 80)] * 5 + [(90, 45)] * 3 + [(20, 200)]
"""Square, wide, tall and extreme images."""


def _ids(*counts: int) -> Buckets:
    return Buckets([(8, 8 * (i + 1)) for i in range(len(counts))], np.repeat(np.arange(len(counts)), counts))


def _folder(root: Path) -> DataConfig:
    """A folder of one class; the pixels of an image are a gradient from left to right."""
    root.mkdir()
    for number, (height, width) in enumerate(SHAPES):
        row = np.linspace(0, 250, width).astype(np.uint8)
        Image.fromarray(np.broadcast_to(row[None, :, None], (height, width, 3)).copy()).save(root / f"{number:02d}.png")
    return DataConfig("image_folder", str(root), size=[32, 32], bucket_step=8)


def test_sizes_of_stable_diffusion() -> None:
    sizes = bucket_sizes([512, 512], 64)
    assert sizes == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    assert (512, 768) in bucket_sizes([512, 768], 64)
    near = nearest_buckets([(512, 512), (300, 1000), (1000, 900), (480, 640)], sizes)
    assert [sizes[i] for i in near] == [(512, 512), (384, 640), (512, 512), (448, 576)]
    with pytest.raises(UserError, match=r"data.size=\[500, 512\]: must be multiples of data.bucket_step=64. Use e.g."):
        bucket_sizes([500, 512], 64)


def test_every_step_is_of_one_bucket_and_every_image_is_used_as_often() -> None:
    buckets = _ids(7, 20, 3)
    steps = list(StepSampler(30, 4, seed=3, stop=150, buckets=buckets))
    assert all(len({buckets.of_image[key.index] for key in step}) == 1 for step in steps)
    uses = Counter(key.index for step in steps for key in step)  # 600 draws of 30 images
    assert set(uses) == set(range(30)) and all(abs(count - 20) <= 3 for count in uses.values())
    assert len({key.seed for step in steps for key in step}) == 600
    order = BucketOrder(buckets, seed=3)
    counts = np.zeros(3)
    for number, (bucket, before) in enumerate(islice(order.steps(0), 300), start=1):
        assert before == counts[bucket]
        counts[bucket] += 1
        assert (np.abs(counts - number * order.fractions) < 2).all()


def test_start_gives_the_tail_and_ranks_and_parts_the_whole() -> None:
    whole = list(StepSampler(30, 8, seed=1, stop=12, buckets=_ids(5, 22, 3)))
    assert whole[5:] == list(StepSampler(30, 8, seed=1, start=5, stop=12, buckets=_ids(5, 22, 3)))
    parts = [
        list(StepSampler(30, 8, seed=1, stop=12, rank=r, world_size=2, accumulation_steps=2, buckets=_ids(5, 22, 3)))
        for r in (0, 1)
    ]
    for step, batch in enumerate(whole):
        assert [key for rank in parts for part in rank[2 * step : 2 * step + 2] for key in part] == batch
    other = list(StepSampler(30, 8, seed=2, stop=12, buckets=_ids(5, 22, 3)))
    assert [key.index for key in other[0]] != [key.index for key in whole[0]]


def test_a_dataset_gives_its_buckets_sizes_in_training_only(tmp_path: Path) -> None:
    config = _folder(tmp_path / "images")
    train, val = (build_dataset(config, role, False) for role in ("train", "val"))  # type: ignore[arg-type]
    assert train.buckets is not None and val.buckets is None
    shapes = set()
    for step in StepSampler(len(train), 4, 0, stop=6, buckets=train.buckets):
        batch = collate([train[key] for key in step])
        shapes.add(tuple(batch["image"].shape))
        assert batch["image"].shape[-2:] == train.buckets.size_of(step[0].index)
    assert len(shapes) >= 3 and all(height * width <= 32 * 32 for *_, height, width in shapes)
    assert {train[i]["image"].shape for i in range(len(train))} == {val[0]["image"].shape} == {(3, 32, 32)}
    half = build_dataset(DataConfig(**{**vars(config), "train_fraction": 0.5}), "train", False)
    assert half.buckets is not None and len(half.buckets.of_image) == len(half)
    assert half[SampleKey(0, 0, True)]["image"].shape[-2:] == half.buckets.size_of(0)


def test_random_crops_after_resizing_by_the_shorter_side() -> None:
    image = torch.arange(96, dtype=torch.uint8).expand(3, 32, 96).contiguous()  # already of the height of the crop
    transform = Transform([32, 32], AugmentConfig(random_crop=True))
    lefts = set()
    for seed in range(40):
        crop, _ = transform(image, None, SampleKey(0, seed, False))
        assert crop.shape == (3, 32, 32)
        left = int(crop[0, 0, 0])
        assert torch.equal(crop, image[..., left : left + 32])
        lefts.add(left)
    assert len(lefts) > 20 and max(lefts) > 55 and min(lefts) < 10
    again = transform(image, None, SampleKey(0, 39, False))[0]
    assert torch.equal(crop, again)
    assert torch.equal(transform(image, None, 0)[0], image[..., 32:64])  # the center where nothing is random
    wide = Transform([32, 32], AugmentConfig(random_crop=True))(image, None, SampleKey(0, 0, True), (32, 64))[0]
    assert wide.shape == (3, 32, 64)


def test_a_cached_image_is_cropped_again(tmp_path: Path) -> None:
    config = _folder(tmp_path / "images")
    config.bucket_step, config.augment = None, AugmentConfig(random_crop=True)
    train = build_dataset(config, "train", False)
    wide = next(i for i in range(len(train)) if train.sample_name(i).endswith(("05.png", "06.png")))
    first, second, center = (train[key]["image"] for key in (SampleKey(wide, 1, True), SampleKey(wide, 2, True), wide))
    assert first.shape == second.shape == center.shape and not torch.equal(first, second)
    assert torch.equal(train[SampleKey(wide, 1, True)]["image"], first) and torch.equal(train[wide]["image"], center)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.bucket_step": 64}, "data.bucket_step=64: must be null with data.name=scenes"),
        ({"data.augment.random_crop": True}, "data.augment.random_crop=true: must be false with data.name=scenes"),
        (
            {"data.name": "image_folder", "data.root": "x", "data.size": [100, 128], "data.bucket_step": 64},
            "data.size=[100, 128]: must be multiples of data.bucket_step=64",
        ),
        (
            {"data.name": "image_folder", "data.root": "x", "data.size": [64, 64], "data.bucket_step": 8}
            | {"data.augment.crop": [32, 32]},
            "data.augment.crop=[32, 32]: must be null with data.bucket_step=8",
        ),
        (
            {"data.name": "voc", "data.root": "x", "data.size": [64, 64], "data.augment.random_crop": True}
            | {"diffusion.condition": "layout"},
            "data.augment.random_crop=true: must be false for images with masks",
        ),
        (
            {"data.name": "voc", "data.root": "x", "data.size": [64, 64], "data.augment.random_crop": True}
            | {"diffusion.max_classes": 2},
            "data.augment.random_crop=true: must be false for images with masks",
        ),
    ],
)
def test_refused(overrides: dict[str, Any], message: str) -> None:
    base = {"training.steps": 5, "model.conditioning.cross_attention_dim": 8}
    with pytest.raises(UserError) as caught:
        validate(load(None, base | overrides, "diffusion"))
    assert str(caught.value).startswith(message)
