"""The three tasks, and how a config becomes one."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unetdiff.data import PictureDataset
from unetdiff.diffusion.codecs import Latents, Pixels, Space
from unetdiff.diffusion.conditioning import Conditioner, PictureConditioner, TextConditioner, load_conditioner
from unetdiff.diffusion.conditioning.text_encoder import CachedFeatures, saved_encoder
from unetdiff.diffusion.mask_codec import Masks
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.models import UNet
from unetdiff.models.config import DiffusionHeadConfig, HeadsConfig, SegmentationHeadConfig
from unetdiff.training.conditions import build_conditioner, channels_beside
from unetdiff.training.tasks.base import Task
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.tasks.joint import JointTask
from unetdiff.training.tasks.segmentation import SegmentationTask

if TYPE_CHECKING:
    from unetdiff.config.parsing import RunConfig

__all__ = ["DiffusionTask", "JointTask", "SegmentationTask", "Task", "build_task", "load_task"]


def build_task(config: RunConfig, train: PictureDataset, val: PictureDataset) -> Task:
    """A task with a fresh network, its heads sized by the data and its input by the condition.

    Raises:
        UserError: an autoencoder that cannot be loaded, or pictures of a size that it does not divide.
    """
    model, space = config.model, _space(config, train)
    heads = HeadsConfig()
    if config.task != "diffusion":
        head = model.heads.segmentation or SegmentationHeadConfig()
        heads.segmentation = replace(head, num_classes=len(train.classes))
    if config.task != "segmentation":
        heads.diffusion = DiffusionHeadConfig(out_channels=space.channels)
    size = model.sample_size or _sides(config.data.size, train, space)
    channels = space.channels + channels_beside(config, space)
    unet = UNet(**{**asdict(model), "in_channels": channels, "heads": asdict(heads), "sample_size": size})
    conditioner = None if config.task == "segmentation" else build_conditioner(config, train, space)
    return _assemble(config, unet, conditioner, val, space)


def load_task(config: RunConfig, directory: Path, val: PictureDataset) -> Task:
    """A task with the weights of a model directory, for evaluation."""
    unet = UNet.from_pretrained(directory / "unet")
    heads = unet.config["heads"]
    conditioner, vae = None, directory / "vae"
    space = Masks.saved(directory) or (Latents.from_pretrained(vae, "vae") if vae.is_dir() else Pixels())
    if (directory / "conditioner").is_dir():
        conditioner = load_conditioner(directory / "conditioner")
    if isinstance(conditioner, TextConditioner):
        conditioner.features = CachedFeatures(saved_encoder(directory, conditioner.max_tokens))
    if isinstance(conditioner, PictureConditioner):
        conditioner.latents_of = space.encode
    config.task = "joint" if all(heads.values()) else ("segmentation" if heads["segmentation"] else "diffusion")
    return _assemble(config, unet, conditioner, val, space)


def _assemble(
    config: RunConfig, unet: UNet, conditioner: Conditioner | None, val: PictureDataset, space: Space
) -> Task:
    size = config.data.size or config.data.longest_side
    if config.task == "segmentation":
        scheduler = build_scheduler(config.diffusion) if config.segmentation.noise else None
        return SegmentationTask(unet, config.segmentation, val, size, scheduler)
    diffusion = DiffusionTask(unet, conditioner, config.diffusion, val, config.training.seed, space, config.data.size)
    if config.task == "diffusion":
        return diffusion
    segmentation = SegmentationTask(unet, config.segmentation, val, size)
    return JointTask(segmentation, diffusion, config.joint)


def _space(config: RunConfig, train: PictureDataset) -> Space:
    """What is noised."""
    given = config.diffusion
    if config.task == "segmentation":
        return Pixels()
    if given.target == "mask":
        return Masks(train.classes, train.palette.tolist())
    return Pixels() if given.latent.vae is None else Latents.from_pretrained(given.latent.vae)


def _sides(size: list[int] | None, data: PictureDataset, space: Space) -> int | list[int] | None:
    """What is noised of a set's pictures: its side, or its height and width; None where a crop decides and the first
    picture is not square."""
    height, width = space.grid(tuple(data[0]["image"].shape[-2:]), "data.size")
    if height == width:
        return height
    return None if size is None else [height, width]
