"""Workloads as the commands run them: a training step (`train`), mask prediction (`predict`), sampling (`sample`)."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, repeat
from typing import Any

import torch
from torch import Tensor

from unetdiff.benchmark.timing import Workload
from unetdiff.config.training import TrainingConfig
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.kernels.accelerate import accelerate_training_
from unetdiff.models.unet import UNet
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.inference import predict_masks
from unetdiff.segmentation.segmenter import Segmenter
from unetdiff.training import runtime
from unetdiff.training.ema import EMA
from unetdiff.training.optimizer import build_optimizer
from unetdiff.training.step import optimizer_step
from unetdiff.training.step_layers import StepLayers
from unetdiff.training.tasks.base import Batch, Task


def training_workload(task: Task, batch: Batch, settings: TrainingConfig) -> Workload:
    """A training step on a fixed batch: loss, gradients, clipping, optimizer, EMA.

    Without data loading, learning rate schedule and logging. The task is moved to the device and trained.

    Args:
        task: the task to train.
        batch: images of one step.
        settings: precision, memory format, optimizer and EMA; gradient accumulation is off.
    """
    settings = replace(settings, gradient_accumulation_steps=1)
    accelerator = runtime.build_accelerator(settings)
    task.to(accelerator.device)
    accelerate_training_(task.unet)
    task.set_memory_format(settings.channels_last)
    if settings.gradient_checkpointing:
        task.unet.enable_gradient_checkpointing()
    if settings.frozen_levels:
        task.unet.freeze_encoder(False, settings.frozen_levels)
    ema = EMA(task, settings.ema) if settings.ema.enabled else None
    optimizer: Any = accelerator.prepare_optimizer(build_optimizer(task, settings.optimizer), device_placement=False)
    shared = settings.batch_norm_images
    layers = StepLayers(task, batch_norm_images=shared if shared and len(batch["name"]) % shared == 0 else None)
    model: Any = accelerator.prepare_model(task, device_placement=False)
    if settings.compile:
        model = torch.compile(model)
    batches, steps, batch_size = repeat(batch), count(), len(batch["name"])

    def step() -> None:
        number = next(steps)
        optimizer_step(model, optimizer, batches, number, settings, accelerator, layers)
        if ema is not None:
            ema.update(task, (number + 1) * batch_size, batch_size)

    return step


def prediction_workload(network: UNet | Segmenter, images: Tensor) -> Workload:
    """Masks of images, uint8 (B, 3, H, W), as one batch, in the dtype of the weights."""
    options = InferenceConfig(batch_size=len(images))
    return lambda: predict_masks(network, images, options=options)


def sampling_workload(
    pipeline: GenerationPipeline,
    conditions: Tensor | None,
    noise: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    autocast: torch.dtype | None,
) -> Workload:
    """Images (B, 3, H, W) in [0, 1] from initial noise (B, 3, H, W).

    Args:
        pipeline: the denoiser with its sampler.
        conditions: as encoded by its conditioner, (B, ...); None: unconditional, without guidance.
        noise: of unit variance.
        num_inference_steps: denoising steps.
        guidance_scale: other than 1, each step runs the network twice.
        autocast: dtype of autocast; None: that of the weights.
    """
    pipeline.set_progress_bar_config(disable=True)
    pipeline.autocast_dtype = autocast
    settings: dict[str, Any] = {
        "conditions": conditions,
        "latents": noise,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": 1.0 if conditions is None else guidance_scale,
        "output_type": "pt",
        "return_dict": False,
    }
    return lambda: pipeline(**settings)[0]
