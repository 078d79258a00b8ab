"""The preview: where its tiles are, and what colours they have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unetdiff.data.masks.classes import voc_colormap
from unetdiff.errors import UserError
from unetdiff.segmentation.overlays import GAP, LINE, MARGIN, preview
from unetdiff.segmentation.palette import ERROR_COLOR, IGNORE_COLOR

NAMES = ["background", "cat", "dog"]
TOP = MARGIN + LINE


def photos(height: int, width: int, count: int = 2):
    image = torch.full((3, height, width), 90, dtype=torch.uint8)
    truth = torch.zeros(height, width, dtype=torch.uint8)
    truth[:, width // 2 :] = 1
    truth[0] = 255
    return [image] * count, [truth] * count, [torch.ones_like(truth)] * count


def test_small_images_grow_by_a_whole_factor_and_stay_crisp():
    page = np.asarray(preview(*photos(32, 32), voc_colormap(3), NAMES))
    tiles = [page[TOP : TOP + 160, left : left + 160] for left in (MARGIN + k * (160 + GAP) for k in range(4))]
    assert (tiles[0] == 90).all()
    assert (tiles[1][:5] == IGNORE_COLOR).all()
    assert (tiles[1][5:, :80] == 0).all() and (tiles[1][5:, 80:] == (128, 0, 0)).all()
    assert (tiles[2] == (128, 0, 0)).all()
    assert (tiles[3][5:, :80] == ERROR_COLOR).all() and (tiles[3][:5] == IGNORE_COLOR).all()
    assert not (tiles[3][5:, 80:] == ERROR_COLOR).all(axis=-1).any()


def test_large_images_shrink():
    page = preview(*photos(360, 480, count=3), voc_colormap(3), NAMES, names=["a", "b", "c" * 200])
    assert page.width == 2 * MARGIN + 4 * 320 + 3 * GAP
    assert page.height == TOP + 3 * (240 + LINE + GAP) + LINE + MARGIN


def test_sizes_may_differ_between_images_and_from_their_masks():
    images, truths, guesses = photos(40, 30, count=1)
    small = torch.full((3, 20, 15), 90, dtype=torch.uint8)
    page = preview([small, *photos(20, 60, 1)[0]], [*truths, *photos(20, 60, 1)[1]],
                   [*guesses, *photos(20, 60, 1)[2]], voc_colormap(3), NAMES)  # fmt: skip
    same = preview([*images, *photos(20, 60, 1)[0]], [*truths, *photos(20, 60, 1)[1]],
                   [*guesses, *photos(20, 60, 1)[2]], voc_colormap(3), NAMES)  # fmt: skip
    assert page.size == same.size


def test_the_legend_names_only_what_occurs():
    images, truths, guesses = photos(32, 32)
    page = np.asarray(preview(images, truths, guesses, voc_colormap(3), NAMES))
    legend = page[-(MARGIN + LINE) :]
    has = [bool((legend == color).all(axis=-1).sum() > 100) for color in ((128, 0, 0), (0, 128, 0), IGNORE_COLOR)]
    assert has == [True, False, True]


def test_refusals():
    images, truths, guesses = photos(32, 32)
    with pytest.raises(UserError, match="must have the same number"):
        preview(images, truths[:1], guesses, voc_colormap(3), NAMES)
    with pytest.raises(UserError, match="must have the same number"):
        preview([], [], [], voc_colormap(3), NAMES)
    with pytest.raises(UserError, match="size must be its target"):
        preview(images, truths, [pred[1:] for pred in guesses], voc_colormap(3), NAMES)
    with pytest.raises(UserError, match="one color per class .got 2 for 3"):
        preview(images, truths, guesses, voc_colormap(2), NAMES)
