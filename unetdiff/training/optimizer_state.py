"""The state of an optimizer as named tensors, and back, strictly."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unetdiff.errors import FileError
from unetdiff.files.tensors import Entry, dtype_name, read_header, read_tensors
from unetdiff.training.progress import REMEDY, Progress

FACTORS = ("row_var", "col_var")
"""State of a parameter in Adafactor: means over rows and columns."""


def state_entries(optimizer: torch.optim.Optimizer, ndim: int) -> dict[str, bool]:
    """The state of a parameter of so many dimensions after a step: name -> whether it is one number."""
    tiny = nn.Parameter(torch.ones((2,) * ndim))
    tiny.grad = torch.ones_like(tiny)
    known = inspect.signature(type(optimizer)).parameters
    options = {name: value for name, value in optimizer.defaults.items() if name in known and name != "fused"}
    copy: Any = type(optimizer)
    copy = copy([tiny], **options)
    copy.step()
    return {name: value.ndim == 0 for name, value in copy.state[tiny].items() if isinstance(value, Tensor)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as a flat dict, by "parameter|entry"."""
    return {
        f"{name}|{key}": value
        for name, parameter in _parameters(optimizer).items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path, progress: Progress) -> None:
    """Restore `optimizer_tensors` from a file; a parameter without steps has no state.

    Args:
        optimizer: of the same parameters.
        path: a safetensors file.
        progress: of the same checkpoint.

    Raises:
        FileError: tensors that are missing, unexpected, of another shape or dtype, or of a later step.
    """
    parameters, header = _parameters(optimizer), read_header(path, REMEDY)
    entries = {ndim: state_entries(optimizer, ndim) for ndim in {p.ndim for p in parameters.values()}}
    if len(header) != progress.optimizer_tensors:
        reason = f"must have {progress.optimizer_tensors} tensors, as state.json says (got {len(header)})"
        raise FileError.of(path, reason, REMEDY)
    for key, entry in header.items():
        name, _, kind = key.partition("|")
        if name not in parameters or kind not in entries[parameters[name].ndim]:
            raise FileError.of(path, f"must be of the same network (got state of unknown '{key}')", REMEDY)
        parameter = parameters[name]
        is_number = entries[parameter.ndim][kind]
        shape = () if is_number else tuple(parameter.shape)
        dtype = "F32" if is_number else dtype_name(parameter.dtype)
        if entry != Entry(dtype, shape) and not (kind in FACTORS and _is_factor(entry, dtype, shape)):
            reason = f"'{key}' must be {dtype} of shape {shape} (got {entry.dtype} of shape {entry.shape})"
            raise FileError.of(path, reason, REMEDY)
        missing = [other for other in sorted(entries[parameter.ndim]) if f"{name}|{other}" not in header]
        if missing:
            raise FileError.of(path, f"must have '{name}|{missing[0]}', as it has '{key}'", REMEDY)
    tensors = read_tensors(path, REMEDY)
    applied = max((float(value) for key, value in tensors.items() if key.endswith("|step")), default=0)
    counts = any("step" in names for names in entries.values())  # SGD counts no steps
    if counts and not progress.scaler and applied != progress.step - progress.skipped:  # float16 skips steps of its own
        reason = f"must be of step {progress.step - progress.skipped}, as state.json says (got {applied:g})"
        raise FileError.of(path, reason, REMEDY)
    before = {name for name, parameter in parameters.items() if optimizer.state.get(parameter)}  # Adagrad's
    for key, value in tensors.items():
        name, _, kind = key.partition("|")
        parameter = parameters[name]
        first = 0 if name in before else 1
        if kind == "step" and not first <= float(value) <= progress.step:
            reason = f"'{key}' must be {first} to {progress.step}, the step in state.json (got {float(value):g})"
            raise FileError.of(path, reason, REMEDY)
        if not entries[parameter.ndim][kind] and kind not in FACTORS:
            value = torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(value)
        elif kind != "step" or optimizer.defaults.get("fused"):  # a step's number is read by the host
            value = value.to(parameter.device)
        optimizer.state[parameter][kind] = value


def _is_factor(entry: Entry, dtype: str, shape: tuple[int, ...]) -> bool:
    sides = zip(entry.shape, shape, strict=False)
    return entry.dtype == dtype and len(entry.shape) == len(shape) and all(own in (1, side) for own, side in sides)


def _parameters(optimizer: torch.optim.Optimizer) -> dict[str, torch.nn.Parameter]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
