"""Nearest neighbors against scikit-learn, detection of copies, and the image of neighbors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.errors import UserError
from unetdiff.evaluation.memorization import (
    measure_memorization,
    memorized_fraction,
    nearest_images,
    neighbors_image,
    pixel_features,
)

Noisy = Callable[..., Tensor]


@pytest.mark.parametrize("part", [1, 3, 7, 100])
def test_nearest_are_scikit_learns(part: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, points = (torch.randn(count, 5, generator=generator) for count in (9, 40))
    distances, indices = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(points.numpy()).kneighbors(queries)
    result = nearest_images(queries, points.split(part), 4)
    assert np.array_equal(result.indices, indices)
    assert np.allclose(result.distances, distances, atol=1e-5)


def test_fewer_points_than_neighbors() -> None:
    with pytest.raises(UserError, match="num_neighbors=4: must be at most the number of training images, 3"):
        nearest_images(torch.zeros(1, 2), [torch.zeros(2, 2), torch.zeros(1, 2)], 4)


def test_pixel_distance_is_in_levels(noisy: Noisy) -> None:
    images = noisy(2, 0)
    lighter = (images.int() + torch.where(images < 128, 7, -7)).to(torch.uint8)  # 7 levels away everywhere
    result = nearest_images(pixel_features(images), [pixel_features(lighter)], 1)
    assert result.indices[:, 0].tolist() == [0, 1]
    assert result.distances[:, 0].tolist() == pytest.approx([7, 7], rel=1e-5)
    exact = nearest_images(pixel_features(images), [pixel_features(images)], 1)
    assert exact.distances.max() < 1e-4  # a copy is at 0
    assert pixel_features(torch.zeros(1, 3, 256, 128, dtype=torch.uint8)).shape == (1, 3 * 64 * 32)


def test_memorized_fraction() -> None:
    held_out = torch.arange(1, 101).float()  # distances 1..100: a twentieth of them lies below 5.95
    assert memorized_fraction(torch.tensor([0.0, 5.9, 6.0, 50.0]), held_out) == 0.5
    assert memorized_fraction(torch.zeros(10), held_out) == 1.0
    assert memorized_fraction(held_out, held_out) == pytest.approx(0.05)


def test_copies_are_detected(noisy: Noisy) -> None:
    training, held_out, fresh = (pixel_features(noisy(count, seed)) for count, seed in ((60, 0), (40, 1), (40, 2)))
    half = torch.cat([training[:20], fresh[:20]])
    result = measure_memorization("pixels", half, held_out, training.split(16), 2)
    assert result.samples.indices[:20, 0].tolist() == list(range(20))
    assert 0.5 <= result.fraction <= 0.65  # the copies, and a few by chance
    honest = measure_memorization("pixels", fresh, held_out, training.split(16), 2)
    assert honest.fraction <= 0.2
    assert honest.held_out.distances.shape == (40, 2)


def test_image_of_neighbors(in_memory: Callable[..., ImageDataset]) -> None:
    colors = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250]], dtype=torch.uint8)
    training = in_memory(colors[:, :, None, None].expand(-1, -1, 8, 8).contiguous())
    sample = torch.tensor([250, 250, 0], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 8, 8)
    points = pixel_features(training.images)  # type: ignore[attr-defined]
    result = measure_memorization("pixels", points[1:2], points, [points], 2)
    assert result.samples.indices[0].tolist()[0] == 1
    image = np.asarray(neighbors_image(sample, ["seven"], training, [result]))

    def left(color: list[int]) -> int:
        return int(np.nonzero((image == color).all(axis=-1))[1].min())

    second = colors[int(result.samples.indices[0, 1])].tolist()
    assert left([250, 250, 0]) < left([0, 250, 0]) < left(second)
