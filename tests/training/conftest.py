"""A run that takes seconds: eight-channel networks on a handful of scenes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unetdiff.config.schema import RunConfig
from unetdiff.data import scenes
from unetdiff.data.subset import subset_indices
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


@pytest.fixture
def wrong_masks() -> Callable[[float], AbstractContextManager[None]]:
    """with wrong_masks(fraction): the training images of scenes without a label (data.label_fraction) have class 3."""

    @contextmanager
    def spoil(label_fraction: float) -> Iterator[None]:
        render = scenes.render_scenes

        def spoiled(split: str, config: Any, indices: Any) -> Any:
            images, masks, digits, colors = render(split, config, indices)  # type: ignore[arg-type]
            kept = subset_indices(len(images), label_fraction, 0)
            masks[[i for i in range(len(masks)) if i not in kept]] = 3
            return images, masks if split == "train" else masks.clamp(max=10), digits, colors

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scenes, "render_scenes", spoiled)
            yield

    return spoil
