"""The `data:` section of a config file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from unetdiff.errors import config_error


@dataclass
class ScenesConfig:
    """The built-in dataset: real digits on textured backgrounds."""

    train_images: int = 8000
    """Training scenes."""
    val_images: int = 500
    """Scenes in the validation split (of digit images that are not in the training split)."""
    digits: int = 1
    """Digits per scene."""
    colors: int = 6
    """Number of digit colors: the first ones of red, green, blue, yellow, purple, white."""
    clutter: float = 0.5
    """Contrast of the background texture, 0 (plain) to 1."""
    spread: float = 1.0
    """Variation of position and size: 0 (centered in its cell, full size) to 1 (anywhere, any size)."""
    seed: int = 0
    """Seed of the scenes."""
    held_out_pairs: list[str] = field(default_factory=list)
    """Pairs of color and digit that are not in the training split, e.g. ["blue 3", "red 7"]; the validation split has
    all pairs."""


@dataclass
class AugmentConfig:
    """Augmentation of training images; strong augmentation is off in the final phase of a run."""

    flip: bool = False
    """Flip images horizontally with probability 0.5."""
    vertical_flip: bool = False
    """Flip images vertically with probability 0.5, for images without an up, as under a microscope or from above."""
    rotate: bool = False
    """Rotate images by a random multiple of 90 degrees; images that are not square, and are not cropped, by 180."""
    elastic: float = 0.0
    """Elastic deformation (Ronneberger et al. 2015, section 3.1): standard deviation, in pixels of the resized image,
    of random displacements of a grid of 3 x 3 points, with bicubic interpolation between them; the paper has 10."""
    scale: list[float] | None = None
    """Strong: scale jitter, [smallest, largest] factor, e.g. [0.5, 2.0]."""
    crop: list[int] | None = None
    """[height, width] of a random crop; None: the whole image."""
    crop_padding: Literal["ignore", "mirror"] = "ignore"
    """Around images smaller than the crop: ignore (the image's mean color, masks 255 = ignore), or the image and its
    mask mirrored (Ronneberger et al. 2015, figure 2)."""
    random_crop: bool = False
    """Images without masks: crop to data.size at a random place, after resizing by the shorter side; false: the
    center."""
    color: float = 0.0
    """Strong: jitter of brightness, contrast and saturation, 0 to 1."""


def unbounded_augmentation(augment: AugmentConfig) -> str | None:
    """The first key of `data.augment` that makes more of an image than its mirror image; None: there is none."""
    keys = {
        "vertical_flip": augment.vertical_flip,
        "rotate": augment.rotate,
        "elastic": augment.elastic > 0,
        "crop": augment.crop is not None,
        "random_crop": augment.random_crop,
        "scale": augment.scale is not None,
        "color": augment.color > 0,
    }
    return next((f"data.augment.{key}" for key, is_set in keys.items() if is_set), None)


@dataclass
class DataConfig:
    """A dataset and its splits."""

    name: Literal[
        "scenes",
        "folders",
        "voc",
        "voc_folder",
        "coco",
        "labelme",
        "label_studio",
        "cityscapes",
        "ade20k",
        "huggingface",
        "image_folder",
        "captioned_folder",
        "parquet",
        "fashion_mnist",
        "cifar10",
        "custom",
    ] = "scenes"
    """scenes (built-in), folders (any folder of images and of masks), voc (PASCAL VOC 2012), voc_folder (any folder in
    VOC's layout), coco, labelme and label_studio (their JSON), cityscapes, ade20k, huggingface (images and masks in
    parquet, a folder of save_to_disk or on the Hub),
    image_folder (one folder per class), captioned_folder (images and a metadata.jsonl with their captions),
    parquet (Hugging Face image with a label, a caption or both), fashion_mnist and cifar10
    (torchvision), custom (datasets given to `unetdiff.training.train` in Python)."""
    root: str | None = None
    """Folder (or parquet file) of the dataset; huggingface: also owner/name on the Hub; not for scenes."""
    download: bool = False
    """Download the dataset with torchvision (voc, fashion_mnist, cifar10)."""
    train_split: str = "train"
    """Name of the training split: a list NAME.txt (voc: in ImageSets/Segmentation), a folder, or the name of parquet
    files. voc: train, or trainaug (built by `unetdiff data download sbd`)."""
    val_split: str = "val"
    """Validation split. folders: also a glob of names, e.g. "scene7_*"; all other images are for training."""
    val_fraction: float | None = None
    """folders, coco, labelme, label_studio, huggingface: fraction of the training images that is held out for
    validation, drawn by split_seed; None: 0.1 where no list, folder or file gives a validation split."""
    split_seed: int = 0
    """Seed of the images that val_fraction draws."""
    group_pattern: str | None = None
    """folders: regular expression of what the names of one group share (its match, or its first parenthesis);
    val_fraction holds out whole groups. E.g. "^[^_]+" for scene1_0001, scene1_0002: one scene is in one split."""
    images: str | None = None
    """folders: folder of the images in root, or a glob: "leftImg8bit/**/*_leftImg8bit.png". coco, labelme and
    label_studio: folder of the images, where they are not next to the annotations; coco: "{split}" in it is the name of
    the split."""
    annotations: str | None = None
    """coco: JSON file in root, "{split}" in it is the name of the split: "annotations/instances_{split}.json". labelme:
    folder or glob of the JSON files. label_studio: the JSON export. None: where exporters put them."""
    mask_column: str | None = None
    """huggingface: column of the masks; None: mask, label, annotation, or the second column of images."""
    masks: str | None = None
    """folders: folder of the masks in root, or a glob: "gtFine/**/*_gtFine_labelIds.png". An image's mask is where the
    wildcards match the same."""
    mask_encoding: Literal["index", "binary"] = "index"
    """Values of masks: index (of a class, 255 = ignore), or binary (0 background, 255 or 1 foreground)."""
    mask_values: dict[int | str, int | str] | None = None
    """Class of each stored value, instead of mask_encoding: {7: 0, 8: 1, "10-20": 2, else: ignore}."""
    mask_colors: dict[str, list[int]] | str | None = None
    """Color of each class, for masks in RGB: {road: [128, 64, 128], car: [64, 0, 128], void: [0, 0, 0]}, or a file in
    root with lines such as "128 64 128 road". Colors named void or ignore are ignored."""
    class_names: list[str] | None = None
    """Names of the classes, that of index 0 first; None: the lines of classes.txt in root, or those of mask_colors."""
    regularization_root: str | None = None
    """captioned_folder: folder with images of the class that the training images are special ones of, for prior
    preservation (DreamBooth, Ruiz et al. 2023): each step has as many of them, weighted by diffusion.prior_weight. With
    a metadata file like that of `root`, or with regularization_prompt."""
    regularization_prompt: str | None = None
    """Caption of all images of regularization_root, e.g. "a photo of a dog"; None: its metadata file has them."""
    num_classes: int | None = None
    """Number of classes, including background, where neither class_names nor classes.txt in root names them."""
    allow_binary_masks: bool = False
    """Accept masks with values 0 and 255 only, with 255 = ignore; an error by default, as 255 is often meant as
    foreground."""
    image_column: str = "img"
    """parquet: image column."""
    label_column: str = "label"
    """parquet: column of the class; optional if there is a caption column."""
    caption_column: str | None = None
    """Column of the caption in captioned_folder's metadata file (None: text) or in parquet (None: no captions)."""
    image_range: list[float] | None = None
    """[black, white]: the values of images with more than 8 bits per channel that become 0 and 255, e.g. [0, 4095] for
    a 12-bit camera, or two numbers per channel, [black, white, black, white, ...]; values outside are clipped. None:
    the 0.1 and 99.9 percentiles of the training images, kept with the model. 8-bit images are not changed."""
    channels: int | None = None
    """Channels of the images: 1 (gray), 3 (RGB), or the number of bands of a TIFF. None: those of the training images
    (segmentation of pixels; else 3). Gray images are repeated as RGB, RGB images become gray, alpha is composited over
    white (with 4: it is the fourth channel); any other image must have this number."""
    size: list[int] | None = None
    """[height, width] that images are resized to (masks of a segmentation task keep their size in validation);
    None: not resized."""
    bucket_step: int | None = None
    """image_folder, captioned_folder, parquet: resolution buckets, whose sides are multiples of this (64 for Stable
    Diffusion). Each training image is resized and cropped to the size nearest to its aspect ratio among those of the
    area of `size`, and each optimizer step has images of one size. None: all images have `size`."""
    longest_side: int | None = None
    """Datasets with masks in files: longest side that images are resized to before augmentation, aspect ratio kept
    (masks keep their size in validation). Alternative to `size`."""
    repeat_factor_threshold: float = 0.0
    """Datasets with masks in files: threshold t of repeat-factor sampling (Gupta et al. 2019): images with a class in a
    fraction f < t of the images are drawn sqrt(t / f) times as often; 0: uniform."""
    train_fraction: float = 1.0
    """Fraction of the training images that is used (at least one image), drawn by train_fraction_seed; a larger
    fraction contains every smaller one."""
    train_fraction_seed: int = 0
    """Seed of the subset that train_fraction draws."""
    label_fraction: float = 1.0
    """joint, or with segmentation.pseudo_labels: fraction of the training images whose masks are used (at least one
    image), drawn as by train_fraction; the diffusion head, and pseudo-labels, learn from all of them."""
    unlabelled_root: str | None = None
    """joint, or with segmentation.pseudo_labels; masks in files: folder of images without masks, with its subfolders,
    that the diffusion head, and pseudo-labels, learn from in addition to the training split."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    """Options of the built-in dataset."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of training images."""


def validate_image_range(limits: list[float] | None, key: str = "data.image_range") -> None:
    """Check an `image_range`; UserError unless it is None or pairs of two ascending finite numbers."""
    if limits is None:
        return
    pairs = list(zip(limits[::2], limits[1::2], strict=False))
    if not limits or len(limits) % 2 or not all(-math.inf < low < high < math.inf for low, high in pairs):
        constraint = "[black, white], two ascending numbers, or two per channel"
        raise config_error(key, limits, constraint, "Give e.g. [0, 4095].")
