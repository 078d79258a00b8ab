"""From a `data:` section to a dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from unetdiff.data import captions, images, parquet, voc
from unetdiff.data.base import ImageDataset
from unetdiff.data.config import AugmentConfig, DataConfig
from unetdiff.data.scenes import Scenes
from unetdiff.data.subset import Subset, subset_indices
from unetdiff.data.transforms import Transform
from unetdiff.errors import UserError

Role = Literal["train", "val"]

_MASKED: dict[str, Callable[[DataConfig, str, bool, Transform], ImageDataset]] = {
    "voc": voc.voc,
    "voc_folder": voc.voc_folder,
}
_MASKLESS: dict[str, Callable[[DataConfig, str, Transform], ImageDataset]] = {
    "image_folder": images.image_folder,
    "captioned_folder": captions.captioned_folder,
    "parquet": parquet.parquet,
    "fashion_mnist": images.fashion_mnist,
    "cifar10": images.cifar10,
}


def build_dataset(config: DataConfig, split: Role, segmentation: bool, layout: bool = False) -> ImageDataset:
    """The images of a split.

    Args:
        config: the `data:` section.
        split: "train" (`data.train_fraction` of it, augmented as configured when indexed with a `SampleKey`) or "val"
            (never augmented, always the whole split).
        segmentation: masks are needed. Without, a VOC-style set gives images alone, and needs `data.size`.
        layout: masks are needed as what an image is drawn from: image and mask are resized alike, their aspect kept
            and their centre cut out at `data.size`, in validation too. With `segmentation`, this is what counts.

    Raises:
        UserError: a set that is not there, has no masks where they are needed, or is configured impossibly.
    """
    whole = _whole(config, split, segmentation, layout)
    if split == "val" or config.train_fraction == 1:
        return whole
    return Subset(whole, subset_indices(len(whole), config.train_fraction, config.train_fraction_seed))


def _whole(config: DataConfig, split: Role, segmentation: bool, layout: bool) -> ImageDataset:
    augment = config.augment if split == "train" else AugmentConfig()
    masks = segmentation or layout
    if config.name == "scenes":
        return Scenes(split, config.scenes, config.size, augment, segmentation, layout)
    transform = Transform(config.size, augment, config.longest_side, layout)
    if config.name in _MASKLESS:
        if masks:
            what = "segmentation needs them" if segmentation else "a layout is one"
            raise UserError(f"data.name={config.name} has no masks, and {what}: use scenes, voc or voc_folder")
        return _MASKLESS[config.name](config, split, transform)
    if config.name not in _MASKED:
        raise UserError(f"data.name={config.name}: use one of scenes, {', '.join([*_MASKED, *_MASKLESS])}")
    if not segmentation and config.size is None:
        raise UserError(f"data.size is not set, and the images of {config.name} differ in size: e.g. [64, 64]")
    name = config.train_split if split == "train" else config.val_split
    return _MASKED[config.name](config, name, masks, transform)
