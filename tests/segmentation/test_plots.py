"""The two plots: how much of them has which colour, and that they are as large as their classes need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from unetdiff.segmentation.calibration import Calibration
from unetdiff.segmentation.plots import DARK, LIGHT, draw_confusion, draw_reliability


def fraction(path: Path, color: str) -> float:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return float((np.abs(pixels - np.array(to_rgb(color)) * 255) < 6).all(axis=-1).mean())


@pytest.mark.parametrize(("count", "dark"), [(2, False), (21, True), (60, False)])
def test_a_perfect_matrix_has_its_diagonal_and_nothing_else(tmp_path: Path, count: int, dark: bool):
    colors = DARK if dark else LIGHT
    path = tmp_path / "confusion.png"
    names = [f"class number {i} with a name that is too long" for i in range(count)]
    draw_confusion(path, np.eye(count, dtype=np.int64) * 5, names, dark)
    width, height = Image.open(path).size
    assert width > 400 and height > 250 and width < 3200
    # The matrix covers most of the plot, its diagonal one cell in `count`, less the number in it.
    assert 0.25 / count < fraction(path, colors["strong"]) < 1.3 / count
    assert fraction(path, colors["none"]) < 0.002
    assert np.asarray(Image.open(path).convert("RGB"))[0, 0] == pytest.approx(np.array(to_rgb(colors["paper"])) * 255)


def test_an_absent_class_is_blank_and_rows_are_shares(tmp_path: Path):
    full, absent, scaled = (tmp_path / f"{name}.png" for name in ("full", "absent", "scaled"))
    matrix = np.array([[6, 2, 0], [1, 1, 2], [0, 3, 1]])
    draw_confusion(full, matrix, ["a", "b", "c"])
    draw_confusion(scaled, matrix * np.array([[1], [500], [7]]), ["a", "b", "c"])
    assert full.read_bytes() == scaled.read_bytes()
    draw_confusion(absent, matrix * np.array([[1], [0], [1]]), ["a", "b", "c"])
    assert fraction(absent, LIGHT["none"]) > 0.1 > 0.01 > fraction(full, LIGHT["none"])


@pytest.mark.parametrize("dark", [False, True])
def test_reliability(tmp_path: Path, dark: bool):
    colors = DARK if dark else LIGHT
    logits = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 4
    right, wrong = Calibration(), Calibration()
    right.update(logits, logits.argmax(dim=1))
    wrong.update(logits, logits.argmin(dim=1))
    fractions = []
    for name, calibration in (("right", right), ("wrong", wrong)):
        path = tmp_path / f"{name}.png"
        draw_reliability(path, calibration.compute(), dark)
        fractions.append(fraction(path, colors["bar"]))
    assert fractions[0] > 0.2 and fractions[1] < 0.02  # bars to the top, or none
    draw_reliability(tmp_path / "empty.png", Calibration().compute(), dark)
