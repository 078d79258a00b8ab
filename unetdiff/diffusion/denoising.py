"""The sampling loop, and the network that it calls at every step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from unetdiff.diffusion import schedulers
from unetdiff.diffusion.conditioning.base import Conditioning, concat_conditioning
from unetdiff.diffusion.guidance import Guidance, classifier_free_guidance
from unetdiff.diffusion.processes.base import Process
from unetdiff.models.unet import UNet

Generators = torch.Generator | list[torch.Generator] | None
PredictOutput = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, H, W), timestep ()) -> the network's output (B, C, H, W)."""
State = dict[str, Tensor]
OnStepEnd = Callable[[int, Tensor, State], "State | None"]
"""(step, timestep, state) -> changes of the state; see `denoise`."""


def denoise(
    predict: PredictOutput,
    scheduler: Any,
    xt: Tensor,
    timesteps: Iterable[Tensor],
    generator: Generators = None,
    on_step_end: Sequence[OnStepEnd] = (),
) -> Tensor:
    """From noise to clean images: Ho et al. 2020, algorithm 2 (DDPM); Song et al. 2021, equation 12 (DDIM); any solver.

    Args:
        predict: the network's output (ε, x_0 or a velocity) at x_t, guidance included.
        scheduler: diffusers' sampler, after `schedulers.set_steps`.
        xt: noise, or a noised image, at the first timestep, (B, C, H, W).
        timesteps: of the scheduler, noisiest first.
        generator: of the noise that a stochastic sampler adds at each step; a list has one per image.
        on_step_end: called in turn with the step, its timestep and the state: "latents" (x_{t-1}), "model_input" (x_t)
            and "model_output", (B, C, H, W) each; the "latents" that one returns take the place of the sampler's.

    Returns:
        x_0, (B, C, H, W).
    """
    options = step_options(scheduler, generator)
    for step, t in enumerate(timesteps):
        model_input = schedulers.scale_model_input(scheduler, xt, t)
        model_output = predict(model_input, t)
        xt = schedulers.step(scheduler, model_output, t, xt, **options)  # x_t -> x_{t-1}
        state = {"latents": xt, "model_input": model_input, "model_output": model_output}
        for callback in on_step_end:
            state |= callback(step, t, state) or {}
        xt = state["latents"]
    return xt


def step_options(scheduler: Any, generator: Generators) -> dict[str, Any]:
    """What this scheduler's `step` takes in addition to the three arguments common to all."""
    accepted = inspect.signature(scheduler.step).parameters
    # a clipped x_0 must be followed by the noise that agrees with it, as in DDIM's own code
    options = {"generator": generator, "use_clipped_model_output": True}
    return {name: value for name, value in options.items() if name in accepted}


class GuidedDenoiser:
    """A denoiser with its conditions, under classifier-free guidance: (x_t, timestep) -> output, float32.

    Args:
        unet: ours, or diffusers' UNet2DModel or UNet2DConditionModel.
        conditional: tokens and channels of the condition.
        unconditional: those of the null or negative condition; None: no guidance.
        guidance: scale, rescaling and interval.
        process: the forward process, for guidance in an interval.
        autocast_dtype: the network computes in it; None: in its weights' precision.
    """

    def __init__(
        self,
        unet: ModelMixin,
        conditional: Conditioning,
        unconditional: Conditioning | None,
        guidance: Guidance,
        process: Process,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.unet: Any = unet
        self.conditional, self.unconditional, self.guidance = conditional, unconditional, guidance
        self.both = None if unconditional is None else concat_conditioning(unconditional, conditional)
        self.process, self.autocast_dtype = process, autocast_dtype
        # keys and values are computed once for all steps; compiled code takes tensors only
        self.uses_cache = isinstance(unet, UNet) and unet._compiled_call_impl is None

    def __call__(self, sample: Tensor, timestep: Tensor) -> Tensor:
        guidance = self.guidance
        return classifier_free_guidance(
            self.predict,
            sample,
            timestep,
            self.conditional,
            self.unconditional,
            guidance.scale_at(timestep, self.process),
            guidance.rescale,
            self.both,
        )

    def predict(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning | None) -> Tensor:
        """One pass of the network, (B, C, H, W) float32."""
        conditioning = conditioning or Conditioning()
        sample = conditioning.concat_channels(sample).to(self.unet.dtype, memory_format=torch.channels_last)
        tokens = conditioning.cache if self.uses_cache else conditioning.tokens
        inputs = {} if tokens is None else {"encoder_hidden_states": tokens}
        with torch.autocast(sample.device.type, self.autocast_dtype) if self.autocast_dtype else nullcontext():
            return self.unet(sample, timestep, **inputs).sample.float()
