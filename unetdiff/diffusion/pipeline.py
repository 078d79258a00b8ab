"""From noise to pictures: a diffusers pipeline around the U-Net, its scheduler and its conditioner."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange

from unetdiff.conditioning.base import Conditioner
from unetdiff.conditioning.classes import ClassConditioner
from unetdiff.diffusion.guidance import guided
from unetdiff.diffusion.objectives import predicted_x0
from unetdiff.errors import UserError

ClassLabels = int | str | Sequence[int | str] | torch.Tensor
StepCallback = Callable[["GenerationPipeline", int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@dataclass
class Trajectory:
    """What sampling went through, at evenly spaced steps; the last entry is the finished picture.

    Pictures are float in [0, 1] on the CPU, (k, B, C, H, W).
    """

    timesteps: list[int]
    """Timestep of each entry, noisiest first (0 for the finished picture)."""
    noisy: torch.Tensor
    """What the network was given: x_t."""
    predicted: torch.Tensor
    """What it took the clean picture to be: x_0 as predicted from x_t."""


@dataclass
class GenerationOutput(ImagePipelineOutput):
    """`images` as in every diffusers pipeline, and the trajectory if it was asked for."""

    trajectory: Trajectory | None = None

    def pixels(self) -> torch.Tensor:
        """The pictures of output_type="pt", floats in [0, 1], (B, C, H, W)."""
        if not isinstance(self.images, torch.Tensor):
            raise TypeError('pixels() needs output_type="pt"')
        return self.images


class GenerationPipeline(DiffusionPipeline):
    """Draws pictures with a trained denoiser.

    Args:
        unet: the denoiser, `unet(sample, timestep, encoder_hidden_states=...).sample`.
        scheduler: any of diffusers' that knows the model's prediction type; swap it by
            `pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)`.
        conditioner: makes context tokens of class labels; None for a model without a condition.
    """

    model_cpu_offload_seq = "conditioner->unet"  # type: ignore[assignment]
    _optional_components = ["conditioner"]

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin, conditioner: Conditioner | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, conditioner=conditioner)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any) -> Self:
        """Load a directory in diffusers' layout (model_index.json, unet/, scheduler/, conditioner/).

        Raises:
            UserError: a directory without model_index.json, that is, a model without a diffusion head.
        """
        path = Path(pretrained_model_name_or_path)
        if path.is_dir() and not (path / "model_index.json").is_file():
            raise UserError(f"{path}: no model_index.json, so there is no diffusion head to sample from.")
        import_module("unetdiff.models.unet")  # diffusers finds our class only where it has been imported
        return super().from_pretrained(
            path if path.is_dir() else pretrained_model_name_or_path, **{"use_safetensors": True, **kwargs}
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels | None = None,
        batch_size: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 2.0,
        guidance_rescale: float = 0.0,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        return_trajectory: int = 0,
        autocast_dtype: torch.dtype | None = None,
        return_dict: bool = True,
    ) -> GenerationOutput | tuple[Any, ...]:
        """Draw pictures.

        Args:
            class_labels: classes to draw, by index or name; one is drawn `batch_size` times. None: any.
            batch_size: number of pictures; None: as many as there are labels or latents, else 1.
            num_inference_steps: denoising steps.
            guidance_scale: 1 = no guidance (half the work), larger = more typical of the class, less varied.
            guidance_rescale: 0 to 1, undoes the overexposure of a large guidance scale (Lin et al. 2024).
            height: pixels; None: the size the model was trained at.
            width: pixels; None: the size the model was trained at.
            generator: of the starting noise and of the steps' noise; a list has one for each picture.
            latents: starting noise of unit variance, (B, C, H, W), instead of drawing it.
            output_type: "pil" (list of images), "np" (B, H, W, C) or "pt" (B, C, H, W); numbers in [0, 1].
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": x}) after each step; may
                return a dict with other latents.
            return_trajectory: keep this many evenly spaced moments of the way to the picture (0: none).
            autocast_dtype: run the network under autocast, e.g. torch.bfloat16; x_t stays in float32.
            return_dict: False returns a tuple.

        Raises:
            UserError: an unknown class or output type, a batch size other than that of the labels, no size.
        """
        if output_type not in ("pil", "np", "pt"):
            raise UserError(f"output_type: '{output_type}' is not one of pil, np, pt.")
        steps_allowed = self.scheduler.config.num_train_timesteps
        if not 1 <= num_inference_steps <= steps_allowed:
            raise UserError(f"num_inference_steps: {num_inference_steps} is not between 1 and {steps_allowed}.")
        device = self._execution_device
        labels, batch = self._labels(class_labels, batch_size, None if latents is None else latents.shape[0])
        if latents is None:
            shape = (batch, self.unet.config.in_channels, *self._size(height, width))
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

        with _evaluating(self.unet, self.conditioner):
            conditional, null = self._context(labels, batch)
            self.scheduler.set_timesteps(num_inference_steps, device=device)
            timesteps = self.scheduler.timesteps
            kept = _evenly(len(timesteps), return_trajectory - 1)  # the finished picture is the last entry
            history: list[tuple[int, torch.Tensor, torch.Tensor]] = []
            step_arguments = self._step_arguments(generator)
            denoise = self._denoiser(autocast_dtype, device)

            xt = latents.to(device, torch.float32) * self.scheduler.init_noise_sigma
            with self.progress_bar(total=len(timesteps)) as progress:
                for step, t in enumerate(timesteps):
                    model_input = self.scheduler.scale_model_input(xt, t)
                    output = guided(denoise, model_input, t, conditional, null, guidance_scale, guidance_rescale)
                    if step in kept:
                        whole = t.round().long().expand(batch)  # some schedulers count in floats
                        x0 = predicted_x0(self.scheduler, output, model_input, whole)
                        history.append((int(whole[0]), _to_unit(model_input), _to_unit(x0)))
                    xt = self.scheduler.step(output, t, xt, **step_arguments).prev_sample
                    if callback_on_step_end is not None:
                        xt = (callback_on_step_end(self, step, t, {"latents": xt}) or {}).get("latents", xt)
                    progress.update()
        self.maybe_free_model_hooks()

        pictures = _to_unit(xt)  # (B, C, H, W)
        trajectory = _trajectory([*history, (0, pictures, pictures)]) if return_trajectory else None
        images: Any = pictures
        if output_type != "pt":
            images = rearrange(pictures, "b c h w -> b h w c").numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        if not return_dict:
            return (images,) if trajectory is None else (images, trajectory)
        return GenerationOutput(images=images, trajectory=trajectory)

    def _labels(
        self, class_labels: ClassLabels | None, batch_size: int | None, given: int | None
    ) -> tuple[torch.Tensor | None, int]:
        """Labels (B,) or None, and B."""
        wanted = given if batch_size is None else batch_size
        if given is not None and wanted != given:
            raise UserError(f"batch_size: {batch_size}, but latents are given for {given} pictures.")
        if class_labels is None:
            return None, 1 if wanted is None else wanted
        if not isinstance(self.conditioner, ClassConditioner):
            raise UserError("class_labels: this model was trained without classes; leave them out.")
        labels = self.conditioner.encode(class_labels)
        if len(labels) == 1 and wanted is not None:
            labels = labels.expand(wanted)
        if wanted is not None and len(labels) != wanted:
            raise UserError(f"class_labels: {len(labels)} are given for {wanted} pictures.")
        return labels, len(labels)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        size = self.unet.config.sample_size
        default = (size, size) if size is None or isinstance(size, int) else tuple(size)
        height, width = height or default[0], width or default[1]
        if height is None or width is None:
            raise UserError("height, width: the model does not say what size it was trained at; give both.")
        return height, width

    def _context(self, labels: torch.Tensor | None, batch: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Context of the condition and of no condition, (B, tokens, dim) or None."""
        if self.conditioner is None:
            return None, None
        null = self.conditioner.null(batch)
        return (null, None) if labels is None else (self.conditioner(labels), null)

    def _denoiser(
        self, autocast_dtype: torch.dtype | None, device: torch.device
    ) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]:
        def denoise(sample: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
            sample = sample.to(self.unet.dtype, memory_format=torch.channels_last)
            condition = {} if context is None else {"encoder_hidden_states": context.to(self.unet.dtype)}
            precision = nullcontext() if autocast_dtype is None else torch.autocast(device.type, autocast_dtype)
            with precision:
                return self.unet(sample, timestep, **condition).sample.float()

        return denoise

    def _step_arguments(self, generator: torch.Generator | list[torch.Generator] | None) -> dict[str, Any]:
        """What this scheduler's `step` takes beyond the three arguments that they all take."""
        known = inspect.signature(self.scheduler.step).parameters
        # a clipped x_0 must be followed by the noise that agrees with it, as in DDIM's own code
        every = {"generator": generator, "use_clipped_model_output": True}
        return {name: value for name, value in every.items() if name in known}


def _to_unit(pictures: torch.Tensor) -> torch.Tensor:
    """[-1, 1] on any device to [0, 1] on the CPU, clipped."""
    return (pictures.float().cpu() / 2 + 0.5).clamp(0, 1)


def _evenly(total: int, count: int) -> set[int]:
    """`count` evenly spaced indices below `total`, starting with 0."""
    return {round(i * total / count) for i in range(min(count, total))} if count > 0 else set()


def _trajectory(history: list[tuple[int, torch.Tensor, torch.Tensor]]) -> Trajectory:
    timesteps, noisy, predicted = zip(*history, strict=True)
    return Trajectory(list(timesteps), torch.stack(noisy), torch.stack(predicted))


@contextmanager
def _evaluating(*models: torch.nn.Module | None) -> Iterator[None]:
    """Eval mode inside, and afterwards every module in the mode that it had."""
    modes = {module: module.training for model in models if model is not None for module in model.modules()}
    for model in models:
        if model is not None:
            model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
