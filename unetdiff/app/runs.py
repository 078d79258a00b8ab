"""The models of the page: their pipelines, what they can do, and images of their validation split."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetdiff.config.model_directory import model_directory
from unetdiff.config.schema import RunConfig
from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.diffusion.mask_codec import INDEX
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.diffusion.pipeline import GenerationPipeline
from unetdiff.diffusion.processes.base import Process
from unetdiff.diffusion.processes.load import process_of
from unetdiff.errors import UserError
from unetdiff.evaluation.load_run import is_pretrained, run_config, split_of
from unetdiff.files.folders import is_there
from unetdiff.reports.runs import distinct_names
from unetdiff.segmentation.pipeline import SETTINGS_FILE, SegmentationPipeline
from unetdiff.training.rundir import CONFIG
from unetdiff.training.runtime import autocast_dtype

NUM_EXAMPLES = 12
"""Validation images that the page offers of each run, at most."""


@dataclass(frozen=True)
class Examples:
    """Images of a run's validation split."""

    items: list[dict[str, Any]]
    """With "image", uint8 (C, H, W), "name", and "mask", uint8 (H, W), where the dataset has masks."""
    reason: str = ""
    """Why there are none."""


@dataclass(frozen=True)
class AppRun:
    """A model on the page."""

    name: str
    """Short, different for every run."""
    path: Path
    segmentation: SegmentationPipeline | None
    """None without a segmentation head."""
    generation: GenerationPipeline | None
    """None without a diffusion head."""
    process: Process
    """The forward process: of the denoiser, or of the config's `diffusion.noise` for a segmenter alone."""
    scheduler: Any
    """The denoiser's own sampler; None without one."""
    guidance_scale: float
    """`diffusion.guidance_scale` of the config."""
    trained_on_noise: bool
    """Whether the network has seen noise in training: with a denoiser, or with `segmentation.noise` or `noised`."""
    examples: Examples
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the denoiser samples: its scheduler has a state."""

    @property
    def condition(self) -> str | None:
        """What the denoiser is conditioned on, as the argument of `GenerationPipeline`; None: nothing."""
        conditioner = None if self.generation is None else self.generation.conditioner
        return None if conditioner is None else str(conditioner.pipeline_arg)


def load_runs(paths: Sequence[Path], device: torch.device) -> list[AppRun]:
    """The models of run or model directories, ready for inference on a device.

    Raises:
        UserError: a directory without a model, given twice, or whose files are damaged.
    """
    resolved = [path.resolve() for path in paths]
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise UserError(f"RUN={paths[index]}: must be given once.")
    names = distinct_names(resolved)
    return [load_run(path, name, device) for path, name in zip(paths, names, strict=True)]


def load_run(path: Path, name: str, device: torch.device) -> AppRun:
    """One model; errors as of `load_runs`. The two heads of a joint run share one network in memory."""
    directory, dtype = model_directory(path), autocast_dtype(device=device.type)
    segmentation: SegmentationPipeline | None = None
    generation: GenerationPipeline | None = None
    if is_there(directory / SETTINGS_FILE):
        segmentation = SegmentationPipeline.from_pretrained(directory)
        segmentation.to(device).optimize_for_inference(dtype)
    if is_there(directory / INDEX):
        shared: dict[str, Any] = {} if segmentation is None else {"unet": segmentation.unet}
        generation = GenerationPipeline.from_pretrained(directory, **shared)
        generation.set_progress_bar_config(disable=True)
        generation.to(device)
        generation.autocast_dtype = dtype
        if segmentation is None:
            generation.optimize_for_inference(dtype)
    if segmentation is None and generation is None:
        raise UserError(f"{directory}: must be a model with a segmentation or a diffusion head.")
    config = run_config(path)
    return AppRun(
        name,
        path,
        segmentation,
        generation,
        process_of(build_scheduler(config.diffusion) if generation is None else generation.scheduler),
        None if generation is None else generation.scheduler,
        config.diffusion.guidance_scale,
        generation is not None or config.segmentation.noised or config.segmentation.noise > 0,
        examples_of(path, config, segmentation, generation),
    )


def examples_of(
    path: Path,
    config: RunConfig,
    segmentation: SegmentationPipeline | None,
    generation: GenerationPipeline | None,
) -> Examples:
    """Validation images, evenly spaced over the split: at their own size for a segmenter, else as it was trained."""
    if is_pretrained(path) or not any(is_there(folder / CONFIG) for folder in (path, path.parent)):
        return Examples([], f"no {CONFIG} names its dataset")
    data = config.data
    layouts = generation is not None and generation.conditioner is not None
    layouts = layouts and generation is not None and generation.conditioner.pipeline_arg == "layout"
    try:
        if segmentation is not None:
            images = split_of(replace(data, size=None, longest_side=None), "val", masks=True)
        else:
            images = split_of(data, "val", masks=False, layout=layouts)
        return Examples(_some_of(images))
    except (UserError, ImportError) as error:
        return Examples([], str(error))


def _some_of(images: ImageDataset) -> list[dict[str, Any]]:
    """At most `NUM_EXAMPLES` items; those that cannot be read are left out."""
    items = []
    for index in evenly_spaced_indices(len(images), NUM_EXAMPLES):
        try:
            items.append(images[index])
        except UserError:
            continue
    return items


def timestep_at(process: Process, fraction: float) -> Tensor:
    """The timestep at a fraction of the noise in [0, 1], (1,), of the process's own dtype."""
    return process.at_fraction(torch.tensor([fraction]))
