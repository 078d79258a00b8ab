"""The report of a segmenter: metrics and worst images in one file."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.data.masks.classes import voc_colormap
from unetdiff.reports.segmenter import percent, write_segmenter_report
from unetdiff.segmentation.evaluation import evaluate_segmenter
from unetdiff.segmentation.palette import ERROR_COLOR, IGNORE_COLOR

CLASSES = ["ground", "<b>cat</b>", "never"]


class Squares(ImageDataset):
    """A square of class 1 on class 0, four ignored rows; the network misses a square of image i's size."""

    classes, palette, labels = CLASSES, voc_colormap(3), []

    def __init__(self, ignored: bool = False) -> None:
        self.ignored = ignored

    def __len__(self) -> int:
        return 3

    def sample_name(self, index: int) -> str:
        return f"squares/{index}"

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = self.sample_index(key)
        mask = torch.zeros(120, 160, dtype=torch.uint8)
        mask[20:80, 20:80] = 1
        mask[100:104] = 255
        if self.ignored:
            mask[:] = 255
        return {"image": torch.full((3, 120, 160), 10 * index, dtype=torch.uint8), "mask": mask,
                "name": self.sample_name(index)}  # fmt: skip


def missing(images: list[Tensor]) -> list[Tensor]:
    found = []
    for image in images:
        mask = Squares()[0]["mask"].long()
        mask[mask == 255] = 1
        side = int(image[0, 0, 0]) * 2  # 0, 20, 40
        mask[20 : 20 + side, 20 : 20 + side] = 0
        found.append(F.one_hot(mask, 3).permute(2, 0, 1).float() * 9)
    return found


def sources(page: str, what: str) -> list[np.ndarray]:
    found = re.findall(rf'data-caption="squares/\d: {what}"><img src="data:image/\w+;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int) for text in found]


def test_the_page(tmp_path: Path):
    evaluation = evaluate_segmenter(missing, Squares(), worst=2)
    files = write_segmenter_report(evaluation, Squares(), tmp_path, "run on val", {"dataset": "a & b"})
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in files)
    assert {file.name for file in files} == {"per_class.csv", "confusion.png", "reliability.png", "report.html"}
    page = files[-1].read_text()
    assert page.startswith("<!doctype html>")
    assert not re.findall(r'(?:src|href|srcset)="(?!data:)', page) and "url(" not in page and "@import" not in page
    assert "a &amp; b" in page and "&lt;b&gt;cat&lt;/b&gt;" in page and "<b>cat</b>" not in page
    assert re.findall(r'class="name">([^<]+)<', page) == ["squares/2", "squares/1"]  # the worst first
    scores = [one.score for one in evaluation.worst]
    assert [text for text in re.findall(r"mIoU <b>([^<]+)</b>", page)] == [percent(score) for score in scores]
    assert percent(evaluation.metrics()["mean_iou"]) in page and evaluation.metrics()["boundary_width"] in page
    assert "ignored in evaluation" in page
    never = re.search(r"never</th>(.*?)</tr>", page, re.DOTALL)
    assert never is not None and never[1].count("–") == 5


def test_the_tiles_show_errors_and_ignored_pixels(tmp_path: Path):
    evaluation = evaluate_segmenter(missing, Squares(), worst=2)
    page = write_segmenter_report(evaluation, Squares(), tmp_path, "x")[-1].read_text()
    errors, truths, guesses = (sources(page, what) for what in ("errors", "ground truth", "prediction"))
    for error, truth, guess, side in zip(errors, truths, guesses, (40, 20), strict=True):
        assert error.shape == (120, 160, 3)
        wrong = np.abs(error - np.array(ERROR_COLOR)).sum(axis=-1) < 60  # JPEG
        inner = wrong[24 : 16 + side, 24 : 16 + side]
        assert inner.all() and wrong.sum() == pytest.approx(side**2, rel=0.15)
        assert (np.abs(error[101:103] - np.array(IGNORE_COLOR)).sum(axis=-1) < 60).all()
        assert (truth[100:104] == IGNORE_COLOR).all() and (truth[30, 30] == (128, 0, 0)).all()
        assert (guess[22, 22] == 0).all() and (guess[75, 75] == (128, 0, 0)).all()


def test_no_images_and_only_ignored_pixels(tmp_path: Path):
    evaluation = evaluate_segmenter(missing, Squares(), worst=0)
    page = write_segmenter_report(evaluation, Squares(), tmp_path, "x")[-1].read_text()
    assert 'id="worst"' not in page and 'id="classes"' in page
    evaluation = evaluate_segmenter(missing, Squares(ignored=True))
    page = write_segmenter_report(evaluation, Squares(ignored=True), tmp_path, "x")[-1].read_text()
    assert 'id="worst"' not in page and "nan" not in re.sub(r'"data:[^"]*"', "", page)


def test_percent():
    assert percent(0.12345) == "12.3 %" and percent(float("nan")) == "–"
