"""The `data:` section of a config: dataset, splits, sizes, augmentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ScenesConfig:
    """The embedded scenes: real handwritten digits on textured backgrounds."""

    train_images: int = 8000
    """Training scenes."""
    val_images: int = 500
    """Validation scenes (with digits that are not in the training split)."""
    digits: int = 1
    """Digits per scene."""
    colors: int = 6
    """Number of digit colors: the first of red, green, blue, yellow, purple, white."""
    clutter: float = 0.5
    """Contrast of the background texture, 0 (plain) to 1."""
    spread: float = 1.0
    """Variation of position and size, 0 (centered in its cell, full size) to 1 (anywhere, any size)."""
    seed: int = 0
    """Seed of the scenes."""
    held_out_pairs: list[str] = field(default_factory=list)
    """Color and digit pairs left out of the training split, e.g. ["blue 3", "red 7"]; the validation split has all
    pairs."""


@dataclass
class AugmentConfig:
    """Training augmentation; strong augmentation is off in the last phase of the schedule."""

    flip: bool = False
    """Random horizontal flip."""
    scale: list[float] | None = None
    """Strong: scale jitter, [smallest, largest] factor, e.g. [0.5, 2.0]; None: off."""
    crop: list[int] | None = None
    """[height, width] of a random crop, padded with 255 (ignore) if the image is smaller; None: the whole image."""
    color: float = 0.0
    """Strong: brightness, contrast and saturation jitter, 0 to 1."""


@dataclass
class DataConfig:
    """A dataset and its splits."""

    name: Literal[
        "scenes", "voc", "voc_folder", "image_folder", "captioned_folder", "parquet", "fashion_mnist", "cifar10"
    ] = "scenes"
    """scenes (embedded), voc (PASCAL VOC 2012), voc_folder (any folder in VOC's layout), image_folder (one folder per
    class), captioned_folder (images, and a metadata.jsonl with captions), parquet (a Hugging Face image column with
    labels, captions or both), fashion_mnist and cifar10 (torchvision)."""
    root: str | None = None
    """Folder (or parquet file) of the dataset; not for scenes."""
    download: bool = False
    """Download the dataset with torchvision (voc, fashion_mnist, cifar10)."""
    train_split: str = "train"
    """Training split: ImageSets/Segmentation/NAME.txt, a folder, or the dataset's own name. voc: train, or trainaug
    after `unetdiff data download sbd`."""
    val_split: str = "val"
    """Validation split."""
    num_classes: int | None = None
    """voc_folder without classes.txt: number of classes, including background."""
    allow_binary_masks: bool = False
    """Accept masks with no values but 0 and 255. They are rejected by default, as 255 means ignore and often stands for
    the foreground by mistake."""
    image_column: str = "img"
    """parquet: image column."""
    label_column: str = "label"
    """parquet: label column; a table with captions need not have it."""
    caption_column: str | None = None
    """captioned_folder: caption column of its metadata file; None: text. parquet: caption column; None: no captions."""
    size: list[int] | None = None
    """[height, width] that images are resized to (validation masks keep their own size); None: unchanged."""
    longest_side: int | None = None
    """voc and voc_folder: longest side that images are resized to before augmentation, keeping the aspect ratio
    (validation masks keep their own size). Instead of size."""
    repeat_factor_threshold: float = 0.0
    """voc and voc_folder: oversample images with classes that fewer than this fraction t of the images have, by the
    repeat factor max(1, sqrt(t / frequency)) (Gupta et al. 2019, LVIS); 0: off."""
    train_fraction: float = 1.0
    """Fraction of the training images that is used (at least one image), drawn by train_fraction_seed; a larger
    fraction contains every smaller one."""
    train_fraction_seed: int = 0
    """Seed of the subset for train_fraction below 1."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    """The embedded scenes."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Training-time augmentation."""
