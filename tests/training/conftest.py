"""A run that takes seconds: eight-channel networks on a handful of scenes."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unetdiff.config.schema import RunConfig
from unetdiff.training import checkpoints
from unetdiff.training.trainer import train


@pytest.fixture
def cut_and_resumed() -> Callable[[RunConfig], dict[str, Tensor]]:
    """Train, delete the last checkpoint, resume: the same weights, returned by name."""

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
