"""What the `data:` section may not say, and what the images of each set come with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unetdiff.config.validation.config_error import at_least, config_error, pair, share
from unetdiff.data.prompt import trained_pairs

if TYPE_CHECKING:
    from unetdiff.config.parsing import RunConfig
    from unetdiff.data.config import DataConfig


IN_VOC_LAYOUT = ("voc", "voc_folder")
UNEVEN = (*IN_VOC_LAYOUT, "image_folder", "captioned_folder", "parquet")  # images of any sizes
# What the images of each data.name come with.
WITH_MASKS = ("scenes", *IN_VOC_LAYOUT)
WITH_LABELS = ("scenes", "image_folder", "parquet", "fashion_mnist", "cifar10")  # one class an image: "label"
WITH_CLASSES = (*WITH_LABELS, *IN_VOC_LAYOUT)  # "labels": that class, or those in the mask
WITH_CAPTIONS = ("scenes", "captioned_folder", "parquet")  # parquet: where data.caption_column is given
DOWNLOADABLE = ("voc", "fashion_mnist", "cifar10")
OWN_SIZE = {
    "scenes": 32,
    "fashion_mnist": 28,
    "cifar10": 32,
}  # height and width of the set's images, pixels


def validate_data(config: RunConfig) -> None:
    """Refuse a `data:` section that cannot serve the task."""
    data, task = config.data, config.task
    if task != "diffusion" and data.name not in WITH_MASKS:
        raise config_error("data.name", data.name, f"has no masks (task {task})", f"use one of {', '.join(WITH_MASKS)}")
    if data.name != "scenes" and data.root is None:
        raise config_error("data.root", None, f"is missing for data.name {data.name}", "give the folder of the set")
    if data.download and data.name not in DOWNLOADABLE:
        raise config_error(
            "data.download",
            True,
            f"is not for {data.name}",
            f"only {', '.join(DOWNLOADABLE)} can be downloaded",
        )
    if data.num_classes is not None and data.name != "voc_folder":
        raise config_error(
            "data.num_classes", data.num_classes, f"is known for {data.name}", "only voc_folder takes it"
        )
    pair("data.size", data.size)
    if data.longest_side is not None:
        at_least("data.longest_side", data.longest_side, 32)
    share("data.repeat_factor_threshold", data.repeat_factor_threshold)
    if not 0 < data.train_fraction <= 1:
        raise config_error(
            "data.train_fraction", data.train_fraction, "is no share of the training images", "use 1 or less, above 0"
        )
    for key, value in (("longest_side", data.longest_side), ("repeat_factor_threshold", data.repeat_factor_threshold)):
        if value and data.name not in IN_VOC_LAYOUT:
            raise config_error(
                f"data.{key}", value, f"is not for {data.name}", "leave it out (voc and voc_folder have it)"
            )
    if data.longest_side is not None and data.size is not None:
        raise config_error(
            "data.longest_side", data.longest_side, f"and data.size {data.size} contradict", "set one to null"
        )
    pair("data.augment.crop", data.augment.crop)
    if data.caption_column is not None and (data.name not in WITH_CAPTIONS or data.name == "scenes"):
        right = "leave it out (captioned_folder and parquet have it)"
        raise config_error("data.caption_column", data.caption_column, f"is not for {data.name}", right)
    if task == "segmentation" and data.name == "voc" and data.size is None and data.augment.crop is None:
        raise config_error(
            "data.size", None, f"is missing for {data.name}", "give [height, width], or data.augment.crop"
        )
    if task != "segmentation" and data.name in UNEVEN and data.size is None:
        what = f"is missing for {data.name}: a denoiser is judged on images of one size, and draws them"
        raise config_error(
            "data.size", None, what, "give [height, width]; data.augment.crop may cut smaller ones from them"
        )
    scale = data.augment.scale
    if scale is not None and (len(scale) != 2 or not 0 < scale[0] <= scale[1]):
        raise config_error("data.augment.scale", scale, "is no range", "give [smallest, largest], e.g. [0.5, 2.0]")
    share("data.augment.color", data.augment.color)
    share("data.scenes.clutter", data.scenes.clutter)
    share("data.scenes.spread", data.scenes.spread)
    for name in ("train_images", "val_images", "digits", "colors"):
        at_least(f"data.scenes.{name}", getattr(data.scenes, name), 1)
    trained_pairs(data.scenes)


def require_captions(key: str, value: Any, data: DataConfig) -> None:
    """Refuse `key: value`, which needs captions, for a set that has none."""
    if data.name not in WITH_CAPTIONS:
        right = f"use one of {', '.join(WITH_CAPTIONS)}"
        raise config_error(key, value, f"needs captions, which {data.name} has not", right)
    if data.name == "parquet" and data.caption_column is None:
        raise config_error(
            "data.caption_column", None, f"leaves {key} {value} without captions", "name the parquet's column"
        )


def image_size(config: RunConfig) -> list[int] | None:
    """Height and width of the images that the network trains on, where the config alone tells."""
    if config.data.augment.crop is not None:
        return config.data.augment.crop
    if config.data.size is not None:
        return config.data.size
    own = OWN_SIZE.get(config.data.name)
    return None if own is None else [own, own]
