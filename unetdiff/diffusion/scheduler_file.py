"""scheduler_config.json: read strictly, as it says what the network predicts and how images were noised."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import diffusers
import torch

from unetdiff.errors import FileError, nearest
from unetdiff.files import records

CONFIG = "scheduler_config.json"
SCHEDULER_CLASSES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "HeunDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
)
"""diffusers' schedulers that are loaded."""
REQUIRED = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")
MAX_TIMESTEPS = 100_000


def load_scheduler(directory: Path, strict: bool = True) -> Any:
    """The scheduler that `save_pretrained` wrote.

    Args:
        directory: with scheduler_config.json.
        strict: the keys that define the noise and the prediction must be there; False: they may have diffusers'
            defaults (its older directories lack some).

    Raises:
        FileError: another class, a key that is missing or unknown, or a value of another type or out of range.
    """
    path = directory / CONFIG
    config = records.read_object(path)
    name = config.get("_class_name")
    if name not in SCHEDULER_CLASSES:
        raise FileError.of(path, f"_class_name={name}: must be one of {', '.join(SCHEDULER_CLASSES)}")
    known: dict[str, Any] = {}
    for other in (*SCHEDULER_CLASSES, name):  # changing the sampler keeps the other's keys
        known |= _defaults(other)
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    for key, value in own.items():
        if key not in known:
            raise FileError.of(path, f"'{key}' is not a key of {name}", f"Did you mean {nearest(key, known)}?")
        if not _fits(value, known[key]):
            raise FileError.of(path, f"{key}={value!r:.80}: must be of the type of {known[key]!r}")
    missing = [key for key in REQUIRED if key in _defaults(name) and key not in own]
    if missing and strict:
        raise FileError.of(path, f"must have the key '{missing[0]}'", "Write it again with save_pretrained.")
    steps, betas, prediction = (own.get(key) for key in ("num_train_timesteps", "trained_betas", "prediction_type"))
    if steps is not None and not 1 <= steps <= MAX_TIMESTEPS:
        raise FileError.of(path, f"num_train_timesteps={steps}: must be in [1, {MAX_TIMESTEPS}]")
    if betas is not None and (not isinstance(betas, list) or len(betas) != (steps or 1000)):
        raise FileError.of(path, f"trained_betas: must be null or a list of {steps} numbers")
    if prediction is not None and prediction not in PREDICTION_TYPES:
        raise FileError.of(path, f"prediction_type={prediction}: must be one of {', '.join(PREDICTION_TYPES)}")
    spacing = own.get("timestep_spacing", "trailing")
    if spacing not in SPACINGS:
        raise FileError.of(path, f"timestep_spacing={spacing}: must be one of {', '.join(SPACINGS)}")
    try:
        scheduler = getattr(diffusers, name).from_config(config)
        levels = torch.cat([torch.as_tensor(values) for values in (scheduler.alphas_cumprod, scheduler.betas)])
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError) as error:
        raise FileError.of(path, f"describes no {name} ({' '.join(str(error).split())})") from None
    if not bool(((levels >= 0) & (levels <= 1)).all()):  # NaN too
        raise FileError.of(path, "beta_start, beta_end and beta_schedule must give noise levels in [0, 1]")
    return scheduler


def _defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.name not in ("self", "kwargs")}


def _fits(value: Any, default: Any) -> bool:
    """Whether a value has the type of a key's default; any type for those that default to None."""
    if default is None or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, int):
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(default, float):
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, type(default))
