"""Masks by colors: a disk that is drawn is found, and the folder is one that `data.name folders` reads."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetdiff.data.build import build_dataset
from unetdiff.data.config import DataConfig

SCRIPT = Path(__file__).parents[2] / "examples" / "masks_from_colors.py"


def disk(color: tuple[int, int, int], seed: int) -> tuple[Image.Image, np.ndarray]:
    """A noisy disk of a color on noisy green, off the middle, and where it is."""
    rows, columns = np.mgrid[:96, :120]
    inside = np.hypot(rows - 44, columns - 66) < 28
    pixels = np.where(inside[..., None], np.array(color), np.array((40, 120, 40)))
    pixels = pixels + np.random.default_rng(seed).normal(0, 12, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), inside


def test_masks_from_colors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    truth: dict[str, np.ndarray] = {}
    for seed, (split, name, color) in enumerate(
        [
            ("train", "poppy", (200, 30, 40)),
            ("train", "sunflower", (230, 200, 30)),
            ("val", "sunflower", (220, 190, 40)),
        ]
    ):
        folder = tmp_path / "flowers" / split / name
        folder.mkdir(parents=True)
        image, truth[f"{split}/{name}"] = disk(color, seed)
        image.save(folder / "x.jpg", quality=95)
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, str(tmp_path / "flowers"), str(tmp_path / "masks")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "data.class_names: [background, poppy, sunflower]" in capsys.readouterr().out

    for number, (name, inside) in zip((1, 2, 2), truth.items(), strict=True):
        mask = np.asarray(Image.open(tmp_path / "masks" / name / "x.png"))
        assert set(np.unique(mask)) == {0, number}
        union, both = ((mask > 0) | inside).sum(), ((mask > 0) & inside).sum()
        assert both / union > 0.8

    names = ["background", "poppy", "sunflower"]
    config = DataConfig(name="folders", root=str(tmp_path), images="flowers", masks="masks", class_names=names)
    train, val = (build_dataset(config, split, segmentation=True) for split in ("train", "val"))
    assert (len(train), len(val)) == (2, 1)
    assert val[0]["mask"].unique().tolist() == [0, 2]
