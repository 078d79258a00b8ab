"""Negative log-likelihood of images under a denoiser, in bits per dimension, by the variational bound.

Ho et al. 2020, equation 5: -log p(x_0) <= L_T + Σ L_{t-1} + L_0, with the posterior variance at every step.
Timesteps are counted from 0, as in diffusers: the paper's x_1 is timestep 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import reduce
from torch import Tensor
from torch.special import log_ndtr

from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.processes.ddpm import DDPM
from unetdiff.evaluation.types import Denoise

HALF_BIN = 1 / 255  # half the distance of two 8-bit levels in [-1, 1]


@dataclass(frozen=True)
class VariationalBound:
    """The terms of the bound for each image, bits per dimension, (B,) float64 on the CPU."""

    prior: Tensor
    """L_T: divergence of the last timestep from N(0, 1)."""
    steps: Tensor
    """Σ L_{t-1}, an estimate."""
    decoder: Tensor
    """L_0: discretized likelihood of the 256 levels given x_1."""

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return self.prior + self.steps + self.decoder


def variational_bound(
    denoise: Denoise, scheduler: Any, images: Tensor, generator: torch.Generator, timesteps: int = 0
) -> VariationalBound:
    """Unbiased estimate of the bound of each image, with one noise sample for each term.

    Stratified over timesteps: they are split into `timesteps` equal strata, and one is drawn from each for each image.
    L_T has a closed form; L_0 is always included.

    Args:
        denoise: the network with the conditions of these images; on the generator's device.
        scheduler: of the ddpm process.
        images: uint8 (B, C, H, W).
        generator: for noise and timesteps; its device is the network's.
        timesteps: number of strata of the T - 1 steps; 0, or more than there are: every step.
    """
    device = generator.device
    process = DDPM(scheduler)
    alpha_bar = process.alphas_cumprod.double().cpu()  # (T,)
    snr = alpha_bar / (1 - alpha_bar)
    x0 = to_model_range(images).cpu()  # (B, C, H, W)
    batch = len(x0)

    def predict_x0(t: Tensor) -> Tensor:
        """Predicted x_0 from x_t at timesteps (B,), clipped as in sampling; float64 on the CPU."""
        t = t.to(device)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        xt = process.add_noise(x0.to(device), noise, t)
        return process.predicted_x0(denoise(xt, t).float(), xt, t).cpu().double().clamp(-1, 1)

    steps = torch.zeros(batch, dtype=torch.float64)
    for first, last in strata(len(alpha_bar), timesteps):
        t = torch.randint(first, last, (batch,), generator=generator, device=device).cpu()
        error = reduce((predict_x0(t) - x0).square(), "b c h w -> b", "mean")
        # KL of two Gaussians of one variance: Kingma et al. 2021 ("Variational diffusion models"), section 4.1
        steps += (last - first) * 0.5 * (snr[t - 1] - snr[t]) * error

    # the posterior variance is 0 at the first step; use that of the second, as Ho et al.'s code does
    beta = 1 - alpha_bar[1] / alpha_bar[0]
    sigma = float((beta * (1 - alpha_bar[0]) / (1 - alpha_bar[1])).sqrt())
    mean = predict_x0(torch.zeros(batch, dtype=torch.int64))
    decoder = -reduce(discretized_log_likelihood(images.cpu(), mean, sigma), "b c h w -> b", "mean")

    signal = float(alpha_bar[-1])  # KL of N(√ᾱ x_0, 1 - ᾱ) from N(0, 1)
    prior = 0.5 * (signal * reduce(x0.double().square(), "b c h w -> b", "mean") - signal - math.log1p(-signal))
    return VariationalBound(*(nats / math.log(2) for nats in (prior, steps, decoder)))


def strata(num_timesteps: int, count: int) -> list[tuple[int, int]]:
    """Split timesteps 1..num_timesteps-1 into `count` almost equal intervals [first, last); 0: one each."""
    steps = num_timesteps - 1
    count = steps if count == 0 else min(count, steps)
    edges = [1 + round(i * steps / count) for i in range(count + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def discretized_log_likelihood(levels: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """Log probability, in nats, of 8-bit levels under a discretized Gaussian (Ho et al. 2020, equation 13).

    The outermost bins are open. Exact in the tails too, where the paper's code clamps at 1e-12.

    Args:
        levels: uint8, any shape.
        mean: of the Gaussian, in [-1, 1], float64, the same shape.
        sigma: its standard deviation.
    """
    x = levels.double() / 127.5 - 1
    lower = torch.where(levels == 0, -torch.inf, (x - HALF_BIN - mean) / sigma)
    upper = torch.where(levels == 255, torch.inf, (x + HALF_BIN - mean) / sigma)
    mirrored = lower > 0  # mirror the upper tail to the lower one, where small probabilities are exact
    low, high = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_low, log_high = log_ndtr(low), log_ndtr(high)
    return log_high + torch.log1p(-torch.exp(log_low - log_high))


def summarize(bounds: Sequence[VariationalBound], timesteps: int, num_timesteps: int) -> dict[str, Any]:
    """Means over all images, the standard error of the total, and the numbers of images and timesteps.

    Args:
        bounds: one for each batch.
        timesteps: evaluated for each image, including that of the decoder.
        num_timesteps: timesteps of the process.
    """
    total = torch.cat([bound.total for bound in bounds])
    means = {
        name: torch.cat(parts).mean().item()
        for name, parts in (
            ("prior", [bound.prior for bound in bounds]),
            ("steps", [bound.steps for bound in bounds]),
            ("decoder", [bound.decoder for bound in bounds]),
        )
    }
    error = (total.std() / len(total) ** 0.5).item() if len(total) > 1 else math.nan
    return {
        "bits_per_dimension": total.mean().item(),
        "standard_error": error,
        **means,
        "num_images": len(total),
        "timesteps": f"{timesteps} of {num_timesteps}",
    }
