"""Channels, value range and statistics of a dataset's images, from its training split.

A camera of 12 bits writes values up to 4095 to 16-bit files, and a float image has any range. One range for the dataset
keeps the images' relative brightness; it is that of the data, without the outliers, and `predict` uses the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetdiff.data.base import ImageDataset
from unetdiff.data.build import build_dataset
from unetdiff.data.capabilities import NATIVE_SIZE, WITH_MASKS
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import RGB
from unetdiff.data.raw_images import ImageInfo, read_info, read_values
from unetdiff.data.sampling import evenly_spaced_indices
from unetdiff.data.threads import map_in_threads
from unetdiff.errors import FileError, UserError

MAX_HEADERS = 1000
"""Training images whose headers are read."""
MAX_IMAGES = 200
"""Training images whose values are read."""
MAX_VALUES = 1 << 24
"""Values that percentiles are computed from."""
PERCENTILES = (0.1, 99.9)
"""Of the values, what becomes black and white: sensors have single pixels that are dead or saturated."""

ANY_SIZE = [32, 32]
"""A size for a dataset of which only the file names are read."""

Source = Path | bytes


def resolve_image_format(config: DataConfig, masks: bool, layout: bool = False, only_rgb: bool = False) -> DataConfig:
    """The config with `channels` and, for images of more than 8 bits, `image_range` filled in where they are null.

    Args:
        config: the `data:` section.
        masks, layout: see `build_dataset`.
        only_rgb: the images are read as RGB whatever they are, by a denoiser or an autoencoder.

    A dataset that cannot be read is left as it is: the check of the dataset says why.
    """
    if config.name in NATIVE_SIZE or (config.channels is not None and config.image_range is not None):
        return config  # images without files are of 8 bits
    try:
        masks, layout = masks and config.name in WITH_MASKS, layout and config.name in WITH_MASKS
        size = config.size if masks or layout else config.size or ANY_SIZE
        train = build_dataset(replace(config, train_fraction=1.0, size=size), "train", masks, layout)
    except (UserError, OSError):
        return config
    sources = _sources(train, MAX_HEADERS)
    infos = [(source, info) for source in sources if (info := _info(source)) is not None]
    channels = config.channels
    if channels is None and infos:
        channels = RGB if only_rgb else common_channels([info.channels for _, info in infos])
    config = replace(config, channels=channels)
    deep = [source for source, info in infos if info.is_deep]
    if config.image_range is None and deep:
        chosen = [deep[i] for i in evenly_spaced_indices(len(deep), MAX_IMAGES)]
        config = replace(config, image_range=value_range(chosen))
    return config


def common_channels(channels: Sequence[int]) -> int:
    """The channels of a dataset: gray only if all images are, RGB for gray and RGB; else what most images have."""
    if set(channels) <= {1, RGB}:
        return max(channels)
    return max(sorted(set(channels)), key=list(channels).count)


def value_range(sources: Sequence[Source]) -> list[float] | None:
    """`PERCENTILES` of the values of images of more than 8 bits: [black, white] of gray or RGB (whose balance of colors
    stays), or two numbers for each band; None without a readable image."""
    per_image = max(1, MAX_VALUES // max(1, len(sources)))
    samples: dict[int, list[NDArray[Any]]] = {}
    for values in map_in_threads(lambda source: _sample(source, per_image), sources, "value range", progress=False):
        if values is not None:
            samples.setdefault(values.shape[1], []).append(values)
    if not samples:
        return None
    values = np.concatenate(max(samples.values(), key=len))  # (N, C)
    if values.shape[1] <= RGB:
        values = values.reshape(-1, 1)
    limits: list[float] = []
    for band in values.T:
        limits += _limits(band)
    return limits


def _limits(values: NDArray[Any]) -> list[float]:
    """Black and white of one band, (N,)."""
    low, high = np.percentile(values, PERCENTILES)
    if not low < high:
        low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "ui":
        low, high = np.floor(low), np.ceil(high)
    low, high = (float(f"{limit:.6g}") for limit in (low, high))
    return [low, high if high > low else low + 1.0]


def _sample(source: Source, count: int) -> NDArray[Any] | None:
    """Evenly spaced values of an image, (N, C) with N C of about `count`; None if it is not readable or of 8 bits."""
    try:
        values = read_values(source).values
    except FileError:
        return None
    if values.dtype.itemsize == 1:
        return None
    flat = values.reshape(-1, values.shape[2])
    flat = flat[:: max(1, flat.size // count)]
    return flat[np.isfinite(flat).all(axis=1)] if flat.dtype.kind == "f" else flat


def _info(source: Source) -> ImageInfo | None:
    try:
        return read_info(source)
    except FileError:
        return None


def _sources(train: ImageDataset, count: int) -> list[Source]:
    """The image files of evenly spaced samples, as far as there are files."""
    sources = []
    for index in evenly_spaced_indices(len(train), count):
        try:
            source = train.image_source(index)
        except UserError:
            continue
        if source is not None:
            sources.append(source)
    return sources


def pixel_statistics(train: ImageDataset) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over evenly spaced images of a split, for pixels in [0, 1].

    The images are those that the network sees without augmentation, each with the same weight.
    """

    def moments(index: int) -> torch.Tensor:
        image = train[index]["image"].to(torch.float64) / 255  # (C, H, W)
        return torch.stack([image.mean(dim=(1, 2)), image.square().mean(dim=(1, 2))])

    indices = evenly_spaced_indices(len(train), MAX_IMAGES)
    mean, square = torch.stack(list(map_in_threads(moments, indices, "pixel statistics", progress=False))).mean(dim=0)
    std = (square - mean.square()).clamp_min(0).sqrt().clamp_min(1 / 255)  # an empty channel has no deviation
    return [round(float(x), 4) for x in mean], [round(float(x), 4) for x in std]
