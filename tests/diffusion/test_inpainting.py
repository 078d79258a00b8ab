"""Random masks of inpainting, against loops over their pixels, and the channels that the network sees."""

from __future__ import annotations

import math

import pytest
import torch

from unetdiff.diffusion.inpainting import BOXES, NUMBERS, SEGMENTS, mask_numbers, random_masks
from unetdiff.training.tasks.inpainting import masked_start

SIZE = (12, 20)
STROKE_AT, BOX_AT = 3, NUMBERS - 4 * BOXES


def test_one_box() -> None:
    """0.12 to 0.6 of the shorter side, anywhere inside of the image."""
    numbers = torch.zeros(1, NUMBERS)
    numbers[0, BOX_AT : BOX_AT + 4] = torch.tensor([0.5, 1.0, 0.5, 1.0])  # height, width, top, left
    height, width = 0.36 * 12, 0.6 * 12
    top, left = 0.5 * (12 - height), 20 - width
    expected = [
        [float(top <= y + 0.5 < top + height and left <= x + 0.5 < left + width) for x in range(20)] for y in range(12)
    ]
    assert torch.equal(random_masks(numbers, SIZE)[0, 0], torch.tensor(expected))
    assert 20 < sum(map(sum, expected)) < 40
    numbers[0, 2] = 0.99  # three boxes, the others of the least size in the upper left corner
    more = random_masks(numbers, SIZE)[0, 0]
    assert more[0, 0] == 1 and more.sum() == sum(map(sum, expected)) + 1


def test_one_stroke_of_two_segments() -> None:
    numbers = torch.zeros(1, NUMBERS)
    numbers[0, 1] = 0.9  # strokes
    numbers[0, STROKE_AT : STROKE_AT + 3] = torch.tensor([0.25, 0.5, 1 / SEGMENTS])  # start y, x, two segments
    numbers[0, STROKE_AT + 3 : STROKE_AT + 9] = torch.tensor([0.0, 0.5, 0.5, 0.6, 1.0, 0.0])  # turn, length, width
    start = (3.0, 10.0)
    middle = (3.0 + 0.42 * 12, 10.0)  # angle 0: down
    end = tuple(a + 0.8 * 12 * f(2) for a, f in zip(middle, (math.cos, math.sin), strict=True))  # angle 2
    end = (max(0.0, end[0]), min(20.0, end[1]))
    segments = ((start, middle, 0.21 * 12 / 2), (middle, end, 0.02 * 12 / 2))

    def near(y: float, x: float) -> bool:
        for (ay, ax), (by, bx), radius in segments:
            steps = [(ay + (by - ay) * k / 4000, ax + (bx - ax) * k / 4000) for k in range(4001)]
            if min(math.hypot(y - py, x - px) for py, px in steps) <= radius:
                return True
        return False

    expected = torch.tensor([[float(near(y + 0.5, x + 0.5)) for x in range(20)] for y in range(12)])
    assert torch.equal(random_masks(numbers, SIZE)[0, 0], expected) and expected.sum() > 10


def test_many_masks() -> None:
    numbers = mask_numbers(2000, torch.Generator().manual_seed(0))
    masks = random_masks(numbers, SIZE, 0.25)
    covered = masks.mean(dim=(1, 2, 3))
    assert float((covered == 1).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert (
        set(masks.unique().tolist()) == {0.0, 1.0} and covered.max() == 1 and random_masks(numbers, SIZE).mean() > 0.1
    )
    assert torch.equal(random_masks(numbers[3:5], SIZE, 0.25), masks[3:5])  # of the image's own numbers alone
    assert len(masks.flatten(1).unique(dim=0)) > 1000


def test_previews_start_from_the_first_image_of_each_caption() -> None:
    """The captions of the rows are in the order of their first images (`CaptionConditioner.examples`)."""
    captions = ["red", "blue", "red"]
    items = [
        {"image": torch.full((3, 8, 8), 50 * i, dtype=torch.uint8), "name": str(i), "caption": caption}
        for i, caption in enumerate(captions)
    ]
    start, _, images = masked_start(items, rows=2, across=2, size=(8, 8))
    assert [round(float(image.mean()) * 255) for image in images] == [0, 50]
    masks = start.mask_image
    assert isinstance(masks, torch.Tensor) and len(masks) == 4 and torch.equal(masks[0], masks[1])
