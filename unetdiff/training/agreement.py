"""What a checkpoint says against what the run is now: whatever differs is refused with both values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.diffusion.processes.ddpm import DDPM
from unetdiff.diffusion.processes.load import process_of
from unetdiff.errors import FileError, UserError, as_yaml
from unetdiff.files.tensors import Entry, dtype_name, read_header
from unetdiff.training import lora
from unetdiff.training.progress import REMEDY, STATE, Progress, read_progress
from unetdiff.training.tasks.base import Task
from unetdiff.training.tasks.joint import JointTask

SCHEDULER = {
    "prediction_type": "prediction_type",
    "num_train_timesteps": "noise.num_train_timesteps",
    "beta_schedule": "noise.beta_schedule",
    "beta_start": "noise.beta_start",
    "beta_end": "noise.beta_end",
    "rescale_betas_zero_snr": "noise.zero_terminal_snr",
}
"""Keys of a diffusers scheduler that fix what a denoiser predicts -> ours; the rest of the forward process is in ᾱ."""


def identity_of(task: Task, data: ImageDataset) -> dict[str, Any]:
    """What the weights mean: names and order of the classes, palette, noise scheduler, network that an adapter is of;
    as JSON."""
    return {
        "classes": list(data.classes),
        "labels": list(data.labels),
        "palette": data.palette.tolist(),
        "scheduler": describe_scheduler(scheduler_of(task)),
        "lora": lora.identity(task.unet),
    }


def scheduler_of(task: Task) -> Any:
    """The noise scheduler of a task (a diffusers scheduler), or None."""
    return getattr(task.diffusion if isinstance(task, JointTask) else task, "scheduler", None)


def describe_scheduler(scheduler: Any) -> dict[str, Any] | None:
    """The forward process and the prediction type of a diffusers scheduler, as JSON."""
    if scheduler is None:
        return None
    process = process_of(scheduler)
    if not isinstance(process, DDPM):
        return process.describe()
    alphas = process.alphas_cumprod
    middle = {f"alpha_bar_{t}": float(alphas[t]) for t in (0, len(alphas) // 2, len(alphas) - 1)}
    return {**{key: scheduler.config.get(key) for key in SCHEDULER}, **middle}


def require_same_identity(directory: Path, task: Task, data: ImageDataset) -> None:
    """Refuse to resume where class names, their order, colors, the scheduler or an adapter's network changed.

    Raises:
        UserError: names the checkpoint and both values.
    """
    saved, now = read_progress(directory).identity, identity_of(task, data)
    remedy = "Restore them, or train a new run in another training.output_dir."
    for key, noun in (("classes", "class"), ("labels", "label"), ("palette", "color of class")):
        before, after = saved.get(key), now[key]
        if before == after:
            continue
        if not isinstance(before, list) or len(before) != len(after):
            raise FileError.of(
                directory / STATE, f"was trained with {key} {_list(before)} (got {_list(after)})", remedy
            )
        number = next(i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other)
        was, is_now = as_yaml(before[number]), as_yaml(after[number])
        reason = f"was trained with {noun} {number} = {was} (got {is_now}; {key} {_list(before)}, now {_list(after)})"
        raise FileError.of(directory / STATE, reason, remedy)
    before, after = saved.get("scheduler"), now["scheduler"]
    if before != after:
        difference = scheduler_difference(before, after)
        raise UserError(f"{directory / STATE}: {difference}, as the run was trained. {remedy}")
    before, after = saved.get("lora"), now["lora"]
    if before != after:
        reason = f"was trained with the adapter {as_yaml(before)} (got {as_yaml(after)})"
        hint = "base is a hash of the weights that are adapted. " if before and after else ""
        raise FileError.of(directory / STATE, reason, hint + remedy)


def scheduler_difference(source: Any, target: Any) -> str | None:
    """The first difference of two `describe_scheduler`, in words; None where they agree."""
    if not isinstance(source, Mapping) or not isinstance(target, Mapping):
        return None if source == target else "the run must have the same noise scheduler"
    before, after = source.get("process", DDPM.name), target.get("process", DDPM.name)
    if before != after:
        return f"diffusion.noise.process={after}: must be {before}"
    if before != DDPM.name:
        for key, value in source.items():
            if value != target.get(key):
                section = "" if key == "prediction_type" else "noise."
                return f"diffusion.{section}{key}={as_yaml(target.get(key))}: must be {as_yaml(value)}"
    cosine = target.get("beta_schedule") == "squaredcos_cap_v2"  # does not read the betas
    for key, name in SCHEDULER.items():
        if cosine and key in ("beta_start", "beta_end"):
            continue
        before, after = source.get(key) or False, target.get(key) or False
        if before != after:
            return f"diffusion.{name}={as_yaml(after)}: must be {as_yaml(before)}"
    for key, before in source.items():
        after = target.get(key)
        if key.startswith("alpha_bar") and (after is None or abs(before - after) > 1e-6):
            t = key.rpartition("_")[2]
            return (
                f"diffusion.noise: must keep the fraction {before:.4g} of the signal at timestep {t} (got {after:.4g})"
            )
    return None


def require_tensors(path: Path, expected: Mapping[str, Tensor]) -> None:
    """Check names, shapes and dtypes of a checkpoint's file before it is read.

    Raises:
        FileError: names the first tensors that differ.
    """
    header = read_header(path, REMEDY)
    missing = [name for name in expected if name not in header]
    unexpected = [name for name in header if name not in expected]
    if missing or unexpected:
        raise FileError.of(
            path,
            f"must be of the same network (got {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]})",
            REMEDY,
        )
    for name, tensor in expected.items():
        entry = Entry(dtype_name(tensor.dtype), tuple(tensor.shape))
        if header[name] != entry:
            got = f"{header[name].dtype} of shape {header[name].shape}"
            reason = f"must be of the same network ('{name}' must be {entry.dtype} of shape {entry.shape}, got {got})"
            raise FileError.of(path, reason, REMEDY)


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


def require_images(directory: Path, progress: Progress, batch_size: int) -> None:
    """Check that a checkpoint has seen as many images as its steps have.

    Raises:
        FileError: names the file and both numbers.
    """
    images = progress.step * batch_size
    if progress.images != images:
        reason = f"'images' must be {images}, {progress.step} steps of {batch_size} (got {progress.images})"
        raise FileError.of(directory / STATE, reason, REMEDY)


def require_metrics(path: Path, last: int, progress: Progress) -> None:
    """Check that metrics.jsonl reaches as far as the checkpoint says.

    Args:
        path: of metrics.jsonl.
        last: step of its last line up to the checkpoint's step; 0 without lines.
        progress: of the checkpoint.

    Raises:
        FileError: lines are missing.
    """
    if last < progress.logged:
        reason = f"must reach step {progress.logged}, as the checkpoint of step {progress.step} says (got {last})"
        raise FileError.of(path, reason, "Restore the file, or train a new run.")


def _list(values: Any) -> str:
    if not isinstance(values, list):
        return as_yaml(values)
    names = [as_yaml(value) for value in values]
    return "[" + ", ".join(names if len(names) <= 12 else [*names[:10], f"... {len(names)} in all"]) + "]"
