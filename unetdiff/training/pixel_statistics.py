"""Mean and deviation of a segmenter's input, counted over its images where no pretrained encoder has its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.data import reads_rgb
from unetdiff.data.base import ImageDataset
from unetdiff.data.image_format import pixel_statistics
from unetdiff.models.config import RESIDUAL

RGB = 3


def resolve_pixel_statistics(config: RunConfig, train: ImageDataset, accelerator: Accelerator) -> RunConfig:
    """The config with `model.encoder.mean` and `std` of the training images, where they are null and needed.

    They are needed by a segmenter of pixels that is not residual (those have diffusers' input, pixels in [-1, 1]), and
    whose encoder does not have the statistics of its own training images, which are RGB. As with class weights, the
    run's config.yaml holds the numbers used, and a resumed run counts them again. Collective.
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
    if reads_rgb(config) or encoder.name == RESIDUAL or config.model.patch_size > 1:
        return False
    own = encoder.weights is not None and (config.data.channels or RGB) == RGB
    return encoder.mean is None and not own and encoder.statistics == "imagenet"
