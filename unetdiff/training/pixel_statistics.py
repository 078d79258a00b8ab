"""Mean and deviation of a segmenter's input, counted over its images where no pretrained encoder has its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.data import reads_rgb
from unetdiff.data.base import ImageDataset
from unetdiff.data.image_format import pixel_statistics
from unetdiff.errors import UserError
from unetdiff.models.config import RESIDUAL, RGB, in_rgb
from unetdiff.models.unet import UNet
from unetdiff.models.widen_input import is_gray
from unetdiff.training.init_from import network_directory


def follow_source(config: RunConfig) -> RunConfig:
    """The config of a network of pixels that starts from another one: with that one's mean and std, and channels.

    A denoiser reads RGB: of a segmenter of gray images it has mean and std in every channel.

    Without a readable network in `training.init_from` the config is left as it is: loading the weights says why.
    """
    path = config.training.init_from
    if path is None or config.latent.vae is not None:
        return config
    try:
        source = UNet.read_config(network_directory(Path(path)))
    except UserError:
        return config
    diffusion, encoder = source["heads"]["diffusion"], config.model.encoder
    channels = diffusion["out_channels"] if diffusion else source["in_channels"]
    if encoder.mean is None:
        mean, std = source["encoder"]["mean"], source["encoder"]["std"]
        if reads_rgb(config) and is_gray(source):
            mean, std = in_rgb(mean), in_rgb(std)
        encoder = replace(encoder, mean=mean, std=std)
    if reads_rgb(config):
        return replace(config, model=replace(config.model, encoder=encoder))
    data = replace(config.data, channels=config.data.channels or channels)
    return replace(config, data=data, model=replace(config.model, encoder=encoder))


def resolve_pixel_statistics(config: RunConfig, train: ImageDataset, accelerator: Accelerator) -> RunConfig:
    """The config with `model.encoder.mean` and `std` of the training images, where they are null and needed.

    They are needed by a segmenter of pixels that is not residual (those have diffusers' input, pixels in [-1, 1]), and
    whose encoder does not have the statistics of its own training images, which are RGB. The run's config.yaml holds
    the numbers used. Collective.
    """
    if not needs_statistics(config):
        return config
    counted: list[Any] = [None]
    if accelerator.is_main_process:
        counted = [pixel_statistics(train)]
    broadcast_object_list(counted)
    mean, std = counted[0]
    encoder = replace(config.model.encoder, mean=mean, std=std)
    return replace(config, model=replace(config.model, encoder=encoder))


def needs_statistics(config: RunConfig) -> bool:
    """Whether mean and deviation of the training images are counted."""
    encoder = config.model.encoder
    if config.training.init_from is not None:  # see `follow_source`
        return False
    if reads_rgb(config) or encoder.name == RESIDUAL or config.model.patch_size > 1:
        return False
    own = encoder.weights is not None and (config.data.channels or RGB) == RGB
    return encoder.mean is None and not own and encoder.statistics == "imagenet"
