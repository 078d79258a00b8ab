"""The training batches of the diffusion task follow the configured noise."""

from __future__ import annotations

from collections.abc import Callable

import torch

from unetdiff.config.schema import RunConfig
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.diffusion.objectives import alpha_sigma
from unetdiff.training.draws import whole_batch
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.diffusion import DiffusionTask


def test_offset_noise_reaches_the_training_batch_and_its_target(tiny: Callable[..., RunConfig]) -> None:
    noises = []
    for strength in (0.0, 2.0):
        config = tiny("diffusion", diffusion__offset_noise=strength, diffusion__prediction_type="epsilon")
        data = build_dataset(config.data, "train", False)
        task = build_task(config, data, data)
        assert isinstance(task, DiffusionTask)
        batch = collate([data[i] for i in range(4)])
        noised = task.add_noise(batch, whole_batch(0, 4, "cpu"))
        alpha, sigma = (level[:, None, None, None] for level in alpha_sigma(task.scheduler, noised.timesteps))
        inside = (noised.sample - alpha * task.pixels(batch["image"])) / sigma
        assert torch.allclose(inside, noised.target, atol=1e-2)  # σ is 0.006 at the first timestep
        noises.append(noised.target)
    added = noises[1] - noises[0]  # (B, C, H, W)
    assert torch.allclose(added, added[..., :1, :1].expand_as(added), atol=1e-5)
    assert 1 < added[..., 0, 0].std() < 3  # twelve draws of deviation 2
