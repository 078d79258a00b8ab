"""Change 1 of 3: the timestep, as sinusoids, an MLP, and a scale and shift in every block."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn


def timestep_sinusoids(
    timestep: Tensor,
    dim: int,
    flip_sin_to_cos: bool = True,
    freq_shift: float = 0.0,
    max_period: float = 10_000.0,
) -> Tensor:
    """Sinusoids of geometrically spaced frequencies (Vaswani et al. 2017, section 3.5; Ho et al. 2020, appendix B).

    Args:
        timestep: (B,) timesteps, in steps of the forward process; fractions are fine.
        dim: number of sinusoids.
        flip_sin_to_cos: cosines first.
        freq_shift: subtracted from the number of frequencies in the exponent's divisor.

    Returns:
        (B, dim) in float32.
    """
    half = dim // 2
    # multiplied, then divided, as diffusers does: a last bit of a frequency is 1e-4 of an angle at timestep 999
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timestep.device)
    angles = timestep.float()[:, None] * torch.exp(exponent / (half - freq_shift))[None]  # (B, half)
    parts = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    embedding = torch.cat(parts, dim=-1)
    return nn.functional.pad(embedding, (0, dim % 2))  # (B, dim)


class TimestepEmbedding(nn.Module):
    """Sinusoids (B, in_dim) -> time embedding (B, dim), by Linear, SiLU, Linear.

    With `condition_dim`, a condition (B, condition_dim) is projected and added to the sinusoids (Luo et al. 2023,
    Latent Consistency Models, appendix F: the guidance scale).
    """

    def __init__(self, in_dim: int, dim: int, condition_dim: int | None = None) -> None:
        super().__init__()
        if condition_dim is not None:
            self.cond_proj = nn.Linear(condition_dim, in_dim, bias=False)
        self.linear_1 = nn.Linear(in_dim, dim)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, sinusoids: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None:
            sinusoids = sinusoids + self.cond_proj(condition)
        return self.linear_2(self.act(self.linear_1(sinusoids)))


class TimeModulation(nn.Module):
    """Scale and shift of a map by the time embedding; zero at the start, so that it begins as the identity.

    h -> h * (1 + scale(temb)) + shift(temb)   (FiLM, Perez et al. 2018; Dhariwal & Nichol 2021, equation of AdaGN)
    """

    def __init__(self, time_dim: int, channels: int) -> None:
        super().__init__()
        self.act = nn.SiLU()
        self.linear = nn.Linear(time_dim, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        scale, shift = rearrange(self.linear(self.act(temb)), "b c -> b c 1 1").chunk(2, dim=1)  # (B, C, 1, 1) each
        return h * (1 + scale) + shift  # (B, C, H, W)
