"""Images and masks in PASCAL VOC's layout: VOC itself (through torchvision) and any folder of that layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.datasets import VOCSegmentation

from unetdiff.data.base import ImageDataset, classes_present, empty_palette
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import decode
from unetdiff.data.download import download_voc
from unetdiff.data.issues import BadFile, Issue, size_issue, unreadable_issue, value_issue
from unetdiff.data.roots import dataset_root
from unetdiff.data.sampling import SampleKey
from unetdiff.data.transforms import IGNORE_INDEX, Transform
from unetdiff.data.voc_paths import AUGMENTED_MASKS, AUGMENTED_SPLIT, IMAGES, MASKS, SPLITS, VOC_FOLDER, VOC_SPLITS
from unetdiff.errors import UserError, config_error

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
]  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def voc_colormap(count: int = 256) -> NDArray[np.uint8]:
    """VOC's colors of the values 0..count-1, (count, 3), uint8 (VOClabelcolormap of the VOC development kit)."""
    value = np.arange(count)
    colors = np.zeros((count, 3), np.uint8)
    for i in range(8):
        for channel in range(3):
            colors[:, channel] |= (((value >> (3 * i + channel)) & 1) << (7 - i)).astype(np.uint8)
    return colors


@dataclass(frozen=True)
class ImageMaskPair:
    """Paths of the image and the mask of one id of a split, whether or not they exist."""

    name: str
    image: Path
    mask: Path


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
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.segmentation = segmentation
        self.transform = transform or Transform(None)
        self.pairs = pairs if pairs is not None else list_pairs(self.root, split)
        if segmentation:
            palette = _first_palette(self.pairs)
            self.classes = classes or class_names(self.root, num_classes, palette)
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
        return read_mask(self.pairs[self.sample_index(index)].mask, len(self.classes))  # without reading the image

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        pair = self.pairs[self.sample_index(key)]
        image = decode(pair.image)
        mask = None
        if self.segmentation:
            mask = read_mask(pair.mask, len(self.classes))
            if mask.shape != image.shape[1:]:
                raise BadFile.from_issue(size_issue(pair.image, pair.mask, image.shape[1:], mask.shape))
        image, mask = self.transform(image, mask, key)
        item: dict[str, Any] = {"image": image, "name": pair.name}
        if mask is not None:
            item["mask"] = mask
            item["labels"] = classes_present(mask)  # those in the crop
        return item


def voc_folder(config: DataConfig, split: str, masks: bool, transform: Transform) -> VOCFolder:
    """Any folder in VOC's layout."""
    return VOCFolder(dataset_root(config), split, config.num_classes, masks, transform)


def voc(config: DataConfig, split: str, masks: bool, transform: Transform) -> VOCFolder:
    """PASCAL VOC 2012 in `root`/VOCdevkit/VOC2012.

    VOC's own splits are read with torchvision's `VOCSegmentation`; `trainaug` is available once built.
    """
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
    if split == AUGMENTED_SPLIT and not (folder / SPLITS / f"{split}.txt").is_file():
        raise UserError(
            f"data.root={config.root}: the split '{split}' does not exist yet. Run `unetdiff data download sbd --root "
            f"{root}`."
        )
    if config.download and not folder.is_dir():
        download_voc(root)
    if split == AUGMENTED_SPLIT:
        pairs = list_pairs(folder, split)
    else:
        try:
            source = VOCSegmentation(root, year="2012", image_set=split)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"data.root={config.root}: must contain VOCdevkit/VOC2012 ({str(error).strip()}). Run `unetdiff data "
                f"download voc --root {root}` or set data.download=true; for a folder in VOC's layout, set "
                "data.name=voc_folder."
            ) from error
        pairs = [
            ImageMaskPair(Path(image).stem, Path(image), Path(mask))
            for image, mask in zip(source.images, source.masks, strict=True)
        ]
    return VOCFolder(folder, split, 21, masks, transform, pairs, list(VOC_CLASSES))


def list_pairs(root: Path, split: str) -> list[ImageMaskPair]:
    """Image and mask of each id of a split, in the list's order; missing files are reported on access.

    Masks are in `SegmentationClass`, else in `SegmentationClassAug` if that exists.
    """
    for folder in (IMAGES, MASKS, SPLITS):
        if not (root / folder).is_dir():
            raise config_error("data.root", root, f"a folder with {IMAGES}, {MASKS} and {SPLITS} (no {folder} found)")
    ids = [line.strip() for line in split_file(root, split).read_text(encoding="utf-8").splitlines()]
    ids = [name for name in ids if name]
    if not ids:
        raise UserError(f"{split_file(root, split)}: no ids found. Write one id per line.")
    images = root / IMAGES
    # One listing of the folder is faster than one check per file.
    by_stem = {
        Path(entry).stem: entry
        for entry in sorted(p.name for p in images.iterdir())
        if entry.lower().endswith(IMAGE_SUFFIXES)
    }
    masks, augmented = root / MASKS, root / AUGMENTED_MASKS
    mask_files = {path.name for path in masks.iterdir()}
    augmented_files = {path.name for path in augmented.iterdir()} if augmented.is_dir() else set()

    def mask(file: str) -> Path:
        use_augmented = file not in mask_files and (file in augmented_files or split == AUGMENTED_SPLIT)
        return (augmented if use_augmented else masks) / file

    return [ImageMaskPair(name, images / by_stem.get(name, f"{name}.jpg"), mask(f"{name}.png")) for name in ids]


def split_file(root: Path, split: str) -> Path:
    """The file with the ids of a split; UserError if it does not exist."""
    path = root / SPLITS / f"{split}.txt"
    if not path.is_file():
        splits = sorted(p.stem for p in (root / SPLITS).glob("*.txt"))
        raise UserError(f"{path}: not found. Available splits: {', '.join(splits) or 'none'}.")
    return path


def class_names(root: Path, num_classes: int | None, palette: NDArray[np.uint8] | None) -> list[str]:
    """Names of the mask values: those in `classes.txt`; VOC's own for 21 classes in VOC's colors; else "class i"."""
    path = root / "classes.txt"
    if path.is_file():
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if num_classes not in (None, len(names)):
            raise config_error("data.num_classes", num_classes, f"null or {len(names)}, as in {path}")
    elif num_classes is None:
        raise UserError(f"{path}: not found. Write one class name per line (value 0 first), or set data.num_classes.")
    elif num_classes == 21 and (palette is None or np.array_equal(palette[:21], voc_colormap(21))):
        names = list(VOC_CLASSES)
    else:
        names = [f"class {i}" for i in range(num_classes)]
    if not 2 <= len(names) <= IGNORE_INDEX:
        raise UserError(f"{root}: must have 2 to {IGNORE_INDEX} classes (got {len(names)}); 255 is the ignore index.")
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
        with Image.open(path) as image:
            mode = image.mode
            values = np.array(image) if mode in ("P", "L", "1") else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadFile.from_issue(unreadable_issue(path, error)) from error
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
            with Image.open(pair.mask) as image:
                colors = image.getpalette() if image.mode == "P" else None
        except (OSError, SyntaxError, ValueError):
            continue
        if colors is None:
            return None
        palette = np.array(colors, np.uint8).reshape(-1, 3)
        ramp = np.repeat(np.arange(len(palette), dtype=np.uint8)[:, None], 3, axis=1)
        return None if np.array_equal(palette, ramp) else palette
    return None
