from __future__ import annotations

from typing import get_args, get_type_hints

import torch

from unetdiff.data import capabilities
from unetdiff.data.base import classes_present, collate
from unetdiff.data.config import DataConfig


def test_collate_stacks_what_fits() -> None:
    items = [
        {"image": torch.zeros(3, 4, 4), "mask": torch.zeros(2 + i, 2), "label": i, "name": f"n{i}"} for i in range(2)
    ]
    batch = collate(items)
    assert batch["image"].shape == (2, 3, 4, 4)
    assert isinstance(batch["mask"], list) and batch["mask"][1].shape == (3, 2)
    assert batch["label"].tolist() == [0, 1] and batch["label"].dtype == torch.int64
    assert batch["name"] == ["n0", "n1"]


def test_collate_pads_the_classes_of_each_image() -> None:
    batch = collate([{"labels": (3,), "caption": "a cat"}, {"labels": ()}, {"labels": (0, 4, 9)}][:1] * 2)
    assert batch["labels"].tolist() == [[3], [3]] and batch["caption"] == ["a cat", "a cat"]
    labels = collate([{"labels": (3,)}, {"labels": ()}, {"labels": (0, 4, 9)}])["labels"]
    assert labels.tolist() == [[3, -1, -1], [-1, -1, -1], [0, 4, 9]] and labels.dtype == torch.int64
    assert collate([{"labels": ()}])["labels"].tolist() == [[-1]], "a row is never of no length"


def test_classes_present_are_those_of_the_mask_without_background_and_void() -> None:
    mask = torch.tensor([[0, 255, 7], [7, 254, 1]], dtype=torch.uint8)
    assert classes_present(mask) == (1, 7, 254)
    assert classes_present(torch.tensor([[0, 255]], dtype=torch.uint8)) == ()


def test_every_set_is_said_to_have_something_and_no_name_is_made_up() -> None:
    names = set(get_args(get_type_hints(DataConfig)["name"]))
    having = (capabilities.WITH_MASKS, capabilities.WITH_LABELS, capabilities.WITH_CLASSES, capabilities.WITH_CAPTIONS)
    assert set().union(*having) == names
    assert set(capabilities.WITH_CLASSES) == set(capabilities.WITH_LABELS) | set(capabilities.WITH_MASKS)
