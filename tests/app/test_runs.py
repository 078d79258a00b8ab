"""What the page can do with a run follows from its files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from unetdiff.app.runs import AppRun, load_runs
from unetdiff.errors import UserError

CPU = torch.device("cpu")


def test_heads_and_conditions(runs: dict[str, AppRun]) -> None:
    joint = runs["joint"]
    assert joint.segmentation is not None and joint.generation is not None
    assert joint.generation.unet is joint.segmentation.unet  # in memory once
    assert runs["segmenter"].generation is None and runs["denoiser"].segmentation is None
    conditions = {name: run.condition for name, run in runs.items()}
    assert conditions == {"joint": "class_labels", "segmenter": None, "denoiser": "class_labels", "layout": "layout"}


def test_examples_have_the_masks_of_the_dataset(runs: dict[str, AppRun]) -> None:
    for name in ("joint", "segmenter", "layout"):
        items = runs[name].examples.items
        assert len(items) == 6 and all(item["mask"].shape == item["image"].shape[-2:] for item in items)


def test_a_model_without_a_config_has_no_examples(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["joint"] / "best", tmp_path / "model")
    (run,) = load_runs([tmp_path / "model"], CPU)
    assert run.name == "model" and not run.examples.items and "config.yaml" in run.examples.reason


def test_a_dataset_that_is_gone_leaves_the_model(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["segmenter"], tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    text = config.read_text().replace("name: scenes", "name: voc_folder").replace("root: null", "root: nowhere")
    config.write_text(text)
    (run,) = load_runs([tmp_path / "run"], CPU)
    assert run.segmentation is not None and "nowhere" in run.examples.reason


def test_invalid_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be given once"):
        load_runs([folders["joint"], folders["joint"]], CPU)
    with pytest.raises(UserError, match="contains no model"):
        load_runs([tmp_path], CPU)
