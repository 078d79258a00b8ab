"""Checkpoints and model directories, written aside and renamed: a crash leaves no partial one.

Safetensors and JSON only; nothing is pickled, so loading a checkpoint runs no code. What a checkpoint says is compared
with the run in `training/agreement.py`.
"""

from __future__ import annotations

import errno
import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from unetdiff.errors import FileError, UserError
from unetdiff.files.folders import folders_in
from unetdiff.files.records import write_json
from unetdiff.files.tensors import read_header, read_tensors, write_tensors
from unetdiff.files.writing import delete_whole, replace_directory, sync, write_file
from unetdiff.models.loading import WEIGHTS, is_stock
from unetdiff.models.unet import UNet
from unetdiff.training import lora
from unetdiff.training.agreement import require_tensors
from unetdiff.training.logger import METRICS
from unetdiff.training.optimizer_state import load_optimizer, optimizer_tensors
from unetdiff.training.progress import REMEDY, STATE, Progress, checkpoint_name, read_progress
from unetdiff.training.run_card import write_run_card
from unetdiff.training.tasks.base import Task

FOLDER = "checkpoints"
MODEL, EMA_WEIGHTS, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"


def complete(run: Path) -> list[Path]:
    """The complete checkpoints of a run directory, oldest first."""
    if not (run / FOLDER).is_dir():
        return []
    return [p for p in folders_in(run / FOLDER) if p.name.startswith("step-") and (p / STATE).is_file()]


def newest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run directory, or None."""
    return max(complete(run), default=None)


def resume_hint(run: Path) -> str:
    """One sentence for the user: the last complete checkpoint, and how to resume from it."""
    try:
        checkpoint = newest(run)
    except (FileError, OSError):  # the directory cannot be read any more
        checkpoint = None
    if checkpoint is None:
        return "No checkpoint was written yet; start again with the same command and --resume."
    return f"The last complete checkpoint is {checkpoint}; continue with the same command and --resume."


def save(
    run: Path, progress: Progress, task: Task, ema: Task | None, optimizer: torch.optim.Optimizer, keep: int | None
) -> Path:
    """Write a checkpoint, then delete all but the newest `keep`; None: keep all.

    If the newest is of the same step, only its state is written: its tensors are those of this step.

    Raises:
        OSError: e.g. a full disk; the older checkpoints are intact and no partial one is left.
    """
    if not run.is_dir():  # deleted while training; not created again, without its config
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(run))
    sync(run / METRICS)
    target = run / FOLDER / checkpoint_name(progress.step)
    moments = optimizer_tensors(optimizer)
    progress.optimizer_tensors = len(moments)

    def write(directory: Path) -> None:
        write_tensors(_tensors(task), directory / MODEL)
        if ema is not None:
            write_tensors(_tensors(ema), directory / EMA_WEIGHTS)
        write_tensors(moments, directory / OPTIMIZER)
        write_json(directory / STATE, asdict(progress))

    if newest(run) == target:
        write_file(target / STATE, lambda aside: _write_state(aside, progress))
    else:
        replace_directory(target, write)
    if keep is not None:
        prune(run, keep)
    return target


def _write_state(path: Path, progress: Progress) -> None:
    write_json(path, asdict(progress))
    sync(path)


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and incomplete ones that are older."""
    kept = complete(run)[-keep:]
    for folder in folders_in(run / FOLDER) if kept else []:
        if folder.name.startswith("step-") and folder not in kept and folder.name < kept[-1].name:
            delete_whole(folder)


def load(directory: Path, task: Task, ema: Task | None, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore a checkpoint, strictly.

    Raises:
        FileError: names the file and the tensors or keys that do not match.
    """
    progress = read_progress(directory)
    require_tensors(directory / MODEL, _tensors(task))
    if ema is not None:
        require_tensors(directory / EMA_WEIGHTS, _tensors(ema))
    load_optimizer(optimizer, directory / OPTIMIZER, progress)
    load_weights(directory / MODEL, task)
    if ema is not None:
        load_weights(directory / EMA_WEIGHTS, ema)
    return progress


def load_eval_weights(directory: Path, task: Task) -> Progress:
    """Load the weights used for evaluation into a task, strictly: the checkpoint's EMA if it has one.

    Raises:
        FileError: names the file and the tensors that do not match.
    """
    ema = directory / EMA_WEIGHTS
    load_weights(ema if ema.is_file() else directory / MODEL, task)
    return read_progress(directory)


def load_weights(path: Path, task: Task) -> None:
    """Load one file of weights into a task, strictly. Errors as of `load`."""
    require_tensors(path, _tensors(task))
    state = read_tensors(path, REMEDY)
    for component, module in task.trainable_modules().items():
        prefix = f"{component}."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        module.load_state_dict(own, strict=not lora.has_adapter(module))


def export(run: Path, name: str, task: Task) -> Path:
    """Write a model directory (`best`, `latest`) that the pipelines can load, with the adapter of a LoRA run merged
    into its network, and next to it for diffusers."""

    def write(directory: Path) -> None:
        with lora.merged(task):
            task.save(directory)
        write_run_card(directory, run)
        if lora.has_adapter(task.unet):
            task.unet.save_lora_adapter(directory, lora.ADAPTER, prefix="unet")

    return replace_directory(run / name, write)


def is_exported(run: Path, name: str, task: Task) -> bool:
    """Whether a model directory of the run has these weights."""
    path = run / name / "unet" / WEIGHTS
    try:
        with lora.merged(task):
            weights = task.unet.state_dict()
        if is_stock(path.parent):  # of a Stable Diffusion directory
            state = dict(UNet.from_pretrained(path.parent).state_dict())
        else:
            if set(read_header(path)) != set(weights):
                return False
            state = read_tensors(path)
    except UserError:
        return False
    return set(state) == set(weights) and all(torch.equal(state[k], v.cpu()) for k, v in weights.items())


def _tensors(task: Task) -> dict[str, Tensor]:
    """Every tensor of a task that is trained, or a buffer, by "component.name"."""
    return {
        f"{component}.{name}": tensor
        for component, module in task.trainable_modules().items()
        for name, tensor in lora.trained_state(module).items()
    }
