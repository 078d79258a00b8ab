"""A diffusion task as `unetdiff.evaluation` knows a denoiser: how it is asked for samples, and told of real images.

Only `asked` and `told` know what conditions there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from unetdiff.data.base import collate
from unetdiff.data.hashing import generator_of
from unetdiff.data.transforms import to_uint8
from unetdiff.diffusion.codecs import PixelCodec
from unetdiff.diffusion.conditioning import ClassConditioner
from unetdiff.diffusion.pipeline import GenerationOutput
from unetdiff.diffusion.schedulers import make_scheduler
from unetdiff.diffusion.steering import LossGuidance
from unetdiff.evaluation.types import Denoise, Denoiser, SampleBatch, SamplingConfig, concat_batches
from unetdiff.segmentation.inference import eval_mode
from unetdiff.training import runtime as machine
from unetdiff.training.tasks import DiffusionTask

SAMPLE_BATCH = {"cpu": 100, "cuda": 500}
"""Images drawn at once, by type of device; which they are does not depend on it."""

Ask = Callable[[DiffusionTask, range], tuple[dict[str, Any], Tensor | None]]
"""What the pipeline is asked for by these of the samples, and the classes (B,) of which they are to be."""


def classes_of(task: DiffusionTask) -> list[str]:
    """The classes that a task draws, one an image; [] where it is told something else, or nothing."""
    told = task.conditioner
    return list(told.labels) if isinstance(told, ClassConditioner) and told.max_classes == 1 else []


def as_denoiser(task: DiffusionTask) -> Denoiser:
    """What is judged of a task."""
    return Denoiser(
        lambda count, setting: draw_parts(task, count, setting),
        (lambda batch: told(task, batch)) if isinstance(task.codec, PixelCodec) else None,
        task.scheduler,
        classes_of(task),
        task.conditioner is not None,
    )


def asked(task: DiffusionTask, numbers: range) -> tuple[dict[str, Any], Tensor | None]:
    """What the pipeline is asked for by these of the samples: the classes in turn, and those (B,); or what the images
    of the validation split show, in turn, and None."""
    if task.conditioner is None:
        return {}, None
    if classes := classes_of(task):
        labels = torch.arange(numbers.start, numbers.stop) % len(classes)
        return {"class_labels": labels.tolist()}, labels
    val = task.facts.val
    return {"conditions": task.conditioner.from_batch(collate([val[number % len(val)] for number in numbers]))}, None


def told(task: DiffusionTask, batch: dict[str, Any]) -> Denoise:
    """The network of pixels in float32, told the conditions of a batch of real images."""
    device, images = task.unet.device, batch["image"]
    with eval_mode(task, device.type, None):  # once, for all the timesteps that will be asked
        context = task.context(task.conditions(batch, device), (images.shape[-2], images.shape[-1]))

    def denoise(xt: Tensor, timesteps: Tensor) -> Tensor:
        with eval_mode(task, device.type, None):
            return task.unet(context.concat_channels(xt), timesteps, context.tokens, return_dict=False)[0]

    return denoise


def draw_parts(
    task: DiffusionTask,
    count: int,
    setting: SamplingConfig,
    ask: Ask = asked,
    steering: Callable[[range], LossGuidance] | None = None,
) -> Iterator[SampleBatch]:
    """Samples part by part; each has a noise of its own, so it is the same however many are drawn.

    Args:
        task: the denoiser.
        count: how many.
        setting: how.
        ask: what the pipeline is asked for by some of the samples, and their classes.
        steering: where to some of the samples are led; None: nowhere.
    """
    pipeline = task.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    if setting.scheduler is not None:
        pipeline.scheduler = make_scheduler(pipeline.scheduler, setting.scheduler)
    precision = machine.autocast_dtype()
    height, width = task.drawn_size()
    batch = SAMPLE_BATCH.get(task.unet.device.type, SAMPLE_BATCH["cpu"])
    for start in tqdm(range(0, count, batch), desc="sampling", unit="batch", leave=False, disable=None):
        numbers = range(start, min(start + batch, count))
        conditions, labels = ask(task, numbers)
        result = pipeline(
            **conditions,
            batch_size=len(numbers),
            num_inference_steps=setting.num_inference_steps,
            guidance_scale=setting.guidance_scale if conditions else 1.0,
            height=height,
            width=width,
            generator=[generator_of(setting.seed, number) for number in numbers],
            output_type="pt",
            autocast_dtype=precision,
            steering=None if steering is None else steering(numbers),
        )
        yield SampleBatch(to_uint8(cast(GenerationOutput, result).pixels() * 2 - 1), labels)


def draw(task: DiffusionTask, count: int, setting: SamplingConfig) -> tuple[Tensor, Tensor | None]:
    """Samples, uint8 (N, 3, H, W), and the classes (N,) that they were asked for (None without classes)."""
    return concat_batches(draw_parts(task, count, setting))
