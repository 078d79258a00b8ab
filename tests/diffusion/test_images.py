"""Grids and strips show every image where it belongs; colour statistics against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.diffusion.images import color_error, color_statistics, grid, strip, strips
from unetdiff.diffusion.trajectory import Trajectory
from unetdiff.errors import UserError


def plain(*colors: tuple[int, int, int], size: int = 8) -> torch.Tensor:
    return torch.tensor(colors, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, size, size).contiguous()


def blocks(image: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Bounding box (left, top, right, bottom) of a colour."""
    rows, columns = np.nonzero((np.asarray(image) == color).all(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


COLORS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]


def test_grid_places_images_row_by_row_enlarged() -> None:
    image = grid(plain(*COLORS[:4]), rows=["a", "b"], columns=["x", "y"], title="title", cell=60)
    boxes = [blocks(image, color) for color in COLORS[:4]]
    assert all(right - left == bottom - top == 64 for left, top, right, bottom in boxes)  # 8 pixels, 8 times
    assert boxes[0][1] == boxes[1][1] < boxes[2][1] == boxes[3][1]
    assert boxes[0][0] == boxes[2][0] < boxes[1][0] == boxes[3][0]
    assert min(box[0] for box in boxes) > 20 < min(box[1] for box in boxes)  # room for the labels


def test_enlarging_is_by_nearest_neighbour() -> None:
    checker = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).expand(1, 3, 2, 2)
    values = np.unique(np.asarray(grid(checker, cell=64)))
    assert values.tolist() == [0, 255]


def test_grid_takes_floats_and_pil_images_alike() -> None:
    images = plain(*COLORS)
    as_pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    reference = grid(images)
    assert np.array_equal(reference, grid(images.float() / 255))
    assert np.array_equal(reference, grid(as_pil))


def test_labels_are_drawn_and_must_fit() -> None:
    images = plain(*COLORS[:4])
    with_labels, others = (grid(images, rows=rows) for rows in (["aa", "bb"], ["aa", "cc"]))
    assert with_labels.size == others.size and not np.array_equal(with_labels, others)
    with pytest.raises(UserError, match=r"rows: must be 2 labels.*got 3"):
        grid(images, rows=["a", "b", "c"])
    with pytest.raises(UserError, match="images: must not be empty"):
        grid([])


def test_strips_go_from_noise_to_image() -> None:
    noisy = torch.stack([plain(COLORS[0], COLORS[1]), plain(COLORS[2], COLORS[3])]).float() / 255
    trajectory = Trajectory([999, 0], noisy, noisy.flip(0))
    image = strip(trajectory, image=1, predicted=False)
    assert blocks(image, COLORS[1])[0] < blocks(image, COLORS[3])[0]
    assert not (np.asarray(image) == COLORS[0]).all(axis=-1).any()
    two = strip(trajectory, image=0)
    left, top, right, bottom = blocks(two, COLORS[0])
    assert (left, top) < (right, bottom) and bottom - top > 96  # first of the upper row, last of the lower
    both = strips(trajectory, ["one", "two"])
    assert blocks(both, COLORS[0])[1] < blocks(both, COLORS[1])[1]
    assert blocks(both, COLORS[0])[0] < blocks(both, COLORS[2])[0]


def test_color_statistics_are_numpys() -> None:
    images = torch.randint(0, 256, (5, 3, 6, 7), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = color_statistics(images)
    pixels = images.numpy() / 127.5 - 1
    assert np.allclose(mean, pixels.mean(axis=(0, 2, 3)), atol=1e-5)
    assert np.allclose(std, pixels.std(axis=(0, 2, 3), ddof=1), atol=1e-5)


def test_color_error_sees_a_tint_and_greyness() -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    assert color_error(images, images) == {"color_mean_error": 0.0, "color_std_error": 0.0}
    tinted = images.clone()
    tinted[:, 0] += 0.15  # one channel of three, 0.3 on [-1, 1]
    error = color_error(tinted, images)
    assert error["color_mean_error"] == pytest.approx(0.1, abs=2e-3)
    assert error["color_std_error"] == pytest.approx(0.0, abs=2e-3)
    grey = (images - 0.45) / 2 + 0.45  # half the contrast
    half = color_statistics(images)[1].mean().item() / 2
    assert color_error(grey, images)["color_std_error"] == pytest.approx(half, rel=0.02)
