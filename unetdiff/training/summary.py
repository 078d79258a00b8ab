"""The headline of a run, printed before its first step, and summary.json, written after its last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from unetdiff.config.schema import RunConfig
from unetdiff.files.records import write_json
from unetdiff.training import runtime
from unetdiff.training.logger import METRICS, read_lines
from unetdiff.training.peak import peak_bytes
from unetdiff.training.progress import Progress
from unetdiff.training.rundir import SUMMARY
from unetdiff.training.tasks.base import Task


def headline(
    config: RunConfig,
    progress: Progress,
    task: Task,
    accelerator: Accelerator,
    images: tuple[int, int],
    steps: int,
    epochs: float,
) -> str:
    """One line: task, data, network, length and machine; `images`: the sizes of the training and validation splits."""
    counts = task.unet.parameter_counts()
    trained, why = "", _frozen(config, progress.step, steps)
    if not all(parameter.requires_grad for parameter in task.unet.parameters()):
        trained = f" ({_trained(task) / 1e6:.2f} M trained{why})"
    facts, processes = runtime.facts(accelerator), runtime.processes_text(accelerator)
    length = f"{epochs:.1f}" if config.training.epochs is None else f"{config.training.epochs:g}"
    resumed = f", resumed at step {progress.step}" if progress.step else ""
    return (
        f"{config.task} on {config.data.name}: {images[0]} training and {images[1]} validation "
        f"images, {sum(counts.values()) / 1e6:.2f} M parameters{trained}, {steps} steps of "
        f"{config.training.batch_size} ({length} epochs), {facts['precision']}, "
        f"{facts['device']}, {facts['threads']} threads{processes}{resumed}"
    )


def _frozen(config: RunConfig, step: int, steps: int) -> str:
    """Which key leaves parameters as they are, at a step of a run; empty for those of a head that has no task."""
    training = config.training
    until = round(training.freeze_encoder * steps)
    if training.lora.rank is not None:
        return f": LoRA of rank {training.lora.rank}"
    if training.freeze_backbone:
        return ": the backbone is frozen"
    if step < until:
        return ": the encoder is frozen" + (f" until step {until}" if until < steps else "")
    return f": {training.frozen_levels} encoder levels are frozen" if training.frozen_levels else ""


def early_stop(progress: Progress, task: Task, steps: int) -> str:
    """The log line of a run that ends before its last step; without a best step, no validation measured the metric."""
    name, best = task.best_metric[0], progress.best_step
    reason = f"{name} is not better than that of step {best}" if best is not None else f"{name} was never a number"
    return f"stopped early at step {progress.step} of {steps}: {reason}"


def _trained(task: Task) -> int:
    return sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)


def write_summary(
    directory: Path,
    config: RunConfig,
    progress: Progress,
    task: Task,
    accelerator: Accelerator,
    metrics: dict[str, Any],
    extra: dict[str, Any],
) -> None:
    """Write summary.json of a finished run, with the entries of `extra`. Empty `metrics` (a resumed run that had
    already validated) are read from metrics.jsonl."""
    summary = {
        "task": config.task,
        "steps": progress.step,
        "stopped_early": progress.planned is not None and progress.step < progress.planned,
        "images": progress.images,
        "minutes": progress.minutes,
        "train_minutes": progress.train_minutes,
        "images_per_second": progress.images / max(1e-9, 60 * progress.train_minutes),
        "parameters": task.unet.parameter_counts(),
        "best": {"metric": task.best_metric[0], "value": progress.best, "step": progress.best_step},
        "final": metrics or _last_validation(directory),
        "skipped_steps": progress.skipped,
        "peak_memory": peak_bytes(accelerator.device),
        **runtime.facts(accelerator),
        "init_from": progress.init_from,
        "replanned": progress.replanned,
        **extra,
    }
    write_json(directory / SUMMARY, summary)


def _last_validation(directory: Path) -> dict[str, Any]:
    lines = [line for line in read_lines(directory / METRICS) if line["kind"] == "validation"]
    return {k: v for k, v in lines[-1].items() if "/" in k} if lines else {}
