"""The three tasks, and how a config becomes one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from unetdiff.conditioning import ClassConditioner
from unetdiff.data import PictureDataset
from unetdiff.errors import UserError
from unetdiff.models import UNet
from unetdiff.models.config import DiffusionHeadConfig, HeadsConfig, SegmentationHeadConfig
from unetdiff.training.tasks.base import Task
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.tasks.joint import JointTask
from unetdiff.training.tasks.segmentation import SegmentationTask

if TYPE_CHECKING:
    from unetdiff.config import RunConfig

__all__ = ["DiffusionTask", "JointTask", "SegmentationTask", "Task", "build_task", "load_task"]


def build_task(config: RunConfig, train: PictureDataset, val: PictureDataset) -> Task:
    """A task with a fresh network, its heads sized by the data."""
    model = config.model
    heads = HeadsConfig()
    if config.task != "diffusion":
        heads.segmentation = SegmentationHeadConfig(num_classes=len(train.classes))
    if config.task != "segmentation":
        heads.diffusion = DiffusionHeadConfig(out_channels=model.in_channels)
    size = model.sample_size or _side(train)
    unet = UNet(**{**asdict(model), "heads": asdict(heads), "sample_size": size})
    conditioner = None
    if config.task != "segmentation" and config.diffusion.condition == "class":
        dim = model.conditioning.cross_attention_dim
        if dim is None:
            raise UserError(
                "diffusion.condition: 'class' reaches the network through cross-attention; "
                "set model.conditioning.cross_attention_dim, e.g. 64, or diffusion.condition none"
            )
        if not train.labels:
            raise UserError(
                f"diffusion.condition: 'class', but data.name={config.data.name} has no labels; set it to none"
            )
        conditioner = ClassConditioner(len(train.labels), dim, config.diffusion.class_tokens, train.labels)
    return _assemble(config, unet, conditioner, val)


def load_task(config: RunConfig, directory: Path, val: PictureDataset) -> Task:
    """A task with the weights of a model directory, for evaluation."""
    unet = UNet.from_pretrained(directory / "unet")
    heads = unet.config["heads"]
    conditioner = None
    if (directory / "conditioner").is_dir():
        conditioner = ClassConditioner.from_pretrained(directory / "conditioner")
    config.task = "joint" if all(heads.values()) else ("segmentation" if heads["segmentation"] else "diffusion")
    return _assemble(config, unet, conditioner, val)


def _assemble(config: RunConfig, unet: UNet, conditioner: ClassConditioner | None, val: PictureDataset) -> Task:
    size = config.data.size or config.data.longest_side
    if config.task == "segmentation":
        return SegmentationTask(unet, config.segmentation, val, size)
    diffusion = DiffusionTask(unet, conditioner, config.diffusion, val, config.training.seed)
    if config.task == "diffusion":
        return diffusion
    segmentation = SegmentationTask(unet, config.segmentation, val, size)
    return JointTask(segmentation, diffusion, config.joint)


def _side(data: PictureDataset) -> int | None:
    """The side of a set's pictures where they are square."""
    height, width = data[0]["image"].shape[-2:]
    return int(height) if height == width else None
