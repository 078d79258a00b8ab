"""Images and masks in PASCAL VOC's layout: VOC itself and any folder of that layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetdiff.data.base import ImageDataset, classes_present, empty_palette
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import RGB, decode
from unetdiff.data.download import download_voc
from unetdiff.data.issues import BadFile, Issue, ambiguous_issue, size_issue, unreadable_issue, value_issue
from unetdiff.data.name_lists import distinct_names, read_names
from unetdiff.data.roots import dataset_root
from unetdiff.data.sampling import SampleKey
from unetdiff.data.transforms import IGNORE_INDEX, Transform
from unetdiff.data.voc_lists import ImageMaskPair, list_pairs
from unetdiff.data.voc_paths import AUGMENTED_SPLIT, SPLITS, VOC_FOLDER, VOC_SPLITS
from unetdiff.errors import FileError, UserError, config_error
from unetdiff.files.images import open_image
from unetdiff.files.writing import sha256_of

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
]  # fmt: skip


def voc_colormap(count: int = 256) -> NDArray[np.uint8]:
    """VOC's colors of the values 0..count-1, (count, 3), uint8 (VOClabelcolormap of the VOC development kit)."""
    value = np.arange(count)
    colors = np.zeros((count, 3), np.uint8)
    for i in range(8):
        for channel in range(3):
            colors[:, channel] |= (((value >> (3 * i + channel)) & 1) << (7 - i)).astype(np.uint8)
    return colors


class VOCFolder(ImageDataset):
    """A folder with `JPEGImages/ID.jpg`, `SegmentationClass/ID.png` and `ImageSets/Segmentation/SPLIT.txt`.

    Class names are the lines of `classes.txt` (value 0 first); without it, `num_classes` is their number. The palette
    is that of the first mask with one, else VOC's colors. Files are read on access.

    Args:
        root: the folder.
        split: name of the list in `ImageSets/Segmentation`.
        num_classes: number of classes, including background; None: the number of lines of `classes.txt`.
        segmentation: return masks, and the classes in them as "labels"; else images only.
        transform: resizing and augmentation.
        pairs, classes: used instead of reading the layout (VOC itself).
        image_range: see `unetdiff.data.decoding.to_uint8`.
        channels: of the images, see `unetdiff.data.decoding.with_channels`.

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
        pairs: list[ImageMaskPair] | None = None,
        classes: list[str] | None = None,
        image_range: list[float] | None = None,
        channels: int = RGB,
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.segmentation = segmentation
        self.transform: Transform = transform or Transform(None)
        self.image_range, self.channels = image_range, channels
        self.pairs = pairs if pairs is not None else list_pairs(self.root, split)
        if segmentation:
            palette = _first_palette(self.pairs)
            given = None if classes is None else distinct_names(classes, [f"classes[{i}]" for i in range(len(classes))])
            self.classes = given or class_names(self.root, num_classes, palette)
            count = len(self.classes)
            self.palette = palette[:count] if palette is not None and len(palette) >= count else voc_colormap(count)
        else:
            self.classes, self.palette = [], empty_palette()
        self.labels = list(self.classes)

    def __len__(self) -> int:
        return len(self.pairs)

    def sample_name(self, index: int) -> str:
        return self.pairs[index].name

    def mask(self, index: int) -> Tensor:
        pair = self.pairs[self.sample_index(index)]
        if pair.ambiguous:
            raise BadFile.from_issue(ambiguous_issue(pair.ambiguous))
        return read_mask(pair.mask, len(self.classes))  # without reading the image

    def without_image(self, key: int | SampleKey) -> dict[str, Any]:
        item: dict[str, Any] = {"name": self.sample_name(self.sample_index(key))}
        if self.segmentation:
            mask = self.mask(self.sample_index(key))
            _, resized = self.transform(mask[None], mask, key)  # an image of the mask's size
            item |= _targets(resized)
        return item

    def image_source(self, index: int) -> Path:
        return self.pairs[self.sample_index(index)].image

    def image_hash(self, index: int) -> str:
        pair = self.pairs[self.sample_index(index)]
        if pair.ambiguous:
            raise BadFile.from_issue(ambiguous_issue(pair.ambiguous))
        return sha256_of(pair.image)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        pair = self.pairs[self.sample_index(key)]
        if pair.ambiguous:
            raise BadFile.from_issue(ambiguous_issue(pair.ambiguous))
        image = decode(pair.image, image_range=self.image_range, channels=self.channels)
        mask = None
        if self.segmentation:
            mask = read_mask(pair.mask, len(self.classes))
            if mask.shape != image.shape[1:]:
                raise BadFile.from_issue(size_issue(pair.image, pair.mask, image.shape[1:], mask.shape))
        image, mask = self.transform(image, mask, key)
        return {"image": image, "name": pair.name, **_targets(mask)}


def _targets(mask: Tensor | None) -> dict[str, Any]:
    """The mask of an item and the classes in it (in its crop)."""
    return {} if mask is None else {"mask": mask, "labels": classes_present(mask)}


def voc_folder(config: DataConfig, split: str, masks: bool, transform: Transform) -> VOCFolder:
    """Any folder in VOC's layout."""
    pixels: dict[str, Any] = {"image_range": config.image_range, "channels": config.channels or RGB}
    return VOCFolder(dataset_root(config), split, config.num_classes, masks, transform, **pixels)


