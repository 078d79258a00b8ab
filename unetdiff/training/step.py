"""One optimizer step: forward and backward of its parts, gradient clipping, a finiteness check, the update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unetdiff.config.training import TrainingConfig
from unetdiff.data.hashing import hash_words
from unetdiff.training.step_layers import StepLayers
from unetdiff.training.tasks.base import Batch


def optimizer_step(
    model: nn.Module,
    optimizer: Any,
    batches: Iterator[Batch],
    step: int,
    settings: TrainingConfig,
    accelerator: Accelerator,
    layers: StepLayers,
    before_backward: Callable[[dict[str, Tensor]], None] | None = None,
) -> tuple[dict[str, Tensor], float, list[str]]:
    """One optimizer step over `gradient_accumulation_steps` parts: mean losses, seconds waited for data, image names.

    If the loss or the gradients are not finite, weights and BatchNorm statistics are unchanged and "loss" is nan.

    Args:
        model: the task, wrapped by the accelerator.
        optimizer: of its parameters, prepared by the accelerator.
        batches: an iterator over the parts.
        step: index of this step; with the seed, it determines every random number.
        settings: seed, gradient accumulation and clipping.
        accelerator: of this run.
        layers: the network's BatchNorm and dropout layers.
        before_backward: called with the losses of each part; must retain their graph.
    """
    model.train()
    layers.begin_step()
    sums: dict[str, Tensor] = {}
    data_wait, names, finite = 0.0, [], True
    for part in range(settings.gradient_accumulation_steps):
        start = time.perf_counter()
        batch = next(batches)
        data_wait += time.perf_counter() - start
        names += batch["name"]
        seed = hash_words(settings.seed, step, part, accelerator.process_index) >> 1
        images, parts = len(batch["name"]), settings.gradient_accumulation_steps
        first = (accelerator.process_index * parts + part) * images
        rows = range(first, first + images)
        with layers.part(hash_words(settings.seed, step), rows), accelerator.accumulate(model):
            with accelerator.autocast():
                losses = model(batch, seed)
            if before_backward is not None:
                before_backward(losses)
            accelerator.backward(losses["loss"])
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / settings.gradient_accumulation_steps
            if accelerator.sync_gradients:
                finite = _clip_gradients(model, sums["loss"], settings.optimizer.max_grad_norm, accelerator)
                if finite:
                    optimizer.step()
                elif accelerator.scaler is not None:
                    accelerator.scaler.update()  # lowers the scale, as the optimizer's step would have
                optimizer.zero_grad(set_to_none=True)
    layers.end_step(finite)
    if not finite:
        sums["loss"] = torch.full_like(sums["loss"], math.nan)
    return sums, data_wait, names


def _clip_gradients(model: nn.Module, loss: Tensor, max_norm: float, accelerator: Accelerator) -> bool:
    """Clip the gradients; returns whether loss and gradients are finite (float16's scaler checks gradients itself)."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    if max_norm or accelerator.scaler is not None:
        norm = accelerator.clip_grad_norm_(parameters, max_norm or math.inf)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in parameters])  # type: ignore[misc]
    finite = torch.isfinite(loss)
    if accelerator.scaler is None:
        finite = finite & torch.isfinite(norm)
    if accelerator.num_processes > 1:
        return bool(accelerator.reduce(finite.float(), reduction="sum") == accelerator.num_processes)
    return bool(finite)
