"""Classifier-free guidance (Ho & Salimans 2022), both passes in one batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from einops import rearrange, repeat
from torch import Tensor

from unetdiff.diffusion.conditioning.base import Conditioning, concat_conditioning
from unetdiff.diffusion.processes.base import Process
from unetdiff.errors import UserError

Predict = Callable[[Tensor, Tensor, "Conditioning | None"], Tensor]
"""(sample (B, C, H, W), timestep () or (B,), conditioning) -> output (B, C, H, W)."""


@dataclass(frozen=True)
class Guidance:
    """Strength of classifier-free guidance.

    Raises:
        UserError: a scale that is not finite, rescaling outside [0, 1], an interval outside [0, 1], or one that ends
            before it starts.
    """

    scale: float = 2.0
    """1: none, one pass per step; larger: more typical of the condition, less varied."""
    rescale: float = 0.0
    """0 to 1: against the overexposure of a large scale (Lin et al. 2024, section 3.4)."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Fractions of the timesteps, 0 clean to 1 noise, between which there is guidance (Kynkäänniemi et al. 2024)."""

    def __post_init__(self) -> None:
        if not _is_number(self.scale):
            raise UserError(f"guidance_scale={self.scale}: must be a finite number.")
        if not _is_number(self.rescale) or not 0 <= self.rescale <= 1:
            raise UserError(f"guidance_rescale={self.rescale}: must be in [0, 1].")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise UserError(
                f"guidance_interval={self.interval}: must be two increasing fractions in [0, 1], e.g. (0.2, 0.8)."
            )

    @classmethod
    def of(cls, guidance: float | Guidance) -> Guidance:
        """A scale alone, or all of it."""
        return guidance if isinstance(guidance, Guidance) else cls(guidance)

    def scale_at(self, timestep: Tensor, process: Process) -> float:
        """The scale at a timestep, (); 1 outside the interval."""
        return self.scale if in_guidance_interval(timestep, process, self.interval) else 1.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def classifier_free_guidance(
    predict: Predict,
    sample: Tensor,
    timestep: Tensor,
    conditional: Conditioning | None,
    unconditional: Conditioning | None,
    guidance_scale: float,
    rescale: float = 0.0,
    both: Conditioning | None = None,
) -> Tensor:
    """The guided output (Ho & Salimans 2022, equation 6).

    output = unconditional + guidance_scale · (conditional - unconditional). With a scale of 1, or without an
    unconditional input, it is the conditional output in one pass.

    Args:
        predict: the network.
        sample: x_t, (B, C, H, W).
        timestep: the same for all, () or (1,), or one per image, (B,).
        conditional: of the condition, or None.
        unconditional: of the null condition, or of the negative prompt, or None.
        guidance_scale: 1 = conditional output, larger = more typical of the condition.
        rescale: 0 to 1, how far the output's deviation is restored to the conditional one's (`rescaled`).
        both: unconditional and conditional concatenated, where the caller keeps it from step to step.

    Returns:
        (B, C, H, W)
    """
    if guidance_scale == 1 or conditional is None or unconditional is None:
        return predict(sample, timestep, conditional)
    twice = repeat(sample, "b c h w -> (two b) c h w", two=2)
    if timestep.ndim == 1 and timestep.shape[0] > 1:
        timestep = repeat(timestep, "b -> (two b)", two=2)
    outputs = predict(twice, timestep, both or concat_conditioning(unconditional, conditional))
    without, with_condition = rearrange(outputs, "(two b) c h w -> two b c h w", two=2)
    output = without + guidance_scale * (with_condition - without)
    return rescaled(output, with_condition, rescale) if rescale else output


def in_guidance_interval(timestep: Tensor, process: Process, interval: tuple[float, float]) -> bool:
    """Whether a timestep, (), lies in an interval of fractions of the sampler's steps, 0 clean to 1 noise.

    Guidance at the noisiest timesteps costs variety; at the cleanest it has no effect (Kynkäänniemi et al. 2024).
    """
    return interval[0] <= float(process.fraction(timestep)) <= interval[1]


def rescaled(guided: Tensor, conditional: Tensor, strength: float) -> Tensor:
    """Each guided output with its standard deviation moved towards the conditional output's, all (B, C, H, W).

    Lin et al. 2024, equations 15 and 16.
    """
    factor = conditional.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
    return guided * (strength * factor + 1 - strength)
