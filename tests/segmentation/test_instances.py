"""Rand and information scores, against pairs of pixels, entropies and scikit-image."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from skimage.metrics import variation_of_information

from unetdiff.segmentation.instances import InstanceScores, objects, scores


def logits_of(foreground: np.ndarray) -> torch.Tensor:
    p = torch.from_numpy(foreground).clamp(1e-4, 1 - 1e-4)
    return torch.stack([(1 - p).log(), p.log()])


def test_rand_score_counts_pairs_of_foreground_pixels() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 3, (6, 7)), random.integers(1, 4, (6, 7))
    pairs = [(a, b) for a, b in combinations(np.argwhere(truth > 0), 2)]
    same = [[(x[tuple(a)] == x[tuple(b)]) for a, b in pairs] for x in (truth, predicted)]
    both = np.logical_and(*same).sum()
    assert scores(truth, predicted)[0] == pytest.approx(2 * both / (np.sum(same[0]) + np.sum(same[1])))


def test_information_score_is_that_of_the_variation_of_information() -> None:
    random = np.random.default_rng(1)
    truth, predicted = random.integers(0, 4, (16, 16)), random.integers(1, 5, (16, 16))
    inside = truth > 0
    split, merge = variation_of_information(truth, predicted, ignore_labels=(0,))
    entropies = [
        -(p * np.log2(p)).sum() for p in (np.bincount(x[inside])[1:] / inside.sum() for x in (truth, predicted))
    ]
    assert scores(truth, predicted)[1] == pytest.approx(1 - (split + merge) / sum(entropies))
    assert scores(truth, truth + 1) == (1.0, 1.0)


def test_a_border_of_any_width_separates_and_a_gap_merges() -> None:
    target = torch.ones(20, 31, dtype=torch.uint8)
    target[:, 15] = 0
    wide, broken = np.ones((20, 31)), np.ones((20, 31))
    wide[:, 12:19] = 0.0
    broken[:, 15] = 0.05
    broken[10, 15] = 0.45
    whole = InstanceScores()
    whole.update(logits_of(wide), target)
    assert whole.compute()["v_rand"] == pytest.approx(1, abs=0.01) and objects(wide, 0.5).max() == 2
    gap = InstanceScores()
    gap.update(logits_of(broken), target)
    found = gap.compute()
    assert found["v_rand"] == 1 and found["v_rand_threshold"] == 0.5  # below, the objects merge
    low = InstanceScores(thresholds=(0.2,))
    low.update(logits_of(broken), target)
    assert low.compute()["v_rand"] == pytest.approx(2 / 3, abs=0.01) and low.compute()["v_info"] == 0


def test_ignored_pixels_and_images_without_objects_do_not_count() -> None:
    target = torch.ones(8, 8, dtype=torch.uint8)
    target[:, 4] = 0
    target[:, 5:] = 255
    one = InstanceScores()
    one.update(logits_of(np.ones((8, 8))), target)
    assert one.compute()["v_rand"] == 1 == one.compute()["v_info"]
    one.update(logits_of(np.ones((8, 8))), torch.zeros(8, 8, dtype=torch.uint8))
    assert one.compute()["v_rand"] == 1
    assert np.isnan(InstanceScores().compute()["v_rand"])
