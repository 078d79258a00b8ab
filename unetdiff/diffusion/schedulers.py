"""Sampling with another of diffusers' schedulers: the swap, the timesteps, the step, and what cannot be.

diffusers is imported inside the functions: the command line reads the names without it.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from unetdiff.errors import UserError, nearest

if TYPE_CHECKING:
    import torch
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}
"""Samplers by the name that a user gives, and diffusers' class for each."""


SIGMA_MAX = 80.0
"""Largest σ/α that heun starts from (Karras et al. 2022, table 1)."""


def make_scheduler(scheduler: SchedulerMixin, name: str) -> SchedulerMixin:
    """The sampler `name` for the forward process of `scheduler`, with trailing timesteps.

    heun counts in σ/α, which the cosine schedule takes to 20,000 and zero terminal SNR to infinity. A straight step
    from there is far off (for data of deviation 0.5, ten steps end ten times too wide) and float32 cannot hold it, so
    its noise ends at `SIGMA_MAX`. The other solvers see to zero terminal SNR themselves.

    Args:
        scheduler: what a model was saved with.
        name: one of `SCHEDULERS`.

    Raises:
        UserError: an unknown name; zero terminal SNR with epsilon prediction, which says nothing of the image at the
            last timestep (Lin et al. 2024, section 3.3), so that no sampler can start.
    """
    import diffusers

    if name not in SCHEDULERS:
        near = nearest(name, SCHEDULERS)
        raise UserError(f"scheduler: '{name}' is not one of {', '.join(SCHEDULERS)}; nearest: {near}")
    source: Any = scheduler
    zero = source.config.get("rescale_betas_zero_snr", False)
    if zero and source.config.prediction_type == "epsilon":
        raise UserError(
            f"scheduler: '{name}' cannot sample a model of zero terminal SNR that predicts epsilon; "
            "train it with diffusion.prediction_type v_prediction or sample"
        )
    options: dict[str, Any] = {"timestep_spacing": "trailing"}
    if name == "heun" and zero:  # it has no such option of its own
        options["trained_betas"] = source.betas.tolist()
    swapped = getattr(diffusers, SCHEDULERS[name]).from_config(source.config, **options)
    if name == "heun":
        swapped.alphas_cumprod = swapped.alphas_cumprod.clamp(min=1 / (1 + SIGMA_MAX**2))
    return swapped


def set_steps(scheduler: SchedulerMixin, steps: int, device: torch.device | str | None = None) -> None:
    """`scheduler.set_timesteps`, without the timestep -1 that trailing spacing now and then ends with.

    diffusers counts the timesteps by numpy's arange with a step of T / steps, which for some numbers (61, 103 and 60
    others of T = 1,000) rounds to one more: -1, where neither network nor schedule is defined.
    """
    import torch

    sampler: Any = scheduler
    sampler.set_timesteps(steps, device=device)
    defined = sampler.timesteps >= 0
    if bool(defined.all()):
        return
    if "sigmas" in vars(sampler):  # the solvers keep one for each timestep, and a 0 after the last
        sampler.sigmas = torch.cat([sampler.sigmas[:-1][defined.cpu()], sampler.sigmas[-1:]])
    sampler.timesteps = sampler.timesteps[defined]
    sampler.num_inference_steps = steps


def step(
    scheduler: SchedulerMixin, output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, **arguments: Any
) -> torch.Tensor:
    """x at the next timestep of the scheduler's own list, (B, C, H, W); 0 noise after the last.

    Like `scheduler.step(...).prev_sample`, but DDIM's own goes to `timestep` - T // steps. Where the steps do not
    divide T that lies above the next timestep, and each step leaves more noise than the network is then told of. For
    data of deviation 0.2 and 1,000 cosine timesteps, 150 steps end 15 per cent too wide and 600 steps 90 per cent.

    Args:
        scheduler: after `set_steps`.
        output: of the network, (B, C, H, W).
        timestep: one of `scheduler.timesteps`, ().
        sample: x at `timestep`, (B, C, H, W).
        arguments: as of `scheduler.step`.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    sampler: Any = scheduler
    if isinstance(sampler, DDIMScheduler):
        after = sampler.timesteps[sampler.timesteps < timestep]
        stride = int(timestep) - (int(after.max()) if len(after) else -1)
        sampler.num_inference_steps = Fraction(sampler.config.num_train_timesteps, stride)  # T // it is the stride
    return sampler.step(output, timestep, sample, **arguments).prev_sample
