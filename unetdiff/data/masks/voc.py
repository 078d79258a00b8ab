"""Images and masks in PASCAL VOC's layout: VOC itself and any folder of that layout."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from unetdiff.data.base import empty_palette
from unetdiff.data.config import DataConfig
from unetdiff.data.download import download_voc
from unetdiff.data.masks.classes import VOC_CLASSES, classes_of
from unetdiff.data.masks.dataset import MaskedImages
from unetdiff.data.masks.pairs import PairReader
from unetdiff.data.masks.voc_lists import list_pairs, split_file
from unetdiff.data.masks.voc_paths import AUGMENTED_SPLIT, SPLITS, VOC_FOLDER, VOC_SPLITS
from unetdiff.data.roots import dataset_root
from unetdiff.data.transforms import Transform
from unetdiff.errors import UserError, config_error


class VOCFolder(MaskedImages):
    """A folder with `JPEGImages/ID.jpg`, `SegmentationClass/ID.png` and `ImageSets/Segmentation/SPLIT.txt`.

    Class names are the lines of `classes.txt` (value 0 first); without it, `num_classes` is their number. The palette
    is that of the first mask with one, else VOC's colors. Files are read on access.

    Args:
        root: the folder.
        split: name of the list in `ImageSets/Segmentation`.
        num_classes: number of classes, including background; None: the number of lines of `classes.txt`.
        segmentation: return masks, and the classes in them as "labels"; else images only.
        transform: resizing and augmentation.
        classes: names of the classes, instead of those of `classes.txt`.

    Raises:
        UserError: a missing folder or split, an empty split, unknown or contradictory classes. On access to a sample: a
            missing or truncated file, a mask of another size, in RGB, or with a value that is not a class.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        num_classes: int | None = None,
        segmentation: bool = True,
        transform: Transform | None = None,
        classes: list[str] | None = None,
    ) -> None:
        config = DataConfig(name="voc_folder", root=str(root), num_classes=num_classes, class_names=classes)
        reader = layout_reader(Path(root), split, config, segmentation)
        super().__init__(reader, segmentation, transform)
        self.root, self.split, self.pairs = Path(root), split, reader.pairs


def layout_reader(root: Path, split: str, config: DataConfig, masks: bool) -> PairReader:
    """The reader of a split of a folder in VOC's layout."""
    pairs, place = list_pairs(root, split), str(split_file(root, split))
    if not masks:
        return PairReader(pairs, None, [], empty_palette(), place)
    return PairReader(pairs, *classes_of(config, root, [pair.mask for pair in pairs]), place)


def voc_folder(config: DataConfig, split: str, masks: bool) -> PairReader:
    """Any folder in VOC's layout."""
    return layout_reader(dataset_root(config), split, config, masks)


def voc(config: DataConfig, split: str, masks: bool) -> PairReader:
    """PASCAL VOC 2012 in `root`/VOCdevkit/VOC2012: VOC's own splits, and `trainaug` once it is built."""
    root = dataset_root(config)
    folder = root / VOC_FOLDER
    if config.num_classes not in (None, len(VOC_CLASSES)):
        raise config_error("data.num_classes", config.num_classes, "null with data.name=voc, which has 21 classes")
    if split not in (*VOC_SPLITS, AUGMENTED_SPLIT):
        splits = ", ".join((*VOC_SPLITS, AUGMENTED_SPLIT))
        raise UserError(
            f"data.root={config.root}: the split must be one of {splits} (got {split}). For your own lists, set "
            f"data.name=voc_folder, data.root={folder} and data.num_classes=21."
        )
    if split == AUGMENTED_SPLIT and not os.path.isfile(folder / SPLITS / f"{split}.txt"):
        raise UserError(
            f"data.root={config.root}: the split '{split}' does not exist yet. Run `unetdiff data download sbd --root "
            f"{root}`."
        )
    if config.download and not os.path.isdir(folder):
        download_voc(root)
    if not os.path.isdir(folder):
        raise UserError(
            f"data.root={config.root}: must contain {VOC_FOLDER.as_posix()}. Run `unetdiff data download voc --root "
            f"{root}` or set data.download=true; for a folder in VOC's layout, set data.name=voc_folder."
        )
    return layout_reader(folder, split, replace(config, class_names=list(VOC_CLASSES)), masks)
