"""The state of an optimizer as named tensors, and back, strictly."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unetdiff.errors import FileError
from unetdiff.files.tensors import Entry, dtype_name, read_header, read_tensors
from unetdiff.training.progress import REMEDY, Progress

ENTRIES = ("step", "exp_avg", "exp_avg_sq")
"""State of a parameter in AdamW after its first step."""


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as a flat dict, by "parameter|entry"."""
    return {
        f"{name}|{key}": value
        for name, parameter in _parameters(optimizer).items()
        for key, value in optimizer.state.get(parameter, {}).items()
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
    if len(header) != progress.optimizer_tensors:
        reason = f"must have {progress.optimizer_tensors} tensors, as state.json says (got {len(header)})"
        raise FileError.of(path, reason, REMEDY)
    for key, entry in header.items():
        name, _, kind = key.partition("|")
        if name not in parameters or kind not in ENTRIES:
            raise FileError.of(path, f"must be of the same network (got state of unknown '{key}')", REMEDY)
        parameter = parameters[name]
        shape = () if kind == "step" else tuple(parameter.shape)
        dtype = "F32" if kind == "step" else dtype_name(parameter.dtype)
        if entry != Entry(dtype, shape):
            reason = f"'{key}' must be {dtype} of shape {shape} (got {entry.dtype} of shape {entry.shape})"
            raise FileError.of(path, reason, REMEDY)
        missing = [other for other in ENTRIES if f"{name}|{other}" not in header]
        if missing:
            raise FileError.of(path, f"must have '{name}|{missing[0]}', as it has '{key}'", REMEDY)
    tensors = read_tensors(path, REMEDY)
    applied = max((float(value) for key, value in tensors.items() if key.endswith("|step")), default=0)
    if not progress.scaler and applied != progress.step - progress.skipped:  # float16 skips steps of its own
        reason = f"must be of step {progress.step - progress.skipped}, as state.json says (got {applied:g})"
        raise FileError.of(path, reason, REMEDY)
    for key, value in tensors.items():
        name, _, kind = key.partition("|")
        parameter = parameters[name]
        if kind == "step":
            if not 1 <= float(value) <= progress.step:
                reason = f"'{key}' must be 1 to {progress.step}, the step in state.json (got {float(value):g})"
                raise FileError.of(path, reason, REMEDY)
            value = value.to(parameter.device)
        else:
            value = torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(value)
        optimizer.state[parameter][kind] = value


def _parameters(optimizer: torch.optim.Optimizer) -> dict[str, torch.nn.Parameter]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
