"""Load a trained model with the dataset split that it is evaluated on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from unetdiff.config.model_directory import model_directory
from unetdiff.config.pretrained import follow_pretrained
from unetdiff.config.reading import from_yaml
from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.data import needs_layout
from unetdiff.data.base import ImageDataset
from unetdiff.data.build import build_dataset
from unetdiff.data.config import AugmentConfig, DataConfig
from unetdiff.errors import FileError, UserError
from unetdiff.evaluation.class_names import require_classes_of_task
from unetdiff.files.folders import is_there
from unetdiff.files.pipeline_parts import part
from unetdiff.files.records import read_object
from unetdiff.models.loading import is_stock
from unetdiff.models.unet import UNet
from unetdiff.training import runtime as machine
from unetdiff.training.rundir import CONFIG
from unetdiff.training.tasks.base import Task
from unetdiff.training.tasks.build import denoiser_of, load_task, segmentation_of
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.tasks.segmentation import SegmentationTask


@dataclass(frozen=True)
class LoadedRun:
    """A trained model and a split of its dataset."""

    config: RunConfig
    """The run's config, with the `data` section that is evaluated on."""
    directory: Path
    """The model directory."""
    task: Task
    """The task with its trained weights, on its device."""
    images: ImageDataset
    """The split without augmentation, at `data.size`."""
    masks: bool
    """Whether items have masks at their original size, for a segmentation head."""
    layout: bool
    """Whether items have masks at the image's size, as the condition of a denoiser."""
    accelerator: Accelerator

    @property
    def diffusion(self) -> DiffusionTask | None:
        """The task of the diffusion head; None without one."""
        return denoiser_of(self.task)

    @property
    def segmentation(self) -> SegmentationTask | None:
        """The task of the segmentation head; None without one."""
        return segmentation_of(self.task)

    def split(self, name: str) -> ImageDataset:
        """Another split of the same dataset, loaded in the same way."""
        return split_of(self.config.data, name, self.masks, self.layout)


def load_run(path: str | Path, data: DataConfig | None = None, split: str = "val", layouts: bool = False) -> LoadedRun:
    """Load a run's best weights, or a model directory, and the images of a split.

    Args:
        path: a run directory or a model directory.
        data: another dataset; None: that of the run.
        split: "val" or "train".
        layouts: load masks at the image's size even if the run is not conditioned on layouts.

    Raises:
        UserError: no model in `path`, an unknown split, no dataset configured, no masks where they are required, or
            a dataset of other classes than the model's.
    """
    path = Path(path)
    directory = model_directory(path)
    config = run_config(path)
    if data is not None:
        config.data = data
    if is_pretrained(path) and config.data.size is None:
        config.data = replace(config.data, size=trained_size(directory))
    if split not in ("val", "train"):
        raise UserError(f"split={split}: must be one of val, train.")
    masks = bool(heads_of(directory)["segmentation"])
    layout = layouts or (needs_layout(config) and not masks)
    images = split_of(config.data, split, masks, layout)
    task = load_task(config, directory, images)
    require_classes_of_task(task, directory, images)
    accelerator = machine.build_accelerator(config.training)
    task.to(accelerator.device)
    task.set_memory_format(config.training.channels_last)
    return LoadedRun(config, directory, task, images, masks, layout, accelerator)


def run_config(path: Path) -> RunConfig:
    """The config of a run directory, or of a model directory's run; without a config.yaml the defaults, and what
    follows from a directory of diffusers."""
    for candidate in (path / CONFIG, path.parent / CONFIG):
        if is_there(candidate):
            return from_yaml(candidate)
    config = RunConfig(task="joint")  # every head that it has
    if is_pretrained(path):
        config.model.pretrained = str(path)
        config = follow_pretrained(config)
    return config


def is_pretrained(path: Path) -> bool:
    """Whether a path is a pipeline directory of diffusers that no run wrote."""
    return is_stock(path / "unet") and not any(is_there(p / CONFIG) for p in (path, path.parent))


def trained_size(directory: Path) -> list[int] | None:
    """Height and width in pixels that the denoiser of a pipeline directory was trained at; None: unknown."""
    size, vae = UNet.read_config(directory / "unet")["sample_size"], part(directory, "vae") / "config.json"
    levels = len(read_object(vae).get("block_out_channels") or [0]) if is_there(vae) else 1
    sides = [size, size] if isinstance(size, int) else size
    return None if sides is None else [side * 2 ** (levels - 1) for side in sides]


def split_of(data: DataConfig, split: str, masks: bool, layout: bool = False) -> ImageDataset:
    """The images of a split without augmentation; `masks` and `layout` as in `build_dataset`."""
    plain = replace(data, augment=AugmentConfig())
    return build_dataset(plain, "train" if split == "train" else "val", masks, layout)


def heads_of(directory: Path) -> dict[str, Any]:
    """The heads in the config of a model directory, by name; None for a missing head."""
    file = directory / "unet" / "config.json"
    if is_stock(file.parent):
        return dict(UNet.read_config(file.parent)["heads"])
    content = read_object(file)
    heads = content.get("heads")
    if not isinstance(heads, dict):
        kind = content.get("_class_name", "no _class_name")
        remedy = "Give a run or a model directory of unetdiff. In Python, UNet.from_diffusers reads one of diffusers."
        raise FileError.of(file, f"_class_name must be UNet, the network of unetdiff (got {kind})", remedy)
    return {"segmentation": None, "diffusion": None, **heads}
