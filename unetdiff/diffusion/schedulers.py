"""Samplers: diffusers' schedulers of the trained process, their timesteps and their steps."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from unetdiff.diffusion.processes.edm import EDM
from unetdiff.diffusion.processes.flow import Flow
from unetdiff.diffusion.processes.load import process_of
from unetdiff.diffusion.scheduler_names import SCHEDULERS, check_name
from unetdiff.errors import UserError

SOLVERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""diffusers' schedulers that sample from several processes."""
EDM_KEYS = ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "num_train_timesteps", "prediction_type", "rho")
"""Keys that diffusers' EDM schedulers share."""
SIGMA_MAX = 80.0
"""Largest σ/α of heun for ddpm (Karras et al. 2022, table 1)."""


def make_scheduler(scheduler: SchedulerMixin, name: str) -> SchedulerMixin:
    """The sampler `name` for the forward process of `scheduler`, with trailing timesteps.

    heun for ddpm works in σ/α, which is 20,000 at the end of the cosine schedule and infinite with zero terminal SNR. A
    step from there has a large error (for data of deviation 0.5, ten steps give 10× the deviation) and exceeds float32,
    so its σ/α is clamped to `SIGMA_MAX`. The other solvers handle zero terminal SNR themselves.

    Args:
        scheduler: of a saved model.
        name: one of `SCHEDULERS` for the model's process.

    Raises:
        UserError: an unknown name, or one that the process does not have; zero terminal SNR with epsilon prediction,
            where x_0 does not follow from ε at the last timestep (Lin et al. 2024, section 3.3).
    """
    source: Any = scheduler
    process = process_of(scheduler)
    check_name(process.name, name)
    sampler_class = getattr(diffusers, SCHEDULERS[process.name][name])
    if isinstance(process, Flow):
        options: dict[str, Any] = {"shift": process.shift}
        if name in ("dpm++", "unipc"):
            options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": process.shift}
        return sampler_class.from_config({"num_train_timesteps": process.num_timesteps, **options})
    if isinstance(process, EDM):
        shared = {key: value for key, value in source.config.items() if key in EDM_KEYS}
        return sampler_class.from_config(shared)
    zero = source.config.get("rescale_betas_zero_snr", False)
    if zero and source.config.prediction_type == "epsilon":
        raise UserError(
            f"scheduler={name}: must sample v_prediction or sample where the terminal SNR is zero (got epsilon). Train "
            "with diffusion.prediction_type=v_prediction."
        )
    options = {"timestep_spacing": "trailing"}
    if name == "heun" and zero:  # it has no option for zero terminal SNR
        options["trained_betas"] = source.betas.tolist()
    sampler = sampler_class.from_config(source.config, **options)
    if name == "heun":
        sampler.alphas_cumprod = sampler.alphas_cumprod.clamp(min=1 / (1 + SIGMA_MAX**2))
    return sampler


def set_steps(scheduler: SchedulerMixin, steps: int, device: torch.device | str | None = None) -> None:
    """`scheduler.set_timesteps`, with timesteps that are trailing and as exact as the noise levels.

    - diffusers takes ddpm's timesteps from numpy's arange with a step of T / steps, which for some numbers of steps
      (61, 103 and 60 others of T = 1,000) rounds to one more: -1, where neither network nor schedule is defined.
    - Its flow matching schedulers end with σ = 1 / T and then 0, so that the last step does nothing. Here n steps are
      at σ = 1, (n - 1) / n, ..., 1 / n before the shift, as in the pipelines of Stable Diffusion 3's successors.
    - Its solvers truncate the timesteps of flow matching to integers.
    """
    sampler: Any = scheduler
    process = process_of(scheduler)
    if isinstance(process, Flow):
        _set_flow_steps(sampler, process, steps, device)
        return
    sampler.set_timesteps(steps, device=device)
    defined = sampler.timesteps >= 0
    if isinstance(process, EDM) or bool(defined.all()):  # edm's are ln(s) / 4, of any sign
        return
    if "sigmas" in vars(sampler):  # the solvers keep one for each timestep, and a 0 after the last
        sampler.sigmas = torch.cat([sampler.sigmas[:-1][defined.cpu()], sampler.sigmas[-1:]])
    sampler.timesteps = sampler.timesteps[defined]
    sampler.num_inference_steps = steps


def _set_flow_steps(sampler: Any, process: Flow, steps: int, device: torch.device | str | None) -> None:
    sampler.set_timesteps(steps, device=device)
    if type(sampler).__name__ in SOLVERS:  # their first σ is just below 1, where they divide by 1 - σ
        sampler.timesteps = sampler.sigmas[:-1].to(sampler.timesteps.device) * process.num_timesteps
        return
    timesteps = process.at_fraction(torch.arange(steps, 0, -1, device=device) / steps)  # (n,)
    sigmas = torch.cat([timesteps / process.num_timesteps, timesteps.new_zeros(1)])
    if sampler.order == 2:  # twice at every timestep but the first
        timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    sampler.timesteps, sampler.sigmas = timesteps, sigmas


def init_noise_sigma(scheduler: Any) -> float:
    """Standard deviation of the noise that sampling starts with; 1 for flow matching."""
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def scale_model_input(scheduler: Any, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The network's input from a sampler's x at a timestep, (B, C, H, W); flow matching schedulers do not scale it."""
    scale = getattr(scheduler, "scale_model_input", None)
    return sample if scale is None else scale(sample, timestep)


def add_noise(scheduler: Any, x0: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """x_0 (B, C, H, W) noised to a timestep, (), as the sampler's x: before `scale_model_input`."""
    process = process_of(scheduler)
    if isinstance(process, Flow):  # whose schedulers have another method, or need a step before
        return process.add_noise(x0, noise, timestep.expand(1))
    return scheduler.add_noise(x0, noise, timestep.expand(1))


def step(
    scheduler: SchedulerMixin, output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, **arguments: Any
) -> torch.Tensor:
    """x at the next timestep of the scheduler's own list, (B, C, H, W); 0 noise after the last.

    Like `scheduler.step(...).prev_sample`, but diffusers' DDIM steps to `timestep` - T // steps. Where the steps do not
    divide T, that is above the next timestep, so x has more noise than the timestep passed to the network. For data of
    deviation 0.2 and 1,000 cosine timesteps, the samples' deviation is 15 % too large with 150 steps, 90 % with 600.

    Args:
        scheduler: after `set_steps`.
        output: of the network, (B, C, H, W).
        timestep: one of `scheduler.timesteps`, ().
        sample: x at `timestep`, (B, C, H, W).
        arguments: of `scheduler.step`.
    """
    sampler: Any = scheduler
    if isinstance(sampler, DDIMScheduler):
        after = sampler.timesteps[sampler.timesteps < timestep]
        stride = int(timestep) - (int(after.max()) if len(after) else -1)
        sampler.num_inference_steps = Fraction(sampler.config.num_train_timesteps, stride)  # T // it is the stride
    return sampler.step(output, timestep, sample, **arguments).prev_sample
