from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from unetdiff.data import scene_rendering as module
from unetdiff.data.config import AugmentConfig, ScenesConfig
from unetdiff.data.prompt import COLORS, DIGITS
from unetdiff.data.sampling import SampleKey
from unetdiff.data.scene_rendering import split_digits
from unetdiff.data.scenes import Scenes
from unetdiff.errors import UserError


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes("train", ScenesConfig(train_images=600))


def test_no_digit_image_is_in_both_splits() -> None:
    target = load_digits().target
    train, val = split_digits("train"), split_digits("val")
    everything = np.concatenate([*train, *val])
    assert sorted(everything.tolist()) == list(range(1797))
    for digit in range(10):
        assert (target[train[digit]] == digit).all() and (target[val[digit]] == digit).all()
        assert 0.19 < len(val[digit]) / (len(val[digit]) + len(train[digit])) <= 0.2
    images = load_digits().images.reshape(1797, -1)
    in_train = {images[i].tobytes() for rows in train for i in rows}
    assert not any(images[i].tobytes() in in_train for rows in val for i in rows)


def test_a_scene_depends_on_seed_split_and_index_alone(scenes: Scenes) -> None:
    smaller = Scenes("train", ScenesConfig(train_images=37))
    assert smaller.images.equal(scenes.images[:37]) and smaller.masks.equal(scenes.masks[:37])
    assert [smaller.caption(i) for i in range(37)] == [scenes.caption(i) for i in range(37)]
    larger = Scenes("train", ScenesConfig(train_images=1010))  # more than one chunk
    assert larger.images[:600].equal(scenes.images)
    assert not Scenes("train", ScenesConfig(train_images=37, seed=1)).images.equal(smaller.images)
    assert not Scenes("val", ScenesConfig(val_images=37)).images.equal(smaller.images)


def test_item_holds_what_the_contract_says(scenes: Scenes) -> None:
    item = scenes[5]
    assert item["image"].shape == (3, 32, 32) and item["image"].dtype == torch.uint8
    assert item["mask"].shape == (32, 32) and item["mask"].dtype == torch.uint8
    assert set(item["mask"].unique().tolist()) == {0, item["label"] + 1}
    assert item["caption"] == f"a {COLORS[item['color']]} {DIGITS[item['label']]}"
    assert item["labels"] == (item["label"],)
    assert item["name"] == scenes.sample_name(5)
    assert scenes.classes == ["background", *DIGITS] and scenes.labels == DIGITS
    assert scenes.palette.shape == (11, 3) and len({tuple(c) for c in scenes.palette.tolist()}) == 11
    with pytest.raises(IndexError):
        scenes[600]


def test_classes_and_colours_are_balanced(scenes: Scenes) -> None:
    assert np.bincount(scenes.digits[:, 0], minlength=10).min() > 35
    assert np.bincount(scenes.colors[:, 0], minlength=6).min() > 70


def test_mask_and_image_agree(scenes: Scenes) -> None:
    """A pixel of the mask has nearly the digit's colour, one well outside has not."""
    images, inside = scenes.images.float(), scenes.masks > 0
    core = ~torch.nn.functional.max_pool2d((~inside).float()[:, None], 3, 1, 1)[:, 0].bool()
    near = torch.nn.functional.max_pool2d(inside.float()[:, None], 3, 1, 1)[:, 0].bool()
    pale, wrong_inside = [], []
    for i in range(200):
        color = images[i][:, inside[i]].median(dim=1).values
        distance = (images[i] - color[:, None, None]).norm(dim=0)
        pale.append((distance[core[i]] > 40).float().mean() if core[i].any() else torch.tensor(0.0))
        wrong_inside.append((distance[inside[i]] > 80).float().mean())
        assert (distance[~near[i]] > 40).all(), scenes.caption(i)
    assert torch.stack(pale).mean() < 0.005  # the mask's core is paint
    assert torch.stack(wrong_inside).mean() < 0.06  # its rim has some of the background
    area = inside.float().mean(dim=(1, 2))
    assert area.min() > 0.02 and area.max() < 0.6


