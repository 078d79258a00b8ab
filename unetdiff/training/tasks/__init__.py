"""The three tasks, and how a config becomes one."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unetdiff.conditioning import Conditioner, TextConditioner, load_conditioner
from unetdiff.conditioning.encoder import CachedFeatures, saved_encoder
from unetdiff.data import PictureDataset
from unetdiff.models import UNet
from unetdiff.models.config import DiffusionHeadConfig, HeadsConfig, SegmentationHeadConfig
from unetdiff.training.conditions import build_conditioner, channels_beside
from unetdiff.training.tasks.base import Task
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.tasks.joint import JointTask
from unetdiff.training.tasks.segmentation import SegmentationTask

if TYPE_CHECKING:
    from unetdiff.config import RunConfig

__all__ = ["DiffusionTask", "JointTask", "SegmentationTask", "Task", "build_task", "load_task"]


def build_task(config: RunConfig, train: PictureDataset, val: PictureDataset) -> Task:
    """A task with a fresh network, its heads sized by the data and its input by the condition."""
    model = config.model
    heads = HeadsConfig()
    if config.task != "diffusion":
        head = model.heads.segmentation or SegmentationHeadConfig()
        heads.segmentation = replace(head, num_classes=len(train.classes))
    if config.task != "segmentation":
        heads.diffusion = DiffusionHeadConfig(out_channels=model.in_channels)
    size = model.sample_size or _side(train)
    channels = model.in_channels + channels_beside(config)
    unet = UNet(**{**asdict(model), "in_channels": channels, "heads": asdict(heads), "sample_size": size})
    conditioner = None if config.task == "segmentation" else build_conditioner(config, train)
    return _assemble(config, unet, conditioner, val)


def load_task(config: RunConfig, directory: Path, val: PictureDataset) -> Task:
    """A task with the weights of a model directory, for evaluation."""
    unet = UNet.from_pretrained(directory / "unet")
    heads = unet.config["heads"]
    conditioner = None
    if (directory / "conditioner").is_dir():
        conditioner = load_conditioner(directory / "conditioner")
    if isinstance(conditioner, TextConditioner):
        conditioner.features = CachedFeatures(saved_encoder(directory, conditioner.max_tokens))
    config.task = "joint" if all(heads.values()) else ("segmentation" if heads["segmentation"] else "diffusion")
    return _assemble(config, unet, conditioner, val)


def _assemble(config: RunConfig, unet: UNet, conditioner: Conditioner | None, val: PictureDataset) -> Task:
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
