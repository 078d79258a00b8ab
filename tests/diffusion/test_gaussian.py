"""Data whose best denoiser is known: a Gaussian. Loss, timesteps and samplers, all judged by its closed form.

For x_0 ~ N(μ, Σ) and x_t = α x_0 + σ ε the best prediction is E[x_0 | x_t] = μ + α Σ (α² Σ + σ² I)⁻¹ (x_t - α μ).
"""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from einops import rearrange
from torch import Tensor

from unetdiff.diffusion import objectives
from unetdiff.diffusion.config import DiffusionConfig, NoiseConfig
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.diffusion.processes.load import process_of
from unetdiff.diffusion.schedulers import make_scheduler

C, H, W = 2, 1, 2
DIM = C * H * W
MEAN = torch.tensor([0.6, -0.8, 0.0, 0.3], dtype=torch.float64)
ROOT = torch.tensor(  # Σ = ROOT ROOTᵀ: deviations of 0.6 to 1.2, correlations up to 0.8
    [[1.2, 0, 0, 0], [-0.5, 0.6, 0, 0], [0.3, 0.2, 0.6, 0], [0.6, -0.3, 0.1, 0.5]], dtype=torch.float64
)
COVARIANCE = ROOT @ ROOT.T
EYE = torch.eye(DIM, dtype=torch.float64)
PREDICTIONS = ["epsilon", "sample", "v_prediction"]


def scheduler_of(prediction: str, noise: NoiseConfig):
    return objectives.build_scheduler(DiffusionConfig(prediction_type=prediction, noise=noise))  # type: ignore[arg-type]


