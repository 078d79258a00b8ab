"""Bits per dimension: how well a denoiser would compress images that it has not seen, by the variational bound.

Ho et al. 2020, equation 5: -log p(x_0) <= L_T + Σ L_{t-1} + L_0, with the posterior's own variance for every step.
Timesteps are counted from 0 here, as in diffusers: x_0 of the paper is the image, its x_1 our timestep 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.special import log_ndtr

from unetdiff.data.transforms import to_model_range
from unetdiff.diffusion.objectives import Scheduler, alpha_sigma, predicted_x0
from unetdiff.evaluation.types import Denoise

HALF_BIN = 1 / 255  # half the distance of two levels in [-1, 1]


@dataclass(frozen=True)
class Bound:
    """The bound's parts for each image, bits per dimension, (B,) float64 on the CPU."""

    prior: Tensor
    """L_T: what is left of the image at the last timestep."""
    steps: Tensor
    """Σ L_{t-1}, estimated."""
    decoder: Tensor
    """L_0: the image's 256 levels from its least noisy version."""

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return self.prior + self.steps + self.decoder


def variational_bound(
    denoise: Denoise, scheduler: Scheduler, images: Tensor, generator: torch.Generator, timesteps: int = 0
) -> Bound:
    """An unbiased estimate of the bound of each image; one draw of noise for each term.

    The steps' timesteps are cut into as many equal strata as `timesteps` says, one is drawn from each for each image,
    and counts for its stratum. L_0 and L_T are always whole.

    Args:
        denoise: the network, told of these images what it is trained to be told; on the generator's device.
        scheduler: the forward process.
        images: uint8 (B, C, H, W).
        generator: of noise and timesteps; where it is, the network is.
        timesteps: of the T - 1 steps, how many to look at; 0, or as many as there are: all.
    """
    device = generator.device
    alpha_bar = scheduler.alphas_cumprod.double().cpu()  # (T,)
    snr = alpha_bar / (1 - alpha_bar)
    x0 = to_model_range(images).cpu()  # (B, C, H, W)
    batch = len(x0)

    def predicted(t: Tensor) -> Tensor:
        """The image that the network sees in x_t, clipped as in sampling; float64 on the CPU."""
        t = t.to(device)
        alpha, sigma = (rearrange(level, "b -> b 1 1 1") for level in alpha_sigma(scheduler, t))
        xt = alpha * x0.to(device) + sigma * torch.randn(x0.shape, generator=generator, device=device)
        return predicted_x0(scheduler, denoise(xt, t).float(), xt, t).cpu().double().clamp(-1, 1)

    steps = torch.zeros(batch, dtype=torch.float64)
    for first, last in strata(len(alpha_bar), timesteps):
        t = torch.randint(first, last, (batch,), generator=generator, device=device).cpu()
        error = reduce((predicted(t) - x0).square(), "b c h w -> b", "mean")
        # KL of two Gaussians of one variance: Kingma et al. 2021 ("Variational diffusion models"), section 4.1
        steps += (last - first) * 0.5 * (snr[t - 1] - snr[t]) * error

    # the first step's posterior has no variance of its own: the next one's, as in Ho et al.'s code
    beta = 1 - alpha_bar[1] / alpha_bar[0]
    sigma = float((beta * (1 - alpha_bar[0]) / (1 - alpha_bar[1])).sqrt())
    mean = predicted(torch.zeros(batch, dtype=torch.int64))
    decoder = -reduce(level_log_likelihood(images.cpu(), mean, sigma), "b c h w -> b", "mean")

    signal = float(alpha_bar[-1])  # KL of N(√ᾱ x_0, 1 - ᾱ) from N(0, 1)
    prior = 0.5 * (signal * reduce(x0.double().square(), "b c h w -> b", "mean") - signal - math.log1p(-signal))
    return Bound(*(nats / math.log(2) for nats in (prior, steps, decoder)))


def strata(num_timesteps: int, count: int) -> list[tuple[int, int]]:
    """Timesteps 1..num_timesteps-1 in `count` almost equal runs [first, last); 0, or too many: each alone."""
    steps = num_timesteps - 1
    count = steps if count == 0 else min(count, steps)
    edges = [1 + round(i * steps / count) for i in range(count + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def level_log_likelihood(levels: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """Log probability, in nats, of the levels under a Gaussian cut into 256 bins (Ho et al. 2020, equation 13).

    The outermost bins are open. Exact far out in the tails as well, where the paper's code stops at 1e-12.

    Args:
        levels: uint8, any shape.
        mean: of the Gaussian, in [-1, 1], float64, the same shape.
        sigma: its standard deviation.
    """
    x = levels.double() / 127.5 - 1
    lower = torch.where(levels == 0, -torch.inf, (x - HALF_BIN - mean) / sigma)
    upper = torch.where(levels == 255, torch.inf, (x + HALF_BIN - mean) / sigma)
    mirrored = lower > 0  # a bin of the upper tail is one of the lower, where small numbers are exact
    low, high = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_low, log_high = log_ndtr(low), log_ndtr(high)
    return log_high + torch.log1p(-torch.exp(log_low - log_high))


def summary(bounds: Sequence[Bound], timesteps: int, of: int) -> dict[str, Any]:
    """Means over all images, the standard error of the total, and what it was measured with.

    Args:
        bounds: a batch each.
        timesteps: looked at for each image, the decoder's included.
        of: timesteps of the process.
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
        "images": len(total),
        "timesteps": f"{timesteps} of {of}",
    }
