"""Flow matching along straight lines from image to noise (Lipman et al. 2023; rectified flow, Liu et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.special import ndtr, ndtri

from unetdiff.diffusion.processes.base import QUARTILES, Process

MIN_NUMBER = 1e-6
"""Random numbers are kept this far from 0 and 1, where the normal distribution's quantiles are infinite."""
MIN_SIGMA = 1e-6
"""Least noise level of training, so that the SNR is finite in float32."""


class Flow(Process):
    """x_t = (1 - σ) x_0 + σ ε at the timestep t = T σ; the network predicts the velocity dx_t/dσ = ε - x_0.

    σ is continuous. The shift moves timesteps towards the noise, in training and in sampling, as larger images need it:
    σ becomes shift · σ / (1 + (shift - 1) σ) (Esser et al. 2024, equation 23).

    Args:
        num_timesteps: T; the network sees t in [0, T].
        shift: 1: none.
        logit_mean: of the training σ before the shift, whose logit is normal (Esser et al. 2024, equation 19).
        logit_std: its standard deviation.
    """

    name = "flow"

    def __init__(
        self, num_timesteps: int = 1000, shift: float = 1.0, logit_mean: float = 0.0, logit_std: float = 1.0
    ) -> None:
        self.num_timesteps, self.shift, self.logit_mean, self.logit_std = num_timesteps, shift, logit_mean, logit_std

    def alpha_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        sigma = timesteps.float() / self.num_timesteps
        return 1 - sigma, sigma

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity ε - x_0 (Esser et al. 2024, equation 8, for a_t = 1 - t, b_t = t)."""
        return noise - x0

    def predicted_x0(self, output: Tensor, xt: Tensor, timesteps: Tensor) -> Tensor:
        return xt - self.levels(timesteps)[1] * output

    def x0_error(self, timesteps: Tensor) -> Tensor:
        return self.alpha_sigma(timesteps)[1] ** 2

    def quantile(self, numbers: Tensor) -> Tensor:
        """Logit-normal, then shifted, float32."""
        logit = self.logit_mean + self.logit_std * ndtri(numbers.clamp(MIN_NUMBER, 1 - MIN_NUMBER))
        return self.at_fraction(torch.sigmoid(logit).clamp(min=MIN_SIGMA))

    def quartile(self, timesteps: Tensor) -> Tensor:
        logit = torch.logit(self.fraction(timesteps))
        number = ndtr((logit - self.logit_mean) / self.logit_std)
        return (number * QUARTILES).long().clamp(0, QUARTILES - 1)

    def fraction(self, timesteps: Tensor) -> Tensor:
        sigma = timesteps.float() / self.num_timesteps
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def at_fraction(self, fractions: Tensor) -> Tensor:
        return self.num_timesteps * self.shift * fractions / (1 + (self.shift - 1) * fractions)

    def describe(self) -> dict[str, Any]:
        return {"process": self.name, "num_train_timesteps": self.num_timesteps, "flow.shift": self.shift}
