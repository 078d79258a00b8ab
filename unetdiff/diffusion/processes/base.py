"""What every forward process has, in one notation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from unetdiff.errors import UserError

QUARTILES = 4


class Process(ABC):
    """How x_0 is noised, what the network predicts, and which timesteps it is trained at.

    x_t = α_t x_0 + σ_t ε is the network's input, and the timestep t is the number that it is conditioned on, as
    diffusers' samplers of the process pass both. SNR(t) = α_t² / σ_t².
    """

    name: ClassVar[str]
    """`diffusion.noise.process`."""
    clean_timestep: ClassVar[float | None] = 0.0
    """The timestep of images without noise; None: the process has none."""
    num_timesteps: int
    """T, diffusers' `num_train_timesteps`: the largest number of sampling steps."""

    @abstractmethod
    def alpha_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise level (α_t, σ_t) of timesteps (B,), each (B,) float32 on the timesteps' device."""

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should predict at x_t, (B, C, H, W)."""

    @abstractmethod
    def predicted_x0(self, output: Tensor, xt: Tensor, timesteps: Tensor) -> Tensor:
        """The x_0 predicted by `output` at x_t, (B, C, H, W): the inverse of `target`, not clipped."""

    @abstractmethod
    def x0_error(self, timesteps: Tensor) -> Tensor:
        """The squared error of x_0 for one unit of squared error of the output, (B,): (∂x_0/∂output)²."""

    @abstractmethod
    def quantile(self, numbers: Tensor) -> Tensor:
        """The training timesteps at these quantiles in [0, 1) of their distribution, least noise first, (B,)."""

    @abstractmethod
    def quartile(self, timesteps: Tensor) -> Tensor:
        """The quarter of the training timesteps that each of these falls into, 0 (least noise) to 3, (B,) int64."""

    @abstractmethod
    def fraction(self, timesteps: Tensor) -> Tensor:
        """The fraction of a sampler's steps that is left at these timesteps, 0 clean to 1 noise, any shape, float32."""

    @abstractmethod
    def at_fraction(self, fractions: Tensor) -> Tensor:
        """The timesteps at which these fractions of a sampler's steps are left: the inverse of `fraction`."""

    def random_timestep(self, generator: torch.Generator) -> Tensor:
        """One training timestep, ()."""
        return self.quantile(torch.rand(1, generator=generator, device=generator.device))[0]

    def quartile_widths(self) -> list[float]:
        """The fraction of the training timesteps in each quarter."""
        return [1 / QUARTILES] * QUARTILES

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(α_t, σ_t) of timesteps (B,), each (B, 1, 1, 1)."""
        alpha, sigma = self.alpha_sigma(timesteps)
        return rearrange(alpha, "b -> b 1 1 1"), rearrange(sigma, "b -> b 1 1 1")

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = α_t x_0 + σ_t ε (Ho et al. 2020, equation 4), (B, C, H, W), for timesteps (B,)."""
        alpha, sigma = self.levels(timesteps)
        return alpha * x0 + sigma * noise

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio α_t² / σ_t² of timesteps (B,) -> (B,) float32."""
        alpha, sigma = self.alpha_sigma(timesteps)
        return (alpha / sigma) ** 2

    def sample_timesteps(self, batch: int, generator: torch.Generator, stratified: bool = True) -> Tensor:
        """Random training timesteps (batch,), on the generator's device.

        Stratified: their distribution is cut into `batch` equal strata and each image gets one, so that every batch
        sees every noise level (the same mean as independent draws, less variance).
        """
        numbers = torch.rand(batch, generator=generator, device=generator.device)
        if stratified:
            numbers = (torch.arange(batch, device=generator.device) + numbers) / batch
        return self.quantile(numbers)

    def require_clean_timestep(self, key: str) -> None:
        """Raise UserError for a process without a timestep of clean images.

        key: what needs one, for the message, as key=value.
        """
        if self.clean_timestep is None:
            raise UserError(
                f"{key}: must be of a model trained with diffusion.noise.process=ddpm or flow, which see clean images "
                f"at timestep 0 (got {self.name}). Give another run."
            )

    def describe(self) -> dict[str, Any]:
        """What fixes the process and the prediction, as JSON, for the comparison of two models."""
        return {"process": self.name}
