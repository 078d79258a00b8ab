"""Datasets that are folders of images and masks with known names: Cityscapes and ADE20K."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torchvision.datasets import Cityscapes

from unetdiff.data.config import DataConfig
from unetdiff.data.masks.folders import folders
from unetdiff.data.masks.pairs import PairReader
from unetdiff.data.masks.splits import Role
from unetdiff.data.masks.value_ranges import ELSE, IGNORE
from unetdiff.data.roots import dataset_root
from unetdiff.errors import config_error
from unetdiff.files.texts import read_lines

ADE20K_CLASSES = 150


def cityscapes(config: DataConfig, role: Role, masks: bool) -> PairReader:
    """Cityscapes' fine annotations: leftImg8bit/ and gtFine/ in `data.root`, the 19 classes that are evaluated.

    The masks are `*_gtFine_labelIds.png`; names, indices and colors are those of torchvision.
    """
    root = dataset_root(config)
    for folder in ("leftImg8bit", "gtFine"):
        if not (root / folder).is_dir():
            raise config_error("data.root", config.root, f"a folder with leftImg8bit and gtFine (no {folder} found)")
    classes = sorted((one for one in Cityscapes.classes if 0 <= one.train_id < 19), key=lambda one: one.train_id)
    preset = replace(
        config,
        images="leftImg8bit/**/*_leftImg8bit.png",
        masks="gtFine/**/*_gtFine_labelIds.png",
        mask_values={ELSE: IGNORE, **{one.id: one.train_id for one in classes}},
        class_names=[one.name for one in classes],
    )
    reader = folders(preset, role, masks)
    if masks:
        reader.palette = np.array([one.color for one in classes], np.uint8)
    return reader


def ade20k(config: DataConfig, role: Role, masks: bool) -> PairReader:
    """ADE20K of the scene parsing challenge: images/ and annotations/ in `data.root` or its ADEChallengeData2016/.

    The masks have 1 to 150, and 0 for other objects, which are ignored. Names are those of objectInfo150.txt.
    """
    root = dataset_root(config)
    root = root / "ADEChallengeData2016" if (root / "ADEChallengeData2016").is_dir() else root
    for folder in ("images", "annotations"):
        if not (root / folder).is_dir():
            raise config_error("data.root", config.root, f"a folder with images and annotations (no {folder} found)")
    names, info = [f"class {i}" for i in range(ADE20K_CLASSES)], root / "objectInfo150.txt"
    if info.is_file():
        rows = [line.split("\t") for line in read_lines(info) if line[:1].isdigit()]
        listed = [row[-1].split(",")[0].strip() for row in rows]
        names = [name if listed.count(name) == 1 else f"{name} {i}" for i, name in enumerate(listed, start=1)]
        if len(names) != ADE20K_CLASSES:
            raise config_error("data.root", config.root, f"a folder with 150 classes in {info.name} (got {len(names)})")
    values: dict[int | str, int | str] = {0: IGNORE, **{i + 1: i for i in range(ADE20K_CLASSES)}}
    preset = replace(
        config, root=str(root), images="images", masks="annotations", mask_values=values, class_names=names
    )
    return folders(preset, role, masks)
