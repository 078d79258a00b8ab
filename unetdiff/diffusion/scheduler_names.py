"""Names of the samplers; free of torch, for the command line."""

from __future__ import annotations

from unetdiff.errors import UserError, did_you_mean

SCHEDULERS = {
    "ddpm": {
        "ddim": "DDIMScheduler",
        "ddpm": "DDPMScheduler",
        "dpm++": "DPMSolverMultistepScheduler",
        "unipc": "UniPCMultistepScheduler",
        "heun": "HeunDiscreteScheduler",
    },
    "flow": {
        "euler": "FlowMatchEulerDiscreteScheduler",
        "heun": "FlowMatchHeunDiscreteScheduler",
        "dpm++": "DPMSolverMultistepScheduler",
        "unipc": "UniPCMultistepScheduler",
    },
    "edm": {"euler": "EDMEulerScheduler", "dpm++": "EDMDPMSolverMultistepScheduler"},
}
"""By forward process (`diffusion.noise.process`): name of each sampler on the command line, and diffusers' class. The
first is that of a saved model."""
SCHEDULER_NAMES = tuple(dict.fromkeys(name for names in SCHEDULERS.values() for name in names))
"""All names."""


def check_name(process: str, name: str, key: str = "scheduler") -> None:
    """Raise UserError for a sampler that a forward process does not have.

    Args:
        process: `diffusion.noise.process` of the model.
        name: of the sampler.
        key: of the message.
    """
    if name in SCHEDULERS[process]:
        return
    constraint = f"{key}={name}: must be one of {', '.join(SCHEDULERS[process])}"
    if name in SCHEDULER_NAMES:
        raise UserError(f"{constraint} for a model trained with diffusion.noise.process={process}.")
    raise UserError(f"{constraint}. {did_you_mean(name, SCHEDULERS[process])}".rstrip())
