"""One of two folders was given: images without the masks next to them, or masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdiff.data.discovery.discover import discover

RNG = np.random.default_rng(0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "masks").mkdir()
    (tmp_path / "data" / "other").mkdir()
    for i in range(6):
        Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"data/images/{i}.png")
        Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"data/other/b{i}.png")
        Image.fromarray(np.repeat([[0, 255]], 2, 0).astype(np.uint8)).save(tmp_path / f"data/masks/{i}_mask.png")
    return tmp_path / "data"


def test_images_with_masks_next_to_them(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hint = "the folder masks next to it has masks of the same 6 names; `unetdiff init {}` would train a segmenter"
    assert discover(data / "images").hint == hint.format(data)
    monkeypatch.chdir(data)
    assert discover(Path("images")).hint == hint.format(".")
    monkeypatch.chdir(data / "images")
    assert discover(Path()).hint == hint.format(data)


def test_masks(data: Path) -> None:
    assert discover(data / "masks").hint.startswith(
        "these are masks: the folder images next to it has images of the same 6 names; `unetdiff init "
    )


def test_without(data: Path) -> None:
    assert discover(data / "other").hint == "" and discover(data).hint == ""
