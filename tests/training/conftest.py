"""A run that takes seconds: eight-channel networks on a handful of scenes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unetdiff.config.reading import parse
from unetdiff.config.schema import RunConfig
from unetdiff.training import checkpoints
from unetdiff.training.trainer import train

TINY: dict[str, Any] = {
    "model.encoder.channels": [8, 16],
    "model.residual.layers_per_block": 1,
    "model.residual.norm_num_groups": 4,
    "model.residual.dropout": 0.1,
    "model.conditioning.cross_attention_dim": 8,
    "model.conditioning.attention_levels": [1],
    "model.conditioning.attention_head_dim": 8,
    "data.scenes.train_images": 24,
    "data.scenes.val_images": 6,
    "diffusion.preview_steps": 2,
    "diffusion.preview_per_class": 1,
    "segmentation.preview_images": 2,
    "training.steps": 6,
    "training.batch_size": 4,
    "training.eval_batch_size": 4,
    "training.log_every": 2,
    "training.validate_every": 3,
    "training.checkpoint_every": 2,
}


@pytest.fixture
def cut_and_resumed() -> Callable[[RunConfig], dict[str, Tensor]]:
    """Train, lose the last checkpoint and go on: the same weights, which are given back by name."""

    def resume(config: RunConfig) -> dict[str, Tensor]:
        run = train(config)
        newest = checkpoints.newest(run)
        assert newest is not None
        before = load_file(newest / checkpoints.MODEL)
        shutil.rmtree(newest)
        config.training.resume = True
        train(config)
        after = load_file(newest / checkpoints.MODEL)
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        return after

    return resume


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., RunConfig]:
    """tiny(task, "training.steps=3", ...): a config whose run directory is below tmp_path."""

    def build(task: str = "joint", directory: str = "run", **overrides: Any) -> RunConfig:
        dotted = {key.replace("__", "."): value for key, value in overrides.items()}
        return parse(None, {**TINY, "training.output_dir": str(tmp_path / directory), **dotted}, task)  # type: ignore[arg-type]

    return build
