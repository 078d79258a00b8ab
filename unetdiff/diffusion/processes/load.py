"""The forward process of a diffusers scheduler."""

from __future__ import annotations

from typing import Any

from unetdiff.diffusion.config import NoiseConfig
from unetdiff.diffusion.processes.base import Process
from unetdiff.diffusion.processes.ddpm import DDPM
from unetdiff.diffusion.processes.flow import Flow


def process_of(scheduler: Any, noise: NoiseConfig | None = None) -> Process:
    """The process that a scheduler samples from.

    Args:
        scheduler: one of diffusers'.
        noise: the config that the model is trained with, for the distribution of its training timesteps, which no
            scheduler holds; None: the defaults.
    """
    flow = (noise or NoiseConfig()).flow
    if type(scheduler).__name__.startswith("FlowMatch"):
        config = scheduler.config
        return Flow(config.num_train_timesteps, config.shift, flow.logit_mean, flow.logit_std)
    if scheduler.config.prediction_type == "flow_prediction":  # solvers of several processes
        config = scheduler.config
        return Flow(config.num_train_timesteps, config.flow_shift, flow.logit_mean, flow.logit_std)
    return DDPM(scheduler)
