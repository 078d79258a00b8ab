"""Classifier-free guidance (Ho & Salimans 2022), both passes in one batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange, repeat

from unetdiff.diffusion.conditioning.base import Conditioning, concat_conditioning

Denoise = Callable[[torch.Tensor, torch.Tensor, "Conditioning | None"], torch.Tensor]
"""(sample (B, C, H, W), timestep () or (B,), context or None) -> output (B, C, H, W)."""


def classifier_free_guidance(
    denoise: Denoise,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    conditional: Conditioning | None,
    null: Conditioning | None,
    guidance_scale: float,
    rescale: float = 0.0,
    both: Conditioning | None = None,
) -> torch.Tensor:
    """The denoiser's output, moved away from what it says without the condition.

    output = null + guidance_scale · (conditional - null). A scale of 1, or no condition to move away from, is
    the conditional output itself and costs one pass.

    Args:
        denoise: the network.
        sample: x_t, (B, C, H, W).
        timestep: one for all, () or (1,), or one for each image, (B,).
        conditional: context of the condition, or None.
        null: context of no condition, or of what is not wanted (a negative prompt), or None.
        guidance_scale: 1 = conditional alone, larger = more typical of the condition.
        rescale: 0 to 1, how far the output's deviation is put back to the conditional one's (`rescaled`).
        both: null and conditional joined, where the caller keeps that from step to step.

    Returns:
        (B, C, H, W)
    """
    if guidance_scale == 1 or conditional is None or null is None:
        return denoise(sample, timestep, conditional)
    twice = repeat(sample, "b c h w -> (two b) c h w", two=2)
    if timestep.ndim == 1 and timestep.shape[0] > 1:
        timestep = repeat(timestep, "b -> (two b)", two=2)
    output = denoise(twice, timestep, both or concat_conditioning(null, conditional))
    without, given = rearrange(output, "(two b) c h w -> two b c h w", two=2)
    output = without + guidance_scale * (given - without)
    return rescaled(output, given, rescale) if rescale else output


def in_guidance_interval(timestep: torch.Tensor, num_train_timesteps: int, interval: tuple[float, float]) -> bool:
    """Whether guidance is on at a timestep, (): the interval is of shares of all timesteps, 0 clean to 1 noise.

    Guidance at the noisiest timesteps costs variety, at the cleanest it does nothing (Kynkäänniemi et al. 2024).
    """
    share = float(timestep) / (num_train_timesteps - 1)
    return interval[0] <= share <= interval[1]


def rescaled(classifier_free_guidance: torch.Tensor, conditional: torch.Tensor, strength: float) -> torch.Tensor:
    """Guidance without overexposure: each output's deviation is put back towards the conditional output's.

    Lin et al. 2024, eq. 15 and 16. All (B, C, H, W).
    """
    factor = conditional.std(dim=(1, 2, 3), keepdim=True) / classifier_free_guidance.std(dim=(1, 2, 3), keepdim=True)
    return classifier_free_guidance * (strength * factor + 1 - strength)
