"""Data whose best denoiser is known, x_0 ~ N(μ, s² I), under the processes of continuous timesteps.

The best prediction is E[x_0 | x_t] = μ + α s² (x_t - α μ) / (α² s² + σ²), its error's variance s² σ² / (α² s² + σ²).
"""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from unetdiff.diffusion import objectives
from unetdiff.diffusion.config import DiffusionConfig, EDMConfig, FlowConfig, NoiseConfig
from unetdiff.diffusion.denoising import denoise
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.diffusion.processes.base import Process
from unetdiff.diffusion.processes.load import process_of
from unetdiff.diffusion.scheduler_names import SCHEDULERS
from unetdiff.diffusion.schedulers import init_noise_sigma, make_scheduler, scale_model_input, set_steps, step

MEAN, STD = 0.4, 0.3
NOISES = {
    "flow": NoiseConfig(process="flow"),
    "shift": NoiseConfig(process="flow", flow=FlowConfig(shift=3.0)),
    "edm": NoiseConfig(process="edm", edm=EDMConfig(sigma_data=STD)),
    "edm-other": NoiseConfig(process="edm"),  # not the data's deviation, nor is their mean 0
}
CASES = [(key, name) for key, noise in NOISES.items() for name in SCHEDULERS[noise.process]]


def scheduler_of(key: str):
    return objectives.build_scheduler(DiffusionConfig(noise=NOISES[key]))


def best_x0(process: Process, xt: Tensor, timesteps: Tensor) -> Tensor:
    alpha, sigma = process.levels(timesteps)
    return MEAN + alpha * STD**2 * (xt - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def best_output(process: Process, xt: Tensor, timesteps: Tensor) -> Tensor:
    """The network's output that says the best x_0, by a noise that agrees with it."""
    x0, (alpha, sigma) = best_x0(process, xt, timesteps), process.levels(timesteps)
    return process.target(x0, (xt - alpha * x0) / sigma, timesteps)


class BestDenoiser(ModelMixin, ConfigMixin):
    """The best denoiser as a network that the pipeline takes."""

    @register_to_config
    def __init__(self, in_channels: int = 1, sample_size: int = 2) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        return UNet2DOutput(sample=best_output(self.process, sample, timestep.reshape(-1).expand(len(sample))))


@pytest.mark.parametrize(("key", "name"), CASES)
def test_samples_have_the_mean_and_deviation_of_the_data(key: str, name: str) -> None:
    base = scheduler_of(key)
    unet = BestDenoiser()
    unet.process = process_of(base)
    pipeline = GenerationPipeline(unet, make_scheduler(base, name))
    pipeline.set_progress_bar_config(disable=True)
    count = 4000
    x = pipeline(
        batch_size=count,
        num_inference_steps=100,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    numbers = 4 * count
    assert abs(float(x.mean()) - MEAN) < 5 * STD / math.sqrt(numbers) + 0.005
    tolerance = {"euler": 0.04}.get(name, 0.01)  # of the first order
    assert float(x.std()) / STD == pytest.approx(1, abs=5 / math.sqrt(2 * numbers) + tolerance)


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize(("key", "name"), CASES)
def test_the_exact_target_gives_back_x0(key: str, name: str, steps: int) -> None:
    """A network that knows x_0 leads the sampler along x_t = α_t x_0 + σ_t ε to x_0."""
    scheduler = make_scheduler(scheduler_of(key), name)
    assert type(scheduler).__name__ == SCHEDULERS[NOISES[key].process][name]
    process = process_of(scheduler)
    set_steps(scheduler, steps)
    assert len(scheduler.timesteps) == (2 * steps - 1 if scheduler.order == 2 else steps)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(2, 3, 4, 4, generator=generator) * 2 - 1
    x = torch.randn(x0.shape, generator=generator) * init_noise_sigma(scheduler)
    first = None
    for t in scheduler.timesteps:
        xt = scale_model_input(scheduler, x, t)
        alpha, sigma = process.levels(t.reshape(1))
        noise = (xt - alpha * x0) / sigma
        first = noise if first is None else first
        assert torch.allclose(xt, alpha * x0 + sigma * first, atol=2e-3), float(t)
        x = step(scheduler, process.target(x0, noise, t.expand(2)), t, x)
    assert torch.allclose(x, x0, atol=1e-4)


@pytest.mark.parametrize("key", NOISES)
def test_the_loss_of_the_best_denoiser(key: str) -> None:
    """Our loss, as the task puts it together: no other prediction has less than this, on average over timesteps."""
    scheduler, count = scheduler_of(key), 20_000
    process = process_of(scheduler, NOISES[key])
    generator = torch.Generator().manual_seed(0)
    x0 = MEAN + STD * torch.randn(count, 1, 2, 2, generator=generator)
    noise = objectives.sample_noise(x0.shape, generator)
    timesteps = process.sample_timesteps(count, generator)
    xt = process.add_noise(x0, noise, timesteps)
    weight = objectives.loss_weight(scheduler, timesteps, "uniform")
    target = process.target(x0, noise, timesteps)
    loss = objectives.diffusion_loss(best_output(process, xt, timesteps), target, weight)
    alpha, sigma = process.alpha_sigma(timesteps)
    variance = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)  # of x_0 given x_t
    expected = variance / process.x0_error(timesteps)
    assert float(loss.mean()) == pytest.approx(float(expected.mean()), rel=0.02)
    parts = objectives.loss_by_quartile(
        objectives.sums_by_quartile(loss, timesteps, process), torch.tensor(count), process
    )
    for q, part in enumerate(parts.values()):
        assert float(part) == pytest.approx(float(expected[process.quartile(timesteps) == q].mean()), rel=0.05)


def test_flow_loops_end_where_the_straight_line_does() -> None:
    """With one step, x_0 is the noise minus the velocity (Liu et al. 2023, figure 2)."""
    scheduler = scheduler_of("flow")
    set_steps(scheduler, 1)
    noise, velocity = torch.randn(2, 1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    x0 = denoise(lambda xt, t: velocity, scheduler, noise, scheduler.timesteps)
    assert torch.allclose(x0, noise - velocity)
