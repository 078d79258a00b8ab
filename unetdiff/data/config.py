"""Which images a run sees: the typed `data:` section of a config file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ScenesConfig:
    """Difficulty of the embedded set: real digits on textured backgrounds."""

    train_images: int = 8000
    """Scenes in the training split."""
    val_images: int = 500
    """Scenes in the validation split (their digits are never seen in training)."""
    digits: int = 1
    """Digits in a scene."""
    colors: int = 6
    """Colours that digits come in: the first so many of red, green, blue, yellow, purple, white."""
    clutter: float = 0.5
    """Contrast of the background's texture, 0 (plain) to 1."""
    spread: float = 1.0
    """Variety of place and size: 0 (all in the middle of their cell, at full size) to 1 (anywhere, at any size)."""
    seed: int = 0
    """Seed of the scenes."""
    held_out_pairs: list[str] = field(default_factory=list)
    """Digits and colours that never meet in the training split, e.g. ["blue 3", "red 7"]; the validation split has
    every pairing."""


@dataclass
class AugmentConfig:
    """Training-time changes of an image; the strong ones end with the no-augmentation phase."""

    flip: bool = False
    """Mirror half of the images left to right."""
    scale: list[float] | None = None
    """Strong: scale jitter, smallest and largest factor (e.g. [0.5, 2.0]); None: none."""
    crop: list[int] | None = None
    """Height and width of a random crop (padded with void 255 where the image is smaller); None: whole
    image."""
    color: float = 0.0
    """Strong: brightness, contrast and saturation jitter, 0 to 1."""


@dataclass
class DataConfig:
    """A set of images and its splits."""

    name: Literal[
        "scenes", "voc", "voc_folder", "image_folder", "captioned_folder", "parquet", "fashion_mnist", "cifar10"
    ] = "scenes"
    """scenes (embedded), voc (PASCAL VOC 2012), voc_folder (any folder in VOC's layout),
    image_folder (one folder a class), captioned_folder (images and a metadata.jsonl with their captions),
    parquet (Hugging Face image with a label, a caption or both), fashion_mnist and cifar10 (torchvision)."""
    root: str | None = None
    """Folder (or parquet file) of the set; not for scenes."""
    download: bool = False
    """Let torchvision download the set (voc, fashion_mnist, cifar10)."""
    train_split: str = "train"
    """Name of the training split: ImageSets/Segmentation/NAME.txt, a folder, or the set's own name. voc: train, or
    trainaug once `unetdiff data download sbd` has built it."""
    val_split: str = "val"
    """Name of the validation split."""
    num_classes: int | None = None
    """voc_folder without classes.txt: number of classes, background included."""
    allow_binary_masks: bool = False
    """Accept masks that hold nothing but 0 and 255; refused otherwise, as 255 (void) is then mostly a
    foreground."""
    image_column: str = "img"
    """parquet: column of the image."""
    label_column: str = "label"
    """parquet: column of the class; where there is a caption column, a table without "label" has no classes."""
    caption_column: str | None = None
    """captioned_folder: column of the caption in its metadata file; None: text. parquet: column of the caption; None:
    without captions."""
    size: list[int] | None = None
    """Height and width that every image is resized to (a segmenter's mask keeps its own size in validation); None:
    as it is."""
    longest_side: int | None = None
    """voc and voc_folder: longest side that every image is resized to, its aspect kept (the mask keeps its own size
    in validation); before augmentation. Instead of `size`."""
    repeat_factor_threshold: float = 0.0
    """voc and voc_folder: an image with a class that less than this share of the images has comes more often, the
    root of the lack times as often (Gupta et al. 2019, repeat factors); 0: every image alike."""
    train_fraction: float = 1.0
    """Fraction of the training images that is used (at least one image), drawn by train_fraction_seed; a larger
    fraction contains every smaller one."""
    train_fraction_seed: int = 0
    """Which images a share below 1 takes."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    """The embedded set."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Training-time augmentation."""
