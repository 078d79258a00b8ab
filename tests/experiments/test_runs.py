"""Configs of an experiment's runs, and their metrics."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import pytest

from unetdiff.config.quickstart import quickstart_configs
from unetdiff.config.reading import to_yaml
from unetdiff.errors import UserError
from unetdiff.experiments.runs import (
    aggregate,
    base_config,
    last_metric,
    metric_curve,
    num_train_steps,
    seed_list,
    variant,
)
from unetdiff.models.config import SegmentationHeadConfig
from unetdiff.reports.runs import Run


def run_of(*validation: dict[str, float]) -> Run:
    return Run("run", Path("run"), "segmentation", {}, validation=list(validation))


def test_default_and_file_are_overridden_alike(tmp_path: Path) -> None:
    default = quickstart_configs(tmp_path, tiny=True)["joint"]
    assert asdict(base_config(None, [], default)) == asdict(default)
    file = tmp_path / "any.yaml"
    file.write_text(to_yaml(default))
    words = ["--training.batch_size", "4", "--training.ema.half_life_images=7"]
    first, second = base_config(None, words, default), base_config(file, words, quickstart_configs(tmp_path)["joint"])
    assert asdict(first) == asdict(second)
    assert (first.training.batch_size, first.training.ema.half_life_images) == (4, 7)
    with pytest.raises(UserError, match="unknown option --training.batchsize. Did you mean --training.batch_size"):
        base_config(None, ["--training.batchsize", "4"], default)


def test_a_variant_leaves_its_base_alone_and_is_refused_where_it_cannot_be_trained(tmp_path: Path) -> None:
    base = quickstart_configs(tmp_path, tiny=True)["segmentation"]
    before = asdict(base)
    run = variant(base, "diffusion", tmp_path / "run", {"training.seed": 3, "diffusion.condition": "none"})
    assert (run.task, run.training.seed, run.diffusion.condition) == ("diffusion", 3, "none")
    assert run.training.output_dir == str(tmp_path / "run") and asdict(base) == before
    with pytest.raises(UserError, match="data.train_fraction=0.0: must be in"):
        variant(base, "segmentation", tmp_path / "run", {"data.train_fraction": 0.0})
    with pytest.raises(KeyError, match="training.sed"):
        variant(base, "segmentation", tmp_path / "run", {"training.sed": 1})


def test_steps_follow_from_epochs_and_the_train_fraction(tmp_path: Path) -> None:
    base = quickstart_configs(tmp_path, tiny=True)["segmentation"]  # 64 images in batches of 8
    assert num_train_steps(base) == 4
    epochs = variant(base, "segmentation", tmp_path, {"training.steps": None, "training.epochs": 3.0})
    assert num_train_steps(epochs) == 24
    epochs.data.train_fraction = 0.5
    assert num_train_steps(epochs) == 12
    epochs.training.epochs = None
    with pytest.raises(UserError, match="training.steps=null: must be set if training.epochs is null"):
        num_train_steps(epochs)


def test_metrics_of_runs() -> None:
    first = run_of({"images": 8, "a/x": 0.1}, {"images": 16, "a/x": 0.4})
    second = run_of({"images": 10, "a/x": 0.3}, {"images": 16, "a/x": 0.6})
    assert (
        last_metric(first, "a/x") == 0.4
        and math.isnan(last_metric(first, "a/y"))
        and math.isnan(last_metric(run_of(), "a/x"))
    )
    value = aggregate([first, second], lambda run: last_metric(run, "a/x"))
    assert value.mean == pytest.approx(0.5) and value.spread == pytest.approx(math.sqrt(0.02)) and value.n == 2
    line = metric_curve([first, second], "both", "a/x", "images")
    assert line.x == [9, 16] and [y.mean for y in line.y] == pytest.approx([0.2, 0.5])
    assert metric_curve([first], "none", "a/y", "images").x == []
    assert seed_list(2) == [0, 1]
    with pytest.raises(UserError, match="--num_seeds=0: must be at least 1"):
        seed_list(0)


def test_a_segmenter_alone_has_one_decoder(tmp_path: Path) -> None:
    base = quickstart_configs(tmp_path, tiny=True)["joint"]
    base.model.heads.segmentation = SegmentationHeadConfig(own_decoder_levels=1, task_embedding=True)
    base.joint.segment_noise_below = 0.0  # whose pass would not be that of a decoder of its own
    assert variant(base, "joint", tmp_path).model.heads.segmentation == base.model.heads.segmentation
    assert variant(base, "segmentation", tmp_path).model.heads.segmentation == SegmentationHeadConfig()
