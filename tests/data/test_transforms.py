from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.data.config import AugmentConfig
from unetdiff.data.sampling import SampleKey
from unetdiff.data.transforms import (
    EvalTransform,
    TrainTransform,
    Transform,
    cover,
    resize_mask,
    to_model_range,
    to_uint8,
)
from unetdiff.errors import UserError

EVERYTHING = AugmentConfig(flip=True, scale=[0.5, 2.0], crop=[24, 24], color=0.4)


def coded(height: int = 30, width: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """A photo whose red channel says its mask: class i where red is 60 * i, in blocks of 10 pixels."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 4, (height // 10, width // 10), generator=generator)
    mask = blocks.repeat_interleave(10, 0).repeat_interleave(10, 1).to(torch.uint8)
    return torch.stack([mask * 60, torch.full_like(mask, 7), 255 - mask * 60]), mask


def test_ranges_are_inverse_and_end_at_one() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    model = to_model_range(values)
    assert model.dtype == torch.float32
    assert model[0] == -1 and model[255] == 1
    assert to_uint8(model).equal(values)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
    assert to_uint8(torch.tensor([0.0], dtype=torch.bfloat16)).tolist() == [128]


def test_same_seed_same_image_and_global_generators_untouched() -> None:
    transform = TrainTransform(None, EVERYTHING)
    image, mask = coded()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = transform(image, mask, 5, True)
    assert torch.get_rng_state().equal(before)
    torch.rand(3)
    again = transform(image, mask, 5, True)
    assert first[0].equal(again[0]) and first[1].equal(again[1])
    others = [transform(image, mask, seed, True)[0] for seed in range(6, 12)]
    assert not any(first[0].equal(other) for other in others)


def test_augmenting_does_not_seed_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    def config_error(seed: int) -> None:
        raise AssertionError("the accelerator's generator was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", config_error)
    TrainTransform(None, EVERYTHING)(*coded(), 5, True)


def test_image_and_mask_stay_together() -> None:
    """Through scale, crop and flip the red channel keeps saying what the mask says (blocks' borders apart)."""
    image, mask = coded()
    transform = TrainTransform(None, AugmentConfig(flip=True, scale=[0.5, 2.0], crop=[24, 24]))
    agree, flipped = [], set()
    for seed in range(40):
        photo, target = transform(image, mask, seed, True)
        assert photo.shape == (3, 24, 24) and target.shape == (24, 24)
        assert set(target.unique().tolist()) <= {0, 1, 2, 3, 255}
        inside = target != 255
        agree.append(((photo[0].float() / 60).round() == target)[inside].float().mean())
        flipped.add(bool(inside.any()))
    assert torch.stack(agree).mean() > 0.9


def test_crop_beyond_the_image_is_mean_colour_and_void() -> None:
    image, mask = coded()
    transform = TrainTransform(None, AugmentConfig(crop=[50, 60]))
    places = set()
    for seed in range(20):
        photo, target = transform(image, mask, seed, True)
        rows, columns = torch.nonzero(target != 255, as_tuple=True)
        top, left = int(rows.min()), int(columns.min())
        places.add((top, left))
        assert photo[:, top : top + 30, left : left + 40].equal(image)
        assert target[top : top + 30, left : left + 40].equal(mask)
        outside = photo[:, target == 255]
        assert (target == 255).sum() == 50 * 60 - 30 * 40
        mean = image.float().mean(dim=(1, 2)).round()
        assert (outside == mean[:, None]).all()
    assert len(places) > 10


def test_random_crop_takes_windows_of_the_image() -> None:
    image, mask = coded()
    transform = TrainTransform(None, AugmentConfig(crop=[20, 24]))
    windows = set()
    for seed in range(200):
        photo, target = transform(image, mask, seed, True)
        found = [
            (top, left)
            for top in range(11)
            for left in range(17)
            if mask[top : top + 20, left : left + 24].equal(target)
        ]
        assert found and any(image[:, t : t + 20, x : x + 24].equal(photo) for t, x in found)
        windows.update(found)
    assert {0, 10} <= {t for t, _ in windows} and {0, 16} <= {x for _, x in windows}


def test_strong_off_drops_scale_and_colour_but_not_crop_and_flip() -> None:
    image, mask = coded()
    weak = TrainTransform(None, EVERYTHING)
    plain = TrainTransform(None, AugmentConfig(flip=True, crop=[24, 24]))
    for seed in range(10):
        assert weak(image, mask, seed, False)[0].equal(plain(image, mask, seed, True)[0])
    assert len({weak(image, mask, seed, False)[0].numpy().tobytes() for seed in range(10)}) > 3


def test_flip_mirrors_half_of_the_images() -> None:
    image, mask = coded()
    transform = TrainTransform(None, AugmentConfig(flip=True))
    mirrored = 0
    for seed in range(100):
        photo, target = transform(image, mask, seed, True)
        is_mirrored = photo.equal(image.flip(-1))
        assert is_mirrored or photo.equal(image)
        assert target.equal(mask.flip(-1) if is_mirrored else mask)
        mirrored += is_mirrored
    assert 30 < mirrored < 70


def test_an_int_is_never_augmented() -> None:
    image, mask = coded()
    transform = Transform(None, EVERYTHING)
    photo, target = transform(image, mask, 0)
    assert photo.equal(image) and target is not None and target.equal(mask)
    assert not transform(image, mask, SampleKey(0, 1, True))[0].equal(image)


def test_validation_resizes_the_image_and_not_the_mask() -> None:
    image, mask = coded()
    photo, target = EvalTransform([16, 16])(image, mask)
    assert photo.shape == (3, 16, 16) and target is not None and target.equal(mask)
    photo, target = TrainTransform([16, 16], AugmentConfig())(image, mask, 0, True)
    assert photo.shape == (3, 16, 16) and target is not None and target.shape == (16, 16)


def test_without_a_mask_the_aspect_is_kept() -> None:
    wide = torch.zeros(3, 20, 40, dtype=torch.uint8)
    wide[:, :, 10:30] = 200  # the middle square
    assert (cover(wide, (20, 20)) == 200).all()
    assert (EvalTransform([10, 10])(wide)[0] > 150).all()
    assert cover(torch.zeros(3, 7, 11, dtype=torch.uint8), (32, 24)).shape == (3, 32, 24)


@pytest.mark.parametrize(
    ("size", "augment", "key"),
    [
        ([16], AugmentConfig(), "data.size"),
        (None, AugmentConfig(crop=[0, 4]), "data.augment.crop"),
        (None, AugmentConfig(scale=[2.0, 0.5], crop=[8, 8]), "data.augment.scale"),
        (None, AugmentConfig(scale=[0.5, 2.0]), "data.augment.crop"),
        (None, AugmentConfig(color=3), "data.augment.color"),
    ],
)
def test_impossible_settings_name_their_key(size: list[int] | None, augment: AugmentConfig, key: str) -> None:
    with pytest.raises(UserError, match=key):
        TrainTransform(size, augment)


def test_longest_side_keeps_the_aspect_and_the_validation_mask() -> None:
    image, mask = torch.zeros(3, 50, 100, dtype=torch.uint8), torch.zeros(50, 100, dtype=torch.uint8)
    transform = Transform(None, longest_side=64)
    small, own = transform(image, mask, 0)
    assert small.shape == (3, 32, 64) and own is mask
    small, own = transform(image, mask, SampleKey(0, 1, True))
    assert small.shape == (3, 32, 64) and own is not None and own.shape == (32, 64)
    jitter = Transform(None, AugmentConfig(scale=[0.5, 0.5], crop=[16, 16]), longest_side=64)
    assert jitter.train._resize(image, mask, 0.5)[0].shape == (3, 16, 32)


def test_a_layout_is_picked_at_the_middle_of_its_pixels_as_pillow_does() -> None:
    mask = torch.randint(0, 9, (33, 45), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for size in ((11, 15), (13, 11), (45, 80)):  # odd sides: no middle falls between two pixels
        reference = Image.fromarray(mask.numpy()).resize((size[1], size[0]), Image.Resampling.NEAREST)
        assert np.array_equal(resize_mask(mask, size).numpy(), np.array(reference))
    # a third: the middle of each three by three
    assert resize_mask(mask, (11, 15)).equal(mask[1::3, 1::3])


@pytest.mark.parametrize("transform", [Transform([12, 16]), Transform(None, longest_side=16)])
def test_a_training_mask_lies_on_its_image(transform: Transform) -> None:
    """Shrunk to a fifth, what it marks is where the photo has it: on the average of five places, as it cannot be
    halfway between two pixels."""
    shifts = []
    for offset in range(5):
        mask = torch.zeros(60, 80, dtype=torch.uint8)
        mask[10 + offset : 45 + offset, 20 + offset : 55 + offset] = 1
        image, small = transform(torch.stack([mask * 255] * 3), mask, SampleKey(0, 1, True))
        assert small is not None and small.shape == image.shape[1:] == (12, 16)
        shifts.append(middle(small) - middle(image[0]))
    assert torch.stack(shifts).mean(dim=0).abs().max() < 0.05


def middle(values: torch.Tensor) -> torch.Tensor:
    """The centre of mass (row, column) of (H, W)."""
    weights = values.double() / values.sum()
    return torch.stack([(weights.sum(1 - axis) * torch.arange(values.shape[axis])).sum() for axis in (0, 1)])


def test_a_layout_goes_where_its_image_goes() -> None:
    mask = coded()[1] % 2
    image = torch.stack([mask * 255] * 3)
    for size, longest_side in (([15, 15], None), ([60, 45], None), (None, 20), ([30, 40], None)):
        transform = Transform(size, AugmentConfig(), longest_side, layout=True)
        for key in (0, SampleKey(0, 1, True)):
            photo, layout = transform(image, mask, key)
            assert layout is not None and layout.shape == photo.shape[1:] and layout.dtype == torch.uint8
            assert set(layout.unique().tolist()) == {0, 1}
            assert ((photo[0] > 127) == layout).float().mean() > 0.95
        assert transform(image, None, 0)[0].equal(photo), "the photo is what it is without a layout"
