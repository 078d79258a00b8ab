"""From a `data:` section to a reader of images with masks."""

from __future__ import annotations

from collections.abc import Callable

from unetdiff.data.config import DataConfig
from unetdiff.data.masks.coco import coco
from unetdiff.data.masks.folders import folders
from unetdiff.data.masks.huggingface import huggingface
from unetdiff.data.masks.label_studio import label_studio
from unetdiff.data.masks.labelme import labelme
from unetdiff.data.masks.presets import ade20k, cityscapes
from unetdiff.data.masks.reader import MaskReader
from unetdiff.data.masks.splits import Role
from unetdiff.data.masks.voc import voc, voc_folder

READERS: dict[str, Callable[[DataConfig, Role, bool], MaskReader]] = {
    "folders": folders,
    "voc": lambda config, role, masks: voc(config, _split(config, role), masks),
    "voc_folder": lambda config, role, masks: voc_folder(config, _split(config, role), masks),
    "coco": coco,
    "labelme": labelme,
    "label_studio": label_studio,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "huggingface": huggingface,
}
"""`data.name` -> (config, role, masks) -> reader; without `masks`, of the images alone."""


def build_reader(config: DataConfig, role: Role, masks: bool = True) -> MaskReader:
    """The reader of a split: its images, and their masks if `masks`.

    Raises:
        UserError: the dataset cannot be listed (missing folder, split or class names).
    """
    return READERS[config.name](config, role, masks)


def _split(config: DataConfig, role: Role) -> str:
    return config.train_split if role == "train" else config.val_split
