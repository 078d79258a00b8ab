"""scheduler_config.json: read strictly, as it says what the network predicts and how images were noised."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import diffusers
import torch

from unetdiff.diffusion.processes.load import OTHER_PROCESSES
from unetdiff.diffusion.schedulers import EDM_KEYS
from unetdiff.errors import FileError, did_you_mean
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
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
)
"""diffusers' schedulers that are loaded."""
REQUIRED = {
    "ddpm": ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"),
    "flow": ("num_train_timesteps", "shift"),
    "edm": EDM_KEYS,
}
"""By process: the keys that define the noise and the prediction."""
PREDICTION_TYPES = {
    "ddpm": ("epsilon", "sample", "v_prediction", "flow_prediction"),
    "edm": ("epsilon", "v_prediction"),
}
OFF = (
    "use_dynamic_shifting",
    "invert_sigmas",
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)
"""Keys of flow matching with other timesteps than `schedulers.set_steps` sets, or with the roles of image and noise
exchanged."""
MAX_SHIFT = 1000
MAX_SIGMA = 100_000
MAX_RHO = 1000
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
    process = OTHER_PROCESSES.get(name, "ddpm")
    known: dict[str, Any] = {}
    family = [other for other in SCHEDULER_CLASSES if OTHER_PROCESSES.get(other, "ddpm") == process]
    for other in (*family, name):  # changing the sampler keeps the other's keys
        known |= _defaults(other)
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    for key, value in own.items():
        if key not in known:
            raise FileError.of(path, f"'{key}' is not a key of {name}", did_you_mean(key, known))
        if not _fits(value, known[key]):
            raise FileError.of(path, f"{key}={value!r:.80}: must be of the type of {known[key]!r}")
    missing = [key for key in REQUIRED[process] if key in _defaults(name) and key not in own]
    if missing and strict:
        raise FileError.of(path, f"must have the key '{missing[0]}'", "Write it again with save_pretrained.")
    steps, betas, prediction = (own.get(key) for key in ("num_train_timesteps", "trained_betas", "prediction_type"))
    if steps is not None and not 1 <= steps <= MAX_TIMESTEPS:
        raise FileError.of(path, f"num_train_timesteps={steps}: must be in [1, {MAX_TIMESTEPS}]")
    if betas is not None and (not isinstance(betas, list) or len(betas) != (steps or 1000)):
        raise FileError.of(path, f"trained_betas: must be null or a list of {steps} numbers")
    allowed = PREDICTION_TYPES.get(process, ())
    if prediction is not None and prediction not in allowed:
        raise FileError.of(path, f"prediction_type={prediction}: must be one of {', '.join(allowed)}")
    if (prediction == "flow_prediction") != bool(own.get("use_flow_sigmas")):
        raise FileError.of(path, "prediction_type must be flow_prediction if and only if use_flow_sigmas is true")
    if process == "flow" or prediction == "flow_prediction":
        _check_flow(path, own)
    if process == "edm":
        _check_edm(path, own)
    spacing = own.get("timestep_spacing", "trailing")
    if spacing not in SPACINGS:
        raise FileError.of(path, f"timestep_spacing={spacing}: must be one of {', '.join(SPACINGS)}")
    try:
        scheduler = getattr(diffusers, name).from_config(config)
        if process != "ddpm":
            return scheduler
        levels = torch.cat([torch.as_tensor(values) for values in (scheduler.alphas_cumprod, scheduler.betas)])
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError) as error:
        raise FileError.of(path, f"describes no {name} ({' '.join(str(error).split())})") from None
    if not bool(((levels >= 0) & (levels <= 1)).all()):  # NaN too
        raise FileError.of(path, "beta_start, beta_end and beta_schedule must give noise levels in [0, 1]")
    return scheduler


def _check_flow(path: Path, own: dict[str, Any]) -> None:
    for key in OFF:
        if own.get(key):
            raise FileError.of(path, f"{key}={own[key]}: must be off. Its timesteps are not supported")
    for key in ("shift", "flow_shift"):
        value = own.get(key, 1.0)
        if value is None or not 0 < value <= MAX_SHIFT:
            raise FileError.of(path, f"{key}={value}: must be in (0, {MAX_SHIFT}]")


def _check_edm(path: Path, own: dict[str, Any]) -> None:
    for key, largest in {
        "sigma_data": MAX_SIGMA,
        "sigma_min": MAX_SIGMA,
        "sigma_max": MAX_SIGMA,
        "rho": MAX_RHO,
    }.items():
        value = own.get(key, 1.0)
        if value is None or not 0 < value <= largest:
            raise FileError.of(path, f"{key}={value}: must be in (0, {largest}]")
    if own.get("sigma_min", 0.002) >= own.get("sigma_max", 80.0):
        raise FileError.of(path, f"sigma_min={own['sigma_min']}: must be below sigma_max")


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
        return isinstance(value, int | float) and (math.isfinite(value) or value == default)  # -inf is one
    return isinstance(value, type(default))
