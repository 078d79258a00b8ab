"""The diffusion task follows the configured noise and process, in training and afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unetdiff.config.schema import RunConfig
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.diffusion.objectives import alpha_sigma
from unetdiff.errors import UserError
from unetdiff.evaluation.config import EvaluationConfig, SweepConfig
from unetdiff.evaluation.denoiser import evaluate_denoiser
from unetdiff.evaluation.load_run import load_run
from unetdiff.evaluation.sampling import as_denoiser, sample
from unetdiff.evaluation.types import EvalSplits, SamplingConfig
from unetdiff.training.draws import whole_batch
from unetdiff.training.tasks.build import build_task
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.trainer import train


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


OTHERS = ["flow", "edm"]


@pytest.mark.parametrize("process", OTHERS)
def test_a_run_of_another_process_trains_resumes_and_is_evaluated(
    process: str, tiny: Callable[..., RunConfig], cut_and_resumed: Callable, tmp_path: Path
) -> None:
    config = tiny("diffusion", diffusion__noise__process=process, diffusion__preview_steps=2, training__steps=4)
    cut_and_resumed(config)  # the same weights as uncut
    run = load_run(Path(config.training.output_dir))
    task = run.diffusion
    assert task is not None and task.forward_process.name == process
    denoiser, splits = as_denoiser(task), EvalSplits("scenes", run.images, run.images, "val")
    assert sample(task, 2, SamplingConfig(3))[0].shape == (2, 3, 32, 32)
    refused = [
        (EvaluationConfig(num_likelihood_images=1), f"num_likelihood_images=1: must be 0 .*process={process}"),
        (EvaluationConfig(sweep=SweepConfig(scheduler=("ddim",))), "sweep.scheduler=ddim: must be one of euler"),
    ]
    for evaluation, message in refused:
        with pytest.raises(UserError, match=message):
            evaluate_denoiser(denoiser, splits, evaluation, SamplingConfig(2), tmp_path, tmp_path)
    other = tiny("diffusion", "other", training__init_from=config.training.output_dir)
    with pytest.raises(UserError, match=f"diffusion.noise.process=ddpm: must be {process}"):
        train(other)


def test_sigma_data_is_measured_or_set(tiny: Callable[..., RunConfig]) -> None:
    noise = {"diffusion.noise.process": "edm", "diffusion.noise.edm.p_mean": 3.0, "diffusion.noise.edm.p_std": 0.01}
    config = tiny("diffusion", **noise)
    data = build_dataset(config.data, "train", False)
    task = build_task(config, data, data)
    x0 = torch.stack([task.pixels(data[i]["image"][None])[0] for i in range(len(data))])
    assert task.scheduler.config.sigma_data == pytest.approx(float(x0.std()), rel=0.01)
    assert config.diffusion.noise.edm.sigma_data is None
    batch = collate([data[i] for i in range(4)])
    noised = task.add_noise(batch, whole_batch(0, 4, "cpu"))
    assert torch.allclose(noised.timesteps * 4, torch.full((4,), 3.0), atol=0.1)  # ln(s)
    assert noised.sample.std() == pytest.approx(1, rel=0.1)  # preconditioned
    config.diffusion.noise.edm.sigma_data = 0.25
    assert build_task(config, data, data).scheduler.config.sigma_data == 0.25


def test_flow_timesteps_follow_the_config(tiny: Callable[..., RunConfig]) -> None:
    noise = {"diffusion.noise.process": "flow", "diffusion.noise.flow.logit_mean": 4.0}
    config = tiny("diffusion", **noise)
    data = build_dataset(config.data, "train", False)
    task = build_task(config, data, data)
    batch = collate([data[i] for i in range(4)])
    noised = task.add_noise(batch, whole_batch(0, 4, "cpu"))
    assert noised.timesteps.min() > 700 and noised.timesteps.is_floating_point()
    x0, sigma = task.pixels(batch["image"]), (noised.timesteps / 1000)[:, None, None, None]
    assert torch.allclose(noised.sample, x0 + sigma * noised.target, atol=1e-5)  # target: ε - x_0
