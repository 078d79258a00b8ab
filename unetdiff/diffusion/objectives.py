"""Training objectives of the denoiser: the scheduler of a config, its noise, targets, loss weights and losses.

Notation: x_t = α_t x_0 + σ_t ε is the network's input (`unetdiff.diffusion.processes`); SNR(t) = α_t² / σ_t².
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from einops import rearrange, reduce

from unetdiff.diffusion.config import DiffusionConfig
from unetdiff.diffusion.processes.base import QUARTILES, Process
from unetdiff.diffusion.processes.ddpm import DDPM
from unetdiff.diffusion.processes.load import process_of
from unetdiff.errors import UserError

SIGMA_DATA = 0.5
"""Deviation of images in [-1, 1] (Karras et al. 2022, table 1)."""


class Scheduler(Protocol):
    """A diffusers scheduler; which of its attributes are read depends on its process (`processes.load`)."""

    @property
    def config(self) -> Any:
        """Its parameters."""


def build_scheduler(config: DiffusionConfig, bound: float | None = 1.0) -> Any:
    """The forward process of `config`, as the diffusers scheduler that a pipeline is saved with.

    ddpm's timesteps are spaced "trailing", so that sampling starts at the last timestep (Lin et al. 2024, table 2).

    Args:
        config: objective and noise; edm's sigma_data is `SIGMA_DATA` where it is not set (a task measures it first).
        bound: ddpm's sampling clips the predicted x_0 to [-bound, bound], 1 for pixels; None for latents: no clipping.

    Raises:
        UserError: zero terminal SNR with epsilon prediction (at the last timestep the input is the noise alone: the
            loss weight is 0/0, and x_0 does not follow from ε).
    """
    noise = config.noise
    if noise.process == "flow":
        return FlowMatchEulerDiscreteScheduler(noise.num_train_timesteps, noise.flow.shift)
    if noise.process == "edm":
        edm = noise.edm
        return EDMEulerScheduler(
            edm.sigma_min,
            edm.sigma_max,
            SIGMA_DATA if edm.sigma_data is None else edm.sigma_data,
            num_train_timesteps=noise.num_train_timesteps,
            prediction_type=config.prediction_type,
            rho=edm.rho,
        )
    if noise.zero_terminal_snr and config.prediction_type == "epsilon":
        raise UserError(
            "diffusion.noise.zero_terminal_snr=true: must be set with diffusion.prediction_type=v_prediction or sample "
            "(got epsilon)."
        )
    trained_betas = None
    if noise.beta_schedule == "sigmoid" or noise.input_scale != 1:  # DDIMScheduler has no sigmoid of its own
        ddpm = DDPMScheduler(noise.num_train_timesteps, noise.beta_start, noise.beta_end, noise.beta_schedule)
        trained_betas = scaled_betas(ddpm.betas, noise.input_scale).tolist()
    return DDIMScheduler(
        num_train_timesteps=noise.num_train_timesteps,
        beta_start=noise.beta_start,
        beta_end=noise.beta_end,
        beta_schedule=noise.beta_schedule,
        trained_betas=trained_betas,
        prediction_type=config.prediction_type,
        rescale_betas_zero_snr=noise.zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample=bound is not None,
        clip_sample_range=1.0 if bound is None else bound,
    )


def scaled_betas(betas: torch.Tensor, scale: float) -> torch.Tensor:
    """Betas (T,) of a process with scale² times the SNR of `betas` at every timestep, float64.

    b x_0 under x_t = α_t b x_0 + σ_t ε, divided by its deviation where x_0 has unit variance, as Chen 2023 ("On the
    Importance of Noise Scheduling for Diffusion Models", strategy 2) does, is x_0 under this process:
    ᾱ'_t = b² ᾱ_t / (b² ᾱ_t + 1 - ᾱ_t).
    """
    if scale == 1:
        return betas
    alpha_bar = (1 - betas.double()).cumprod(dim=0)
    signal = scale**2 * alpha_bar
    alpha_bar = signal / (signal + 1 - alpha_bar)
    before = torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])
    return 1 - alpha_bar / before


def sample_noise(shape: Sequence[int], generator: torch.Generator, offset: float = 0.0) -> torch.Tensor:
    """Training noise for images of shape (B, C, H, W), float32 on the generator's device.

    Standard normal, plus offset · (one standard normal per image and channel), which destroys the mean of a channel too
    (Guttenberg 2023, "Diffusion with offset noise", with an offset of 0.1). With an offset it is not white: a pixel has
    variance 1 + offset², a channel's mean 1/(H·W) + offset². The loss weights still use the SNR of white noise, and
    sampling still starts from white noise.
    """
    noise = torch.randn(*shape, generator=generator, device=generator.device)
    if offset:
        noise += offset * torch.randn(*shape[:2], 1, 1, generator=generator, device=generator.device)
    return noise


def alpha_sigma(scheduler: Scheduler, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Signal and noise level (α_t, σ_t) of timesteps (B,), each (B,) float32 on the timesteps' device."""
    return process_of(scheduler).alpha_sigma(timesteps)


def add_noise(scheduler: Scheduler, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """x_t = α_t x_0 + σ_t ε, (B, C, H, W), for timesteps (B,)."""
    return process_of(scheduler).add_noise(x0, noise, timesteps)


def snr(scheduler: Scheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """Signal-to-noise ratio α_t² / σ_t² of timesteps (B,) -> (B,) float32."""
    return process_of(scheduler).snr(timesteps)


def target(scheduler: Scheduler, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """The regression target of the network at x_t, (B, C, H, W)."""
    return process_of(scheduler).target(x0, noise, timesteps)


def predicted_x0(scheduler: Scheduler, output: torch.Tensor, xt: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """The x_0 predicted by `output` at x_t, (B, C, H, W): the inverse of `target`, not clipped."""
    return process_of(scheduler).predicted_x0(output, xt, timesteps)


def loss_weight(
    scheduler: Scheduler, timesteps: torch.Tensor, weighting: str = "min_snr", gamma: float = 5.0
) -> torch.Tensor:
    """Weight of each timestep's squared error, (B,) float32.

    Min-SNR (Hang et al. 2023, section 3.4) weights the error of x_0 by min(SNR, γ), soft-Min-SNR (Crowson
    et al. 2024, "HDiT") by its smooth form SNR·γ / (SNR + γ). The squared error of ε is SNR times that of
    x_0, that of v SNR + 1 times, so their weights are divided by as much, and so on (`Process.x0_error`). "uniform" is
    1 for all. Where the SNR is 0
    (the last timestep of zero terminal SNR) every weight is finite, and Min-SNR's of x_0 and v is 0.

    "clamped_snr" is clamp(SNR, 1, γ): Min-SNR from above, the truncated SNR of Salimans & Ho 2022 (section 4) from
    below. Min-SNR weights the noisiest timesteps by their SNR, which goes to 0: a short run never learns there, where
    class and layout are determined.

    Raises:
        UserError: an unknown weighting, or clamped_snr with epsilon, whose weight would go to infinity.
    """
    process = process_of(scheduler)
    ratio = process.snr(timesteps)  # (B,)
    if weighting == "uniform":
        return torch.ones_like(ratio)
    predicts_noise = isinstance(process, DDPM) and process.prediction_type == "epsilon"
    if weighting == "min_snr":
        if predicts_noise:
            return (gamma / ratio).clamp(max=1)  # min(SNR, γ) / SNR, finite where SNR is 0
        weight = ratio.clamp(max=gamma)
    elif weighting == "soft_min_snr":
        if predicts_noise:
            return gamma / (ratio + gamma)
        weight = ratio * gamma / (ratio + gamma)
    elif weighting == "clamped_snr":
        if predicts_noise:
            raise UserError(
                "diffusion.weighting=clamped_snr: must be another with diffusion.prediction_type=epsilon. Use min_snr."
            )
        weight = ratio.clamp(min=1, max=gamma)
    else:
        raise UserError(f"diffusion.weighting={weighting}: must be one of uniform, min_snr, soft_min_snr, clamped_snr.")
    return weight * process.x0_error(timesteps)


def uniform(batch: int, generator: torch.Generator) -> torch.Tensor:
    """Independent uniform numbers in [0, 1), (batch,), on the generator's device."""
    return torch.rand(batch, generator=generator, device=generator.device)


def sample_timesteps_of_kinds(process: Process, kinds: int, batch: int, generator: torch.Generator) -> torch.Tensor:
    """Timesteps (batch,) for images of several kinds that alternate, stratified within each kind."""
    each = [process.sample_timesteps(batch // kinds, generator) for _ in range(kinds)]
    return rearrange(torch.stack(each), "kinds b -> (b kinds)")


def diffusion_loss(
    output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, loss_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Weighted mean squared error of each image in at least float32: (B, C, H, W), (B, C, H, W), (B,) -> (B,).

    loss_mask: pixels of the mean, bool (B, 1, H, W); None: all. An image without any has a loss of 0.
    """
    dtype = torch.promote_types(output.dtype, torch.float32)
    error = (output.to(dtype) - target.to(dtype)).square()
    if loss_mask is None:
        return weight * reduce(error, "b c h w -> b", "mean")
    pixels = reduce(loss_mask.to(dtype), "b 1 h w -> b", "sum").clamp(min=1)
    return weight * reduce(error * loss_mask, "b c h w -> b", "sum") / (pixels * error.shape[1])


def sums_by_quartile(per_sample: torch.Tensor, timesteps: torch.Tensor, process: Process) -> torch.Tensor:
    """Sum of the losses in each quarter of the training timesteps, least noise first, (4,), from (B,) and (B,)."""
    quartile = process.quartile(timesteps)  # (B,)
    return torch.stack([torch.where(quartile == q, per_sample, 0).sum() for q in range(QUARTILES)])


def loss_by_quartile(sums: torch.Tensor, images: torch.Tensor, process: Process) -> dict[str, torch.Tensor]:
    """Loss in each quarter of the training timesteps, loss_q0 (least noise) to loss_q3, from `sums_by_quartile` (4,).

    The sum over the quarter's images is divided by the number expected of random timesteps of `images` (a scalar), not
    by the number that fell into it. So every quarter always has an entry, and the mean over steps is the quarter's mean
    loss, however few images a step has. For stratified timesteps of 4, 8, 12... images both numbers are the same.
    """
    widths = process.quartile_widths()  # of two or three timesteps in all, not every quarter has one
    return {f"loss_q{q}": sums[q] / (images * width) for q, width in enumerate(widths) if width}
