"""One optimizer step: forward and backward of its parts, gradient clipping, a finiteness check, the update.

A step is one batch, however many processes and micro-batches it is cut into: its loss is a function of sums over all
its images (`Task.losses`), and every process computes the gradient of that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from unetdiff.config.training import TrainingConfig
from unetdiff.data.hashing import hash_words
from unetdiff.training.draws import RowDraws, StepDraws
from unetdiff.training.step_layers import StepLayers
from unetdiff.training.sums import Sums, add, sum_over_processes
from unetdiff.training.tasks.base import Batch, Task
from unetdiff.training.weighting import HEADS

Observer = Callable[[dict[str, Tensor]], None]
"""Takes the losses of both heads of a joint task before the backward pass of each part."""


def optimizer_step(
    model: nn.Module,
    optimizer: Any,
    batches: Iterator[Batch],
    step: int,
    settings: TrainingConfig,
    accelerator: Accelerator,
    layers: StepLayers,
    observer: Observer | None = None,
) -> tuple[dict[str, Tensor], float, list[str]]:
    """One optimizer step over `gradient_accumulation_steps` parts: its losses, seconds waited for data, image names.

    If the loss or the gradients are not finite, weights and BatchNorm statistics are unchanged and "loss" is nan.

    Args:
        model: the task, wrapped by the accelerator.
        optimizer: of its parameters, prepared by the accelerator.
        batches: an iterator over the parts, all of the same size.
        step: index of this step; with the seed, it determines every random number.
        settings: seed, gradient accumulation and clipping.
        accelerator: of this run.
        layers: the network's BatchNorm and dropout layers.
        observer: of a joint task, takes {"segmentation": loss, "diffusion": loss} of each part before its backward
            pass and must retain their graph. Their gradients add up over the parts, and average over the processes, to
            those of the step's losses.
    """
    model.train()
    task: Task = extract_model_from_parallel(model, keep_torch_compile=False)
    layers.begin_step()
    start = time.perf_counter()
    own = [next(batches) for _ in range(settings.gradient_accumulation_steps)]
    data_wait = time.perf_counter() - start
    parts = _with_draws(own, hash_words(settings.seed, step) >> 1, task, accelerator)
    observers = [observer for observer in (observer, task.observer()) if observer is not None]
    if len(parts) == 1:
        losses = _whole(model, task, *parts[0], accelerator, layers, observers)
    else:
        with accelerator.autocast():
            reference = task.reference(parts, layers)
        layers.discard()
        losses = _in_parts(model, task, parts, reference, accelerator, layers, observers)
    finite = _clip_gradients(model, losses["loss"], settings.optimizer.max_grad_norm, accelerator)
    if finite:
        optimizer.step()
    elif accelerator.scaler is not None:
        accelerator.scaler.update()  # lowers the scale, as the optimizer's step would have
    optimizer.zero_grad(set_to_none=True)
    layers.end_step(finite)
    task.end_step(finite)
    if not finite:
        losses["loss"] = torch.full_like(losses["loss"], math.nan)
    return losses, data_wait, [name for batch in own for name in batch["name"]]


def _with_draws(
    batches: Sequence[Batch], seed: int, task: Task, accelerator: Accelerator
) -> list[tuple[Batch, RowDraws]]:
    """Each part with the random numbers of its images, which follow those of the processes and parts before."""
    count = len(batches[0]["name"])
    draws = StepDraws(seed, count * len(batches) * accelerator.num_processes, task.unet.device)
    first = count * len(batches) * accelerator.process_index
    return [(batch, draws.rows(first + part * count, count)) for part, batch in enumerate(batches)]


def _whole(
    model: nn.Module,
    task: Task,
    batch: Batch,
    draws: RowDraws,
    accelerator: Accelerator,
    layers: StepLayers,
    observers: Sequence[Observer],
) -> dict[str, Tensor]:
    """Forward and backward of a step with one part per process; its losses, detached."""
    with task.step_part(draws, layers):
        with accelerator.autocast():
            sums = model(batch, draws)
        losses = task.losses(sum_over_processes(sums, accelerator.num_processes))
        for observer in observers:
            observer({head: losses[f"{head}/loss"] for head in HEADS})
        accelerator.backward(losses["loss"])
    return {name: value.detach().float() for name, value in losses.items()}


def _in_parts(
    model: nn.Module,
    task: Task,
    parts: Sequence[tuple[Batch, RowDraws]],
    reference: Sums,
    accelerator: Accelerator,
    layers: StepLayers,
    observers: Sequence[Observer],
) -> dict[str, Tensor]:
    """Forward and backward of each part with its share of the gradient of the step's loss; the losses, detached.

    The derivative of the loss by the step's sums is known from `reference`, and the sums of the step are those of its
    parts: the gradient of part p is that of sum_k dL/dS_k s_k(p).
    """
    processes = accelerator.num_processes  # DDP averages over them
    heads = [f"{head}/loss" for head in HEADS] if observers else []
    derivatives = _derivatives(task, sum_over_processes(reference, processes), ["loss", *heads])
    total: Sums | None = None
    losses: dict[str, Tensor] = {}
    for number, (batch, draws) in enumerate(parts, start=1):
        with nullcontext() if number == len(parts) else accelerator.no_sync(model), task.step_part(draws, layers):
            with accelerator.autocast():
                sums = model(batch, draws.again())
            shares = {name: processes * _dot(derivative, sums) for name, derivative in derivatives.items()}
            for observer in observers:
                observer({head: shares[f"{head}/loss"] for head in HEADS})
            share = shares["loss"]
            detached = {name: value.detach() for name, value in sums.items()}
            total = detached if total is None else add(total, detached)
            if number == len(parts):
                losses = task.losses(sum_over_processes(total, processes))
                if losses["loss"].requires_grad:  # by parameters of the loss itself: learned weights
                    share = share + losses["loss"]
            accelerator.backward(share)
    return {name: value.detach().float() for name, value in losses.items()}


def _derivatives(task: Task, sums: Sums, names: Sequence[str]) -> dict[str, Sums]:
    """The derivatives of the losses of these names by each of the sums."""
    leaves = {name: value.detach().requires_grad_() for name, value in sums.items()}
    losses = task.losses(leaves)
    return {
        name: dict(
            zip(
                leaves,
                torch.autograd.grad(losses[name], list(leaves.values()), retain_graph=True, materialize_grads=True),
                strict=True,
            )
        )
        for name in names
    }


def _dot(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([(first[name] * second[name]).sum() for name in first]).sum()


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
