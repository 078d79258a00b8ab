from __future__ import annotations

import pytest

from unetdiff.data.config import ScenesConfig
from unetdiff.data.prompt import prompts
from unetdiff.data.scene_pairs import ScenePairs
from unetdiff.data.scenes import Scenes
from unetdiff.errors import UserError

CONFIG = ScenesConfig(train_images=400, val_images=50, colors=3, held_out_pairs=["blue 3", "red 0"])


def test_the_label_is_the_prompt_and_held_out_pairings_are_there() -> None:
    pairs, plain = ScenePairs("train", CONFIG), Scenes("train", ScenesConfig(train_images=400, colors=3))
    all_prompts = prompts(CONFIG)
    assert len(pairs) == 400 and pairs.labels == [prompt.caption for prompt in all_prompts] and len(pairs.labels) == 30
    seen = set()
    for i in range(400):
        item = pairs[i]
        assert item["image"].equal(plain.images[i])
        assert (
            all_prompts[item["label"]].digit == plain.digits[i, 0]
            and all_prompts[item["label"]].color == plain.colors[i, 0]
        )
        assert pairs.labels[item["label"]] == item["caption"] == pairs.caption(i)
        assert item["labels"] == (item["label"],) and "mask" not in item
        seen.add(item["label"])
    assert seen == set(range(30)), "all pairings, those held out of the sampler's training among them"


def test_scenes_of_several_digits_have_no_one_pairing() -> None:
    with pytest.raises(UserError, match="data.scenes.digits=2"):
        ScenePairs("train", ScenesConfig(digits=2))
