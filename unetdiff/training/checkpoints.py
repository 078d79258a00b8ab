"""Checkpoints and model directories, written to a temporary directory and renamed: a crash leaves no partial file.

Safetensors and JSON only; nothing is pickled, so loading a checkpoint runs no code.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unetdiff.errors import UserError
from unetdiff.files.tensors import write_tensors
from unetdiff.training.tasks.base import Task

FOLDER = "checkpoints"
MODEL, EMA_WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"


@dataclass
class Progress:
    """The state of a run apart from its tensors. Random generators have none: seeds are functions of the step."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    images: int = 0
    """Images seen."""
    minutes: float = 0.0
    """Minutes over all sessions of the run, validation included."""
    train_minutes: float = 0.0
    """Minutes of training steps, without validation and checkpointing."""
    validated: int | None = None
    """Step of the last completed validation."""
    best: float | None = None
    """Best value of `Task.best_metric`."""
    best_step: int | None = None
    """Step of the best value."""
    nonfinite: int = 0
    """Non-finite losses in a row."""
    skipped: int = 0
    """Total steps skipped for a non-finite loss."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the float16 loss scaler."""
    planned: int | None = None
    """Total steps of the run, as planned when this was written."""
    replanned: list[dict[str, int]] = field(default_factory=list)
    """Changes of the length by resumed runs: `step`, and the total steps `before` and `after`."""
    init_from: dict[str, Any] | None = None
    """`InitReport` of `training.init_from`, for the summary."""

    def plan(self, steps: int) -> str | None:
        """Set the total number of steps; returns a log line if it differs from the previous one."""
        before, self.planned = self.planned, steps
        if before in (None, steps):
            return None
        self.replanned.append({"step": self.step, "before": before, "after": steps})
        return (
            f"length changed from {before} to {steps} steps: from step {self.step} on the schedule is that of {steps}"
        )


def checkpoint_name(step: int) -> str:
    """Directory name of a step's checkpoint."""
    return f"step-{step:08d}"


def complete(run: Path) -> list[Path]:
    """The complete checkpoints of a run directory, oldest first."""
    return sorted(p for p in (run / FOLDER).glob("step-*") if (p / STATE).is_file())


def newest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run directory, or None."""
    return max(complete(run), default=None)


def resume_hint(run: Path) -> str:
    """One sentence for the user: the last complete checkpoint, and how to resume from it."""
    checkpoint = newest(run)
    if checkpoint is None:
        return "No checkpoint was written yet; start again with --resume."
    return f"The last complete checkpoint is {checkpoint}; continue with --resume."


def save(
    run: Path, progress: Progress, task: Task, ema: Task | None, optimizer: torch.optim.Optimizer, keep: int
) -> Path:
    """Write a checkpoint, then delete all but the newest `keep`.

    Raises:
        OSError: e.g. a full disk; the older checkpoints are intact and no partial one is left.
    """
    target = run / FOLDER / checkpoint_name(progress.step)

    def write(directory: Path) -> None:
        write_tensors(_tensors(task), directory / MODEL)
        if ema is not None:
            write_tensors(_tensors(ema), directory / EMA_WEIGHTS)
        write_tensors(optimizer_tensors(optimizer), directory / OPTIMIZER)
        (directory / STATE).write_text(json.dumps(asdict(progress), indent=1))

    replace_directory(target, write)
    for old in sorted((run / FOLDER).glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def load(directory: Path, task: Task, ema: Task | None, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore a checkpoint, strictly.

    Raises:
        UserError: names the file and the tensors that do not match.
    """
    _load_modules(directory / MODEL, task)
    if ema is not None:
        _load_modules(directory / EMA_WEIGHTS, ema)
    load_optimizer(optimizer, _read(directory / OPTIMIZER), directory / OPTIMIZER)
    return read_progress(directory)


def require_length(directory: Path, steps: int) -> None:
    """Refuse a new length that the checkpoint has already reached.

    Raises:
        UserError: names the key and both numbers.
    """
    progress = read_progress(directory)
    if progress.planned is not None and steps != progress.planned and steps <= progress.step:
        raise UserError(
            f"training.steps={steps}: must be above the {progress.step} steps that {directory} has done. "
            f"Give more, or {progress.planned} as before."
        )


