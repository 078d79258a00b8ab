"""Sets of pictures: the embedded scenes, VOC-style folders, pictures with classes or captions; their order,
transforms and checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from unetdiff.data import captions, images, parquet, voc
from unetdiff.data.base import PictureDataset, collate
from unetdiff.data.config import AugmentConfig, DataConfig, ScenesConfig
from unetdiff.data.loaders import eval_loader
from unetdiff.data.pairs import ScenePairs
from unetdiff.data.prompt import Prompt, prompts
from unetdiff.data.sampling import EvalSampler, SampleKey, StepSampler, evenly
from unetdiff.data.scenes import Scenes
from unetdiff.data.subset import Part, pictures_of_share, share_indices
from unetdiff.data.transforms import EvalTransform, TrainTransform, Transform, to_model_range, to_uint8
from unetdiff.errors import UserError

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "EvalSampler",
    "EvalTransform",
    "Part",
    "PictureDataset",
    "Prompt",
    "SampleKey",
    "ScenePairs",
    "Scenes",
    "ScenesConfig",
    "StepSampler",
    "TrainTransform",
    "Transform",
    "build_dataset",
    "collate",
    "eval_loader",
    "evenly",
    "pictures_of_share",
    "prompts",
    "share_indices",
    "to_model_range",
    "to_uint8",
]

Role = Literal["train", "val"]

_MASKED: dict[str, Callable[[DataConfig, str, bool, Transform], PictureDataset]] = {
    "voc": voc.voc,
    "voc_folder": voc.voc_folder,
}
_MASKLESS: dict[str, Callable[[DataConfig, str, Transform], PictureDataset]] = {
    "image_folder": images.image_folder,
    "captioned_folder": captions.captioned_folder,
    "parquet": parquet.parquet,
    "fashion_mnist": images.fashion_mnist,
    "cifar10": images.cifar10,
}


def build_dataset(config: DataConfig, split: Role, segmentation: bool, layout: bool = False) -> PictureDataset:
    """The pictures of a split.

    Args:
        config: the `data:` section.
        split: "train" (augmented as configured, when asked with a `SampleKey`; `data.share` of it) or "val" (never
            augmented, always whole).
        segmentation: masks are needed. Without, a VOC-style set gives pictures alone, and needs `data.size`.
        layout: masks are needed as what a picture is drawn from: picture and mask are resized alike, their aspect kept
            and their centre cut out at `data.size`, in validation too. With `segmentation`, this is what counts.

    Raises:
        UserError: a set that is not there, has no masks where they are needed, or is configured impossibly.
    """
    whole = _whole(config, split, segmentation, layout)
    if split == "val" or config.share == 1:
        return whole
    return Part(whole, share_indices(len(whole), config.share, config.share_seed))


def _whole(config: DataConfig, split: Role, segmentation: bool, layout: bool) -> PictureDataset:
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
        raise UserError(f"data.size is not set, and the pictures of {config.name} differ in size: e.g. [64, 64]")
    name = config.train_split if split == "train" else config.val_split
    return _MASKED[config.name](config, name, masks, transform)
