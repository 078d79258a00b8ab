"""Sampling step by step: what the network sees and predicts while an image is denoised."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from unetdiff.app.runs import AppRun, timestep_at
from unetdiff.data.decoding import RGB
from unetdiff.data.transforms import resize_image, to_model_range
from unetdiff.diffusion.denoising import GuidedDenoiser
from unetdiff.diffusion.editing import ImageStart
from unetdiff.diffusion.guidance import Guidance
from unetdiff.diffusion.inpainting import with_mask
from unetdiff.diffusion.noise import generators_for, image_indices
from unetdiff.diffusion.objectives import predicted_x0
from unetdiff.diffusion.pipeline import GenerationOutput, GenerationPipeline
from unetdiff.diffusion.pipeline_inputs import make_conditionings
from unetdiff.diffusion.scheduler_names import SCHEDULERS
from unetdiff.diffusion.schedulers import make_scheduler
from unetdiff.diffusion.trajectory import step_images
from unetdiff.errors import UserError, config_error
from unetdiff.segmentation.segmenter import NetworkInput

OWN_SAMPLER = "default"
MAX_IMAGES, MAX_STEPS, MAX_SEED = 8, 1000, 2**32 - 1
PREVIEW_SECONDS = 0.1
"""Least time between two previews; they take at most half of the time."""


@dataclass(frozen=True)
class Options:
    """Options of sampling; the names are those of `unetdiff sample`."""

    num_images: int = 1
    num_inference_steps: int = 25
    guidance_scale: float = 2.0
    scheduler: str = OWN_SAMPLER
    seed: int = 0

    @classmethod
    def of(cls, num_images: Any, steps: Any, guidance: Any, scheduler: Any, seed: Any) -> Options:
        """Options from the page's fields; UserError for an empty field or a value out of range."""
        for name, value, most in (
            ("num_images", num_images, MAX_IMAGES),
            ("num_inference_steps", steps, MAX_STEPS),
            ("seed", seed, MAX_SEED),
        ):
            least = 0 if name == "seed" else 1
            if value is None or value != int(value) or not least <= value <= most:
                raise config_error(name, value, f"an integer in [{least}, {most:,}]")
        return cls(int(num_images), int(steps), 2.0 if guidance is None else float(guidance), scheduler, int(seed))


@dataclass(frozen=True)
class Preview:
    """A moment of sampling; images are floats in [0, 1], (B, 3, H, W)."""

    step: int
    """Steps that are done."""
    num_steps: int
    timestep: float
    noisy: Tensor
    """x_t, the network's input; at the end the images."""
    predicted: Tensor
    """The clean images x_0 that the network predicts from x_t; at the end the images."""

    @property
    def finished(self) -> bool:
        """Whether these are the images."""
        return self.step == self.num_steps


class _Stopped(Exception):
    """Ends the pipeline's loop when no one waits for its images any more."""


def sampler_names(*runs: AppRun) -> list[str]:
    """The samplers that the forward processes of some runs share."""
    names = [list(SCHEDULERS[run.process.name]) for run in runs]
    return [OWN_SAMPLER, *(name for name in names[0] if all(name in others for others in names))]


def sample(
    run: AppRun,
    condition: dict[str, Any],
    options: Options,
    start: ImageStart | None = None,
    indices: Sequence[int] | None = None,
) -> Iterator[Preview]:
    """Sample images; yields previews, and the images at last.

    The images are those of `unetdiff sample` with the same options. Closing the iterator ends sampling at the next
    step.

    Args:
        run: with a diffusion head.
        condition: arguments of `GenerationPipeline`: the condition and the negative one.
        options: of sampling.
        start: an image to start from; None: noise.
        indices: of the images' noise, one for each; None: those of `unetdiff sample`, which depend on the class.

    Raises:
        UserError: as of `GenerationPipeline`.
    """
    pipeline = run.generation
    if pipeline is None:
        raise UserError(f"{run.name}: must be a run with a diffusion head.")
    arguments = _arguments(pipeline, condition, options, indices) | {"start": start}
    scheduler = run.scheduler
    if options.scheduler != OWN_SAMPLER:
        scheduler = make_scheduler(run.scheduler, options.scheduler)
    messages: SimpleQueue[Preview | BaseException | None] = SimpleQueue()
    stopped = threading.Event()
    callback = _Previews(messages, stopped)

    def work() -> None:
        try:
            with run.lock:  # one that was closed may not have ended yet
                if stopped.is_set():
                    return
                pipeline.scheduler = scheduler
                output = pipeline(callback_on_step_end=callback, output_type="pt", **arguments)
            assert isinstance(output, GenerationOutput)
            count, images = pipeline.num_timesteps, output.pixels()
            messages.put(Preview(count, count, 0.0, images, images))
        except _Stopped:
            pass
        except BaseException as error:
            messages.put(error)
        finally:
            messages.put(None)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (message := messages.get()) is not None:
            if isinstance(message, BaseException):
                raise message
            yield message
    finally:
        stopped.set()


