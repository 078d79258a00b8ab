"""What is timed is what the commands do: a round is a step of the trainer, masks and images of the pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unetdiff.benchmark.own import Sampling, Subject
from unetdiff.config.reading import parse, to_yaml
from unetdiff.training import checkpoints
from unetdiff.training.tasks import DiffusionTask
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
    given = {f"training.{name}": value for name, value in overrides.items()}
    config = parse(overrides=TINY | {"training.output_dir": str(folder / "run")} | given, task=task)
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder / "config.yaml"


@pytest.mark.parametrize("task", ["segmentation", "joint"])
def test_a_round_is_a_step_of_the_trainer(task: str, tmp_path: Path) -> None:
    file = config_file(tmp_path, task)
    subject = Subject(file)
    before = {name: tensor.clone() for name, tensor in subject.task.state_dict().items()}
    subject.start("training step", 4, Sampling())()
    run = train(parse(file))
    whole = checkpoints.newest(run)
    assert whole is not None
    trained = Subject(file)
    checkpoints._load_modules(whole / checkpoints.MODEL, trained.task)
    found, expected = subject.task.state_dict(), trained.task.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(before[name], expected[name]) for name in expected)


def test_masks_and_samples_of_a_run(tmp_path: Path) -> None:
    subject = Subject(train(parse(config_file(tmp_path, "joint"))))
    assert subject.kinds == ["training step", "masks", "samples"]
    masks = subject.start("masks", 3, Sampling())()
    assert isinstance(masks, list) and [mask.shape for mask in masks] == [(32, 32)] * 3
    images = subject.start("samples", 2, Sampling(steps=2))()
    assert isinstance(images, torch.Tensor) and images.shape == (2, 3, 32, 32)
    assert torch.equal(images, subject.start("samples", 2, Sampling(steps=2))())
    assert not torch.equal(images, subject.start("samples", 2, Sampling(steps=2, guidance=5.0))())


def test_computed_class_weights_are_not_counted_and_a_denoiser_has_no_masks(tmp_path: Path) -> None:
    file = config_file(tmp_path, "segmentation")
    subject = Subject(file, ["--segmentation.class_weights", "median_frequency"])
    assert subject.config.segmentation.class_weights == [1.0] * len(subject.train.classes)
    denoiser = Subject(config_file(tmp_path, "diffusion"))
    assert isinstance(denoiser.task, DiffusionTask) and denoiser.kinds == ["training step", "samples"]


def test_samples_of_what_is_no_image(tmp_path: Path) -> None:
    told = ["--diffusion.target", "mask", "--diffusion.condition", "none"]
    subject = Subject(config_file(tmp_path, "diffusion"), told)
    drawn = subject.start("samples", 2, Sampling(steps=2))()
    assert isinstance(drawn, torch.Tensor) and drawn.shape[0] == 2