def best_denoiser(alphas_cumprod: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
    """output = gain x_t + bias at each timestep: (T, D, D), (T, D) float64."""
    alpha_bar = alphas_cumprod.double()[:, None, None]
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()  # (T, 1, 1)
    x0_gain = alpha * COVARIANCE @ torch.linalg.inv(alpha_bar * COVARIANCE + (1 - alpha_bar) * EYE)
    x0_bias = MEAN - (alpha * x0_gain) @ MEAN  # (T, D)
    noise_gain, noise_bias = (EYE - alpha * x0_gain) / sigma, -(alpha / sigma)[..., 0] * x0_bias
    v_gain, v_bias = alpha * noise_gain - sigma * x0_gain, alpha[..., 0] * noise_bias - sigma[..., 0] * x0_bias
    of = {"epsilon": (noise_gain, noise_bias), "sample": (x0_gain, x0_bias), "v_prediction": (v_gain, v_bias)}
    return of[prediction]


class GaussianDenoiser(ModelMixin, ConfigMixin):
    """The best denoiser as a network that the pipeline takes."""

    @register_to_config
    def __init__(self, in_channels: int = C, sample_size: tuple[int, int] = (H, W)) -> None:
        super().__init__()
        self.register_buffer("gain", torch.zeros(1, DIM, DIM))
        self.register_buffer("bias", torch.zeros(1, DIM))

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        at = int(timestep.round())
        pixels = rearrange(sample, "b c h w -> b (c h w)")
        output = pixels @ self.gain[at].T + self.bias[at]
        return UNet2DOutput(sample=rearrange(output, "b (c h w) -> b c h w", c=C, h=H, w=W))


def data(count: int, generator: torch.Generator) -> Tensor:
    """Images (count, C, H, W) of the Gaussian."""
    flat = MEAN + torch.randn(count, DIM, generator=generator, dtype=torch.float64) @ ROOT.T
    return rearrange(flat.float(), "b (c h w) -> b c h w", c=C, h=H, w=W)


COSINE, ZERO = NoiseConfig(), NoiseConfig(zero_terminal_snr=True)
SAMPLERS = [("ddim", 250, p, COSINE) for p in PREDICTIONS] + [("ddpm", 300, p, COSINE) for p in PREDICTIONS]
SAMPLERS += [(name, 50, "v_prediction", COSINE) for name in ("dpm++", "unipc", "heun")]
SAMPLERS += [("ddim", 250, "v_prediction", ZERO), ("ddpm", 300, "v_prediction", ZERO)]
SAMPLERS += [("ddim", 150, "v_prediction", COSINE)]  # does not divide the 1,000 timesteps
SAMPLERS += [(name, 50, "sample", ZERO) for name in ("dpm++", "unipc", "heun")]


@pytest.mark.parametrize(("name", "steps", "prediction", "noise"), SAMPLERS)
def test_samples_have_the_mean_and_covariance_of_the_data(
    name: str, steps: int, prediction: str, noise: NoiseConfig
) -> None:
    base = scheduler_of(prediction, noise)
    unet = GaussianDenoiser()
    unet.gain, unet.bias = (part.float() for part in best_denoiser(base.alphas_cumprod, prediction))
    base = DDIMScheduler.from_config(base.config, clip_sample=False)  # a Gaussian has no [-1, 1]
    pipeline = GenerationPipeline(unet, make_scheduler(base, name))
    pipeline.set_progress_bar_config(disable=True)
    last = {}
    count = 10_000
    pipeline(
        batch_size=count,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        callback_on_step_end=lambda _, __, ___, state: last.update(state),  # not clipped, as the images are
    )
    flat = rearrange(last["latents"].double(), "b c h w -> b (c h w)")
    white = torch.linalg.solve_triangular(ROOT, (flat - MEAN).T, upper=False)  # (D, count): N(0, I)
    assert white.mean(dim=1).abs().max() < 5 / math.sqrt(count)
    # 5 deviations of a variance, and 3 per cent for the steps (DDPM's posterior variance is that of one known image)
    assert (white.cov() - EYE).abs().max() < 5 * math.sqrt(2 / count) + 0.03


def train(parameters: list[Tensor], predict, scheduler, weighting: str, steps: int = 300) -> None:
    """Our loss, as the task puts it together, minimised on fresh data."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(parameters, lr=0.05, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x0 = data(1024, generator)
        t = process_of(scheduler).sample_timesteps(len(x0), generator)
        noise = objectives.sample_noise(x0.shape, generator)
        xt = scheduler.add_noise(x0, noise, t)
        output = rearrange(predict(rearrange(xt, "b c h w -> b (c h w)"), t), "b (c h w) -> b c h w", c=C, h=H)
        weight = objectives.loss_weight(scheduler, t, weighting)
        loss = objectives.diffusion_loss(output, objectives.target(scheduler, x0, noise, t), weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_training_finds_the_best_denoiser(prediction: str) -> None:
    """A linear map for each of eight timesteps: the least loss is the closed form, whatever the weights."""
    scheduler = scheduler_of(prediction, NoiseConfig(num_train_timesteps=8))
    gain, bias = torch.zeros(8, DIM, DIM, requires_grad=True), torch.zeros(8, DIM, requires_grad=True)
    train(
        [gain, bias],
        lambda x, t: torch.einsum("bij,bj->bi", gain[t], x) + bias[t],
        scheduler,
        "soft_min_snr" if prediction == "epsilon" else "clamped_snr",
    )
    best_gain, best_bias = best_denoiser(scheduler.alphas_cumprod, prediction)
    assert (gain.detach() - best_gain).abs().max() < 0.08
    assert (bias.detach() - best_bias).abs().max() < 0.08


def best_shared(alphas_cumprod: Tensor, prediction: str, weighting: str) -> Tensor:
    """The one (gain, bias) for all timesteps that has the least weighted error, (D, D + 1): weighted least squares."""
    a, s = alphas_cumprod.double().sqrt(), (1 - alphas_cumprod.double()).sqrt()  # (T,)
    ratio = a**2 / s**2
    weight = {"uniform": torch.ones_like(ratio), "min_snr": ratio.clamp(max=5)}[weighting]
    if weighting != "uniform":
        weight = weight / {"epsilon": ratio, "sample": torch.ones_like(ratio), "v_prediction": ratio + 1}[prediction]
    of_x0, of_noise = {
        "epsilon": (torch.zeros_like(a), torch.ones_like(a)),
        "sample": (torch.ones_like(a), torch.zeros_like(a)),
        "v_prediction": (-s, a),
    }[prediction]  # target = of_x0 x_0 + of_noise ε
    second = COVARIANCE + MEAN[:, None] * MEAN  # E[x_0 x_0ᵀ]

    def mean(level: Tensor) -> Tensor:
        return (weight * level).mean()

    inputs = torch.zeros(DIM + 1, DIM + 1, dtype=torch.float64)  # E[w z zᵀ], z = (x_t, 1)
    inputs[:-1, :-1] = mean(a**2) * second + mean(s**2) * EYE
    inputs[:-1, -1] = inputs[-1, :-1] = mean(a) * MEAN
    inputs[-1, -1] = mean(torch.ones_like(a))
    cross = torch.cat([mean(of_x0 * a) * second + mean(of_noise * s) * EYE, (mean(of_x0) * MEAN)[:, None]], dim=1)
    return torch.linalg.solve(inputs, cross.T).T


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", ["uniform", "min_snr"])
def test_training_weighs_the_timesteps_as_it_says(weighting: str, prediction: str) -> None:
    """One linear map for all timesteps cannot be right for each: which errors it makes, the weights decide."""
    scheduler = scheduler_of(prediction, NoiseConfig())
    gain, bias = torch.zeros(DIM, DIM, requires_grad=True), torch.zeros(DIM, requires_grad=True)
    train([gain, bias], lambda x, t: x @ gain.T + bias, scheduler, weighting)
    found = torch.cat([gain, bias[:, None]], dim=1).detach()
    best = {w: best_shared(scheduler.alphas_cumprod, prediction, w) for w in ("uniform", "min_snr")}
    assert (found - best[weighting]).abs().max() < 0.03
    assert (best["uniform"] - best["min_snr"]).abs().max() > 0.06  # so that the wrong weights would fail
