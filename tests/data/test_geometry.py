"""Elastic deformation, rotation and mirrored crops, against SciPy and by hand."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from unetdiff.data.config import AugmentConfig
from unetdiff.data.geometry import IGNORE_INDEX, elastic, elastic_displacement, random_crop, reflected, rotate
from unetdiff.data.transforms import TrainTransform


def photo(height: int = 40, width: int = 56, channels: int = 3) -> torch.Tensor:
    noise = torch.rand(1, channels, 5, 7, generator=torch.Generator().manual_seed(0)) * 255
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic", align_corners=True)
    return smooth[0].clamp(0, 255).round().to(torch.uint8)


def displacement(size: tuple[int, int], deviation: float, seed: int = 0) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return elastic_displacement(size, deviation)


def test_elastic_moves_pixels_by_the_displacement() -> None:
    image = photo()
    mask = (image[0] > 128).to(torch.uint8)
    field = displacement((40, 56), 4.0)
    warped, warped_mask = elastic(image, mask, field)
    assert warped.dtype == torch.uint8 and warped.shape == image.shape and warped_mask is not None
    rows, columns = np.meshgrid(np.arange(40), np.arange(56), indexing="ij")
    places = [rows + field[..., 1].numpy(), columns + field[..., 0].numpy()]
    for channel in range(3):
        expected = ndimage.map_coordinates(image[channel].numpy().astype(float), places, order=1, mode="mirror")
        assert np.abs(warped[channel].numpy() - expected).max() <= 1  # rounding
    expected = ndimage.map_coordinates(mask.numpy(), places, order=0, mode="mirror")
    assert (warped_mask.numpy() != expected).mean() < 0.01  # ties
    assert IGNORE_INDEX not in warped_mask and not torch.equal(warped, image)


def test_displacements_are_smooth_and_of_the_deviation() -> None:
    fields = torch.stack([displacement((64, 48), 10.0, seed) for seed in range(200)])
    corners = fields[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # grid points lie in the corners
    assert 9 < float(corners.std()) < 11 and abs(float(corners.mean())) < 1
    assert float((fields[:, 1:] - fields[:, :-1]).abs().max()) < 3
    assert torch.equal(displacement((64, 48), 0.0), torch.zeros(64, 48, 2))
    still, _ = elastic(photo(), None, torch.zeros(40, 56, 2))
    assert torch.equal(still, photo())


def test_rotation_keeps_image_and_mask_together() -> None:
    image = photo(8, 12)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        turned, mask = rotate(image, image[0], turns_freely=True)
        assert mask is not None and torch.equal(turned[0], mask)
        seen.add(tuple(mask.flatten().tolist()) + tuple(mask.shape))
        turned, _ = rotate(image, image[0], turns_freely=False)
        assert turned.shape == image.shape
    assert len(seen) == 4


def test_mirrored_crop_of_a_small_image() -> None:
    image, mask = photo(6, 5), photo(6, 5)[0]
    torch.manual_seed(0)
    cropped, cropped_mask = random_crop(image, mask, (20, 5), mirrored=True)
    assert cropped.shape == (3, 20, 5) and cropped_mask is not None and torch.equal(cropped[0], cropped_mask)
    offsets = [k for k in range(15) if np.array_equal(np.pad(mask, ((k, 14 - k), (0, 0)), "reflect"), cropped_mask)]
    assert len(offsets) >= 1
    assert reflected(torch.arange(-3, 6), 3).tolist() == [1, 2, 1, 0, 1, 2, 1, 0, 1]


def test_all_of_them_are_functions_of_the_seed() -> None:
    augment = AugmentConfig(flip=True, vertical_flip=True, rotate=True, elastic=3.0, crop=[24, 24], color=0.3)
    transform = TrainTransform(None, augment)
    for channels in (1, 3, 5):
        image = photo(channels=channels)
        first, mask = transform(image, image[0], seed=3, strong=True)
        again, _ = transform(image, image[0], seed=3, strong=True)
        other, _ = transform(image, image[0], seed=4, strong=True)
        assert first.shape == (channels, 24, 24) and mask is not None and mask.shape == (24, 24)
        assert torch.equal(first, again) and not torch.equal(first, other)
    assert transform.num_views is None and TrainTransform(None, AugmentConfig(vertical_flip=True)).num_views is None


def test_vertical_flips() -> None:
    image = photo(8, 8)
    flipped = [TrainTransform(None, AugmentConfig(vertical_flip=True))(image, None, seed, True)[0] for seed in range(9)]
    assert {torch.equal(one, image) for one in flipped} == {True, False}
    assert all(torch.equal(one, image) or torch.equal(one, image.flip(-2)) for one in flipped)
