"""Sampling with another of diffusers' schedulers.

diffusers is imported inside the function: the command line reads the names without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unetdiff.errors import UserError, nearest

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}
"""Samplers by the name that a user gives, and diffusers' class for each."""


def swap(scheduler: SchedulerMixin, name: str) -> SchedulerMixin:
    """The sampler `name` for the forward process of `scheduler`, with trailing timesteps.

    Args:
        scheduler: what a model was saved with.
        name: one of `SCHEDULERS`.

    Raises:
        UserError: an unknown name.
    """
    import diffusers

    if name not in SCHEDULERS:
        near = nearest(name, SCHEDULERS)
        raise UserError(f"scheduler: '{name}' is not one of {', '.join(SCHEDULERS)}; nearest: {near}")
    config = scheduler.config  # type: ignore[attr-defined]
    return getattr(diffusers, SCHEDULERS[name]).from_config(config, timestep_spacing="trailing")
