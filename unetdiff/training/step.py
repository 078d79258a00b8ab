"""One optimizer step: its parts forward and backward, the gradients clipped and judged, the weights moved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unetdiff.data.hashing import hash_words
from unetdiff.training.config import TrainingConfig
from unetdiff.training.tasks.base import Batch


def optimizer_step(
    model: nn.Module,
    optimizer: Any,
    batches: Iterator[Batch],
    step: int,
    settings: TrainingConfig,
    accelerator: Accelerator,
    before_backward: Callable[[dict[str, Tensor]], None] | None = None,
) -> tuple[dict[str, Tensor], float, list[str]]:
    """One optimizer step over `accumulation` parts: mean losses, seconds waited for data, images' names.

    Where the loss or the gradients are not finite, the weights and BatchNorm's statistics stay as they are, and "loss"
    is nan.

    Args:
        model: the task, as it is wrapped for the processes.
        optimizer: of its parameters, as the accelerator prepared it.
        batches: the parts, one after another.
        step: steps done before; with the seed it decides every random number.
        settings: seed, accumulation and clipping.
        accelerator: of this run.
        before_backward: sees the losses of each part, with their graph, which it must leave there.
    """
    model.train()
    statistics = _running_statistics(model)
    before = [statistic.clone() for statistic in statistics]
    sums: dict[str, Tensor] = {}
    waited, names, healthy = 0.0, [], True
    for part in range(settings.gradient_accumulation_steps):
        began = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - began
        names += batch["name"]
        seed = hash_words(settings.seed, step, part, accelerator.process_index) >> 1
        torch.manual_seed(seed)  # what is not drawn from the task's own generator: dropout
        with accelerator.accumulate(model):
            with accelerator.autocast():
                losses = model(batch, seed)
            if before_backward is not None:
                before_backward(losses)
            accelerator.backward(losses["loss"])
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / settings.gradient_accumulation_steps
            if accelerator.sync_gradients:
                healthy = _clip(model, sums["loss"], settings.optimizer.max_grad_norm, accelerator)
                if healthy:
                    optimizer.step()
                elif accelerator.scaler is not None:
                    accelerator.scaler.update()  # as the optimizer's step would have: it lowers the scale
                optimizer.zero_grad(set_to_none=True)
    if not healthy:
        for statistic, kept in zip(statistics, before, strict=True):
            statistic.copy_(kept)
        sums["loss"] = torch.full_like(sums["loss"], math.nan)
    return sums, waited, names


def _running_statistics(model: nn.Module) -> list[Tensor]:
    """Means and variances of every BatchNorm that learns them; what is not finite once in them stays for ever."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    return [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var) if statistic is not None]


def _clip(model: nn.Module, loss: Tensor, most: float, accelerator: Accelerator) -> bool:
    """Clip the gradients; whether loss and gradients are finite (float16's scaler judges its gradients itself)."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    if most or accelerator.scaler is not None:
        norm = accelerator.clip_grad_norm_(parameters, most or math.inf)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in parameters])  # type: ignore[misc]
    finite = torch.isfinite(loss)
    if accelerator.scaler is None:
        finite = finite & torch.isfinite(norm)
    if accelerator.num_processes > 1:
        return bool(accelerator.reduce(finite.float(), reduction="sum") == accelerator.num_processes)
    return bool(finite)
