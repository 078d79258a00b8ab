from __future__ import annotations

from collections import Counter

import pytest
from torch.utils.data import DataLoader

from unetdiff.data.base import collate
from unetdiff.data.config import AugmentConfig, ScenesConfig
from unetdiff.data.sampling import EvalSampler, StepSampler
from unetdiff.data.scenes import Scenes
from unetdiff.errors import UserError


def test_every_image_once_an_epoch_across_its_border() -> None:
    # 10 images, batches of 4: epochs end in mid-batch; 15 steps are exactly 6 epochs.
    keys = [key for batch in StepSampler(10, 4, seed=3, stop=15) for key in batch]
    assert len(keys) == 60
    orders = [[key.index for key in keys[e * 10 : e * 10 + 10]] for e in range(6)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    assert len({key.seed for key in keys}) == 60, "augmentation repeats"


def test_start_gives_exactly_the_tail() -> None:
    whole = list(StepSampler(11, 4, seed=1, stop=20, accumulation_steps=2, strong_until=13))
    for start in (1, 7, 19, 20):
        assert (
            list(StepSampler(11, 4, seed=1, start=start, stop=20, accumulation_steps=2, strong_until=13))
            == whole[2 * start :]
        )
    assert len(StepSampler(11, 4, seed=1, start=7, stop=20, accumulation_steps=2)) == 26 == len(whole[14:])


def test_ranks_and_parts_together_are_the_single_batch() -> None:
    whole = list(StepSampler(10, 8, seed=5, stop=6))
    ranks = [list(StepSampler(10, 8, seed=5, stop=6, rank=r, world_size=2, accumulation_steps=2)) for r in (0, 1)]
    for step, batch in enumerate(whole):
        pieces = [key for rank in ranks for part in rank[2 * step : 2 * step + 2] for key in part]
        assert pieces == batch
    assert all(len(part) == 2 for rank in ranks for part in rank)


def test_a_set_smaller_than_a_batch() -> None:
    (batch,) = StepSampler(3, 8, seed=0, stop=1)
    assert Counter(key.index for key in batch[:6]) == {0: 2, 1: 2, 2: 2}


def test_seed_changes_order_and_augmentation() -> None:
    one, other = (list(StepSampler(50, 50, seed=s, stop=1))[0] for s in (0, 1))
    assert [k.index for k in one] != [k.index for k in other]
    assert not {k.seed for k in one} & {k.seed for k in other}


def test_strong_ends_at_its_step() -> None:
    strong = [batch[0].strong for batch in StepSampler(10, 2, seed=0, stop=5, strong_until=3)]
    assert strong == [True, True, True, False, False]


def test_indivisible_batch_is_refused_with_the_right_size() -> None:
    with pytest.raises(UserError, match=r"batch_size=10: must be divisible.*Use e\.g\. 8"):
        StepSampler(10, 10, seed=0, stop=1, world_size=2, accumulation_steps=2)
    with pytest.raises(UserError, match="training split is empty"):
        StepSampler(0, 10, seed=0, stop=1)


@pytest.mark.parametrize(("length", "world"), [(10, 1), (10, 3), (2, 4), (7, 2), (0, 2)])
def test_evaluation_takes_every_sample_once(length: int, world: int) -> None:
    samplers = [EvalSampler(length, 3, rank, world) for rank in range(world)]
    batches = [batch for sampler in samplers for batch in sampler]
    assert sorted(i for batch in batches for i in batch) == list(range(length))
    assert [len(s) for s in samplers] == [len(list(s)) for s in samplers]
    assert all(1 <= len(batch) <= 3 for batch in batches)


def test_workers_give_the_same_batches_as_none() -> None:
    scenes = Scenes("train", ScenesConfig(train_images=20), augment=AugmentConfig(flip=True, color=0.5))
    streams = []
    for workers in (0, 2):
        sampler = StepSampler(len(scenes), 4, seed=2, stop=6)
        loader = DataLoader(scenes, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
        streams.append([(batch["name"], batch["image"]) for batch in loader])
    for (names, images), (other_names, other_images) in zip(*streams, strict=True):
        assert names == other_names
        assert images.equal(other_images)
