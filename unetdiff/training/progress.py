"""The state of a run apart from its tensors: state.json of a checkpoint."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from unetdiff.errors import FileError
from unetdiff.files.records import read_object, type_name

STATE = "state.json"
REMEDY = "Delete this checkpoint's directory to continue from the one before, or restore the file."


@dataclass
class Progress:
    """What a checkpoint stores besides tensors. Random generators have no state: seeds are functions of the step."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    images: int = 0
    """Images seen."""
    minutes: float = 0.0
    """Minutes over all sessions of the run, validation included."""
    train_minutes: float = 0.0
    """Minutes of training steps, without validation and checkpointing."""
    validated: int = 0
    """Step of the last completed validation."""
    best: float | None = None
    """Best value of `Task.best_metric`."""
    best_step: int | None = None
    """Step of the best value."""
    stale: int = 0
    """Validations since the best value."""
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
    meter: dict[str, Any] = field(default_factory=dict)
    """`LossMeter.state`: losses since the last line of metrics.jsonl."""
    logged: int = 0
    """Step of the last line of metrics.jsonl."""
    optimizer_tensors: int = 0
    """Number of tensors in optimizer.safetensors."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What the weights mean: class names and their order, palette, noise scheduler (`agreement.identity_of`)."""

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


def read_progress(directory: Path) -> Progress:
    """The progress stored in a checkpoint.

    Raises:
        FileError: state.json is damaged, of another version, or of another step than the directory.
    """
    path = directory / STATE
    state = read_object(path, REMEDY)
    hints = get_type_hints(Progress)
    unknown, missing = sorted(state.keys() - hints.keys()), sorted(hints.keys() - state.keys())
    if unknown or missing:
        what = f"unknown key '{unknown[0]}'" if unknown else f"no key '{missing[0]}'"
        raise FileError.of(path, f"must be of this version of unetdiff (got {what})", REMEDY)
    for key, value in state.items():
        if not _is_of(value, hints[key]):
            text = value if isinstance(value, int | float) else type_name(value)
            raise FileError.of(path, f"'{key}' must be {_words(hints[key])} (got {text})", REMEDY)
    progress = Progress(**{item.name: state[item.name] for item in fields(Progress)})
    if directory.name != checkpoint_name(progress.step):
        reason = f"'step' must be that of its directory, {directory.name} (got {progress.step})"
        raise FileError.of(path, reason, REMEDY)
    latest = max(progress.validated, progress.best_step or 0, progress.logged, progress.skipped, progress.nonfinite)
    if latest > progress.step:
        reason = f"'validated', 'best_step', 'logged' and 'skipped' must be at most 'step', {progress.step}"
        raise FileError.of(path, f"{reason} (got {latest})", REMEDY)
    return progress


def _is_of(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_of(value, one) for one in arguments)
    if origin is dict:
        return isinstance(value, Mapping) and (
            arguments[1] is Any or all(_is_of(v, arguments[1]) for v in value.values())
        )
    if origin is list:
        return isinstance(value, list) and all(_is_of(item, arguments[0]) for item in value)
    if hint is type(None):
        return value is None
    number = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return number and abs(value) < 2**53 and (hint is float or value >= 0)


def _words(hint: Any) -> str:
    text = str(hint)
    for sign, words in (("dict", "an object"), ("list", "a list"), ("float", "a number")):
        if sign in text:
            return words
    return "an integer of at least 0"
