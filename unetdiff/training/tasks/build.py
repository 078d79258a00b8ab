"""Build the task of a config, fresh or with saved weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unetdiff.data.base import ImageDataset
from unetdiff.diffusion.codecs import Codec, LatentCodec, PixelCodec
from unetdiff.diffusion.conditioning.base import Conditioner
from unetdiff.diffusion.conditioning.images import ImageConditioner
from unetdiff.diffusion.conditioning.load import load_conditioner
from unetdiff.diffusion.conditioning.text import TextConditioner
from unetdiff.diffusion.conditioning.text_encoder import CachedFeatures, saved_encoder
from unetdiff.diffusion.mask_codec import MaskCodec
from unetdiff.diffusion.objectives import build_scheduler
from unetdiff.kernels.accelerate import accelerate_training_
from unetdiff.models.config import DiffusionHeadConfig, HeadsConfig, SegmentationHeadConfig
from unetdiff.models.unet import UNet
from unetdiff.training.conditions import build_conditioner, channels_beside
from unetdiff.training.tasks.base import Task
from unetdiff.training.tasks.diffusion import DiffusionTask
from unetdiff.training.tasks.joint import JointTask
from unetdiff.training.tasks.segmentation import SegmentationTask

if TYPE_CHECKING:
    from unetdiff.config.schema import RunConfig


def build_task(config: RunConfig, train: ImageDataset, val: ImageDataset) -> Task:
    """A task with a fresh network, its heads sized by the data and its input by the condition.

    Raises:
        UserError: an autoencoder that cannot be loaded, or images of a size that it does not divide.
    """
    model, codec = config.model, _codec(config, train)
    heads = HeadsConfig()
    if config.task != "diffusion":
        head = model.heads.segmentation or SegmentationHeadConfig()
        heads.segmentation = replace(head, num_classes=len(train.classes))
    if config.task != "segmentation":
        heads.diffusion = DiffusionHeadConfig(out_channels=codec.channels)
    size = model.sample_size or _sides(config.data.size, train, codec)
    channels = codec.channels + channels_beside(config, codec)
    unet = UNet(**vars(replace(model, in_channels=channels, sample_size=size, heads=heads)))
    conditioner = None if config.task == "segmentation" else build_conditioner(config, train, codec)
    return _assemble(config, unet, conditioner, val, codec)


def load_task(config: RunConfig, directory: Path, val: ImageDataset) -> Task:
    """A task with the weights of a model directory, for evaluation."""
    unet = accelerate_training_(UNet.from_pretrained(directory / "unet"))
    heads = unet.config["heads"]
    conditioner, vae = None, directory / "vae"
    codec = MaskCodec.saved(directory) or (LatentCodec.from_pretrained(vae, "vae") if vae.is_dir() else PixelCodec())
    if (directory / "conditioner").is_dir():
        conditioner = load_conditioner(directory / "conditioner")
    if isinstance(conditioner, TextConditioner):
        conditioner.features = CachedFeatures(saved_encoder(directory, conditioner.max_tokens))
    if isinstance(conditioner, ImageConditioner):
        conditioner.latents_of = codec.encode
    config.task = "joint" if all(heads.values()) else ("segmentation" if heads["segmentation"] else "diffusion")
    return _assemble(config, unet, conditioner, val, codec)


def _assemble(config: RunConfig, unet: UNet, conditioner: Conditioner | None, val: ImageDataset, codec: Codec) -> Task:
    size = config.data.size or config.data.longest_side
    if config.task == "segmentation":
        scheduler = build_scheduler(config.diffusion) if config.segmentation.noise else None
        return SegmentationTask(unet, config.segmentation, val, size, scheduler)
    diffusion = DiffusionTask(unet, conditioner, config.diffusion, val, config.training.seed, codec, config.data.size)
    if config.task == "diffusion":
        return diffusion
    segmentation = SegmentationTask(unet, config.segmentation, val, size)
    return JointTask(segmentation, diffusion, config.joint)


def _codec(config: RunConfig, train: ImageDataset) -> Codec:
    """What is noised."""
    given = config.diffusion
    if config.task == "segmentation":
        return PixelCodec()
    if given.target == "mask":
        return MaskCodec(train.classes, train.palette.tolist())
    return PixelCodec() if given.latent.vae is None else LatentCodec.from_pretrained(given.latent.vae)


def _sides(size: list[int] | None, data: ImageDataset, codec: Codec) -> int | list[int] | None:
    """What is noised of a set's images: its side, or its height and width; None where a crop decides and the first
    image is not square."""
    height, width = codec.grid(tuple(data[0]["image"].shape[-2:]), "data.size")
    if height == width:
        return height
    return None if size is None else [height, width]
