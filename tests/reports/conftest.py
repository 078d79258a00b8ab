"""Run directories as the trainer leaves them, with tiny random networks: what the page is made from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unetdiff.config.reading import to_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import TrainingConfig
from unetdiff.data.config import DataConfig, ScenesConfig
from unetdiff.data.scenes import DIGITS, PALETTE
from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.models.config import (
    ConditioningConfig,
    DiffusionHeadConfig,
    EncoderConfig,
    HeadsConfig,
    ModelConfig,
    SegmentationHeadConfig,
)
from unetdiff.models.unet import UNet
from unetdiff.segmentation.pipeline import SegmentationPipeline

MakeRun = Callable[..., Path]


def fake_run(
    path: Path,
    task: str = "joint",
    mean_iou: float = 0.8,
    minutes: float = 3.0,
    weights: bool = True,
    finished: bool = True,
    digits: int = 1,
    channels: tuple[int, ...] = (8, 16),
    seed: int = 0,
    size: list[int] | None = None,
) -> Path:
    """A run directory of `task` with made-up metrics and, with `weights`, a random network in best/."""
    heads = HeadsConfig(
        segmentation=SegmentationHeadConfig(11) if task != "diffusion" else None,
        diffusion=DiffusionHeadConfig(3) if task != "segmentation" else None,
    )
    config = RunConfig(
        task=task,  # type: ignore[arg-type]
        model=ModelConfig(
            sample_size=size or 32,
            encoder=EncoderConfig(channels=list(channels)),
            conditioning=ConditioningConfig(cross_attention_dim=16, attention_levels=[1], attention_head_dim=8),
            heads=heads,
        ),
        data=DataConfig(size=size, scenes=ScenesConfig(train_images=60, val_images=40, digits=digits)),
        diffusion=DiffusionConfig(preview_steps=4),
        training=TrainingConfig(output_dir=str(path), seed=seed, steps=200),
    )
    torch.manual_seed(seed)
    unet = UNet(**config.model.network()).eval()
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(to_yaml(config))
    lines, validations = [], []
    for step in range(20, 201, 20):
        share = step / 200
        base = {"step": step, "images": step * 32, "minutes": minutes * share}
        train = {"kind": "train", **base, "loss": 2 * math.exp(-3 * share), "lr": 1e-3, "images_per_second": 100.0}
        if task != "diffusion":
            train["segmentation/loss"] = 1.5 * math.exp(-3 * share) + 0.05 * math.sin(step)
        if task != "segmentation":
            train["diffusion/loss"] = 0.5 * math.exp(-2 * share) + 0.1
        lines.append(train)
        if step % 100 == 0:
            validation = {"kind": "validation", **base}
            if task != "diffusion":
                validation["segmentation/mean_iou"] = mean_iou * share
                validation["segmentation/pixel_accuracy"] = 0.9 + 0.08 * share
            if task != "segmentation":
                validation["diffusion/loss"] = 0.2 - 0.1 * share
            validations.append(validation)
            lines.append(validation)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        summary = {
            "task": task,
            "steps": 200,
            "images": 6400,
            "minutes": minutes,
            "images_per_second": 6400 / (60 * minutes),
            "parameters": unet.parameter_counts(),
            "best": {"metric": "m", "value": 1.0, "step": 200},
            "final": {k: v for k, v in validations[-1].items() if "/" in k},
            "device": "cpu",
            "threads": 2,
            "precision": "bf16",
            "versions": {"torch": "2.0", "unetdiff": "0.1.0"},
            "command": f"unetdiff train {task} configs/{task}/scenes.yaml",
        }
        (path / "summary.json").write_text(json.dumps(summary))
    if weights:
        save_model(unet, config, path / "best")
    return path


def save_model(unet: UNet, config: RunConfig, directory: Path) -> None:
    """A model directory with both layouts, as far as the network has the heads."""
    if config.task != "segmentation":
        conditioner = ClassConditioner(10, 16, labels=list(DIGITS))
        GenerationPipeline(unet, build_scheduler(config.diffusion), conditioner).save_pretrained(directory)
    if config.task != "diffusion":
        classes = ["background", *DIGITS]
        SegmentationPipeline(unet, classes, PALETTE.tolist(), config.data.size).save_pretrained(directory)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run("name", task=..., ...)`: see `fake_run`."""
    return lambda name="run", **options: fake_run(tmp_path / name, **options)
