"""The forward process of a diffusers scheduler."""

from __future__ import annotations

from typing import Any

from unetdiff.diffusion.config import NoiseConfig
from unetdiff.diffusion.processes.base import Process
from unetdiff.diffusion.processes.ddpm import DDPM
from unetdiff.diffusion.processes.edm import EDM
from unetdiff.diffusion.processes.flow import Flow

OTHER_PROCESSES = {
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
    "EDMEulerScheduler": "edm",
    "EDMDPMSolverMultistepScheduler": "edm",
}
"""diffusers' schedulers of a single process other than ddpm."""


def process_of(scheduler: Any, noise: NoiseConfig | None = None) -> Process:
    """The process that a scheduler samples from.

    Args:
        scheduler: one of diffusers'.
        noise: the config that the model is trained with, for the distribution of its training timesteps, which no
            scheduler holds; None: the defaults.
    """
    noise, config = noise or NoiseConfig(), scheduler.config
    name = OTHER_PROCESSES.get(type(scheduler).__name__)
    if name == "edm":
        return EDM(
            config.sigma_data,
            config.sigma_min,
            config.sigma_max,
            config.rho,
            config.num_train_timesteps,
            config.prediction_type,
            noise.edm.p_mean,
            noise.edm.p_std,
            config.sigma_schedule == "exponential",
        )
    logits = (noise.flow.logit_mean, noise.flow.logit_std)
    if name == "flow":
        return Flow(config.num_train_timesteps, config.shift, *logits)
    if config.prediction_type == "flow_prediction":  # solvers of several processes
        return Flow(config.num_train_timesteps, config.flow_shift, *logits)
    return DDPM(scheduler)