def test_the_named_colour_is_the_one_painted(scenes: Scenes) -> None:
    hues = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "white": (1, 1, 1)}
    hues["purple"] = (0.6, 0.1, 0.75)
    reference = torch.tensor([hues[name] for name in COLORS], dtype=torch.float32)
    reference = reference / reference.norm(dim=1, keepdim=True)
    for i in range(200):
        ink = scenes.images[i].float()[:, scenes.masks[i] > 0].median(dim=1).values
        assert int((reference @ (ink / ink.norm())).argmax()) == scenes.colors[i, 0], scenes.caption(i)


def test_digits_lie_within_the_image(scenes: Scenes) -> None:
    """At most a sliver of a digit is cut by the border: the enlarged ink is about that of its source."""
    border = torch.ones(32, 32, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    fraction = [(m[border] > 0).sum() / (m > 0).sum() for m in scenes.masks]
    assert torch.stack(fraction).mean() < 0.06


def test_several_digits() -> None:
    scenes = Scenes("train", ScenesConfig(train_images=100, digits=3))
    for i in range(100):
        item = scenes[i]
        values = set(item["mask"].unique().tolist()) - {0}
        assert values <= set((scenes.digits[i] + 1).tolist())
        pairs = [words.split() for words in item["caption"].split(" and ")]
        assert [(COLORS.index(color), DIGITS.index(digit)) for _, color, digit in pairs] == list(
            zip(scenes.colors[i], scenes.digits[i], strict=True)
        )
        assert item["labels"] == tuple(sorted(value - 1 for value in values)), "each digit once, ascending"
        assert len(set(scenes.colors[i])) == 3
        # None is hidden: each digit that occurs once has an area of its own.
        for digit in scenes.digits[i]:
            if (scenes.digits[i] == digit).sum() == 1:
                assert (item["mask"] == digit + 1).sum() > 12
        assert item["label"] == scenes.digits[i, 0]
    Scenes("train", ScenesConfig(train_images=3, digits=9))


def test_the_digit_that_gives_the_label_is_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAYOUT", {2: (24.0, 28.0, 1)})  # both in the one cell: they overlap
    scenes = Scenes("train", ScenesConfig(train_images=100, digits=2))
    first, second = (
        sum(int((scenes.masks[i] == scenes.digits[i, d] + 1).sum()) for i in range(100) if np.ptp(scenes.digits[i]))
        for d in (0, 1)
    )
    assert first > 1.3 * second


def test_clutter_is_the_texture_s_contrast() -> None:
    def contrast(clutter: float) -> float:
        scenes = Scenes("train", ScenesConfig(train_images=100, clutter=clutter))
        ground = [
            image.float()[:, mask == 0].std(dim=1).mean()
            for image, mask in zip(scenes.images, scenes.masks, strict=True)
        ]
        return float(torch.stack(ground).mean())

    plain, half, full = contrast(0.0), contrast(0.5), contrast(1.0)
    # At 0 the paint's soft edge is all there is beside the grain.
    assert plain < 12 < half < full


def test_without_segmentation_there_is_no_mask() -> None:
    scenes = Scenes("val", ScenesConfig(val_images=4), segmentation=False)
    assert "mask" not in scenes[0] and scenes.classes == [] and scenes.palette.shape == (0, 3)


def test_augmentation_by_key(scenes: Scenes) -> None:
    flipped = Scenes("train", ScenesConfig(train_images=4), augment=AugmentConfig(flip=True))
    seen = {flipped[SampleKey(2, seed, True)]["image"].numpy().tobytes() for seed in range(20)}
    assert len(seen) == 2
    assert flipped[2]["image"].equal(scenes.images[2])


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (ScenesConfig(digits=0), "digits=0"),
        (ScenesConfig(clutter=2), "clutter=2"),
        (ScenesConfig(train_images=0), "train_images=0"),
    ],
)
def test_impossible_scenes_are_refused(config: ScenesConfig, key: str) -> None:
    with pytest.raises(UserError, match=key):
        Scenes("train", config)