def _arguments(
    pipeline: GenerationPipeline, condition: dict[str, Any], options: Options, indices: Sequence[int] | None
) -> dict[str, Any]:
    """Arguments of the pipeline."""
    conditioner, arguments = pipeline.conditioner, dict(condition)
    rows, total = [0], 1
    if conditioner is not None and condition.get(conditioner.pipeline_arg) is not None:
        conditions = conditioner.encode(arguments.pop(conditioner.pipeline_arg), pipeline.size())
        rows, total = conditioner.rows(conditions)
        arguments["conditions"] = conditions
    if indices is None:
        indices = image_indices(rows, total, options.num_images)[0]
    return arguments | {
        "batch_size": options.num_images,
        "generator": generators_for(options.seed, indices),
        "num_inference_steps": options.num_inference_steps,
        "guidance_scale": options.guidance_scale,
    }


class _Previews:
    """A `callback_on_step_end` that sends a preview when the last one is old enough."""

    def __init__(self, messages: SimpleQueue[Any], stopped: threading.Event) -> None:
        self.messages, self.stopped, self.next_at = messages, stopped, 0.0

    def __call__(
        self, pipeline: GenerationPipeline, step: int, timestep: Tensor, state: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if self.stopped.is_set():
            raise _Stopped
        start = time.monotonic()
        if step + 1 < pipeline.num_timesteps and start >= self.next_at:
            images = step_images(pipeline, timestep, state)
            self.messages.put(Preview(step + 1, pipeline.num_timesteps, float(timestep), *images))
            end = time.monotonic()
            self.next_at = end + max(PREVIEW_SECONDS, end - start)
        return {}


@torch.no_grad()
def denoised_once(run: AppRun, image: Tensor, noise: float) -> Tensor:
    """The clean image that a denoiser predicts in one pass, without a condition, floats (3, h, w) in [0, 1].

    Args:
        run: with a diffusion head.
        image: uint8 (C, H, W), resized to the denoiser's size.
        noise: fraction of the timesteps in (0, 1]; the same noise as in `unetdiff.app.segmenting.segment`.

    Raises:
        UserError: a denoiser of masks, or an image of other channels.
    """
    pipeline = run.generation
    if pipeline is None or dict(pipeline.config).get("masks"):
        raise UserError(f"{run.name}: must be a run with a diffusion head that denoises images.")
    size, conditioner, codec = pipeline.size(), pipeline.conditioner, pipeline.codec
    pixels = to_model_range(resize_image(image, size)[None].to(pipeline.device))
    if pixels.shape[1] != RGB:
        raise UserError(f"image: must have {RGB} channels for {run.name} (got {pixels.shape[1]}).")
    timestep = timestep_at(run.process, noise)
    alpha, sigma = run.process.alpha_sigma(timestep)
    xt = NetworkInput(0, (float(alpha), float(sigma))).at(codec.encode(pixels))
    conditional, _ = make_conditionings(pipeline.unet, conditioner, None, None, xt, size)
    conditional = with_mask(conditional, conditioner, (xt.shape[-2], xt.shape[-1]), codec)
    predict = GuidedDenoiser(pipeline.unet, conditional, None, Guidance.of(1.0), run.process, pipeline.autocast_dtype)
    timestep = timestep.to(xt.device)
    return pipeline.decode(predicted_x0(run.scheduler, predict(xt, timestep[0]), xt, timestep))[0]
