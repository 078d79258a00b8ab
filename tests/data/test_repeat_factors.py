"""Rare classes more often: the factors by hand, and what an epoch holds of them."""

from __future__ import annotations

import numpy as np
import pytest

from unetdiff.data.config import ScenesConfig
from unetdiff.data.repeat_factors import balanced_epoch, repeat_factors
from unetdiff.data.sampling import SampleKey, StepSampler
from unetdiff.data.scenes import Scenes
from unetdiff.data.stats import class_presence


def test_a_image_has_the_largest_factor_of_its_classes() -> None:
    presence = np.zeros((100, 4), bool)
    presence[:, 0] = True  # everywhere: 1
    presence[:25, 1] = True  # f = 0.25: sqrt(0.5 / 0.25)
    presence[:2, 2] = True  # f = 0.02: sqrt(0.5 / 0.02) = 5; class 3 is nowhere
    factors = repeat_factors(presence, 0.5)
    np.testing.assert_allclose(factors[:2], 5.0)
    np.testing.assert_allclose(factors[2:25], 2**0.5)
    np.testing.assert_allclose(factors[25:], 1.0)


def test_an_epoch_holds_each_image_as_often_as_its_factor_says() -> None:
    factors = np.array([1.0, 1.0, 2.0, 4.0] * 25)
    expected_counts = factors / factors.sum() * 100
    counts = [np.bincount(balanced_epoch(factors, offset), minlength=100) for offset in np.linspace(0, 0.999, 50)]
    for count in counts:
        assert count.sum() == 100
        assert ((count == np.floor(expected_counts)) | (count == np.ceil(expected_counts))).all()
    np.testing.assert_allclose(np.mean(counts, axis=0), expected_counts, atol=0.03)


def test_the_sampler_gives_a_balanced_epoch_with_a_seed_for_each_copy() -> None:
    factors = np.array([1.0] * 9 + [11.0])
    sampler = StepSampler(10, 5, seed=3, stop=4, factors=factors)
    batches: list[list[SampleKey]] = list(sampler)
    keys = [key for batch in batches for key in batch]
    assert [sum(key.index == 9 for key in keys[i : i + 10]) for i in (0, 10)] == pytest.approx([5, 5], abs=1)
    assert len({key.seed for key in keys}) == 20
    resumed = list(StepSampler(10, 5, seed=3, start=2, stop=4, factors=factors))
    assert resumed == batches[2:]


def test_presence_is_read_off_the_masks() -> None:
    scenes = Scenes("train", ScenesConfig(train_images=6))
    presence = class_presence(scenes, progress=False)
    for index, row in enumerate(presence):
        assert set(np.flatnonzero(row)) == {0, scenes[index]["label"] + 1}
