"""From a `data:` section to a dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from unetdiff.data import captions, images, parquet
from unetdiff.data.base import ImageDataset
from unetdiff.data.config import AugmentConfig, DataConfig, validate_image_range
from unetdiff.data.decoding import RGB
from unetdiff.data.labelled import with_unlabelled
from unetdiff.data.masks.build import READERS, build_reader
from unetdiff.data.masks.dataset import MaskedImages
from unetdiff.data.regularization import regularization_images
from unetdiff.data.scenes import Scenes
from unetdiff.data.subset import Subset, subset_indices
from unetdiff.data.transforms import Transform
from unetdiff.errors import config_error

Role = Literal["train", "val"]

_WITHOUT_MASKS: dict[str, Callable[[DataConfig, str, Transform], ImageDataset]] = {
    "image_folder": images.image_folder,
    "captioned_folder": captions.captioned_folder,
    "parquet": parquet.parquet,
    "fashion_mnist": images.fashion_mnist,
    "cifar10": images.cifar10,
}


def build_dataset(config: DataConfig, split: Role, segmentation: bool, layout: bool = False) -> ImageDataset:
    """The dataset of a split.

    Args:
        config: the `data:` section.
        split: "train" (`data.train_fraction` of it, with the images of `data.unlabelled_root` after it, augmented as
            configured when indexed with a `SampleKey`) or "val" (never augmented, always the whole split).
        segmentation: return masks. Without, a VOC-style dataset returns images only and needs `data.size`.
        layout: return masks as conditions of a denoiser: image and mask are resized alike, keeping their aspect ratio,
            and center-cropped to `data.size`, in validation too. Takes precedence over `segmentation`.

    Raises:
        UserError: a dataset that is missing, has no masks where they are needed, or is configured inconsistently.
    """
    dataset = _whole_split(config, split, segmentation, layout)
    if split == "train" and config.regularization_root is not None:
        transform = Transform(config.size, config.augment, config.longest_side, layout)
        dataset.regularization = regularization_images(config, transform, dataset.buckets)
    if split == "val":
        return dataset
    return training_part(dataset, config, segmentation, layout)


def training_part(dataset: ImageDataset, config: DataConfig, segmentation: bool, layout: bool = False) -> ImageDataset:
    """`data.train_fraction` of a training split; with masks also `data.label_fraction` and `data.unlabelled_root`."""
    if config.train_fraction != 1:
        dataset = Subset(dataset, subset_indices(len(dataset), config.train_fraction, config.train_fraction_seed))
    if not segmentation:
        return dataset
    return with_unlabelled(dataset, config, Transform(config.size, config.augment, config.longest_side, layout))


def _whole_split(config: DataConfig, split: Role, segmentation: bool, layout: bool) -> ImageDataset:
    validate_image_range(config.image_range)
    if config.name == "custom":
        remedy = "Its datasets were given to unetdiff.training.train in Python, and are not known here."
        raise config_error("data.name", "custom", "a dataset that can be read from files", remedy)
    augment = config.augment if split == "train" else AugmentConfig()
    masks = segmentation or layout
    if config.name == "scenes":
        return Scenes(split, config.scenes, config.size, augment, segmentation, layout)
    transform = Transform(config.size, augment, config.longest_side, layout)
    if config.name in _WITHOUT_MASKS:
        if masks:
            purpose = "segmentation" if segmentation else "layouts"
            right = ", ".join(["scenes", *READERS])
            raise config_error("data.name", config.name, f"a dataset with masks for {purpose}: {right}")
        return _WITHOUT_MASKS[config.name](config, split, transform)
    if config.name not in READERS:
        choices = ", ".join(["scenes", *READERS, *_WITHOUT_MASKS])
        raise config_error("data.name", config.name, f"one of {choices}")
    if not segmentation and config.size is None:
        constraint = f"set with data.name={config.name}, whose images differ in size"
        raise config_error("data.size", None, constraint, "Give [height, width], e.g. [64, 64].")
    reader = build_reader(config, split, masks)
    return MaskedImages(reader, masks, transform, config.image_range, config.channels or RGB)
