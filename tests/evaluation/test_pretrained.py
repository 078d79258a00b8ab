"""A directory of diffusers' own where a run is expected: its facts, its task, its features, its page."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from unetdiff import UNet
from unetdiff.benchmark.run_benchmark import BenchmarkTarget
from unetdiff.config.reading import parse, to_yaml
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.errors import UserError
from unetdiff.evaluation.load_run import load_run
from unetdiff.experiments.features import open_features
from unetdiff.experiments.run_inputs import finished_runs, labeled_images
from unetdiff.files.records import write_json
from unetdiff.reports.network_spec import read_network_spec

SCENES = ScenesConfig(train_images=4, val_images=2)


@pytest.fixture
def run(stable_diffusion: Path, tmp_path: Path) -> Path:
    """A run whose best weights are the pretrained pipeline's, with a segmentation head."""
    folder = tmp_path / "run"
    shutil.copytree(stable_diffusion, folder / "best")
    unet = UNet.from_pretrained(folder / "best" / "unet")
    unet.add_head("segmentation", num_classes=11)
    unet.to_diffusers(folder / "best" / "unet")
    keys = {"model.pretrained": str(stable_diffusion), "training.output_dir": str(folder), "data.name": "scenes"}
    config = parse(None, keys | {"data.scenes.train_images": 4, "data.scenes.val_images": 2}, "diffusion")
    (folder / "config.yaml").write_text(to_yaml(config))
    summary = {"task": "diffusion", "steps": 1, "minutes": 1.0, "parameters": {"total": 1}}
    write_json(folder / "summary.json", summary)
    return folder


def test_a_pipeline_directory_is_loaded_as_a_run(stable_diffusion: Path) -> None:
    """At the size that it was trained at, with its prompts, its scheduler and its autoencoder."""
    loaded = load_run(stable_diffusion, DataConfig(name="scenes", scenes=SCENES))
    task: Any = loaded.diffusion
    assert loaded.images[0]["image"].shape == (3, 16, 16) and loaded.segmentation is None
    assert task.scheduler.config.steps_offset == 1 and task.codec.channels == 4
    assert loaded.config.diffusion.prediction_type == "epsilon" and task.conditioner.padded
    latents = task.encode({"image": loaded.images[0]["image"][None]})
    assert latents.shape == (1, 4, 8, 8)


def test_with_a_run_on_a_page_and_in_an_experiment(stable_diffusion: Path, run: Path) -> None:
    runs = finished_runs([run, stable_diffusion])
    for one in runs:
        assert one.heads == ["diffusion"] and read_network_spec(one.model_config).out_channels == 4
    assert runs[0].model_config["heads"]["segmentation"]["num_classes"] == 11
    assert {**runs[1].config["data"], "size": None} == {**asdict(parse(run / "config.yaml").data), "size": None}
    maps = []
    for one in runs:
        images = labeled_images(one, runs[0], "val")
        features = open_features(one, images, [None, 50], 0, "cpu")
        maps.append(features(images[0]["image"][None], ["a"], 50))
    assert len(maps[1]) == len(maps[0]) > 5
    assert all(torch.isfinite(value).all() for value in maps[1].values())
    with pytest.raises(UserError, match="must be given with a run, whose dataset it is shown on"):
        finished_runs([stable_diffusion])


def test_benchmarked(stable_diffusion: Path) -> None:
    keys = ["--data.name=scenes", "--data.scenes.train_images=4", "--data.scenes.val_images=2"]
    target = BenchmarkTarget(stable_diffusion, keys)
    assert target.kinds == ["training step", "samples"] and target.config.data.size == [16, 16]
