"""Classifier-free guidance (Ho & Salimans 2022), both passes in one batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange, repeat

Denoise = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]
"""(sample (B, C, H, W), timestep () or (B,), context (B, tokens, dim) or None) -> output (B, C, H, W)."""


def guided(
    denoise: Denoise,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    conditional: torch.Tensor | None,
    null: torch.Tensor | None,
    guidance_scale: float,
    rescale: float = 0.0,
) -> torch.Tensor:
    """The denoiser's output, moved away from what it says without the condition.

    output = null + guidance_scale · (conditional - null). A scale of 1, or no condition to move away from, is
    the conditional output itself and costs one pass.

    Args:
        denoise: the network.
        sample: x_t, (B, C, H, W).
        timestep: one for all, () or (1,), or one for each picture, (B,).
        conditional: context tokens of the condition, (B, tokens, dim), or None.
        null: context tokens of no condition, the same shape, or None.
        guidance_scale: 1 = conditional alone, larger = more typical of the condition.
        rescale: 0 to 1, how far the output's deviation is put back to the conditional one's (`rescaled`).

    Returns:
        (B, C, H, W)
    """
    if guidance_scale == 1 or conditional is None or null is None:
        return denoise(sample, timestep, conditional)
    both = repeat(sample, "b c h w -> (two b) c h w", two=2)
    if timestep.ndim == 1 and timestep.shape[0] > 1:
        timestep = repeat(timestep, "b -> (two b)", two=2)
    output = denoise(both, timestep, torch.cat([null, conditional]))
    without, given = rearrange(output, "(two b) c h w -> two b c h w", two=2)
    output = without + guidance_scale * (given - without)
    return rescaled(output, given, rescale) if rescale else output


def rescaled(guided: torch.Tensor, conditional: torch.Tensor, strength: float) -> torch.Tensor:
    """Guidance without overexposure: each output's deviation is put back towards the conditional output's.

    Lin et al. 2024, eq. 15 and 16. All (B, C, H, W).
    """
    factor = conditional.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
    return guided * (strength * factor + 1 - strength)
