"""EDM: noise of any level, and a network preconditioned to unit variance (Karras et al. 2022)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.special import ndtr, ndtri

from unetdiff.diffusion.processes.base import QUARTILES, Process
from unetdiff.diffusion.processes.flow import MIN_NUMBER


class EDM(Process):
    """Images with noise of deviation s, x_0 + s ε, scaled to unit variance; the timestep is c_noise = ln(s) / 4.

    The paper's denoiser is D = c_skip x + c_out F(c_in x, c_noise) (equation 7 and table 1). With r = √(s² + d²), d the
    deviation of the data, the input c_in x is x_t with α_t = 1/r and σ_t = s/r, and F is trained to be -v, where v =
    α ε - σ x_0 is that of the data scaled to unit variance: v = (d ε - s x_0 / d) / r. diffusers' EDM schedulers read
    F under prediction_type epsilon, v under v_prediction. The loss weight λ(s) makes the weight of F uniform (table 1).

    Args:
        sigma_data: d, the standard deviation of the data.
        sigma_min: least s of sampling.
        sigma_max: largest s of sampling.
        rho: of the sampler's steps (equation 5).
        num_timesteps: largest number of sampling steps.
        prediction_type: v_prediction or epsilon.
        p_mean: mean of the training ln(s), which is normal (table 1).
        p_std: its standard deviation.
        exponential: the sampler's steps are even in ln(s), not in s^(1/rho).
    """

    name = "edm"
    clean_timestep = None

    def __init__(
        self,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        num_timesteps: int = 1000,
        prediction_type: str = "v_prediction",
        p_mean: float = -1.2,
        p_std: float = 1.2,
        exponential: bool = False,
    ) -> None:
        self.sigma_data, self.sigma_min, self.sigma_max, self.rho = sigma_data, sigma_min, sigma_max, rho
        self.num_timesteps, self.prediction_type = num_timesteps, prediction_type
        self.p_mean, self.p_std, self.exponential = p_mean, p_std, exponential
        self.sign = 1.0 if prediction_type == "v_prediction" else -1.0

    def alpha_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        s = (4 * timesteps.float()).exp()
        r = (s**2 + self.sigma_data**2).sqrt()
        return 1 / r, s / r

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v of the data scaled to unit variance, or F = -v."""
        alpha, sigma = self.levels(timesteps)
        return self.sign * (alpha * self.sigma_data * noise - sigma / self.sigma_data * x0)

    def predicted_x0(self, output: Tensor, xt: Tensor, timesteps: Tensor) -> Tensor:
        """D (equation 7): c_skip x = α d² x_t, and c_out = σ d."""
        alpha, sigma = self.levels(timesteps)
        return alpha * self.sigma_data**2 * xt - self.sign * sigma * self.sigma_data * output

    def x0_error(self, timesteps: Tensor) -> Tensor:
        return (self.alpha_sigma(timesteps)[1] * self.sigma_data) ** 2  # c_out²

    def quantile(self, numbers: Tensor) -> Tensor:
        """ln(s) is normal, float32."""
        return (self.p_mean + self.p_std * ndtri(numbers.clamp(MIN_NUMBER, 1 - MIN_NUMBER))) / 4

    def quartile(self, timesteps: Tensor) -> Tensor:
        number = ndtr((4 * timesteps.float() - self.p_mean) / self.p_std)
        return (number * QUARTILES).long().clamp(0, QUARTILES - 1)

    def fraction(self, timesteps: Tensor) -> Tensor:
        low, high = self._ramp(math.log(self.sigma_min)), self._ramp(math.log(self.sigma_max))
        log_s = 4 * timesteps.float()
        ramp = log_s if self.exponential else (log_s / self.rho).exp()
        return ((ramp - low) / (high - low)).clamp(0, 1)

    def at_fraction(self, fractions: Tensor) -> Tensor:
        low, high = self._ramp(math.log(self.sigma_min)), self._ramp(math.log(self.sigma_max))
        ramp = low + fractions * (high - low)
        return (ramp if self.exponential else self.rho * torch.log(ramp)) / 4

    def _ramp(self, log_s: float) -> float:
        return log_s if self.exponential else math.exp(log_s / self.rho)

    def describe(self) -> dict[str, Any]:
        return {
            "process": self.name,
            "num_train_timesteps": self.num_timesteps,
            "prediction_type": self.prediction_type,
            "edm.sigma_data": self.sigma_data,
        }
