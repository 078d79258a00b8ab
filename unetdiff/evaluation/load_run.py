"""A trained model read back, ready to be asked, with the images that it is judged on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from unetdiff.config.reading import from_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.data.base import ImageDataset
from unetdiff.data.build import build_dataset
from unetdiff.data.config import AugmentConfig, DataConfig
from unetdiff.errors import UserError
from unetdiff.training import runtime as machine
from unetdiff.training.checkpoints import model_directory
from unetdiff.training.conditions import needs_layout
from unetdiff.training.rundir import CONFIG
from unetdiff.training.tasks import DiffusionTask, JointTask, SegmentationTask, Task, load_task


@dataclass(frozen=True)
class LoadedRun:
    """A trained model and a split of images."""

    config: RunConfig
    """Of its run, with the set that it is judged on."""
    directory: Path
    """The model directory."""
    task: Task
    """With its weights, on its device."""
    images: ImageDataset
    """The split, never augmented, at `data.size`."""
    masks: bool
    """The images come with masks at their own size, for a segmentation head."""
    layout: bool
    """The images come with masks of the image's size, as what an image is drawn from."""
    accelerator: Accelerator

    @property
    def diffusion(self) -> DiffusionTask | None:
        """The part with the diffusion head; None: there is none."""
        task = self.task.diffusion if isinstance(self.task, JointTask) else self.task
        return task if isinstance(task, DiffusionTask) else None

    @property
    def segmentation(self) -> SegmentationTask | None:
        """The part with the segmentation head; None: there is none."""
        task = self.task.segmentation if isinstance(self.task, JointTask) else self.task
        return task if isinstance(task, SegmentationTask) else None

    def split(self, name: str) -> ImageDataset:
        """Another split of the same set, read in the same way."""
        return split_of(self.config.data, name, self.masks, self.layout)


def load_run(path: str | Path, data: DataConfig | None = None, split: str = "val", layouts: bool = False) -> LoadedRun:
    """A run's best weights, or a model directory, with the images of a split.

    Args:
        path: a run directory or a model directory.
        data: another set; None: the run's own.
        split: "val" or "train".
        layouts: every image with its mask at the image's size, whatever the run was trained for.

    Raises:
        UserError: no model there, no such split, no data set named anywhere, or no masks where they are needed.
    """
    path = Path(path)
    directory = model_directory(path)
    config = run_config(path)
    if data is not None:
        config.data = data
    if split not in ("val", "train"):
        raise UserError(f"split: '{split}' is not one of val, train")
    masks = bool(heads_of(directory)["segmentation"])
    layout = layouts or (needs_layout(config) and not masks)
    images = split_of(config.data, split, masks, layout)
    task = load_task(config, directory, images)
    accelerator = machine.build_accelerator(config.training)
    task.to(accelerator.device)
    task.set_memory_format(config.training.channels_last)
    return LoadedRun(config, directory, task, images, masks, layout, accelerator)


def run_config(path: Path) -> RunConfig:
    """The config of a run or model directory's run; the defaults where there is none."""
    for candidate in (path / CONFIG, path.parent / CONFIG):
        if candidate.is_file():
            return from_yaml(candidate)
    return RunConfig()


def split_of(data: DataConfig, split: str, masks: bool, layout: bool = False) -> ImageDataset:
    """The images of a split, never augmented; masks and layout as `build_dataset` has them."""
    plain = replace(data, augment=AugmentConfig())
    return build_dataset(plain, "train" if split == "train" else "val", masks, layout)


def heads_of(directory: Path) -> dict[str, Any]:
    """The heads of a model directory's network, by name; None for one that it has not."""
    return json.loads((directory / "unet" / "config.json").read_text())["heads"]
