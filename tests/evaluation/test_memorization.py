"""Nearest neighbours against scikit-learn, copies found out, and an image that shows them."""

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
    find_copies,
    memorised_share,
    nearest,
    neighbours_image,
    pixels_as_points,
)

Noisy = Callable[..., Tensor]


@pytest.mark.parametrize("part", [1, 3, 7, 100])
def test_nearest_are_scikit_learns(part: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, points = (torch.randn(count, 5, generator=generator) for count in (9, 40))
    distances, indices = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(points.numpy()).kneighbors(queries)
    found = nearest(queries, points.split(part), 4)
    assert np.array_equal(found.indices, indices)
    assert np.allclose(found.distances, distances, atol=1e-5)


def test_too_few_to_be_nearest() -> None:
    with pytest.raises(UserError, match="4 are asked for, but there are 3"):
        nearest(torch.zeros(1, 2), [torch.zeros(2, 2), torch.zeros(1, 2)], 4)


def test_pixel_distance_is_in_levels(noisy: Noisy) -> None:
    images = noisy(2, 0)
    lighter = (images.int() + torch.where(images < 128, 7, -7)).to(torch.uint8)  # 7 levels away everywhere
    found = nearest(pixels_as_points(images), [pixels_as_points(lighter)], 1)
    assert found.indices[:, 0].tolist() == [0, 1]
    assert found.distances[:, 0].tolist() == pytest.approx([7, 7], rel=1e-5)
    exact = nearest(pixels_as_points(images), [pixels_as_points(images)], 1)
    assert exact.distances.max() < 1e-4  # a copy is at 0
    assert pixels_as_points(torch.zeros(1, 3, 256, 128, dtype=torch.uint8)).shape == (1, 3 * 64 * 32)


def test_memorised_share() -> None:
    held_out = torch.arange(1, 101).float()  # distances 1..100: a twentieth of them lies below 5.95
    assert memorised_share(torch.tensor([0.0, 5.9, 6.0, 50.0]), held_out) == 0.5
    assert memorised_share(torch.zeros(10), held_out) == 1.0
    assert memorised_share(held_out, held_out) == pytest.approx(0.05)


def test_copies_are_found_out(noisy: Noisy) -> None:
    training, unseen, fresh = (pixels_as_points(noisy(count, seed)) for count, seed in ((60, 0), (40, 1), (40, 2)))
    half = torch.cat([training[:20], fresh[:20]])
    found = find_copies("pixels", half, unseen, training.split(16), 2)
    assert found.samples.indices[:20, 0].tolist() == list(range(20))
    assert 0.5 <= found.memorised <= 0.65  # the copies, and a few by chance
    honest = find_copies("pixels", fresh, unseen, training.split(16), 2)
    assert honest.memorised <= 0.2
    assert honest.held_out.distances.shape == (40, 2)


def test_the_image_shows_sample_and_neighbours(held: Callable[..., ImageDataset]) -> None:
    colors = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250]], dtype=torch.uint8)
    training = held(colors[:, :, None, None].expand(-1, -1, 8, 8).contiguous())
    sample = torch.tensor([250, 250, 0], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 8, 8)
    points = pixels_as_points(training.images)  # type: ignore[attr-defined]
    found = find_copies("pixels", points[1:2], points, [points], 2)
    assert found.samples.indices[0].tolist()[0] == 1
    image = np.asarray(neighbours_image(sample, ["seven"], training, [found]))

    def left(color: list[int]) -> int:
        return int(np.nonzero((image == color).all(axis=-1))[1].min())

    second = colors[int(found.samples.indices[0, 1])].tolist()
    assert left([250, 250, 0]) < left([0, 250, 0]) < left(second)