def voc(config: DataConfig, split: str, masks: bool, transform: Transform) -> VOCFolder:
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
    pairs = list_pairs(folder, split)
    return VOCFolder(folder, split, 21, masks, transform, pairs, list(VOC_CLASSES), config.image_range)


def class_names(root: Path, num_classes: int | None, palette: NDArray[np.uint8] | None) -> list[str]:
    """Names of the mask values: those in `classes.txt`; VOC's own for 21 classes in VOC's colors; else "class i"."""
    path = root / "classes.txt"
    if os.path.exists(path):
        names = read_names(path)
        if num_classes not in (None, len(names)):
            raise config_error("data.num_classes", num_classes, f"null or {len(names)}, as in {path}")
    elif num_classes is None:
        raise UserError(f"{path}: not found. Write one class name per line (value 0 first), or set data.num_classes.")
    elif num_classes == 21 and (palette is None or np.array_equal(palette[:21], voc_colormap(21))):
        names = list(VOC_CLASSES)
    else:
        names = [f"class {i}" for i in range(num_classes)]
    if not 2 <= len(names) <= IGNORE_INDEX:
        where = path if os.path.exists(path) else root
        raise UserError(f"{where}: must have 2 to {IGNORE_INDEX} classes (got {len(names)}); 255 is the ignore index.")
    return names


def read_mask(path: Path, num_classes: int) -> Tensor:
    """Class indices of a mask PNG, (H, W); BadFile for RGB or a value that is neither a class nor ignored."""
    values = read_indices(path)
    wrong = wrong_values(values, num_classes)
    if wrong:
        raise BadFile.from_issue(value_issue(path, wrong, num_classes))
    return torch.from_numpy(values)


def read_indices(path: Path) -> NDArray[np.uint8]:
    """The stored values of a one-channel PNG (palette, gray or one bit), (H, W), not its colors."""
    try:
        with open_image(path) as image:
            mode = image.mode
            values = np.array(image) if mode in ("P", "L", "1") else None
    except FileError as error:
        raise BadFile.from_issue(unreadable_issue(path, error)) from None
    if values is None:
        message = "mask is not a one-channel 8-bit PNG"
        remedy = "Map its colors to class indices and save it as an indexed (palette) or 8-bit gray PNG."
        raise BadFile.from_issue(Issue(str(path), message, f"mode {mode}", remedy))
    return values.astype(np.uint8)


def wrong_values(values: NDArray[np.uint8], num_classes: int) -> list[int]:
    """The values of a mask that are neither a class nor ignored, ascending."""
    values_present = np.flatnonzero(np.bincount(values.reshape(-1), minlength=256))
    return [int(value) for value in values_present if num_classes <= value != IGNORE_INDEX]


def _first_palette(pairs: list[ImageMaskPair]) -> NDArray[np.uint8] | None:
    """Colors of the first mask with a palette; None if there is none, or only a gray ramp."""
    for pair in pairs[:20]:
        try:
            with open_image(pair.mask) as image:
                colors = image.getpalette() if image.mode == "P" else None
        except FileError:
            continue
        if colors is None:
            return None
        palette = np.array(colors, np.uint8).reshape(-1, 3)
        ramp = np.repeat(np.arange(len(palette), dtype=np.uint8)[:, None], 3, axis=1)
        return None if np.array_equal(palette, ramp) else palette
    return None
