"""What a run leaves on disk, written aside and renamed: checkpoints to go on from, and model directories to use.

Safetensors and JSON only; nothing is pickled, so nothing that is loaded can run code.
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
from unetdiff.models.loading import save_tensors
from unetdiff.training.tasks.base import Task

FOLDER = "checkpoints"
MODEL, AVERAGE, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"


@dataclass
class Progress:
    """Where a run is, beside its tensors. Random numbers need no state: each step's seed is a function of the step."""

    step: int = 0
    """Optimizer steps done (skipped ones count)."""
    images: int = 0
    """Images seen."""
    minutes: float = 0.0
    """Minutes trained, validation included, over every session of the run."""
    train_minutes: float = 0.0
    """Minutes in the loop alone, without validation and writing."""
    validated: int | None = None
    """The step of the last validation that was finished."""
    best: float | None = None
    """The best value of the task's figure."""
    best_step: int | None = None
    """The step that it was reached at."""
    nonfinite: int = 0
    """Non-finite losses in a row."""
    skipped: int = 0
    """Steps skipped for a non-finite loss, in all."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the float16 loss scaler."""
    planned: int | None = None
    """Steps that the run was to do in all, when this was written."""
    replanned: list[dict[str, int]] = field(default_factory=list)
    """Where a resumed run was made longer or shorter: `step`, and the steps planned `before` and `after`."""
    start: dict[str, Any] | None = None
    """Where the weights started from (`training.init_from`), for the summary."""

    def plan(self, steps: int) -> str | None:
        """Note how many steps the run is to do in all; a sentence where that is another number than before."""
        before, self.planned = self.planned, steps
        if before in (None, steps):
            return None
        self.replanned.append({"step": self.step, "before": before, "after": steps})
        return f"planned for {before} steps, now for {steps}: from step {self.step} on by the schedule of {steps}"


def name_of(step: int) -> str:
    """Directory name of a step's checkpoint."""
    return f"step-{step:08d}"


def whole(run: Path) -> list[Path]:
    """The whole checkpoints of a run directory, oldest first."""
    return sorted(p for p in (run / FOLDER).glob("step-*") if (p / STATE).is_file())


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run directory, or None."""
    found = whole(run)
    return found[-1] if found else None


def save(
    run: Path, progress: Progress, task: Task, average: Task | None, optimizer: torch.optim.Optimizer, keep: int
) -> Path:
    """Write a checkpoint beside the others, then delete all but the newest `keep`.

    Raises:
        OSError: e.g. a full disk; then nothing of it is left and the older checkpoints are whole.
    """
    target = run / FOLDER / name_of(progress.step)

    def write(directory: Path) -> None:
        save_tensors(_tensors(task), directory / MODEL)
        if average is not None:
            save_tensors(_tensors(average), directory / AVERAGE)
        save_tensors(optimizer_tensors(optimizer), directory / OPTIMIZER)
        (directory / STATE).write_text(json.dumps(asdict(progress), indent=1))

    replace_directory(target, write)
    for old in sorted((run / FOLDER).glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def load(directory: Path, task: Task, average: Task | None, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint back, strictly.

    Raises:
        UserError: naming the file and what does not fit.
    """
    _load_modules(directory / MODEL, task)
    if average is not None:
        _load_modules(directory / AVERAGE, average)
    load_optimizer(optimizer, _read(directory / OPTIMIZER), directory / OPTIMIZER)
    return read_progress(directory)


def require_length(directory: Path, steps: int) -> None:
    """Refuse another number of steps than was planned, if the checkpoint is as far as that.

    Raises:
        UserError: naming the key and both numbers.
    """
    progress = read_progress(directory)
    if progress.planned is not None and steps != progress.planned and steps <= progress.step:
        raise UserError(
            f"training.steps: {steps} in all, but {directory} has done {progress.step} of {progress.planned}; "
            "give more than it has done, or the same number as before"
        )


def read_progress(directory: Path) -> Progress:
    """Where a checkpoint is."""
    return Progress(**json.loads((directory / STATE).read_text()))


def load_judged(directory: Path, task: Task) -> Progress:
    """Put the weights of a checkpoint that are judged, its average where it has one, into a task, strictly.

    Raises:
        UserError: naming the file and what does not fit.
    """
    average = directory / AVERAGE
    _load_modules(average if average.is_file() else directory / MODEL, task)
    return read_progress(directory)


def export(run: Path, name: str, task: Task) -> Path:
    """Write a model directory (`best`, `latest`) that the pipelines load."""
    return replace_directory(run / name, task.save)


def model_directory(path: str | Path) -> Path:
    """The model directory meant by a path: a run's `best`, else its `latest`, else the path itself.

    Raises:
        UserError: when there is no model there.
    """
    path = Path(path)
    for name in ("best", "latest"):
        restore_swapped(path / name)
    for candidate in (path / "best", path / "latest", path):
        if (candidate / "unet" / "config.json").is_file():
            return candidate
    if not path.exists():
        raise UserError(f"no directory '{path}'; give a run directory (with best/ or latest/) or a model directory")
    raise UserError(
        f"'{path}' holds no model: none of best/unet, latest/unet, unet is there (has the run validated yet?)"
    )


# ---------------------------------------------------------------------------------------------- tensors


def _tensors(task: Task) -> dict[str, Tensor]:
    """Every tensor of a task once, as "component.name"."""
    return {
        f"{component}.{name}": tensor
        for component, module in task.trainable_modules().items()
        for name, tensor in module.state_dict().items()
    }


def _load_modules(path: Path, task: Task) -> None:
    state, expected = _read(path), _tensors(task)
    wrong = [k for k in expected if k not in state or state[k].shape != expected[k].shape]
    foreign = [k for k in state if k not in expected]
    if wrong or foreign:
        raise UserError(
            f"'{path}' is of another network: {len(wrong)} tensors missing or of another shape {wrong[:3]}, "
            f"{len(foreign)} unknown {foreign[:3]}"
        )
    for component, module in task.trainable_modules().items():
        start = f"{component}."
        module.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as flat tensors, "parameter|key"."""
    return {
        f"{name}|{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put `optimizer_tensors` back; a parameter that had taken no step has none."""
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    for key, value in tensors.items():
        name, _, entry = key.partition("|")
        if name not in parameters:
            raise UserError(f"'{path}' is of another run: it has a state for '{name}', which this network has not")
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
            f"no file '{path}': the checkpoint is not whole; delete its directory to use the one before"
        ) from None
    except SafetensorError as error:
        raise UserError(f"'{path}' is truncated or no safetensors file ({error}); delete its directory") from None


# ------------------------------------------------------------------------------------------ directories


def replace_directory(target: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a directory aside, then put it in the place of `target`: whole or not at all."""
    aside, old = target.with_name(f".writing-{target.name}"), target.with_name(f".old-{target.name}")
    with _removed_on_failure(aside):
        aside.mkdir(parents=True)
        write(aside)
        for file in aside.rglob("*"):
            if file.is_file():
                _sync(file)
        if old.exists():
            shutil.rmtree(old)
        if target.exists():
            target.rename(old)
        aside.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)
    return target


def restore_swapped(target: Path) -> None:
    """Undo a swap that a kill cut in two: the old directory was moved aside and the new one not yet in place."""
    old = target.with_name(f".old-{target.name}")
    if old.exists() and not target.exists():
        old.rename(target)


@contextmanager
def _removed_on_failure(directory: Path) -> Iterator[None]:
    shutil.rmtree(directory, ignore_errors=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
