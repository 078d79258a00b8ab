"""One round of what this package does with a network: a training step as `unetdiff train` takes it, masks as `predict`
makes them, images as `sample` draws them."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, repeat
from typing import Any

import torch
from torch import Tensor

from unetdiff.benchmark.timing import Round
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.models.unet import UNet
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.inference import predict_masks
from unetdiff.training import runtime as machine
from unetdiff.training.config import TrainingConfig
from unetdiff.training.ema import EMA
from unetdiff.training.optimizer import build_optimizer
from unetdiff.training.step import optimizer_step
from unetdiff.training.tasks.base import Batch, Task


def training_workload(task: Task, batch: Batch, settings: TrainingConfig) -> Round:
    """An optimizer step on the same batch every time: loss, gradients, their clipping, weights, average.

    The task is moved to the machine's device and trained. What is left out of the loop: reading images, the learning
    rate's schedule, and the log.

    Args:
        task: what is trained.
        batch: images of one step.
        settings: precision, memory format, optimizer, average; `accumulation` does not matter.
    """
    settings = replace(settings, gradient_accumulation_steps=1)
    accelerator = machine.build_accelerator(settings)
    task.to(accelerator.device)
    task.set_memory_format(settings.channels_last)
    if settings.gradient_checkpointing:
        task.unet.enable_gradient_checkpointing()
    if settings.frozen_levels:
        task.unet.freeze_encoder(False, settings.frozen_levels)
    average = EMA(task, settings.ema) if settings.ema.enabled else None
    optimizer: Any = accelerator.prepare_optimizer(build_optimizer(task, settings.optimizer), device_placement=False)
    model: Any = accelerator.prepare_model(task, device_placement=False)
    if settings.compile:
        model = torch.compile(model)
    batches, steps, size = repeat(batch), count(), len(batch["name"])

    def step() -> None:
        number = next(steps)
        optimizer_step(model, optimizer, batches, number, settings, accelerator)
        if average is not None:
            average.update(task, (number + 1) * size, size)

    return step


def prediction_workload(unet: UNet, images: Tensor) -> Round:
    """Masks of images, uint8 (B, 3, H, W), all at once, in the network's own precision."""
    options = InferenceConfig(batch_size=len(images))
    return lambda: predict_masks(unet, images, options=options)


def sampling_workload(
    pipeline: GenerationPipeline,
    conditions: Tensor | None,
    noise: Tensor,
    steps: int,
    guidance: float,
    autocast: torch.dtype | None,
) -> Round:
    """Images (B, 3, H, W) in [0, 1] from starting noise (B, 3, H, W); one pass a step where there is no condition.

    Args:
        pipeline: the denoiser with its sampler.
        conditions: as its conditioner encodes them, (B, ...).
        noise: of unit variance.
        steps: denoising steps.
        guidance: scale; with one other than 1 a step is two passes.
        autocast: type to compute in; None: the weights'.
    """
    pipeline.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {
        "conditions": conditions,
        "latents": noise,
        "num_inference_steps": steps,
        "guidance_scale": 1.0 if conditions is None else guidance,
        "output_type": "pt",
        "autocast_dtype": autocast,
        "return_dict": False,
    }
    return lambda: pipeline(**settings)[0]
