"""Denoising diffusion in discrete timesteps (Ho et al. 2020), with any beta schedule and three predictions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unetdiff.diffusion.processes.base import QUARTILES, Process


class DDPM(Process):
    """x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε at the timesteps 0..T-1 of a diffusers scheduler.

    Args:
        scheduler: any of diffusers' with `alphas_cumprod` (T,) and `config.prediction_type`: epsilon, sample or
            v_prediction.
    """

    name = "ddpm"

    def __init__(self, scheduler: Any) -> None:
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod
        self.prediction_type: str = scheduler.config.prediction_type
        self.num_timesteps = len(self.alphas_cumprod)

    def alpha_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        if timesteps.is_floating_point():  # some samplers count in floats
            timesteps = timesteps.round().long()
        alpha_bar = self.alphas_cumprod.to(timesteps.device, torch.float32)[timesteps]  # (B,)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """ε, x_0, or v = α_t ε - σ_t x_0 (Salimans & Ho 2022, section 4)."""
        alpha, sigma = self.levels(timesteps)
        return {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}[self.prediction_type]

    def predicted_x0(self, output: Tensor, xt: Tensor, timesteps: Tensor) -> Tensor:
        alpha, sigma = self.levels(timesteps)
        x0 = {
            "epsilon": lambda: (xt - sigma * output) / alpha,
            "sample": lambda: output,
            "v_prediction": lambda: alpha * xt - sigma * output,
        }
        return x0[self.prediction_type]()

    def x0_error(self, timesteps: Tensor) -> Tensor:
        ratio = self.snr(timesteps)
        return {"epsilon": 1 / ratio, "sample": torch.ones_like(ratio), "v_prediction": 1 / (ratio + 1)}[
            self.prediction_type
        ]

    def quantile(self, numbers: Tensor) -> Tensor:
        """Uniform, int64."""
        return (numbers * self.num_timesteps).long().clamp(max=self.num_timesteps - 1)

    def random_timestep(self, generator: torch.Generator) -> Tensor:
        return torch.randint(self.num_timesteps, (), generator=generator, device=generator.device)

    def quartile(self, timesteps: Tensor) -> Tensor:
        return timesteps * QUARTILES // self.num_timesteps

    def quartile_widths(self) -> list[float]:
        first = [-(-q * self.num_timesteps // QUARTILES) for q in range(QUARTILES + 1)]  # timestep of each quarter
        return [(first[q + 1] - first[q]) / self.num_timesteps for q in range(QUARTILES)]

    def fraction(self, timesteps: Tensor) -> Tensor:
        return timesteps.float() / (self.num_timesteps - 1)

    def at_fraction(self, fractions: Tensor) -> Tensor:
        return (fractions * (self.num_timesteps - 1)).round().long()
