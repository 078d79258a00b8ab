"""Workloads are those of the commands: a step of the trainer, masks and images of the pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unetdiff.benchmark.run_benchmark import BenchmarkTarget
from unetdiff.config.reading import parse, to_yaml
from unetdiff.evaluation.types import SamplingConfig
from unetdiff.training import checkpoints
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.trainer import train

TINY = {
    "model.encoder.channels": [8, 16],
    "model.residual.layers_per_block": 1,
    "model.residual.norm_num_groups": 4,
    "model.residual.dropout": 0.1,
    "model.conditioning.cross_attention_dim": 8,
    "model.conditioning.attention_levels": [1],
    "model.conditioning.attention_head_dim": 8,
    "data.scenes.train_images": 8,
    "data.scenes.val_images": 2,
    "diffusion.preview_steps": 1,
    "diffusion.preview_per_class": 1,
    "training.schedule.name": "constant",
    "training.steps": 1,
    "training.batch_size": 4,
}


def config_file(folder: Path, task: str, **overrides: object) -> Path:
    keys = {f"training.{name}": value for name, value in overrides.items()}
    config = parse(overrides=TINY | {"training.output_dir": str(folder / "run")} | keys, task=task)
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder / "config.yaml"


@pytest.mark.parametrize("task", ["segmentation", "joint"])
def test_training_step_is_that_of_the_trainer(task: str, tmp_path: Path) -> None:
    file = config_file(tmp_path, task)
    target = BenchmarkTarget(file)
    before = {name: tensor.clone() for name, tensor in target.task.state_dict().items()}
    target.start("training step", 4, SamplingConfig())()
    run = train(parse(file))
    whole = checkpoints.newest(run)
    assert whole is not None
    trained = BenchmarkTarget(file)
    checkpoints.load_weights(whole / checkpoints.MODEL, trained.task)
    actual, expected = target.task.state_dict(), trained.task.state_dict()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert any(not torch.equal(before[name], expected[name]) for name in expected)


def test_masks_and_samples_of_a_run(tmp_path: Path) -> None:
    target = BenchmarkTarget(train(parse(config_file(tmp_path, "joint"))))
    assert target.kinds == ["training step", "masks", "samples"]
    masks = target.start("masks", 3, SamplingConfig())()
    assert isinstance(masks, list) and [mask.shape for mask in masks] == [(32, 32)] * 3
    images = target.start("samples", 2, SamplingConfig(num_inference_steps=2))()
    assert isinstance(images, torch.Tensor) and images.shape == (2, 3, 32, 32)
    assert torch.equal(images, target.start("samples", 2, SamplingConfig(num_inference_steps=2))())
    assert not torch.equal(
        images, target.start("samples", 2, SamplingConfig(num_inference_steps=2, guidance_scale=5.0))()
    )


def test_class_weights_are_not_computed_and_a_denoiser_has_no_masks(tmp_path: Path) -> None:
    file = config_file(tmp_path, "segmentation")
    target = BenchmarkTarget(file, ["--segmentation.class_weights", "median_frequency"])
    assert target.config.segmentation.class_weights == [1.0] * len(target.train.classes)
    denoiser = BenchmarkTarget(config_file(tmp_path, "diffusion"))
    assert isinstance(denoiser.task, DiffusionTask) and denoiser.kinds == ["training step", "samples"]


def test_samples_of_masks(tmp_path: Path) -> None:
    overrides = ["--diffusion.target", "mask", "--diffusion.condition", "none"]
    target = BenchmarkTarget(config_file(tmp_path, "diffusion"), overrides)
    samples = target.start("samples", 2, SamplingConfig(num_inference_steps=2))()
    assert isinstance(samples, torch.Tensor) and samples.shape[0] == 2