def read_progress(directory: Path) -> Progress:
    """The progress stored in a checkpoint."""
    return Progress(**json.loads((directory / STATE).read_text()))


def load_eval_weights(directory: Path, task: Task) -> Progress:
    """Load the weights used for evaluation into a task, strictly: the checkpoint's EMA if it has one.

    Raises:
        UserError: names the file and the tensors that do not match.
    """
    ema = directory / EMA_WEIGHTS
    _load_modules(ema if ema.is_file() else directory / MODEL, task)
    return read_progress(directory)


def export(run: Path, name: str, task: Task) -> Path:
    """Write a model directory (`best`, `latest`) that the pipelines can load."""
    return replace_directory(run / name, task.save)


def model_directory(path: str | Path) -> Path:
    """Resolve a path to a model directory: a run's `best`, else its `latest`, else the path itself.

    Raises:
        UserError: no model there.
    """
    path = Path(path)
    for name in ("best", "latest"):
        restore_swapped(path / name)
    for candidate in (path / "best", path / "latest", path):
        if (candidate / "unet" / "config.json").is_file():
            return candidate
    if not path.exists():
        raise UserError(f"'{path}' does not exist. Give a run directory (with best/ or latest/) or a model directory.")
    raise UserError(
        f"'{path}' contains no model (no best/unet, latest/unet or unet). Has the run completed a validation?"
    )


# ---------------------------------------------------------------------------------------------- tensors


def _tensors(task: Task) -> dict[str, Tensor]:
    """Every tensor of a task, by "component.name"."""
    return {
        f"{component}.{name}": tensor
        for component, module in task.trainable_modules().items()
        for name, tensor in module.state_dict().items()
    }


def _load_modules(path: Path, task: Task) -> None:
    state, expected = _read(path), _tensors(task)
    missing = [k for k in expected if k not in state or state[k].shape != expected[k].shape]
    unexpected = [k for k in state if k not in expected]
    if missing or unexpected:
        raise UserError(
            f"{path}: must be of the same network (got {len(missing)} tensors missing or of a different shape "
            f"{missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]})."
        )
    for component, module in task.trainable_modules().items():
        prefix = f"{component}."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as a flat dict, by "parameter|key"."""
    return {
        f"{name}|{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Restore `optimizer_tensors`; a parameter without steps has no state."""
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    for key, value in tensors.items():
        name, _, entry = key.partition("|")
        if name not in parameters:
            raise UserError(f"{path}: must be of the same network (got optimizer state for unknown '{name}').")
        parameter = parameters[name]
        if entry == "step":
            value = value.to(parameter.device)
        else:
            value = torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(value)
        optimizer.state[parameter][entry] = value


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(
            f"{path}: must exist in a complete checkpoint. Delete its directory to use the previous checkpoint."
        ) from None
    except SafetensorError as error:
        raise UserError(f"{path}: must be a complete safetensors file ({error}). Delete its directory.") from None


# ------------------------------------------------------------------------------------------ directories


def replace_directory(target: Path, write: Callable[[Path], None]) -> Path:
    """Replace `target` by a directory that `write` fills: completely, or not at all on an error."""
    temporary, old = target.with_name(f".writing-{target.name}"), target.with_name(f".old-{target.name}")
    with _remove_on_failure(temporary):
        temporary.mkdir(parents=True)
        write(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        if old.exists():
            shutil.rmtree(old)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    _fsync(target.parent)
    shutil.rmtree(old, ignore_errors=True)
    return target


def restore_swapped(target: Path) -> None:
    """Finish a `replace_directory` that was killed between its two renames: the old directory is put back."""
    old = target.with_name(f".old-{target.name}")
    if old.exists() and not target.exists():
        old.rename(target)


@contextmanager
def _remove_on_failure(directory: Path) -> Iterator[None]:
    shutil.rmtree(directory, ignore_errors=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