def test_spread_of_zero_puts_every_digit_in_the_middle_at_full_size() -> None:
    def boxes(spread: float) -> torch.Tensor:
        masks = Scenes("train", ScenesConfig(train_images=200, spread=spread)).masks > 0
        rows = masks.any(dim=2).float()
        first, height = rows.argmax(dim=1).float(), rows.sum(dim=1)
        return torch.stack([first + height / 2, height], dim=1)  # middle and height of the ink, (200, 2)

    calm, free = boxes(0.0), boxes(1.0)
    assert calm[:, 1].min() > 20 and free[:, 1].min() < 18
    assert calm.std(dim=0)[0] < 1.5 < 2.5 < free.std(dim=0)[0]
    assert torch.equal(
        Scenes("val", ScenesConfig(val_images=5)).images,
        Scenes("val", ScenesConfig(val_images=5, spread=1.0)).images,
    )


def test_fewer_colors_are_the_first_ones() -> None:
    few = Scenes("train", ScenesConfig(train_images=100, colors=2))
    assert set(few.colors[:, 0].tolist()) == {0, 1}
    for colors in (0, len(COLORS) + 1):
        with pytest.raises(UserError, match=f"data.scenes.colors={colors}"):
            Scenes("train", ScenesConfig(train_images=1, colors=colors))


def paired(scenes: Scenes) -> set[tuple[int, int]]:
    return set(zip(scenes.digits.flatten().tolist(), scenes.colors.flatten().tolist(), strict=True))


def test_held_out_pairs_are_in_validation_alone() -> None:
    config = ScenesConfig(train_images=700, val_images=400, held_out_pairs=["blue 3", "red seven"])
    train, val = Scenes("train", config), Scenes("val", config)
    everything = {(digit, color) for digit in range(10) for color in range(6)}
    assert everything - paired(train) == {(3, 2), (7, 0)}
    assert paired(val) == everything
    assert (
        [p.caption for p in train.prompts() if p.held_out]
        == ["a blue three", "a red seven"]
        == [p.caption for p in val.prompts() if p.held_out]
    )
    plain = Scenes("train", ScenesConfig(train_images=700))
    assert val.images[:60].equal(Scenes("val", ScenesConfig(val_images=60)).images)
    # nothing else has changed: the digits stay, and the scenes of other pairings are the same images
    assert np.array_equal(train.digits, plain.digits)
    kept = [i for i in range(700) if (plain.digits[i, 0], plain.colors[i, 0]) not in {(3, 2), (7, 0)}]
    assert len(kept) < 700 and train.images[kept].equal(plain.images[kept])
    threes = train.colors[train.digits[:, 0] == 3, 0]
    assert np.bincount(threes, minlength=6)[[0, 1, 3, 4, 5]].min() > 5, "their colours are the others in equal shares"
    smaller = Scenes("train", ScenesConfig(train_images=90, held_out_pairs=config.held_out_pairs))
    assert smaller.images.equal(train.images[:90])


def test_held_out_pairs_among_several_digits() -> None:
    few = Scenes("train", ScenesConfig(train_images=300, digits=3, held_out_pairs=[f"blue {d}" for d in range(5)]))
    assert not paired(few) & {(digit, 2) for digit in range(5)} and (5, 2) in paired(few)
    assert all(len(set(row)) == 3 for row in few.colors.tolist()), "colours still differ within a scene"
    # two threes may have to share the one colour that is left to them
    tight = Scenes("train", ScenesConfig(train_images=300, digits=2, colors=2, held_out_pairs=["red 3"]))
    both = (tight.digits == 3).all(axis=1)
    assert both.any() and (tight.colors[both] == 1).all() and (3, 0) not in paired(tight)
    with pytest.raises(UserError, match="held_out_pairs"):
        Scenes("val", ScenesConfig(val_images=1, held_out_pairs=["pink 3"]))


def test_a_layout_is_resized_with_the_image() -> None:
    config = ScenesConfig(val_images=3, train_images=3, digits=2)
    plain = Scenes("val", config, size=[16, 16])
    layout = Scenes("val", config, size=[16, 16], segmentation=False, layout=True)
    assert plain[0]["mask"].shape == (32, 32) and layout[0]["mask"].shape == (16, 16)
    assert layout.mask(0).shape == (32, 32) and layout.classes == plain.classes
    assert set(layout[0]) == set(plain[0]) and layout[0]["image"].shape == (3, 16, 16)
