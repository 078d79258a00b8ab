"""A tiny set in VOC's layout, made with PIL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ["ground", "tree", "house", "car"]
COLORS = [(10, 20, 30), (0, 200, 0), (200, 0, 0), (0, 0, 200)]


def save_mask(path: Path, values: np.ndarray) -> None:
    mask = Image.fromarray(values.astype(np.uint8), mode="P")
    mask.putpalette(np.resize(np.array(COLORS, np.uint8), (256, 3)).tobytes())
    mask.save(path)


@pytest.fixture
def voc_set(tmp_path: Path) -> Path:
    """Six pictures of 40x30 with 4 classes and void: a0..a3 train, b0 and b1 val."""
    return make_voc(tmp_path / "set")


@pytest.fixture
def make_mask() -> Callable[[Path, np.ndarray], None]:
    return save_mask


def make_voc(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    splits = {"train": ["a0", "a1", "a2", "a3"], "val": ["b0", "b1"]}
    for split, names in splits.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            smooth = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((40, 30))
            smooth.save(root / "JPEGImages" / f"{name}.jpg")
            values = rng.integers(0, 4, (30, 40))
            values[:3] = 255
            save_mask(root / "SegmentationClass" / f"{name}.png", values)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root
