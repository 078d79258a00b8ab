"""Runs that an experiment can be given: random tiny networks in whole run directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unetdiff.config import RunConfig, parse, to_yaml
from unetdiff.data import build_dataset
from unetdiff.training.tasks import build_task

SETTINGS = {
    "model.encoder.channels": [8, 16],
    "model.residual.layers_per_block": 1,
    "model.residual.norm_num_groups": 4,
    "model.conditioning.cross_attention_dim": 8,
    "model.conditioning.attention_levels": [1],
    "model.conditioning.attention_head_dim": 8,
    "data.scenes.train_pictures": 24,
    "data.scenes.val_pictures": 12,
    "data.scenes.colors": 2,
}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run("name", task, seed=0, **{"dotted.key": value}): a run that ended without a step."""

    def make(name: str, task: str = "diffusion", seed: int = 0, **overrides: object) -> Path:
        folder = tmp_path / name
        config: RunConfig = parse(None, {**SETTINGS, "training.output_dir": str(folder), **overrides}, task)  # type: ignore[arg-type]
        torch.manual_seed(seed)
        train, val = (build_dataset(config.data, split, task != "diffusion") for split in ("train", "val"))  # type: ignore[arg-type]
        built = build_task(config, train, val)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(to_yaml(config))
        (folder / "summary.json").write_text('{"steps": 1}')
        built.save(folder / "best")
        return folder

    return make
