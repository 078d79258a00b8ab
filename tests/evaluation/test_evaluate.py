"""Evaluation at the original image sizes agrees with validation during training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetdiff.config.schema import RunConfig
from unetdiff.evaluation.evaluate import evaluate
from unetdiff.training.trainer import train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of several sizes in VOC's layout, with ignored pixels; a third class never occurs."""
    root = tmp_path / "voc"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate([(48, 40), (40, 48), (48, 48), (60, 44), (44, 60), (50, 50)]):
        mask = np.zeros((height, width), np.uint8)
        mask[10:30, 8 : 24 + number] = 1
        mask[30:32] = 255
        pixels = (mask[..., None] % 2 * 120 + random.integers(0, 90, (height, width, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{number}.jpg")
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{number}.png")
    (root / "classes.txt").write_text("ground\nthing\nnever\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("0\n1\n2\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("3\n4\n5\n")
    return root


@pytest.mark.parametrize(
    "resizing", [{"data__size": [32, 32]}, {"data__longest_side": 40, "data__augment__crop": [32, 32]}]
)
def test_original_mask_size(tiny: Callable[..., RunConfig], folder: Path, resizing: dict[str, Any]) -> None:
    options = {"data__name": "voc_folder", "data__root": str(folder), "training__steps": 2, "training__batch_size": 3}
    run = train(tiny("segmentation", **options, **resizing))
    evaluation = evaluate(run, num_worst=2)
    metrics = evaluation.metrics
    final = json.loads((run / "summary.json").read_text())["final"]
    for name in ("mean_iou", "pixel_accuracy", "fw_iou"):
        assert metrics[f"segmentation/{name}"] == pytest.approx(final[f"segmentation/{name}"], abs=1e-6), name
    assert metrics["segmentation/boundary_pixels"] == [1, 1]
    assert sum(metrics["segmentation/reliability"]["count"]) == 60 * 44 + 44 * 60 + 50 * 50 - 2 * (44 + 60 + 50)
    written = json.loads((run / "evaluation-val" / "metrics.json").read_text(), parse_constant=pytest.fail)
    # null only for a class that never occurs
    assert written["segmentation/accuracy_per_class"]["never"] is None
    assert written["segmentation/mean_iou"] == metrics["segmentation/mean_iou"]
    assert evaluation.output == run / "evaluation-val"
    assert evaluation.segmentation is not None and len(evaluation.segmentation.evaluation.worst) == 2
