"""Sizes on the page, montages and files to download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs gradio")

from PIL import Image

from unetdiff.app.display import download, montage, shown_image, shown_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [((32, 32), (512, 512)), ((100, 60), (600, 360)), ((600, 400), (600, 400)), ((2560, 640), (1280, 320))],
)
def test_shown_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert shown_size(*size) == expected
    image = shown_image(np.zeros((*size, 3), np.uint8))
    assert (image.height, image.width) == expected


def test_montage_of_three() -> None:
    images = [np.full((4, 6, 3), value, np.uint8) for value in (50, 100, 150)]
    canvas = np.asarray(montage(images, enlarged=False))
    assert canvas.shape == (4 + 2 + 4, 6 + 2 + 6, 4)
    assert canvas[0, 0, 0] == 50 and canvas[0, 8, 0] == 100 and canvas[6, 0, 0] == 150
    assert not canvas[4:6, :, 3].any() and not canvas[6:, 8:, 3].any()  # gaps are transparent
    assert montage(images[:1]).size == (86 * 6, 86 * 4)


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    first, second = (download(Image.new("L", (3, 2), value), "a-mask") for value in (1, 2))
    assert Path(first).name == "a-mask.png" and Path(first).is_relative_to(tmp_path) and first != second
    with Image.open(second) as image:
        assert (image.size, image.getpixel((0, 0))) == ((3, 2), 2)
