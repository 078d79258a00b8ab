"""Masks as images: what is written is read back as indices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unetdiff.data import scenes
from unetdiff.data.masks.classes import binary_colors, voc_colormap
from unetdiff.errors import UserError
from unetdiff.segmentation.palette import (
    CORRECT_COLOR,
    ERROR_COLOR,
    IGNORE_COLOR,
    as_palette,
    colorize,
    error_map,
    overlay,
    palette_image,
    save_mask,
)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.random.default_rng(0).integers(0, 21, (9, 13)).astype(np.uint8)
    mask[0, :4] = 255
    return mask


def test_vocs_colours():
    # the devkit's: background, aeroplane, bicycle, bird, ..., person (15), tv monitor (20)
    palette = voc_colormap(21)
    assert palette.dtype == np.uint8 and palette.shape == (21, 3)
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128)}
    for index, color in (expected | {20: (0, 64, 128)}).items():
        assert tuple(palette[index]) == color
    assert tuple(voc_colormap(256)[255]) == IGNORE_COLOR


def test_png_round_trip(mask, tmp_path):
    save_mask(torch.from_numpy(mask), tmp_path / "mask.png", voc_colormap(21))
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), mask)
        assert np.array_equal(np.asarray(image.convert("RGB")), colorize(mask, voc_colormap(21)))


def test_palette_image_of_few_classes_keeps_void():
    image = palette_image(np.array([[0, 1, 255]]), [[10, 20, 30], [40, 50, 60]])
    assert np.asarray(image).tolist() == [[0, 1, 255]]
    assert [image.convert("RGB").getpixel((x, 0)) for x in range(3)] == [(10, 20, 30), (40, 50, 60), IGNORE_COLOR]


def test_overlay_blends_and_leaves_void_and_transparent_bare():
    image = np.full((1, 4, 3), 100, dtype=np.uint8)
    mask = np.array([[0, 1, 2, 255]])
    palette = [[0, 0, 0], [200, 0, 0], [0, 200, 0]]
    blend = overlay(image, mask, palette, alpha=0.25, transparent=[0])
    assert blend.tolist() == [[[100, 100, 100], [125, 75, 75], [75, 125, 75], [100, 100, 100]]]
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    assert np.array_equal(overlay(Image.fromarray(image), mask, palette), overlay(tensor, mask, palette))
    assert image.max() == image.min() == 100


@pytest.mark.parametrize("names", [["background", "foreground"], ["gap", "cell"]])
def test_two_classes_of_a_gray_image_are_seen(names):
    gray = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[None, :, None], 3, axis=2)
    transparent = [index for index, name in enumerate(names) if name == "background"]
    blends = [
        overlay(gray, np.full((1, gray.shape[1]), index), binary_colors(names), transparent=transparent).astype(int)
        for index in (0, 1)
    ]
    assert np.ptp(blends[1], axis=2).min() > 100  # a hue at every brightness
    assert (np.ptp(blends[0], axis=2) == 0).all() == bool(transparent)
    assert np.abs(blends[1] - blends[0]).max(axis=2).min() > 60


def test_error_map():
    errors = error_map(np.array([[0, 1, 1]]), np.array([[0, 0, 255]]))
    assert [tuple(color) for color in errors[0].tolist()] == [CORRECT_COLOR, ERROR_COLOR, IGNORE_COLOR]
    faded = error_map(np.array([[0, 1]]), np.array([[0, 0]]), image=np.zeros((1, 2, 3), np.uint8))
    assert faded[0, 0].tolist() == [130, 130, 130] and tuple(faded[0, 1].tolist()) == ERROR_COLOR


def test_refusals(mask):
    with pytest.raises(UserError, match="one color per class .got 2 for 3"):
        as_palette([[0, 0, 0], [1, 1, 1]], 3)
    with pytest.raises(UserError, match="in 0..255"):
        as_palette([[0, 0, 300]])
    with pytest.raises(UserError, match="at most 255 colors"):
        as_palette(voc_colormap(256))
    with pytest.raises(UserError, match="shape must be"):
        colorize(mask[None], voc_colormap(21))
    with pytest.raises(UserError, match="got 0..300"):
        colorize(np.array([[0, 300]]), voc_colormap(21))
    with pytest.raises(UserError, match="size must be the"):
        overlay(np.zeros((3, 3, 3), np.uint8), mask, voc_colormap(21))
    with pytest.raises(UserError, match=r"must be uint8 \(C, H, W\)"):
        overlay(torch.zeros(3, 9, 13), mask, voc_colormap(21))


def test_wrong_pixels_have_a_colour_of_their_own():
    """No class of VOC and none of scenes looks like an error."""
    colors = np.concatenate([voc_colormap(21), scenes.PALETTE]).astype(int)
    assert np.abs(colors - np.array(ERROR_COLOR)).max(axis=1).min() > 20
