"""A diffusion task as `unetdiff.evaluation` takes a denoiser: how it is sampled, and its conditions of real images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from unetdiff.console import progress_bar
from unetdiff.data.base import collate
from unetdiff.data.transforms import to_uint8
from unetdiff.diffusion.codecs import PixelCodec
from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.loss_guidance import LossGuidance
from unetdiff.diffusion.noise import generators_for
from unetdiff.diffusion.pipeline import GenerationOutput
from unetdiff.diffusion.schedulers import make_scheduler
from unetdiff.evaluation.types import Denoise, Denoiser, SampleBatch, SamplingConfig, concat_batches
from unetdiff.segmentation.inference import eval_mode
from unetdiff.training import runtime
from unetdiff.training.tasks.diffusion import DiffusionTask

SAMPLE_BATCH = {"cpu": 100, "cuda": 500}
"""Images sampled at once, by type of device; the images do not depend on it."""

InputsOf = Callable[[DiffusionTask, range], tuple[dict[str, Any], Tensor | None]]
"""The pipeline's inputs for the images of these indices, and their classes (B,) or None."""


def classes_of(task: DiffusionTask) -> list[str]:
    """The classes of a denoiser conditioned on one class per image; [] for any other."""
    conditioner = task.conditioner
    single = isinstance(conditioner, ClassConditioner) and conditioner.max_classes == 1
    return list(conditioner.labels) if single else []  # type: ignore[union-attr]


def as_denoiser(task: DiffusionTask) -> Denoiser:
    """A task as what is evaluated."""
    return Denoiser(
        lambda count, config: sample_batches(task, count, config),
        (lambda batch: denoise_of(task, batch)) if isinstance(task.codec, PixelCodec) else None,
        task.scheduler,
        classes_of(task),
        task.conditioner is not None,
    )


def inputs_of(task: DiffusionTask, indices: range) -> tuple[dict[str, Any], Tensor | None]:
    """The pipeline's inputs for the images of these indices: the classes in turn, and these (B,); or the conditions of
    the validation split in turn, and None."""
    if task.conditioner is None:
        return {}, None
    if classes := classes_of(task):
        labels = torch.arange(indices.start, indices.stop) % len(classes)
        return {"class_labels": labels.tolist()}, labels
    val = task.data.val
    return {"conditions": task.conditioner.from_batch(collate([val[index % len(val)] for index in indices]))}, None


def denoise_of(task: DiffusionTask, batch: dict[str, Any]) -> Denoise:
    """The network of pixels in float32, with the conditions of a batch of real images."""
    device, images = task.unet.device, batch["image"]
    with eval_mode(task, device.type, None):  # once, for all timesteps
        conditioning = task.conditioning(task.conditions(batch, device), (images.shape[-2], images.shape[-1]))

    def denoise(xt: Tensor, timesteps: Tensor) -> Tensor:
        with eval_mode(task, device.type, None):
            sample = conditioning.concat_channels(xt)
            return task.unet(sample, timesteps, conditioning.tokens, return_dict=False)[0]

    return denoise


def sample_batches(
    task: DiffusionTask,
    count: int,
    config: SamplingConfig,
    inputs: InputsOf = inputs_of,
    loss_guidance: Callable[[range], LossGuidance] | None = None,
) -> Iterator[SampleBatch]:
    """Samples 0..count-1 of a seed, batch by batch; an image does not depend on its batch or on `count`.

    Args:
        task: the denoiser.
        count: number of images.
        config: steps, guidance, seed and sampler.
        inputs: the pipeline's inputs and the classes of the images of some indices.
        loss_guidance: that of the images of some indices; None: none.
    """
    pipeline = task.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.autocast_dtype = runtime.autocast_dtype()
    if config.scheduler is not None:
        pipeline.scheduler = make_scheduler(pipeline.scheduler, config.scheduler)
    height, width = task.image_size()
    batch = SAMPLE_BATCH.get(task.unet.device.type, SAMPLE_BATCH["cpu"])
    for start in progress_bar(range(0, count, batch), desc="sampling", unit="batch", leave=False):
        indices = range(start, min(start + batch, count))
        conditions, labels = inputs(task, indices)
        output = pipeline(
            **conditions,
            batch_size=len(indices),
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale if conditions else 1.0,
            height=height,
            width=width,
            generator=generators_for(config.seed, indices),
            output_type="pt",
            loss_guidance=None if loss_guidance is None else loss_guidance(indices),
        )
        yield SampleBatch(to_uint8(cast(GenerationOutput, output).pixels() * 2 - 1), labels)


def sample(task: DiffusionTask, count: int, config: SamplingConfig) -> tuple[Tensor, Tensor | None]:
    """Samples 0..count-1 of a seed, uint8 (N, 3, H, W), and their classes (N,), or None without classes."""
    return concat_batches(sample_batches(task, count, config))
